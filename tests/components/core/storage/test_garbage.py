"""Garbage collection: nothing that a run needs, nothing young, all of the rest; and an interrupted one is run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import InputError, StepError
from components.core.storage.finished import run_once
from components.core.storage.folder_store import FolderStore
from components.core.storage.garbage import StoredGroup, find_garbage, group_objects, list_groups, sweep
from components.core.storage.inventory import StoredObject
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.recorded_runs import needed_by, read_runs
from components.core.storage.runs import record_task
from components.normalize.step import main as normalize
from tests.components.core.learning.tiny_networks import RUN
from tests.tiny_screen import CONFIG, TinyScreen

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
TWO_DAYS = timedelta(days=2)

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
                groups[key].plate = plate
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
def test_only_what_is_old_and_of_no_use_is_garbage_and_all_of_that(stored: Stored) -> None:
    groups = stored.groups()
    garbage = find_garbage(groups, stored.needed, CUTOFF)
    left = stored.without(garbage)
    renewed = {group.plate for group in groups if group.newest > CUTOFF}
    for group in garbage:
        assert group.newest <= CUTOFF
        assert group.prefix not in stored.needed | renewed
        own = [found for found in stored.objects if group.prefix in group_objects([found])]
        assert (group.objects, group.size) == (len(own), sum(found.size for found in own))
    for group in left.groups():
        useful = group.prefix in stored.needed | renewed
        points = group.plate in {other.prefix for other in left.groups()}
        assert group.newest > CUTOFF or useful or points
    assert find_garbage(left.groups(), left.needed, CUTOFF) == []
    assert {found.key for found in stored.objects} & set(FOREIGN) <= {found.key for found in left.objects}


class AgedStore:
    """A store in which everything there now is days old, and which may fail after some deletes."""

    def __init__(self, store: ObjectStore | FolderStore, days: float = 10) -> None:
        self._store, self._age = store, timedelta(days=days)
        self._old = set(store.scan(""))
        self.deletes: int | None = None

    def scan(self, prefix: str) -> list[StoredObject]:
        found = self._store.scan(prefix)
        return [each._replace(modified=each.modified - self._age) if each in self._old else each for each in found]

    def delete_many(self, keys: Sequence[str]) -> None:
        if self.deletes is not None:
            if not self.deletes:
                raise StepError("killed")
            self.deletes -= 1
        self._store.delete_many(keys)

    def put(self, key: str, data: bytes) -> None:
        """The object becomes young, also if a listing's time, to the second, is the same."""
        self._old = {found for found in self._old if found.key != key}
        self._store.put(key, data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def collect(store: ObjectStore | FolderStore, days: float = 10, deletes: int | None = None) -> list[StoredGroup]:
    aged = AgedStore(store, days)
    cutoff = datetime.now(UTC) - TWO_DAYS
    garbage = find_garbage(list_groups(aged), needed_by(read_runs(aged)), cutoff)
    aged.deletes = deletes
    sweep(aged, garbage, cutoff)
    return garbage


def pack(store: ObjectStore | FolderStore, folder: Path, source: Path, run: str) -> Manifest:
    config = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"bucket": store.uri("")})})
    paths = [folder / name for name in ("s.json", "h.json", "l.csv")]
    record = {"whole_config": RUN.model_dump_json(), "lineage": json.dumps({"run": run})} if run else {}
    normalize(config.model_dump_json(), str(source), *map(str, paths), **record)
    return Manifest.read(paths[0])


def finish_step(store: ObjectStore | FolderStore, folder: Path, name: str) -> str:
    def work(out: Mapping[str, Path]) -> None:
        out["weights"].write_text("weights")

    prefixes: list[str] = []
    run_once(store, "pretrain", {"name": name}, {"weights": folder / name}, work, prefixes.append)
    return prefixes[0]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyScreen(tmp_path_factory.mktemp("screen") / "screen").root


@pytest.fixture
def store(either_store: ObjectStore | FolderStore) -> ObjectStore | FolderStore:
    return either_store


