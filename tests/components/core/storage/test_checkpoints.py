"""Where checkpoints lie: one at a time, whole, and nobody's but one's own deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import StepError
from components.core.storage.checkpoints import CheckpointStore
from components.core.storage.object_store import ObjectStore


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "in.pt"


def place(store: ObjectStore, key: str = "abc") -> CheckpointStore:
    return CheckpointStore(store, "pretrain", key)


def read(store: ObjectStore, tmp_path: Path, key: str = "abc") -> bytes | None:
    target = tmp_path / "out.pt"
    target.unlink(missing_ok=True)
    return target.read_bytes() if place(store, key).read(target) else None


def test_the_newest_checkpoint_is_found_and_the_one_before_is_gone(store, file, tmp_path):
    assert read(store, tmp_path) is None
    ours = place(store)
    for content in (b"first", b"second"):
        file.write_bytes(content)
        ours.write(file)
        assert read(store, tmp_path) == content
        assert len(store.list("checkpoints/pretrain/abc/")) == 2
    assert read(store, tmp_path, "other") is None
    ours.clear()
    assert read(store, tmp_path) is None
    assert store.list("checkpoints/") == []


def test_what_one_went_on_from_is_replaced_and_another_runs_is_not_touched(store, file, tmp_path):
    file.write_bytes(b"of a run that was killed")
    place(store).write(file)
    second, other = place(store), place(store)
    assert second.read(tmp_path / "found.pt")
    file.write_bytes(b"of another run at the same key")
    other.write(file)
    file.write_bytes(b"second")
    second.write(file)
    assert read(store, tmp_path) == b"second"
    left = [key for key in store.list("checkpoints/pretrain/abc/") if key.endswith(".pt")]
    assert sorted(store.get(key) for key in left) == [b"of another run at the same key", b"second"]


def test_an_upload_that_fails_leaves_the_checkpoint_before(store, file, tmp_path, monkeypatch):
    ours = place(store)
    file.write_bytes(b"first")
    ours.write(file)
    file.write_bytes(b"second")

    def broken(*_: object) -> None:
        raise StepError("full")

    for method in ("upload_file", "put"):
        with monkeypatch.context() as patched:
            patched.setattr(store, method, broken)
            with pytest.raises(StepError):
                ours.write(file)
        assert read(store, tmp_path) == b"first"


@pytest.mark.parametrize("damage", ["content", "pointer", "missing"])
def test_a_damaged_checkpoint_is_none(store, file, tmp_path, capsys, damage):
    file.write_bytes(b"first")
    place(store).write(file)
    (key,) = [key for key in store.list("checkpoints/") if key.endswith(".pt")]
    if damage == "content":
        store.put(key, b"f1rst")
    elif damage == "missing":
        store.delete(key)
    else:
        store.put("checkpoints/pretrain/abc/latest.json", b"{")
    assert read(store, tmp_path) is None
    assert "starting from the beginning" in capsys.readouterr().out


def test_a_checkpoint_that_is_replaced_while_it_is_read_gives_the_newer_one(store, file, tmp_path, monkeypatch):
    other = place(store)
    file.write_bytes(b"first")
    other.write(file)
    download = store.download_file

    def overtaken(key: str, path: Path) -> None:
        monkeypatch.setattr(store, "download_file", download)
        file.write_bytes(b"second")
        other.write(file)
        download(key, path)

    monkeypatch.setattr(store, "download_file", overtaken)
    assert read(store, tmp_path) == b"second"
