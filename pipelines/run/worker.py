"""The process in which kfp.local runs one pipeline. Imports kfp, never torch.

One pipeline a process: kfp.local leaves a patched `print` behind after every ParallelFor, so that a second pipeline in
the same process would log everything twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from components.core.config import RunConfig, parse
from components.core.errors import InputError
from components.core.processes import end_with_parent
from pipelines.dag import prediction_graph, training_graph


def main(job: Path) -> int:
    """Runs the pipeline that a job file describes, of a training run or a prediction; returns the process's exit code."""
    what = json.loads(job.read_text(encoding="utf-8"))
    # And its tasks with it.
    end_with_parent(end=lambda: _end(what))
    from kfp import local

    # kfp warns of every image whose name does not hold the word python, though a subprocess needs no image.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    config = parse(RunConfig, what["config"], source=str(job))
    runner: local.SubprocessRunner | local.DockerRunner = local.SubprocessRunner(use_venv=False)
    if what["containers"]:
        from pipelines.run.container_tasks import docker_runner

        runner = docker_runner(what["containers"])
    local.init(runner=runner, pipeline_root=what["pipeline_root"], enable_caching=False)
    try:
        _run(what, config)
    except RuntimeError as error:
        print(f"pipeline failed: {error}", file=sys.stderr)  # noqa: T201
        return 3
    return 0


def _run(what: dict[str, Any], config: RunConfig) -> None:
    from pipelines.kfp_pipeline import local_pipeline

    arguments = {"source": what["source"], "fingerprint": "", "truth": what["truth"]}
    arguments["lineage"] = json.dumps(what["lineage"])
    prediction = what["prediction"]
    if prediction is None:
        local_pipeline(config, training_graph(config))(**arguments)
    else:
        graph = prediction_graph(prediction["folds"])
        local_pipeline(config, graph, predicts=True)(**arguments, **prediction["parameters"])


def _end(what: dict[str, Any]) -> None:
    if what["containers"]:
        from pipelines.images.engine import connect
        from pipelines.run.containers import remove_containers

        # They are children of the engine, not of this process; the signal that ends it comes after them.
        with contextlib.suppress(InputError):
            remove_containers(connect(), what["containers"]["work"])
    os.killpg(os.getpgid(0), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
