"""Which models go: old ones that are no longer needed, and leavings; never one that is promoted at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from components.core.errors import InputError, StepError
from components.core.registry.champion import CHAMPION, promote, rollback
from components.core.registry.removal import StoredModel, removable, remove
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import PredictionRecord, RunRecord, write_run
from tests.components.core.registry.small_models import put_model

NOW = timedelta()


@pytest.fixture
def store(either_store: ObjectStore | FolderStore) -> ObjectStore | FolderStore:
    return either_store


def models_of(store: ObjectStore | FolderStore) -> set[str]:
    return {key.split("/")[1] for key in store.list("models/")} - {"champion.json"}


def kinds(items: Sequence[StoredModel]) -> list[str]:
    return sorted(item.kind for item in items)


def test_the_champion_and_the_last_before_it_stay(store: ObjectStore | FolderStore) -> None:
    a, b, c, d, never = (put_model(store, number) for number in range(5))
    for model in (a, b, c, b, d):
        promote(store, model, "x")
    found = removable(store, 2, NOW)
    assert {item.fingerprint for item in found} == {a, never}
    assert {item.run for item in found} == {"tiny-0", "tiny-4"}
    assert all(item.objects == 2 and item.size > 100 for item in found)
    assert kinds(remove(store, found, 2, NOW)) == ["model", "model"]
    assert models_of(store) == {b, c, d}
    assert rollback(store, "still there").champion.now.fingerprint == b
    assert {item.fingerprint for item in removable(store, 0, NOW)} == {c, d}


def test_what_is_young_stays(store: ObjectStore | FolderStore) -> None:
    promote(store, put_model(store, 1), "x")
    put_model(store, 2)
    store.put(f"models/{'9' * 64}/{'a' * 32}/weights/0/HUVEC/a.safetensors", b"x")
    assert removable(store, 0, timedelta(hours=1)) == []
    assert len(removable(store, 0, NOW)) == 2


def test_while_nothing_was_promoted_whole_models_stay(store: ObjectStore | FolderStore) -> None:
    put_model(store, 1)
    assert removable(store, 0, NOW) == []


def test_a_model_whose_manifest_cannot_be_read_goes_with_age_but_no_part_of_it_before(
    store: ObjectStore | FolderStore,
) -> None:
    promote(store, put_model(store, 1), "x")
    damaged = put_model(store, 2)
    store.put(f"models/{damaged}/manifest.json", b"{")
    (item,) = removable(store, 0, NOW)
    assert (item.kind, item.fingerprint, item.run) == ("model", damaged, "")


def test_a_damaged_champion_stops_everything(store: ObjectStore | FolderStore) -> None:
    put_model(store, 1)
    store.put(CHAMPION, b"{")
    with pytest.raises(InputError, match="damaged, not a champion's record"):
        removable(store, 0, NOW)


def test_what_came_into_use_after_it_was_shown_stays(store: ObjectStore | FolderStore) -> None:
    first, second, third = (put_model(store, number) for number in range(3))
    promote(store, first, "x")
    found = removable(store, 0, NOW)
    promote(store, second, "while the user thought")
    gone = remove(store, found, 0, NOW)
    assert [item.fingerprint for item in gone] == [third]
    assert models_of(store) == {
        first,
        second,
    }  # first was champion when it was shown, so nobody has agreed to its removal


def test_an_interrupted_removal_leaves_no_damaged_model_and_is_run_again(
    store: ObjectStore | FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, put_model(store, 1), "x")
    put_model(store, 2)

    def killed(self: ObjectStore | FolderStore, keys: Sequence[str]) -> None:
        raise StepError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete_many", killed)
        with pytest.raises(StepError, match="killed"):
            remove(store, removable(store, 0, NOW), 0, NOW)
    (left,) = removable(store, 0, NOW)
    assert left.kind == "unfinished model"
    assert remove(store, [left], 0, NOW) == [left]
    assert len(models_of(store)) == 1


def test_a_model_that_a_recent_prediction_uses_stays(store: ObjectStore | FolderStore) -> None:
    promote(store, put_model(store, 1), "x")
    used = put_model(store, 2)
    prediction = PredictionRecord(model=used, address="s3://x", experiments=(), any_cell_type=False, folds={})
    record = RunRecord(key="new-1", config={}, lineage={}, prediction=prediction)
    write_run(store, record, b"{}", b"{}", None, [])
    assert removable(store, 0, timedelta(seconds=-1)) != []  # the prediction is older than that
    assert removable(store, 0, timedelta(hours=1)) == []


def test_leavings_of_interrupted_publications_go_and_other_objects_stay(store: ObjectStore | FolderStore) -> None:
    kept = put_model(store, 1)
    promote(store, kept, "x")
    store.put_many(
        (key, b"theirs") for key in ["models/README.md", f"models/{kept}/notes.txt", "models/short/manifest.json"]
    )
    before = set(store.list("models/"))
    store.put(f"models/{kept}/{'b' * 32}/card.md", b"of a second publication")
    store.put(f"models/{'9' * 64}/{'a' * 32}/weights/0/a.safetensors", b"of one that was killed")
    found = removable(store, 0, NOW)
    assert kinds(found) == ["unfinished model", "unused copy"]
    assert remove(store, found, 0, NOW) == found
    assert set(store.list("models/")) == before
