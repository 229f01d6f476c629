"""The frame of every training step: it uses all GPUs of its pod, reuses finished outputs, and resumes after a kill.

If a step needs several processes, torchrun starts each of them as `python -m components.core.processes JOB`, and each runs the
step's `main`.
"""

from __future__ import annotations

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
from typing import Any, Generic, TypeVar

import torch

from components.core import progress
from components.core.config import ComputeConfig, RunConfig, parse
from components.core.errors import NO_ROOM, InputError, StepError, failure_kind
from components.core.files import write_atomically
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.device import arithmetic, pick_device
from components.core.learning.step_settings import LearningSettings, library_versions
from components.core.learning.team import Team, is_started_by_torchrun, joined
from components.core.processes import dies_with_parent, stop
from components.core.storage.finished import EMBEDDINGS, Sphering, run_once, work_key
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned
from components.core.storage.runs import record_task
from components.core.storage.task_status import report_status

ERRORS_VARIABLE = "CELLSIGNAL_TEAM_ERRORS"
"""Folder in which a process of a team saves the error that ended it."""
_STOP_SECONDS = 10.0
Work = Callable[[Mapping[str, Path], Checkpoints], None]
S = TypeVar("S", bound=LearningSettings)


@dataclass(frozen=True)
class TrainingStep(Generic[S]):
    """One process of a training step."""

    name: str
    labels: Mapping[str, Any]  # distinguish tasks of the same step: fold, cell_type, backbone
    settings: S  # the sections of the configuration that the step reads
    team: Team  # the processes that share the step
    screen: Manifest  # the manifest that the step reads
    store: ObjectStore  # the screen's store, which keeps finished outputs and checkpoints too

    def run_once(
        self,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        work: Work,
        *,
        holdout: Manifest | None = None,
        learned: Learned | None = None,
        sphering: Sphering | None = None,
    ) -> None:
        """Puts the step's outputs at their paths: copied from the store if finished before, else computed.

        Computing resumes from the last checkpoint if there is one. The task is recorded under the screen's run.

        Args:
            inputs: everything that the outputs depend on besides labels, libraries and arithmetic, as text by name.
            outputs: path of each output, by name.
            work: writes the outputs to its paths; saves to the checkpoints.
            holdout: manifest of the held-out plates, if the step predicts.
            learned: labels that the weights have learned, if they may start another run.
            sphering: of the finished embeddings, which are kept besides; None for none.
        """
        key_inputs = {
            **inputs,
            **{name: str(value) for name, value in self.labels.items()},
            "libraries": library_versions(),
            "arithmetic": arithmetic(self.settings.compute, pick_device(), self.team.size),
        }
        work_prefix = f"{self.name}/{work_key(self.name, key_inputs, outputs)}"
        saved = f"checkpoints/{work_prefix}/latest.pt"
        if not self.team.leads:
            if self.team.agreed(False):
                with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                    work(
                        {name: Path(folder) / name for name in outputs}, Checkpoints(self.store, saved, team=self.team)
                    )
            return
        worked = False

        def lead(paths: Mapping[str, Path]) -> None:
            nonlocal worked
            worked = self.team.agreed(True)
            checkpoints = Checkpoints(self.store, saved, self.settings.compute.checkpoint_seconds, self.team)
            try:
                work(paths, checkpoints)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise StepError(
                    f"{error.filename or self.name}: cannot be written ({error.strerror}); make room and run again to resume "
                    "from the last checkpoint"
                ) from None
            finally:
                checkpoints.close()

        paths = {name: Path(path) for name, path in outputs.items()}
        prefix = run_once(self.store, self.name, key_inputs, paths, lead)
        fields = {**self.labels, "learned": learned or Learned()}
        if sphering is not None:
            own = {EMBEDDINGS: paths[EMBEDDINGS]}
            work_of = {**key_inputs, **sphering.inputs}
            fields["sphered"] = run_once(
                self.store, self.name, work_of, own, lambda out: sphering.work(own[EMBEDDINGS], out[EMBEDDINGS])
            )
        record_task(self.store, self.screen, prefix, self.name, holdout=holdout, **fields)
        if not worked:
            self.team.agreed(False)
        try:
            self.store.delete(saved)
        except (InputError, StepError) as error:
            progress.warn(f"the checkpoint of finished work stays in the store ({error})")


