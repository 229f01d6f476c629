"""A folder as object store: addresses, its files, killed writers, several processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.core.config import StoreConfig
from components.core.errors import InputError, MissingObjectError
from components.core.storage.object_store import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "lab data")


def test_an_object_is_a_file_at_its_key(store: ObjectStore):
    store.put("plates/a/zarr.json", b"{}")
    assert (store.root / "plates/a/zarr.json").read_bytes() == b"{}"
    assert store.uri("plates/a") == f"file://{store.root.parent}/lab%20data/plates/a"
    assert ObjectStore(store.uri("")).get("plates/a/zarr.json") == b"{}"
    assert ObjectStore(StoreConfig(bucket=store.uri(""), prefix="plates/").address).list() == ["a/zarr.json"]
    assert pickle.loads(pickle.dumps(store)).list("plates/") == ["plates/a/zarr.json"]


def test_rejects_an_address_of_no_folder_and_a_key_that_is_no_path_in_it(store: ObjectStore):
    for address in ("file://", "file:///", "file://server/folder", "file:relative"):
        with pytest.raises(InputError, match="write file:///PATH"):
            ObjectStore(address)
    for key in ("", "/etc/passwd", "../up", "a/../b", "a//b", "a/.", "a\tb"):
        with pytest.raises(InputError, match="cannot be the key of an object"):
            store.put(key, b"")
    assert not store.root.exists()


def _write_forever(root: Path) -> None:
    store = ObjectStore(root)
    while True:
        store.put_many((f"plate/{n}", b"%d" % n * 400_000) for n in range(8))


def test_a_killed_writer_leaves_whole_objects_and_nothing_else_that_is_listed(store: ObjectStore):
    for _ in range(2):
        writer = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(store.root,))
        writer.start()
        while not store.list("plate/"):
            pass
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join(60)
        found = store.list("plate/")
        for key, data in zip(found, store.get_many(found), strict=True):
            assert data == key.removeprefix("plate/").encode() * 400_000
        (store.root / "plate" / "7#1").write_bytes(b"half")  # in case none was left this time
        assert store.list("") == found
        assert store.delete_prefix("plate/") == len(found)
        for upload in store.unfinished_uploads(""):
            store.give_up_upload(upload)
        assert list(store.root.iterdir()) == []


def test_writers_and_deleters_of_one_prefix_do_not_disturb_each_other(store: ObjectStore):
    def write(n: int) -> None:
        for i in range(20):
            store.put(f"plate/{n}/{i}", b"x")
            store.delete_prefix(f"plate/{n}/")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [0, 0, 1, 1]))
    assert store.list() == []


def test_rejects_keys_that_the_file_system_cannot_take(store: ObjectStore):
    store.put("a/b", b"1")
    assert not store.exists("a"), "a folder is no object"
    with pytest.raises(MissingObjectError, match=r"/a.$"):
        store.get("a")
    with pytest.raises(InputError, match=r"/a/b/c: put refused \(Not a directory\)"):
        store.put("a/b/c", b"1")
    with pytest.raises(InputError, match=r"put refused \(File name too long\)"):
        store.put("x" * 300, b"1")
    if os.geteuid():  # root may write everywhere
        (store.root / "a").chmod(0o500)
        with pytest.raises(InputError, match=r"a/c: put refused \(Permission denied\); correct the folder or its"):
            store.put("a/c", b"1")
        (store.root / "a").chmod(0o700)


def test_check_names_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ObjectStore(tmp_path / "new").check()
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "cache"))
    default = ObjectStore(StoreConfig().address)
    assert default.list() == []
    assert not (tmp_path / "a").exists(), "only reading"
    default.check()
    assert default.root == tmp_path / "a" / "cache" / "cellsignal" / "store"
    assert default.root.is_dir()
    (tmp_path / "file").touch()
    for root, reason in ((tmp_path / "not" / "mounted", "No such file"), (tmp_path / "file", "File exists")):
        with pytest.raises(
            InputError, match=rf"file://{root}: the object store cannot be written here \({reason}.*--store"
        ):
            ObjectStore(root).check()


def test_a_download_that_fills_the_disk_names_the_local_file(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # a write names no file

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/copy'"):
        store.download_file("a", tmp_path / "copy")
