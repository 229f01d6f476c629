"""Which models go: old ones that are no longer needed, and leavings; never one that is promoted at the same moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from components.core.errors import InputError
from components.core.registry import removal
from components.core.registry.champion import CHAMPION, promote, read_champion, rollback
from components.core.registry.removal import Removable, removable, remove
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.small_models import put_model, small_model

NOW = timedelta()


@pytest.fixture
def store(either_store: ObjectStore | FolderStore) -> ObjectStore | FolderStore:
    return either_store


def models_of(store: ObjectStore | FolderStore) -> set[str]:
    return {key.split("/")[1] for key in store.list("models/")} - {"champion.json"}


def kinds(items: Sequence[Removable]) -> list[str]:
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


def test_leavings_of_killed_publishers_go_and_other_objects_stay(store: ObjectStore | FolderStore) -> None:
    kept = put_model(store, 1)
    promote(store, kept, "x")
    theirs = ["models/README.md", f"models/{kept}/notes.txt", "models/short/manifest.json"]
    store.put_many((key, b"theirs") for key in theirs)
    before = set(store.list("models/"))
    store.put(f"models/{kept}/{'b' * 32}/card.md", b"of a publisher that came second")
    store.put(f"models/{'9' * 64}/{'a' * 32}/weights/0/a.safetensors", b"of one that was killed")
    if isinstance(store, FolderStore):
        for name in ("models", f"models/{kept}", f"models/{kept}/{'c' * 32}/weights"):
            place = store.root / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f".{'0' * 32}-1-1.partial").write_bytes(b"half")
    found = removable(store, 0, NOW)
    assert kinds(found)[:1] + kinds(found)[-1:] == ["unfinished model", "unused copy"]
    assert len(remove(store, found, 0, NOW)) == len(found) == (5 if isinstance(store, FolderStore) else 2)
    assert set(store.list("models/")) == before
    assert list(store.unfinished_uploads("models/")) == []


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


def test_a_model_that_is_promoted_while_it_is_hidden_comes_back(
    store: ObjectStore | FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promoter had asked whether the model is there before its manifest was deleted, and writes after."""
    first, second = put_model(store, 1), put_model(store, 2)
    promote(store, first, "x")
    found = removable(store, 0, NOW)
    delete = type(store).delete_many
    exists = type(store).exists

    def deleting(self: ObjectStore | FolderStore, keys: Sequence[str]) -> None:
        monkeypatch.undo()
        delete(self, keys)
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "exists", lambda self, key: True)
            assert promote(store, second, "asked before").outcome == "promoted"
        assert not exists(store, f"models/{second}/manifest.json")

    monkeypatch.setattr(type(store), "delete_many", deleting)
    assert remove(store, found, 0, NOW) == []
    assert models_of(store) == {first, second}
    assert store.get(f"models/{second}/manifest.json") == small_model(2).model_dump_json().encode()
    champion = read_champion(store)
    assert champion is not None
    assert champion.now.fingerprint == second


def test_a_promoter_that_looked_before_a_removal_does_not_write_after_it(
    store: ObjectStore | FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put_model(store, 1), put_model(store, 2)
    promote(store, first, "x")
    write = type(store).put_if_version

    def late(self: ObjectStore | FolderStore, key: str, data: bytes, version: str) -> bool:
        monkeypatch.undo()
        assert len(remove(store, removable(store, 0, NOW), 0, NOW)) == 1
        return write(self, key, data, version)

    monkeypatch.setattr(type(store), "put_if_version", late)
    with pytest.raises(InputError, match=f"models/{second}: there is no such model"):
        promote(store, second, "too late")
    champion = read_champion(store)
    assert champion is not None
    assert champion.now.fingerprint == first


def test_a_removal_in_between_does_not_count_as_another_promotion(
    store: ObjectStore | FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = (put_model(store, number) for number in range(3))
    promote(store, first, "x")
    items = [item for item in removable(store, 0, NOW) if item.fingerprint != second]
    write = type(store).put_if_version

    def late(self: ObjectStore | FolderStore, key: str, data: bytes, version: str) -> bool:
        monkeypatch.undo()
        assert len(remove(store, items, 0, NOW)) == 1
        return write(self, key, data, version)

    monkeypatch.setattr(type(store), "put_if_version", late)
    assert promote(store, second, "better", expected=1).outcome == "promoted"


def test_a_removal_gives_up_where_promotions_never_end(
    store: ObjectStore | FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, put_model(store, 1), "x")
    model = put_model(store, 2)
    monkeypatch.setattr(removal, "fence", lambda store, version: False)
    with pytest.raises(InputError, match="models are being promoted all the time"):
        remove(store, removable(store, 0, NOW), 0, NOW)
    assert model in models_of(store)
    assert store.exists(f"models/{model}/manifest.json")
