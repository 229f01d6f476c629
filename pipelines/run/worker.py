"""The process in which kfp.local runs one pipeline: `follow` starts and watches it, `main` is the process. Never imports torch.

One pipeline per process: kfp.local leaves a patched `print` behind after every ParallelFor, so that a second pipeline in
the same process would log everything twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from components.core.config import parse
from components.core.errors import InputError, StepError
from components.core.processes import end_with_parent
from pipelines.run.display import TaskDisplay, event_name
from pipelines.run.folder import LocalRun, RunFolder

STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
RESUME = "run the same command again to resume from the finished steps"


def follow(
    arguments: list[str], environment: Mapping[str, str], events: TextIO, display: TaskDisplay, log: Any
) -> None:
    """Runs a Python process in a session of its own, shows its events, and explains its failure.

    Args:
        arguments: the interpreter's arguments.
        environment: all variables of the process.
        events: the events file, which the process and its tasks append to.
        display: shows the events.
        log: gets what the process prints.

    Raises:
        InputError: a task found bad input.
        StepError: a task failed.
    """
    failed: list[dict[str, Any]] = []
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while True:
            ended = process.poll() is not None
            failed += [event for event in display.read(events) if event["event"] == "failed"]
            if ended:
                break
            time.sleep(POLL_SECONDS)
    finally:
        _end_session(process)
    if process.returncode == 0 and not failed:
        return
    log.flush()
    for event in failed:
        if event["kind"] == "input":
            raise InputError(event["message"])
    details = f"(details in {log.name}); {RESUME}"
    for event in failed:
        raise StepError(f"{event_name(event)} failed: {event['message']} {details}")
    silent = " or ".join(task.name for task in display.running.values())
    if silent:
        raise StepError(f"{silent} was killed, perhaps for lack of memory {details}")
    raise StepError(f"the run ended with code {process.returncode} {details}")


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all it started: SIGTERM to its group, SIGKILL after a while."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            break
    process.wait()


def main(out: Path, parent: int) -> int:
    """Runs the pipeline of the run in a folder, but not without the parent process; returns the exit code."""
    folder = RunFolder(out)
    run = parse(LocalRun, json.loads(folder.run.read_text(encoding="utf-8")), source=str(folder.run))
    end_with_parent(parent, end=lambda: _end_tasks(run, folder))
    from kfp import local

    from pipelines.kfp_pipeline import local_pipeline

    # kfp warns of every image whose name lacks the word python, though a subprocess needs no image.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    runner: local.SubprocessRunner | local.DockerRunner = local.SubprocessRunner(use_venv=False)
    if run.containers:
        from pipelines.run.containers import docker_runner

        runner = docker_runner(run, folder)
    local.init(runner=runner, pipeline_root=str(folder.artifacts), enable_caching=False)
    arguments = run.prediction.parameters() if run.prediction else {}
    arguments |= {"source": folder.source(run.screen), "fingerprint": "", "truth": str(folder.truth(run) or "")}
    try:
        local_pipeline(run.config, run.graph)(**arguments, lineage=json.dumps(run.lineage))
    except RuntimeError as error:
        print(f"pipeline failed: {error}", file=sys.stderr)  # noqa: T201
        return 3
    return 0


def _end_tasks(run: LocalRun, folder: RunFolder) -> None:
    if run.containers:
        from pipelines.images.engine import connect
        from pipelines.run.containers import remove_containers

        # Containers are children of the engine; the signal to this process group does not reach them.
        with contextlib.suppress(InputError):
            remove_containers(connect(), folder.work)
    os.killpg(os.getpgid(0), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