@pytest.fixture
def needed(store: ObjectStore | FolderStore, screen: Path, tmp_path: Path) -> set[str]:
    """A run with a finished step, beside a plate, an output and a checkpoint of no run; the keys that must stay."""
    manifest = pack(store, tmp_path, screen, run="mine-1")
    record_task(store, manifest, finish_step(store, tmp_path, "needed"), "pretrain", 0, backbone="a")
    for key in FOREIGN:
        store.put(key, b"theirs")
    needed = set(store.list())
    for name in ("plate.json", "B/03/0/c"):
        store.put(f"{PLATES[1]}/{name}", b"x")
    store.put(POINTERS[0], json.dumps({"prefix": PLATES[1]}).encode())
    store.put(f"{CHECKPOINTS[0]}/state.pt", b"x")
    finish_step(store, tmp_path, "unneeded")
    return needed


def test_everything_that_a_run_needs_stays_and_the_rest_goes(
    store: ObjectStore | FolderStore, needed: set[str], tmp_path: Path
) -> None:
    assert sorted(group.kind for group in collect(store)) == [
        "checkpoint", "finished output", "plate", "plate pointer",
    ]  # fmt: skip
    assert set(store.list()) == needed
    assert collect(store) == []
    store.delete_prefix("runs/mine-1/")  # forgotten
    collect(store)
    assert set(store.list()) == set(FOREIGN)


def test_young_objects_stay(store: ObjectStore | FolderStore, needed: set[str], tmp_path: Path) -> None:
    before = store.list()
    assert collect(store, days=1) == []
    assert store.list() == before


def test_what_comes_into_use_after_it_was_found_stays(
    store: ObjectStore | FolderStore, needed: set[str], tmp_path: Path
) -> None:
    aged, cutoff = AgedStore(store), datetime.now(UTC) - TWO_DAYS
    garbage = find_garbage(list_groups(aged), needed_by(read_runs(aged)), cutoff)
    output = next(group.prefix for group in garbage if group.kind == "finished output")
    record_task(store, Manifest.read(tmp_path / "s.json"), output, "pretrain", 1, backbone="a")
    aged.put(POINTERS[0], json.dumps({"prefix": PLATES[1]}).encode())  # packing reuses the plate
    aged.put(f"{CHECKPOINTS[0]}/state.pt", b"newer")
    before = store.list()
    assert sweep(aged, garbage, cutoff) == (0, len(garbage))
    assert store.list() == before


@pytest.mark.parametrize("deletes", [0, 1, 3])
def test_an_interrupted_collection_leaves_nothing_complete_and_is_run_again(
    store: ObjectStore | FolderStore, needed: set[str], tmp_path: Path, deletes: int
) -> None:
    with pytest.raises(StepError, match="killed"):
        collect(store, deletes=deletes)
    left = store.list()
    assert set(left) >= needed
    if deletes:
        assert f"{PLATES[1]}/plate.json" not in left
    collect(store)
    assert set(store.list()) == needed
    finish_step(store, tmp_path, "unneeded")
    assert (tmp_path / "unneeded").read_text() == "weights"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{", "damaged, not a run's record"),
        (
            "run.json",
            b'{"record_schema": 1, "key": "mine-1"}',
            "damaged, not a run's record; .* if an earlier version",
        ),
        ("tasks/pretrain/0/a.json", b"[]", "damaged, not a task's record"),
    ],
)
def test_a_record_that_cannot_be_read_stops_everything(
    store: ObjectStore | FolderStore, needed: set[str], name: str, content: bytes, message: str
) -> None:
    store.put(f"runs/mine-1/{name}", content)
    before = store.list()
    with pytest.raises(InputError, match=rf"runs/mine-1/{name}: {message}.*it is not known what run mine-1 needs"):
        collect(store)
    assert store.list() == before


def test_plates_of_a_prediction_stay(store: ObjectStore | FolderStore, needed: set[str]) -> None:
    record = json.loads(store.get("runs/mine-1/run.json"))
    prediction = {"model": "ab" * 32, "address": "s3://x", "experiments": [], "any_cell_type": False, "folds": {}}
    record |= {"key": "mine-predict", "plates": [PLATES[1]], "prediction": prediction}
    store.put("runs/mine-predict/run.json", json.dumps(record).encode())
    assert "plate" not in {group.kind for group in collect(store)}
    assert [run.kind for run in read_runs(store)] == ["training", "prediction"]
