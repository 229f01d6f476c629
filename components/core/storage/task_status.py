"""What the tasks of a run report about themselves: one small object per attempt at a task, under the run in the object store.

runs/<run>/status/<task>/<attempt>.json   written when the attempt starts, every INTERVAL while it works, and when it ends

Its last write shows that an attempt is alive: one that is killed reports nothing more. Kubeflow's own records of tasks are not
used: its API stops updating them in large runs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, Field, ValidationError

from components.core import progress
from components.core.config import FrozenModel
from components.core.errors import InputError, StepError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import STATUS, run_file, task_name

INTERVAL = 15.0
"""Seconds between two reports of a working attempt."""
SILENCE = 120.0
"""Seconds without a report after which an attempt counts as lost."""
NODE_VARIABLE, POD_VARIABLE = "CELLSIGNAL_NODE", "KFP_POD_NAME"
"""Environment variables with the names of the node and, set by Kubeflow, of the pod."""


class TaskStatus(FrozenModel):
    """One attempt at a task."""

    step: str
    fold: int | None = None
    cell_type: str | None = None
    backbone: str | None = None
    state: Literal["running", "finished", "failed"] = "running"
    started: AwareDatetime = Field(description="time, by the clock of the attempt's machine")
    updated: AwareDatetime = Field(description="time of this report, by the same clock")
    node: str = Field(description="the machine")
    pod: str = Field("", description="the pod; empty outside of Kubernetes")
    what: str = Field("", description="unit of its progress: epochs, plates, wells or sites; empty before the first")
    done: int = Field(0, description="units done")
    total: int = Field(0, description="units in all")
    kind: Literal["input", "step", ""] = Field(
        "", description="of a failure; input: a second attempt would fail as well"
    )
    message: str = Field("", description="of a failure, one line: the file, well or field, and what to do")

    @property
    def task(self) -> str:
        """The task's name."""
        return task_name(*self.identity)

    @property
    def identity(self) -> tuple[str, int | None, str | None, str | None]:
        """Step, fold, cell type and backbone."""
        return self.step, self.fold, self.cell_type, self.backbone

    @property
    def seconds(self) -> float:
        """How long the attempt has worked."""
        return (self.updated - self.started).total_seconds()

    @property
    def progress(self) -> str:
        """Progress for people: `3 of 40 epochs`; empty before the first."""
        return f"{self.done} of {self.total} {self.what}" if self.what else ""


def report_status(address: str, run: str) -> None:
    """Reports the current task under a run, in the store at an address, until it ends; does nothing without a run or a task."""
    labels = progress.labels()
    if run and labels and not progress.is_silent():
        progress.listen(StatusReporter(address, run, labels))