@contextmanager
def training_step(name: str, kind: type[S], arguments: Mapping[str, Any]) -> Iterator[TrainingStep[S] | None]:
    """One process of a step in its team, with the screen's manifest and store open; only the leader reports progress.

    Yields None if `compute.processes` asked for several processes: they have run the step by then.

    Args:
        name: the step's name.
        kind: the sections of the configuration that it reads.
        arguments: those of its `main`, plain data: `screen`, the path of the manifest that normalize wrote; `config`, RunConfig as
            JSON or empty for the manifest's; as far as it has them fold, cell_type and backbone, which label the task.

    Raises:
        InputError: no valid configuration, one of the processes found bad input, or there are fewer GPUs than processes.
        StepError: one of the processes failed.
    """
    labels = {label: arguments[label] for label in ("fold", "cell_type", "backbone") if label in arguments}
    given, manifest = arguments["config"], None
    try:
        manifest = Manifest.read(Path(arguments["screen"]))
        config = parse(RunConfig, json.loads(given), source="config") if given else manifest.run_config()
    except Exception:
        with _task(name, labels, manifest):  # which reports it
            raise
    settings = config.section(kind)
    started, error = _start_processes(name, settings.compute, arguments)
    if error:
        with _task(name, labels, manifest):  # the leader, which reports, is gone or failed as a consequence
            raise error
    if started:
        yield None
        return
    # An error is saved before the team is taken down, because the other processes then fail too.
    with joined() as team, _saved_errors():
        if not team.leads:
            progress.silence()
        with _task(name, labels, manifest):
            yield TrainingStep(name, labels, settings, team, manifest, ObjectStore(manifest.store))


@contextmanager
def _task(name: str, labels: Mapping[str, Any], manifest: Manifest | None) -> Iterator[None]:
    """The step as a task that reports its status under the run of its manifest, unless that cannot be read."""
    with progress.task(name, **labels):
        if manifest:
            report_status(manifest.store, manifest.run)
        yield


def _start_processes(
    step: str, compute: ComputeConfig, arguments: Mapping[str, Any]
) -> tuple[bool, InputError | StepError | None]:
    """Runs a step's main in several processes if the configuration has several and this is not one of them.

    Returns whether it did, and an error that is not reported yet; raises one that the leader has reported.
    """
    gpus = torch.cuda.device_count()
    processes = compute.processes or max(1, gpus)
    if is_started_by_torchrun() or processes == 1:
        return False, None
    if gpus and processes > gpus:
        advice = "lower it, or set 0 for all of them"
        return False, InputError(f"compute.processes is {processes}, but there are {gpus} GPUs; {advice}")
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        job = Path(folder) / "arguments.json"
        job.write_text(json.dumps({"step": step, "arguments": dict(arguments)}), encoding="utf-8")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "components.core.processes", str(job)],
            env={**os.environ, ERRORS_VARIABLE: folder, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            stdin=subprocess.DEVNULL,
            preexec_fn=dies_with_parent(signal.SIGTERM),
        )
        try:
            code = process.wait()
        finally:
            stop(process, _STOP_SECONDS)  # torchrun ends its processes
        return True, _first_error(Path(folder), step, code) if code else None


def _first_error(folder: Path, step: str, code: int) -> InputError | StepError:
    """The error of the process that failed first; the others fail as a consequence. Raises it if that was the leader."""
    found = [
        (not error["known"], file.stat().st_mtime_ns, error)
        for file in sorted(folder.glob("error-*.json"))
        for error in [json.loads(file.read_text(encoding="utf-8"))]
    ]
    if not found:
        return StepError(f"{step}: a process was killed (code {code}), perhaps for lack of memory; run again to resume")
    _, _, first = min(found, key=lambda each: each[:2])
    error = (InputError if first["kind"] == "input" else StepError)(first["message"])
    if all(each["rank"] or each["message"] != first["message"] for _, _, each in found):
        return error
    raise error


@contextmanager
def _saved_errors() -> Iterator[None]:
    """Saves an error of this process for the process that started it."""
    folder = os.environ.get(ERRORS_VARIABLE)
    try:
        yield
    except BaseException as error:
        if folder and is_started_by_torchrun():
            known = isinstance(error, InputError | StepError)
            found = {
                "rank": int(os.environ["RANK"]),
                "known": known,
                "kind": failure_kind(error),
                "message": str(error) if known else " ".join(f"{type(error).__name__}: {error}".split()),
            }
            write_atomically(Path(folder, f"error-{os.environ['RANK']}.json"), json.dumps(found))
        raise
