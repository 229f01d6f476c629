"""Garbage collection removes nothing that a run needs and nothing young, all of the rest, and can be interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import components.core.storage.garbage as garbage_module
from components.core.errors import StepError
from components.core.storage.garbage import (
    StoredGroup,
    find_garbage,
    group_objects,
    list_groups,
    list_uploads,
    needed_by,
    sweep,
)
from components.core.storage.object_store import ObjectStore, StoredObject
from components.core.storage.run_records import RunRecord
from components.core.storage.runs import read_runs, record_task, write_run
from tests.components.core.storage.test_either_store import begin_upload
from tests.components.core.storage.test_runs import manifest

NOW = datetime(2026, 11, 24, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=2)
PLATES = [f"plates/HUVEC-0{n}_Plate1-{n:032x}" for n in range(3)]
OUTPUTS = [f"finished/{step}/{n:064x}" for n in range(2) for step in ("pretrain", "pseudo_label")]
CHECKPOINTS = [f"checkpoints/pretrain/{n:064x}" for n in range(2)]
POINTERS = [f"{kind}/{n:064x}.json" for n in range(2) for kind in ("fingerprints", "copies")]
FOREIGN = [
    "plates/notes.txt", "plates/by-hand/plate.json", f"finished/pretrain/{1:063x}/{1:032x}/w", "finished/pretrain/short/x/y",
    "checkpoints/pretrain/x/state", "copies/2026-11-24.tar", f"copies/of-mine/{1:064x}.json", "models/champion.json",
]  # fmt: skip
times = st.integers(0, 96).map(lambda hours: NOW - timedelta(hours=hours))


@dataclass(frozen=True)
class Stored:
    """A drawn store, with what its runs need."""

    objects: tuple[StoredObject, ...]
    targets: Mapping[str, str]
    needed: frozenset[str]

    def groups(self) -> list[StoredGroup]:
        groups = group_objects(self.objects)
        for key, plate in self.targets.items():
            if key in groups:
                groups[key].belongs_to = plate
        return list(groups.values())

    def without(self, garbage: Sequence[StoredGroup]) -> Stored:
        gone = {group.prefix for group in garbage}
        left = tuple(found for found in self.objects if not gone & group_objects([found]).keys())
        return Stored(left, self.targets, self.needed)


@st.composite
def stores(draw: st.DrawFn) -> Stored:
    keys = [f"{group}/{name}" for group in (*PLATES, *OUTPUTS, *CHECKPOINTS) for name in ("done.json", "a/b", "c")]
    chosen = draw(st.lists(st.sampled_from([*keys, *POINTERS, *FOREIGN]), unique=True))
    objects = tuple(StoredObject(key, draw(st.integers(0, 9)), draw(times)) for key in chosen)
    targets = draw(st.dictionaries(st.sampled_from(POINTERS), st.sampled_from(PLATES)))
    return Stored(objects, targets, frozenset(draw(st.sets(st.sampled_from([*PLATES, *OUTPUTS])))))


@given(stores())
def test_garbage_is_everything_old_and_unneeded(stored: Stored) -> None:
    groups = stored.groups()
    garbage = find_garbage(groups, stored.needed, CUTOFF)
    left = stored.without(garbage)
    renewed = {group.belongs_to for group in groups if group.newest > CUTOFF}
    for group in garbage:
        assert group.newest <= CUTOFF
        assert group.prefix not in stored.needed | renewed
        own = [found for found in stored.objects if group.prefix in group_objects([found])]
        assert (group.objects, group.size) == (len(own), sum(found.size for found in own))
    for group in left.groups():
        useful = group.prefix in stored.needed | renewed
        points = group.belongs_to in {other.prefix for other in left.groups()}
        assert group.newest > CUTOFF or useful or points
    assert find_garbage(left.groups(), left.needed, CUTOFF) == []
    assert {found.key for found in stored.objects} & set(FOREIGN) <= {found.key for found in left.objects}


class AgedStore(ObjectStore):
    """A store whose present objects are ten days old, and which fails after a number of deletes."""

    def __init__(self, store: ObjectStore, deletes: int = 1000) -> None:
        super().__init__(store.uri(""))
        self._old = {found.key for found in store.scan()}
        self._deletes = deletes

    def scan(self, prefix: str = "") -> Iterator[StoredObject]:
        for found in super().scan(prefix):
            age = timedelta(days=10 if found.key in self._old else 0)
            yield found._replace(modified=found.modified - age)

    def head(self, key: str) -> StoredObject:
        found = super().head(key)
        return found._replace(modified=found.modified - timedelta(days=10 if key in self._old else 0))

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            if not self._deletes:
                raise StepError("killed")
            self._deletes -= 1
            super().delete_many([key])

    def put(self, key: str, data: bytes) -> None:
        self._old.discard(key)
        super().put(key, data)


def find(store: ObjectStore, cutoff: datetime) -> list[StoredGroup]:
    return find_garbage(list_groups(store), needed_by(read_runs(store)), cutoff)


def collect(store: ObjectStore) -> tuple[int, int]:
    cutoff = datetime.now(UTC) - timedelta(days=2)
    return sweep(store, find(store, cutoff), lambda: find(store, cutoff), cutoff)


SCREEN = manifest(run="mine-1")


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


@pytest.fixture
def needed(folder: ObjectStore) -> set[str]:
    """A run with a plate and an output, and objects of other programs; beside them garbage of each kind. The keys to keep."""
    for prefix in (PLATES[0], OUTPUTS[0]):
        fill(folder, prefix)
    point(folder, POINTERS[0], PLATES[0])
    write_run(folder, RunRecord(key="mine-1", config={}, lineage={}), b"{}", b"{}", b"", [PLATES[0]])
    record_task(folder, SCREEN, OUTPUTS[0], "pretrain", fold=0, backbone="a")
    for key in FOREIGN:
        folder.put(key, b"theirs")
    needed = set(folder.list(""))
    for prefix in (PLATES[1], OUTPUTS[1], CHECKPOINTS[0]):
        fill(folder, prefix)
    point(folder, POINTERS[1], PLATES[1])
    return needed


def fill(store: ObjectStore, prefix: str) -> None:
    for name in ("plate.json", "done.json", "a/b", "c"):
        store.put(f"{prefix}/{name}", b"x")


def point(store: ObjectStore, pointer: str, plate: str) -> None:
    store.put(pointer, json.dumps({"prefix": plate}).encode())


def test_removes_garbage_of_every_kind_and_nothing_else(folder: ObjectStore, needed: set[str]) -> None:
    assert collect(AgedStore(folder)) == (13, 0)
    assert set(folder.list("")) == needed
    assert collect(AgedStore(folder)) == (0, 0)
    folder.delete_prefix("runs/mine-1/")  # forgotten
    collect(AgedStore(folder))
    assert set(folder.list("")) == set(FOREIGN)


def test_keeps_objects_that_come_into_use_after_they_were_found(folder: ObjectStore, needed: set[str]) -> None:
    aged, cutoff = AgedStore(folder), datetime.now(UTC) - timedelta(days=2)
    garbage = find(aged, cutoff)
    assert len(garbage) == 4
    record_task(aged, SCREEN, OUTPUTS[1], "pretrain", fold=1, backbone="a")
    point(aged, POINTERS[1], PLATES[1])  # packing reuses the plate
    aged.put(f"{CHECKPOINTS[0]}/state.pt", b"newer")
    before = folder.list("")
    assert sweep(aged, garbage, lambda: find(aged, cutoff), cutoff) == (0, 4)
    assert sweep(aged, garbage, lambda: garbage, cutoff)[1] == 2  # checkpoint and pointer are young
    assert {*before} - {*folder.list("")} == {
        f"{p}/{n}" for p in (PLATES[1], OUTPUTS[1]) for n in ("plate.json", "done.json", "a/b", "c")
    }


def test_a_long_removal_looks_again(folder: ObjectStore, needed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    aged, cutoff = AgedStore(folder), datetime.now(UTC) - timedelta(days=2)
    garbage, before = find(aged, cutoff), folder.list("")
    found = iter([garbage, [], [], [], []])
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(garbage_module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    assert sweep(aged, garbage, lambda: next(found), cutoff)[1] == len(garbage) - 1
    assert all(key.startswith(f"{garbage[0].prefix}/") for key in {*before} - {*folder.list("")})


@pytest.mark.parametrize("deletes", [0, 1, 7])
def test_the_next_collection_finishes_an_interrupted_one(folder: ObjectStore, needed: set[str], deletes: int) -> None:
    with pytest.raises(StepError, match="killed"):
        collect(AgedStore(folder, deletes))
    left = set(folder.list(""))
    assert left >= needed
    for prefix, marker in ((PLATES[1], "plate.json"), (OUTPUTS[1], "done.json")):
        assert (f"{prefix}/{marker}" in left) <= ({f"{prefix}/a/b", f"{prefix}/c"} <= left)
    collect(AgedStore(folder))
    assert set(folder.list("")) == needed


def test_unfinished_uploads_of_killed_processes_are_removed(either_store: ObjectStore) -> None:
    begin_upload(either_store, f"{OUTPUTS[0]}/{1:032x}/weights")
    begin_upload(either_store, "theirs/weights")
    assert find_garbage(list_uploads(either_store), set(), datetime.now(UTC) - timedelta(hours=1)) == []
    assert list_groups(either_store) == []
    cutoff = datetime.now(UTC) + timedelta(seconds=1)
    shown = find_garbage(list_uploads(either_store), set(), cutoff)
    assert [group.kind for group in shown] == ["unfinished upload"]
    again = partial(find_garbage, list_uploads(either_store), set(), cutoff)  # as it was found, although it may be gone
    for _ in range(2):  # the second time it is gone
        assert sweep(either_store, shown, again, cutoff)[0] == 1
        (left,) = either_store.unfinished_uploads("")
        assert left.key.startswith("theirs/weights")
