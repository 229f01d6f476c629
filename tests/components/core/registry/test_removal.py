"""Models that are old and no longer needed are removed, and unused copies; never one that is promoted in between."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.registry.champion import CHAMPION, promote, rollback
from components.core.registry.removal import fingerprint_of, removable_models
from components.core.storage.garbage import StoredGroup, sweep
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import PredictionRecord, RunRecord
from components.core.storage.runs import write_run
from tests.components.core.registry.small_models import put_model

OTHER = f"models/{'9' * 64}/{'a' * 32}"
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


def found(store: ObjectStore, keep: int = 0, age: timedelta = -DAY) -> list[StoredGroup]:
    """What may be removed; by default everything is old enough."""
    return removable_models(store, keep, datetime.now(UTC) - age)


def remove(store: ObjectStore, shown: Sequence[StoredGroup], keep: int = 0) -> tuple[int, int]:
    return sweep(store, shown, lambda: found(store, keep), datetime.now(UTC) + DAY)


def models_of(store: ObjectStore) -> set[str]:
    return {key.split("/")[1] for key in store.list("models/")} - {"champion.json"}


def test_keeps_the_champion_and_the_last_before_it(store: ObjectStore) -> None:
    a, b, c, d, never = (put_model(store, number) for number in range(5))
    for model in (a, b, c, b, d):
        promote(store, model, "x")
    shown = found(store, keep=2)
    assert {(group.kind, fingerprint_of(group), group.belongs_to) for group in shown} == {
        ("model", a, "tiny-0"), ("model", never, "tiny-4"),
    }  # fmt: skip
    assert all(group.objects == 2 and group.size > 100 for group in shown)
    assert remove(store, shown, keep=2) == (4, 0)
    assert models_of(store) == {b, c, d}
    assert rollback(store, "still there").champion.now.fingerprint == b
    assert {fingerprint_of(group) for group in found(store)} == {c, d}


def test_keeps_what_is_young_and_every_model_without_a_readable_champion(store: ObjectStore) -> None:
    model, damaged = put_model(store, 1), put_model(store, 2)
    store.put(f"models/{damaged}/manifest.json", b"{")
    assert found(store) == []
    promote(store, model, "x")
    store.put(f"{OTHER}/weights/0/HUVEC/a.safetensors", b"x")
    assert found(store, age=DAY) == []
    removable = {group.kind: (fingerprint_of(group), group.belongs_to) for group in found(store)}
    assert removable == {"model": (damaged, ""), "unused copy": ("9" * 64, "")}
    store.put(CHAMPION, b"{")
    with pytest.raises(InputError, match="damaged, not a champion's record"):
        found(store)


def test_keeps_models_that_came_into_use_after_they_were_shown(store: ObjectStore) -> None:
    first, second, _ = (put_model(store, number) for number in range(3))
    promote(store, first, "x")
    shown = found(store)
    promote(store, second, "in between")
    assert remove(store, shown) == (2, 1)
    assert models_of(store) == {first, second}  # first was the champion when the user agreed


def test_an_interrupted_removal_leaves_no_damaged_model_and_is_finished_by_the_next(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = put_model(store, 1)
    promote(store, champion, "x")
    put_model(store, 2)
    delete_many = type(store).delete_many

    def killed(self: ObjectStore, keys: Sequence[str]) -> None:
        if not keys[0].endswith("manifest.json"):
            raise StepError("killed")
        delete_many(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete_many", killed)
        with pytest.raises(StepError, match="killed"):
            remove(store, found(store))
    (left,) = found(store)
    assert left.kind == "unused copy"
    remove(store, [left])
    assert models_of(store) == {champion}


def test_keeps_a_model_that_a_recent_prediction_uses(store: ObjectStore) -> None:
    promote(store, put_model(store, 1), "x")
    used = put_model(store, 2)
    prediction = PredictionRecord(model=used, folds={})
    write_run(store, RunRecord(key="new-1", config={}, lineage={}, prediction=prediction), b"{}", b"{}", None, [])
    assert [fingerprint_of(group) for group in found(store)] == [used]  # the prediction is older than that
    assert found(store, age=DAY) == []


def test_removes_whole_models_and_unused_copies_and_leaves_other_objects(store: ObjectStore) -> None:
    kept, old = put_model(store, 1), put_model(store, 2)
    promote(store, kept, "x")
    for name in ("README.md", f"{kept}/notes.txt", "short/manifest.json", f"{old}0/notes.txt"):
        store.put(f"models/{name}", b"theirs")
    left = {key for key in store.list("models/") if not key.startswith(f"models/{old}/")}
    store.put(f"models/{old}/notes.txt", b"below a model that is removed")
    store.put(f"models/{kept}/{'b' * 32}/card.md", b"of a second publication")
    store.put(f"{OTHER}/weights/0/a.safetensors", b"of one that was killed")
    shown = found(store)
    assert sorted(group.kind for group in shown) == ["model", "unused copy", "unused copy"]
    assert remove(store, shown) == (5, 0)
    assert set(store.list("models/")) == left
