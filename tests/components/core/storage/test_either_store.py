"""Buckets and folders behave alike: objects come back whole, conditional writes hold, missing objects are named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.core.errors import InputError, MissingObjectError
from components.core.storage.object_store import ObjectStore


@pytest.fixture
def store(either_store: ObjectStore) -> ObjectStore:
    return either_store


def begin_upload(store: ObjectStore, key: str) -> None:
    """What a killed writer leaves of an object: an upload without an end, or a temporary file beside it."""
    if store.root:
        partial = store.root / f"{key}#1"
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"half")
    else:
        store._s3.control.create_multipart_upload(Bucket=store.bucket, Key=f"{store.prefix}/{key}")


def test_objects_come_back_under_any_key_and_a_second_put_replaces_them(store: ObjectStore) -> None:
    keys = ["with space", "plus+and%20percent", "ümlaut/日本", "a=b&c", "tilde~(1)", "a#b", "50%"]
    for data in (b"", os.urandom(3_000_000)):
        store.put(keys[0], data)
        assert store.get(keys[0]) == data
    store.put_many((key, key.encode()) for key in keys)
    assert store.list() == sorted(keys)
    assert store.get_many(keys) == [key.encode() for key in keys]
    assert all(store.exists(key) for key in keys)
    if store.root:
        assert [(store.root / key).read_bytes() for key in keys] == [key.encode() for key in keys]
    assert sum(store.delete_prefix(key) for key in keys) == len(keys)


def test_put_many_draws_items_as_it_goes_and_raises_the_generators_error(store: ObjectStore) -> None:
    most_ahead = 0

    def items() -> Iterator[tuple[str, bytes]]:
        nonlocal most_ahead
        for n in range(200):
            most_ahead = max(most_ahead, n + 1 - len(store.list()) if n % 50 == 49 else 0)
            yield f"{n}", b"x"
        raise InputError("well B03 is damaged")

    with pytest.raises(InputError, match=r"^well B03 is damaged$"):
        store.put_many(items())
    assert most_ahead < 100


@pytest.mark.parametrize("present", [False, True])
def test_of_eight_writers_of_an_absent_object_or_of_one_version_one_wins(store: ObjectStore, present: bool) -> None:
    version = ""
    if present:
        store.put("champion", b"start")
        version = store.get_versioned("champion")[1]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if_version("champion", b"%d" % n, version), range(8)))
    assert sum(won) == 1
    assert store.get("champion") == b"%d" % won.index(True)


def test_an_object_is_replaced_only_if_it_has_the_version_that_was_read(store: ObjectStore) -> None:
    store.put("a/b", b"first")
    content, first = store.get_versioned("a/b")
    assert content == b"first"
    assert store.put_if_version("a/b", b"second", first)
    assert not store.put_if_version("a/b", b"late", first)
    content, second = store.get_versioned("a/b")
    assert (content, second == first) == (b"second", False)
    assert store.list() == ["a/b"]
    assert list(store.unfinished_uploads("")) == []
    store.delete("a/b")
    for key in ("a/b", "b/c"):
        with pytest.raises(MissingObjectError, match=store.uri(key)):
            store.get_versioned(key)
        assert not store.put_if_version(key, b"y", second)
    assert store.list() == []


def test_a_file_in_parts_comes_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 40)  # two parts of up to 32 MiB
    target.write_bytes(b"earlier")
    store.upload_file(source, "weights")
    store.download_file("weights", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_missing_object_or_local_file_is_named_and_leaves_no_file(store: ObjectStore, tmp_path: Path) -> None:
    for read in (
        lambda: store.get("gone"),
        lambda: store.get_many(["gone"]),
        lambda: store.download_file("gone", tmp_path / "target"),
    ):
        with pytest.raises(MissingObjectError, match=store.uri("gone")):
            read()
    assert not store.exists("gone")
    assert list(tmp_path.iterdir()) == []
    store.put("a", b"1")
    missing = tmp_path / "no-folder" / "file"
    with pytest.raises(FileNotFoundError, match=f"{missing}"):
        store.upload_file(missing, "b")
    with pytest.raises(FileNotFoundError, match=f"{missing}"):
        store.download_file("a", missing)


def test_a_scan_has_the_keys_of_a_list_with_sizes_and_times(store: ObjectStore) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)  # a bucket's times are whole seconds
    sizes = {"plates/a/zarr.json": 2, "plates/a/B/03/c.0": 3000, "plates/ab": 0, "other": 5}
    store.put_many((key, b"x" * size) for key, size in sizes.items())
    begin_upload(store, "plates/a/B/03/c.1")
    for prefix in ("", "pl", "plates/", "plates/a", "plates/a/", "plates/a/zarr.json", "plates/ab/deeper", "nothing/"):
        found = {object.key: object for object in store.scan(prefix)}
        assert sorted(found) == store.list(prefix) == sorted(key for key in sizes if key.startswith(prefix))
        assert {key: object.size for key, object in found.items()} == {key: sizes[key] for key in found}
        assert all(begun <= object.modified <= datetime.now(UTC) for object in found.values())
    assert store.delete_prefix("plates/a/z") == store.delete_prefix("plates/ab") == 1
    assert store.list() == ["other", "plates/a/B/03/c.0"]


def test_many_are_listed_read_in_order_and_deleted_and_a_missing_one_is_no_error(store: ObjectStore) -> None:
    keys = [f"plates/a/{n % 7}/{n:04}" for n in range(1003)]  # a bucket lists and deletes 1000 a request
    store.put_many((key, key.encode()) for key in [*keys, "plates/ab", "runs/a"])
    assert store.list("plates/a/") == sorted(keys)
    assert store.get_many(keys) == [key.encode() for key in keys]
    store.delete_many([*keys, "plates/none", "none/at/all", "plates/ab/deeper"])
    assert store.list() == ["plates/ab", "runs/a"]
    store.delete_many(keys)
    store.delete_many([])
    assert store.put_if_version("runs/a", b"y", store.get_versioned("runs/a")[1])
    store.delete("plates/none")
    if store.root:
        assert sorted(path.name for path in store.root.rglob("*")) == [".lock#0", "a", "ab", "plates", "runs"]
    assert store.delete_prefix("r") == store.delete_prefix("plates") == 1
    if store.root:
        assert [path.name for path in store.root.iterdir()] == [".lock#0"]
