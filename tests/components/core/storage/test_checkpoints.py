"""Checkpoints in the store: one at a time, complete; a step deletes only its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import StepError
from components.core.storage.finished import CheckpointStore
from components.core.storage.object_store import ObjectStore


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "in.pt"


def checkpoints(store: ObjectStore, key: str = "abc") -> CheckpointStore:
    return CheckpointStore(store, "pretrain", key)


def read(store: ObjectStore, tmp_path: Path, key: str = "abc") -> bytes | None:
    target = tmp_path / "out.pt"
    target.unlink(missing_ok=True)
    return target.read_bytes() if checkpoints(store, key).read(target) else None


def test_only_the_newest_checkpoint_is_kept(store, file, tmp_path):
    assert read(store, tmp_path) is None
    ours = checkpoints(store)
    for content in (b"first", b"second"):
        file.write_bytes(content)
        ours.write(file)
        assert read(store, tmp_path) == content
        assert len(store.list("checkpoints/pretrain/abc/")) == 2
    assert read(store, tmp_path, "other") is None
    ours.clear()
    assert read(store, tmp_path) is None
    assert store.list("checkpoints/") == []


def test_a_step_replaces_the_checkpoint_it_resumed_from_and_leaves_those_of_others(store, file, tmp_path):
    file.write_bytes(b"of a run that was killed")
    checkpoints(store).write(file)
    second, other = checkpoints(store), checkpoints(store)
    assert second.read(tmp_path / "found.pt")
    file.write_bytes(b"of another run at the same key")
    other.write(file)
    file.write_bytes(b"second")
    second.write(file)
    assert read(store, tmp_path) == b"second"
    left = [key for key in store.list("checkpoints/pretrain/abc/") if key.endswith(".pt")]
    assert sorted(store.get(key) for key in left) == [b"of another run at the same key", b"second"]


def test_a_failed_upload_keeps_the_earlier_checkpoint(store, file, tmp_path, monkeypatch):
    ours = checkpoints(store)
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
def test_ignores_a_damaged_checkpoint(store, file, tmp_path, capsys, damage):
    file.write_bytes(b"first")
    checkpoints(store).write(file)
    (key,) = [key for key in store.list("checkpoints/") if key.endswith(".pt")]
    if damage == "content":
        store.put(key, b"f1rst")
    elif damage == "missing":
        store.delete(key)
    else:
        store.put("checkpoints/pretrain/abc/latest.json", b"{")
    assert read(store, tmp_path) is None
    assert "starting from the beginning" in capsys.readouterr().out


def test_reads_the_newer_checkpoint_if_it_is_replaced_while_reading(store, file, tmp_path, monkeypatch):
    other = checkpoints(store)
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
