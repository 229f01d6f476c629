"""What every training step does around its work: all GPUs of the pod at it, nothing done twice, nothing lost when killed.

A step's `main` asks `start_processes` first; where that started others, they run the same `main` and this process is done.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.core import progress
from components.core.config import ComputeConfig, parse
from components.core.errors import InputError, StepError
from components.core.files import write_atomically
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.network import arithmetic, pick_device
from components.core.learning.step_settings import library_versions
from components.core.learning.team import Team, is_started_by_torchrun, joined
from components.core.processes import dies_with_parent, stop
from components.core.storage.checkpoint_place import CheckpointPlace
from components.core.storage.finished import run_once, work_key
from components.core.storage.interface import ObjectStorage

ERRORS_VARIABLE = "CELLSIGNAL_TEAM_ERRORS"
"""Folder in which a process of a team leaves the error that ended it."""
_STOP_SECONDS = 10.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Work = Callable[[Mapping[str, Path], Checkpoints], None]


@dataclass(frozen=True)
class TrainingStep:
    """One process of a training step.

    Attributes:
        team: the processes that share it.
        compute: how it uses its machine.
    """

    team: Team
    compute: ComputeConfig

    def run_once(
        self,
        store: ObjectStorage,
        step: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, Path],
        work: Work,
        finished: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Brings a step's outputs to their paths: from the store, or by working, from the last checkpoint if there is one.

        Args:
            store: where finished outputs and checkpoints are kept.
            step: the step's name.
            inputs: everything the outputs depend on but libraries and arithmetic, as text by name.
            outputs: where each output goes, by name.
            work: writes the outputs to the paths it is given; saves to the checkpoints.
            finished: hears where the store keeps the outputs.
        """
        decisive = {
            **inputs,
            "libraries": library_versions(),
            "arithmetic": arithmetic(self.compute, pick_device(), self.team.size),
        }
        place = CheckpointPlace(store, step, work_key(step, decisive, outputs))
        if not self.team.leads:
            if self.team.agreed(False):
                with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                    work({name: Path(folder) / name for name in outputs}, Checkpoints(place, team=self.team))
            return
        worked = False

        def lead(paths: Mapping[str, Path]) -> None:
            nonlocal worked
            worked = self.team.agreed(True)
            checkpoints = Checkpoints(place, self.compute.checkpoint_seconds, self.team)
            try:
                work(paths, checkpoints)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                raise StepError(
                    f"{error.filename or step}: cannot be written ({error.strerror}); make room and run again to go on from "
                    "the last checkpoint"
                ) from None
            finally:
                checkpoints.close()

        run_once(store, step, decisive, outputs, lead, finished)
        if not worked:
            self.team.agreed(False)
        try:
            place.clear()
        except (InputError, StepError) as error:
            progress.warn(f"the checkpoint of finished work stays in the store ({error})")


@contextmanager
def training_step(compute: ComputeConfig, step: str, **labels: Any) -> Iterator[TrainingStep]:
    """One process of a step, in its team; only the leader speaks.

    Args:
        compute: how the step uses its machine.
        step: its name.
        **labels: what tells tasks of the same step apart.
    """
    # The error is left before the team comes apart, whose other members then fail too.
    with joined() as team, _left_errors():
        if not team.leads:
            progress.silence()
        with progress.task(step, **labels):
            yield TrainingStep(team, compute)


def start_processes(step: str, config: str, arguments: Mapping[str, Any], module: str = "step") -> bool:
    """Runs a step in several processes, where it wants several and this is none of them yet.

    Args:
        step: its name; `components.STEP.MODULE.main` runs in each.
        config: its settings as JSON.
        arguments: of its main, plain.
        module: where that is.

    Returns:
        Whether it did, so that nothing is left to do.

    Raises:
        InputError: one of the processes found bad input, or there are fewer GPUs than processes.
        StepError: one of them failed.
    """
    if is_started_by_torchrun():
        return False
    compute = parse(ComputeConfig, json.loads(config).get("compute", {}), "compute")
    gpus = torch.cuda.device_count()
    processes = compute.processes or max(1, gpus)
    if processes == 1:
        return False
    if gpus and processes > gpus:
        raise InputError(
            f"compute.processes is {processes}, but there are {gpus} GPUs; lower it, or set 0 for all of them"
        )
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        job = Path(folder) / "arguments.json"
        job.write_text(json.dumps({"step": step, "module": module, "arguments": dict(arguments)}), encoding="utf-8")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "components.core.training_process", str(job)],
            env={**os.environ, ERRORS_VARIABLE: folder, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            stdin=subprocess.DEVNULL,
            preexec_fn=dies_with_parent(signal.SIGTERM),
        )
        try:
            code = process.wait()
        finally:
            stop(process, _STOP_SECONDS)  # and with torchrun its processes
        if code:
            raise _error(Path(folder), step, code)
    return True


def _error(folder: Path, step: str, code: int) -> Exception:
    """The error of the process that failed first; those of the others follow from it, and are none of ours."""
    found = [
        (not told["known"], file.stat().st_mtime_ns, told)
        for file in sorted(folder.glob("error-*.json"))
        for told in [json.loads(file.read_text(encoding="utf-8"))]
    ]
    if not found:
        message = (
            f"{step}: a process was ended from outside (code {code}), perhaps for lack of memory; run again to go on"
        )
        progress.emit("failed", kind="step", message=message, step=step)
        return StepError(message)
    _, _, first = min(found, key=lambda each: each[:2])
    if first["rank"]:  # the leader has told its own
        progress.emit("failed", kind=first["kind"], message=first["message"], **first["labels"])
    return (InputError if first["kind"] == "input" else StepError)(first["message"])


@contextmanager
def _left_errors() -> Iterator[None]:
    """Leaves the error of this process for the one that started it."""
    folder = os.environ.get(ERRORS_VARIABLE)
    try:
        yield
    except BaseException as error:
        if folder and is_started_by_torchrun():
            known = isinstance(error, InputError | StepError)
            found = {
                "rank": int(os.environ["RANK"]),
                "known": known,
                "kind": "input" if isinstance(error, InputError) else "step",
                "message": str(error) if known else " ".join(f"{type(error).__name__}: {error}".split()),
                "labels": progress.labels(),
            }
            write_atomically(Path(folder, f"error-{os.environ['RANK']}.json"), json.dumps(found))
        raise
