"""How a run ended, in the object store under its key, for processes that wait for it on another machine.

runs/KEY/results/FILE    the report's files: pods keep nothing, KFP's outputs need its credentials, models include the scores
runs/KEY/failed/ID.json  a failed task: KFP reports the state of a task, but not its message
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from components.core import progress
from components.core.config import FrozenModel
from components.core.errors import InputError, StepError
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.opening import open_store
from components.core.storage.runs import RUNS

RESULTS, FAILED = "results", "failed"


class FailureRecord(FrozenModel):
    """A task that failed."""

    step: str
    fold: int | None = None
    cell_type: str | None = None
    backbone: str | None = None
    kind: Literal["input", "step"] = Field(description="input: a second attempt would fail as well")
    message: str = Field(description="one line: the file, well or field, and what to do")
    at: AwareDatetime = Field(description="when, by the pod's clock")

    @property
    def task(self) -> str:
        """The task's name in messages."""
        fold = None if self.fold is None else f"fold {self.fold}"
        return " ".join(part for part in (self.step, fold, self.cell_type, self.backbone) if part)


def report_failures(address: str, run: str) -> None:
    """Records a failure of the current task under its run; does nothing without a run (a step started by hand).

    Args:
        address: the store of the run's plates, as in manifests.
        run: the run's key; may be empty.
    """
    if not run:
        return

    def record_failure(failure: dict[str, Any]) -> None:
        names = FailureRecord.model_fields.keys() & failure.keys()
        record = FailureRecord(**{name: failure[name] for name in names}, at=datetime.now(UTC))
        try:
            store = open_store(address)
            store.put(f"{RUNS}/{run}/{FAILED}/{uuid.uuid4().hex}.json", record.model_dump_json(indent=1).encode())
        except (InputError, StepError) as error:
            progress.warn(f"the failure could not be recorded in the store ({error})")

    progress.on_failure(record_failure)


def failure_keys(store: ObjectStorage, run: str) -> Sequence[str]:
    """Keys of a run's recorded failures: one listing."""
    return store.list(f"{RUNS}/{run}/{FAILED}/")


def failures_at(store: ObjectStorage, keys: Sequence[str]) -> list[FailureRecord]:
    """The failures at these keys; objects that are no such record, or were deleted since, are left out."""
    found = []
    for key in keys:
        try:
            found.append(FailureRecord.model_validate_json(store.get(key)))
        except (ValidationError, MissingObjectError):
            continue
    return found


def forget_failures(store: ObjectStorage, run: str) -> None:
    """Removes the failures of earlier attempts."""
    store.delete_prefix(f"{RUNS}/{run}/{FAILED}/")


def record_results(store: ObjectStorage, run: str, folder: Path) -> None:
    """Keeps a report's files under its run; lineage.json comes last: if it is there, all are."""
    prefix = f"{RUNS}/{run}/{RESULTS}"
    store.delete(f"{prefix}/lineage.json")
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == "lineage.json", file.name)):
        if file.is_file():
            store.upload_file(file, f"{prefix}/{file.name}")


def fetch_results(store: ObjectStorage, run: str, into: Path) -> Sequence[str]:
    """Downloads a report's files into a folder; returns their names.

    Raises:
        InputError: there are none, or some are missing.
    """
    prefix = f"{RUNS}/{run}/{RESULTS}/"
    names = [key.removeprefix(prefix) for key in store.list(prefix)]
    if "lineage.json" not in names:
        raise InputError(f"{store.uri(prefix)}: the results of run {run} are not there")
    try:
        for name in names:
            if len(PurePosixPath(name).parts) == 1 and name != "..":
                store.download_file(f"{prefix}{name}", into / name)
    except MissingObjectError as missing:
        raise InputError(f"{missing.args[0]}: was deleted during the download; run the same command again") from None
    return sorted(names)
