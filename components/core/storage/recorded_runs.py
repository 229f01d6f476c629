"""All runs that a store has records of: their kind, progress, and the plates and outputs that they need."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from components.core.errors import InputError
from components.core.storage.interface import MissingObjectError
from components.core.storage.inventory import ObjectInventory
from components.core.storage.runs import (
    HOLDOUT,
    KEY,
    MANIFEST,
    PREDICTING_STEPS,
    RUNS,
    RunRecord,
    TaskRecord,
)

_RUN = re.compile(rf"{RUNS}/({KEY})/.+")
_READ = re.compile(rf"{RUNS}/{KEY}/(run|tasks/.+)\.json")
_NEEDS_RECORD = re.compile(rf"{RUNS}/{KEY}/({MANIFEST}|{HOLDOUT}|tasks/.+)")
_RETRAINED = re.compile(r"retrainings/.+/outcome\.json")

Kind = Literal["training", "retraining", "prediction", "unknown"]


@dataclass
class RecordedRun:
    """A run and its records.

    Attributes:
        key: the run's key.
        active: time of its newest object.
        record: content of run.json; None if that is missing or cannot be read.
        tasks: its finished tasks.
        retrained: whether a retraining trained it.
        problem: the message about a record that cannot be read; empty if there is none.
    """

    key: str
    active: datetime
    record: RunRecord | None = None
    tasks: list[TaskRecord] = field(default_factory=list)
    retrained: bool = False
    problem: str = ""

    @property
    def kind(self) -> Kind:
        """Training, retraining or prediction; unknown without a record."""
        if self.record is None:
            return "unknown"
        if self.record.prediction is not None:
            return "prediction"
        return "retraining" if self.retrained else "training"

    @property
    def needs(self) -> frozenset[str]:
        """Prefixes of the plates and finished outputs that it needs."""
        return frozenset((*(self.record.plates if self.record else ()), *(task.prefix for task in self.tasks)))

    def summary(self) -> dict[str, Any]:
        """The run in plain values, for a table or JSON."""
        config = self.record.config if self.record else {}
        lineage = self.record.lineage if self.record else {}
        prediction = self.record.prediction if self.record else None
        return {
            "key": self.key,
            "kind": self.kind,
            "name": str(config.get("name") or ""),
            "started": str(lineage.get("started") or ""),
            "screen": str(lineage.get("screen") or ""),
            "init_from": config.get("init_from") or None,
            "model": prediction.model if prediction else None,
            "finished_folds": sum(task.step in PREDICTING_STEPS for task in self.tasks),
            "folds": self._folds(),
            "last_active": self.active.isoformat(timespec="seconds"),
            "plates": len(self.record.plates) if self.record else 0,
            "outputs": len({task.prefix for task in self.tasks}),
            "problem": self.problem or None,
        }

    def _folds(self) -> int | None:
        """Folds of all cell types that the run trains or predicts with; None without a record."""
        if self.record is None:
            return None
        if self.record.prediction is not None:
            return sum(len(numbers) for numbers in self.record.prediction.folds.values())
        folds, screen = self.record.config.get("folds") or {}, self.record.config.get("screen") or {}
        return len(folds.get("train") or range(folds.get("count") or 0)) * len(screen.get("cell_types") or ())


def read_runs(store: ObjectInventory) -> list[RecordedRun]:
    """The runs of a store, the one that was active last at the end.

    Raises:
        InputError: the store refuses the credentials.
        StepError: the store failed.
    """
    runs: dict[str, RecordedRun] = {}
    keys, unfinished = [], set()
    for found in store.scan(f"{RUNS}/"):
        if match := _RUN.fullmatch(found.key):
            run = runs.setdefault(match[1], RecordedRun(match[1], found.modified))
            run.active = max(run.active, found.modified)
            if _READ.fullmatch(found.key):
                keys.append(found.key)
            if _NEEDS_RECORD.fullmatch(found.key):
                unfinished.add(run.key)
    for key, content in get_present(store, keys).items():
        run = runs[key.split("/")[1]]
        try:
            if key.endswith("/run.json") and key.count("/") == 2:
                run.record = RunRecord.parse(content, store.uri(key))
            else:
                run.tasks.append(TaskRecord.parse(content, store.uri(key)))
        except InputError as error:
            run.problem = str(error)
    for run in runs.values():
        if run.key in unfinished and run.record is None and not run.problem:
            run.problem = f"{store.uri(f'{RUNS}/{run.key}/run.json')}: missing; {RunRecord.IF_DAMAGED}"
    for key in _retrained(store):
        if key in runs:
            runs[key].retrained = True
    return sorted(runs.values(), key=lambda run: (run.active, run.key))


def needed_by(runs: Iterable[RecordedRun]) -> frozenset[str]:
    """Prefixes of everything that runs need.

    Raises:
        InputError: a record cannot be read, so it is not known what its run needs.
    """
    needed: set[str] = set()
    for run in runs:
        if run.problem:
            raise InputError(f"{run.problem}; nothing is removed while it is not known what run {run.key} needs")
        needed |= run.needs
    return frozenset(needed)


def get_present(store: ObjectInventory, keys: Sequence[str]) -> dict[str, bytes]:
    """The objects that exist, by key."""
    try:
        return dict(zip(keys, store.get_many(keys), strict=True)) if keys else {}
    except MissingObjectError:
        found = {}
        for key in keys:
            try:
                found[key] = store.get(key)
            except MissingObjectError:
                continue
        return found


def _retrained(store: ObjectInventory) -> set[str]:
    """Keys of the runs that retrainings trained."""
    keys = [found.key for found in store.scan("retrainings/") if _RETRAINED.fullmatch(found.key)]
    runs = set()
    for content in get_present(store, keys).values():
        try:
            runs.add(str(json.loads(content)["run"]))
        except (ValueError, KeyError, TypeError):
            continue
    return runs