class StatusReporter:
    """Writes the status of one attempt, in a thread: a store that does not answer delays at most the end of the task."""

    def __init__(
        self, address: str, run: str, labels: Mapping[str, Any], environment: Mapping[str, str] = os.environ
    ) -> None:
        """Starts to report; `labels` are the step and what distinguishes its tasks."""
        now = datetime.now(UTC)
        own = {name: labels[name] for name in ("step", "fold", "cell_type", "backbone") if name in labels}
        pod, node = environment.get(POD_VARIABLE, ""), environment.get(NODE_VARIABLE) or socket.gethostname()
        self._status = TaskStatus(**own, started=now, updated=now, node=node, pod=pod)
        folder = self._status.task.replace(" ", "-").replace("/", "-")
        self._key = run_file(run, f"{STATUS}/{folder}/{uuid.uuid4().hex}.json")
        self._address = address
        self._store: ObjectStore | None = None
        self._ended, self._warned = threading.Event(), False
        self._thread = threading.Thread(target=self._report, name="status", daemon=True)
        self._thread.start()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Takes in an event of the task; the last one, `finish` or `failed`, is reported before this returns."""
        match event["event"]:
            case "advance":
                self._update(what=event["what"], done=event["done"], total=event["total"])
            case "epoch":
                one_of_several = "" if self._status.backbone else f" of {event['backbone']}"
                self._update(what=f"epochs{one_of_several}", done=event["epoch"], total=event["epochs"])
            case "finish":
                self._end(state="finished")
            case "failed":
                self._end(state="failed", kind=event["kind"], message=event["message"])

    def _update(self, **changes: Any) -> None:
        self._status = self._status.model_copy(update=changes)

    def _end(self, **changes: Any) -> None:
        self.stop()
        self._update(**changes)
        self._write()

    def stop(self) -> None:
        """Ends reporting, as a kill does: the attempt stays `running` in the store."""
        self._ended.set()
        self._thread.join()

    def _report(self) -> None:
        while True:
            self._write()
            if self._ended.wait(INTERVAL):
                return

    def _write(self) -> None:
        status = self._status.model_copy(update={"updated": datetime.now(UTC)})
        try:
            self._store = self._store or ObjectStore(self._address)
            self._store.put(self._key, status.model_dump_json(exclude_defaults=True).encode())
        except (InputError, StepError) as error:
            if not self._warned:
                progress.warn(f"the status of this task cannot be written to the store ({error})")
            self._warned = True


class Attempt(NamedTuple):
    """A reported attempt: its status, and the seconds since its last report."""

    status: TaskStatus
    silence: float

    @property
    def alive(self) -> bool:
        """Whether it is running, as far as it has reported lately."""
        return self.status.state == "running" and self.silence < SILENCE


@dataclass
class StatusReader:
    """Reads the attempts of a run; again, it reads only what has changed since."""

    store: ObjectStore
    run: str
    # By key: version, status, and time of its report.
    _known: dict[str, tuple[str, TaskStatus, float]] = field(default_factory=dict)
    _read: float | None = None  # time of the last read

    def read(self) -> list[Attempt]:
        """All attempts at the run's tasks, the oldest first; objects that are no status are left out."""
        listed = [*self.store.scan(run_file(self.run, f"{STATUS}/"))]
        now = time.monotonic()
        # While the store does not answer, tasks cannot report either.
        first, since = self._read is None, now - (self._read or now)
        unread = since if since > SILENCE / 2 else 0.0
        self._read, changed = now, {}
        self._known = {key: (version, status, at + unread) for key, (version, status, at) in self._known.items()}
        for found in listed:
            version = f"{found.version} {found.modified} {found.size}"
            if found.key not in self._known or self._known[found.key][0] != version:
                # What changes between two reads is timed by this process's clock alone, whatever the server's is.
                age = (datetime.now(UTC) - found.modified).total_seconds() if first else 0.0
                changed[found.key] = version, now - max(0.0, age)
        for key, content in self.store.get_present(list(changed)).items():
            with suppress(ValidationError):
                version, at = changed[key]
                self._known[key] = version, TaskStatus.model_validate_json(content), at
        attempts = [Attempt(status, now - at) for _, status, at in self._known.values()]
        attempts.sort(key=lambda attempt: attempt.status.started)
        # With several GPUs, the process that starts the others reports for a leader that was killed: the same attempt.
        return [*{(each.status.identity, each.status.pod or n): each for n, each in enumerate(attempts)}.values()]


def finished_steps(store: ObjectStore, run: str) -> list[dict[str, Any]]:
    """The tasks of a run that have finished, in the order of their end: step, labels and seconds.

    Of several attempts that finished, the longest counts: the others copied its outputs.
    """
    longest: dict[Any, TaskStatus] = {}
    for status, _ in StatusReader(store, run).read():
        known = longest.get(status.identity)
        if status.state == "finished" and (known is None or status.seconds > known.seconds):
            longest[status.identity] = status
    names = {"step", "fold", "cell_type", "backbone"}
    return [
        {**each.model_dump(include=names, exclude_none=True), "seconds": round(each.seconds, 3)}
        for each in sorted(longest.values(), key=lambda each: each.updated)
    ]
