"""The process in which kfp.local runs one pipeline. Imports kfp, never torch.

One pipeline a process: kfp.local leaves a patched `print` behind after every ParallelFor, so that a second pipeline in
the same process would log everything twice.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

from components.core.config import RunConfig, parse
from components.core.processes import end_with_parent


def main(job: Path) -> int:
    """Runs the training pipeline that a job file describes; returns the process's exit code."""
    # And its tasks with it.
    end_with_parent(end=lambda: os.killpg(os.getpgid(0), signal.SIGTERM))
    from kfp import local

    from pipelines.training import build_training

    # kfp warns of every image whose name does not hold the word python, though a subprocess needs no image.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    what = json.loads(job.read_text(encoding="utf-8"))
    config = parse(RunConfig, what["config"], source=str(job))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=what["pipeline_root"], enable_caching=False)
    try:
        build_training(config)(source=what["source"], truth=what["truth"], lineage=json.dumps(what["lineage"]))
    except RuntimeError as error:
        print(f"pipeline failed: {error}", file=sys.stderr)  # noqa: T201
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
