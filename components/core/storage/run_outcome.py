"""How a run ended, in the object store under its key, for whoever waits for it on another machine.

runs/KEY/results/FILE    what the report wrote: pods keep nothing, KFP's outputs need its credentials, models tell scores
runs/KEY/failed/ID.json  a task that failed: KFP tells the state of a task, but not what it said
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
    kind: Literal["input", "step"] = Field(description="input: trying again would fail again")
    message: str = Field(description="one line: the file, well or field, and what to do")
    at: AwareDatetime = Field(description="when, by the pod's clock")

    @property
    def task(self) -> str:
        """The task's name for people."""
        fold = None if self.fold is None else f"fold {self.fold}"
        return " ".join(part for part in (self.step, fold, self.cell_type, self.backbone) if part)


def report_failures(address: str, run: str) -> None:
    """Has the failure of the current task recorded under its run; does nothing for a step by hand.

    Args:
        address: of the store of the run's plates, as manifests name it.
        run: the run's key; may be empty.
    """
    if not run:
        return

    def tell(failure: dict[str, Any]) -> None:
        names = FailureRecord.model_fields.keys() & failure.keys()
        record = FailureRecord(**{name: failure[name] for name in names}, at=datetime.now(UTC))
        try:
            store = open_store(address)
            store.put(f"{RUNS}/{run}/{FAILED}/{uuid.uuid4().hex}.json", record.model_dump_json(indent=1).encode())
        except (InputError, StepError) as error:
            progress.warn(f"the failure could not be recorded in the store ({error})")

    progress.on_failure(tell)


def failure_keys(store: ObjectStorage, run: str) -> Sequence[str]:
    """Where the recorded failures of a run lie: one listing."""
    return store.list(f"{RUNS}/{run}/{FAILED}/")


def failures_at(store: ObjectStorage, keys: Sequence[str]) -> list[FailureRecord]:
    """The failures at these keys; what is no such record, or has gone since it was listed, is left out."""
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
    """Keeps a report's files under its run; lineage.json comes last, so that it tells that they are all there."""
    place = f"{RUNS}/{run}/{RESULTS}"
    store.delete(f"{place}/lineage.json")
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == "lineage.json", file.name)):
        if file.is_file():
            store.upload_file(file, f"{place}/{file.name}")


def fetch_results(store: ObjectStorage, run: str, into: Path) -> Sequence[str]:
    """Brings a report's files into a folder; returns their names.

    Raises:
        InputError: there are none, or not all of them.
    """
    place = f"{RUNS}/{run}/{RESULTS}/"
    names = [key.removeprefix(place) for key in store.list(place)]
    if "lineage.json" not in names:
        raise InputError(f"{store.uri(place)}: the results of run {run} are not there")
    try:
        for name in names:
            if len(PurePosixPath(name).parts) == 1 and name != "..":
                store.download_file(f"{place}{name}", into / name)
    except MissingObjectError as missing:
        raise InputError(f"{missing.args[0]}: went away while it was fetched; run the same command again") from None
    return sorted(names)
