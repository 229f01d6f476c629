"""What the recorded runs of a store need, and which plates its leads lead to. Reads records; garbage.py decides.

Records that have not changed are not read again, so that a removal can ask again and again whether a run has named
something meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from components.core.errors import InputError
from components.core.storage.garbage import LEADS, LONG_AGO, Lead, Needs, is_lead, is_plate, needs_of
from components.core.storage.interface import MissingObjectError
from components.core.storage.inventory import ObjectInventory, StoredObject
from components.core.storage.manifest import SCHEMA as MANIFEST_SCHEMA
from components.core.storage.run_record import HOLDOUT, HOLDOUT_LABELS, KEY, MANIFEST, RUNS

_BATCH = 500
_OF_RUN = re.compile(
    rf"{RUNS}/{KEY}/(run\.json|{MANIFEST}|{HOLDOUT}|{HOLDOUT_LABELS}|(steps|folds)/.+\.json|results/.+|failed/.+)"
)
_SILENT = re.compile(rf"{RUNS}/{KEY}/(run\.json|{HOLDOUT_LABELS}|results/.+|failed/.+)")
_MANIFEST = re.compile(rf"{RUNS}/{KEY}/({MANIFEST}|{HOLDOUT})")  # a backbone may be called screen, too
_SETTLED = timedelta(minutes=1)
"""A listing's time is exact to a second, so that only the content of an object older than this is known to be the same."""


@dataclass
class RunClaim:
    """A recorded run.

    Attributes:
        key: of the run.
        objects: keys of its record.
        plates: prefixes that its manifests name.
        finished: places of the outputs that it made or fetched.
        active: when its record last changed.
        problem: why it is not known what it needs; empty where it is.
    """

    key: str
    objects: list[str] = field(default_factory=list)
    plates: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    active: datetime = LONG_AGO
    problem: str = ""


class Claims:
    """The records of a store, as of the last `refresh`.

    Attributes:
        runs: by key.
        leads: by key; what leads to no plate, by its content, is left out.
    """

    def __init__(self, store: ObjectInventory) -> None:
        self.runs: dict[str, RunClaim] = {}
        self.leads: dict[str, Lead] = {}
        self._store = store
        self._read: dict[str, _Record] = {}

    def refresh(self) -> None:
        """Reads what is new.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        listed = [found for found in self._store.scan(f"{RUNS}/") if _OF_RUN.fullmatch(found.key)]
        pointing = [found for prefix in LEADS for found in self._store.scan(prefix) if is_lead(found.key)]
        self._read = self._records([found for found in listed if not _SILENT.fullmatch(found.key)] + pointing)
        runs: dict[str, RunClaim] = {}
        for found in listed:
            key = found.key.split("/")[1]
            run = runs.setdefault(key, RunClaim(key))
            run.objects.append(found.key)
            run.active = max(run.active, found.modified)
            if record := self._read.get(found.key):
                (run.plates if _MANIFEST.fullmatch(found.key) else run.finished).update(record.names)
                run.problem = run.problem or record.problem
        self.runs = runs
        self.leads = {
            found.key: Lead(found.modified, found.size, plate)
            for found in pointing
            if found.key in self._read
            for plate in self._read[found.key].names
        }

    def needs(self, cutoff: datetime) -> Needs:
        """What must stay by all records, and by leads younger than a time.

        Raises:
            InputError: a record cannot be read, so that nobody knows what its run needs.
        """
        for run in self.runs.values():
            if run.problem:
                raise InputError(run.problem)
        plates = set().union(*(run.plates for run in self.runs.values()))
        finished = set().union(*(run.finished for run in self.runs.values()))
        return needs_of(plates, finished, self.leads, cutoff)

    def _records(self, objects: Sequence[StoredObject]) -> dict[str, _Record]:
        """What each object says, by key; one that has gone meanwhile is left out."""
        now = datetime.now(UTC)
        records = {}
        for found in objects:
            earlier = self._read.get(found.key)
            if earlier and earlier.modified == found.modified and found.modified < earlier.read - _SETTLED:
                records[found.key] = earlier
        new = {found.key: found.modified for found in objects if found.key not in records}
        # A whole screen's manifest takes tens of megabytes, so they are read one by one.
        large = [key for key in new if _MANIFEST.fullmatch(key)]
        small = [key for key in new if not _MANIFEST.fullmatch(key)]
        for batch in [[key] for key in large] + [small[n : n + _BATCH] for n in range(0, len(small), _BATCH)]:
            for key, content in get_present(self._store, batch).items():
                records[key] = _Record(new[key], now, *_names(self._store.uri(key), key, content))
        return records


class _Record(NamedTuple):
    modified: datetime
    read: datetime
    names: frozenset[str]
    problem: str


def get_present(store: ObjectInventory, keys: Sequence[str]) -> dict[str, bytes]:
    """The objects that are there, by key."""
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


def _names(uri: str, key: str, content: bytes) -> tuple[frozenset[str], str]:
    """The plates or the place that a record names, and why they are not known."""
    try:
        record: dict[str, Any] = json.loads(content)
        if is_lead(key):
            return frozenset(filter(is_plate, [str(record["prefix"])])), ""
        if record.get("manifest_schema", 0) > MANIFEST_SCHEMA:
            return frozenset(), f"{uri}: of a newer version of cellsignal, so what its run needs is not known; upgrade"
        if _MANIFEST.fullmatch(key):
            # What stands for the training screen in a prediction has plates that are nowhere.
            return frozenset(str(plate["prefix"]) for plate in record["plates"] if plate["prefix"]), ""
        return frozenset([str(record["place"])]), ""
    except (ValueError, KeyError, TypeError, AttributeError):
        run = key.split("/")[1]
        return frozenset(), (
            f"{uri}: damaged, so what its run needs is not known; run it again, or give it up with "
            f"`cellsignal store forget {run}`"
        )
