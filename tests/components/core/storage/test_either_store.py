"""What holds of a bucket and of a folder alike: what is written comes back whole, and what is missing is named."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.core.errors import InputError, MissingObjectError
from components.core.storage.object_store import ObjectStore, StoredObject


@pytest.fixture
def store(either_store: ObjectStore) -> ObjectStore:
    return either_store


def begin_upload(store: ObjectStore, key: str) -> None:
    """What a writer that is killed leaves of an object: an upload without an end, or a temporary file beside its place."""
    if store.root:
        partial = store.root / f"{key}#1"
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"half")
    else:
        store._s3.control.create_multipart_upload(Bucket=store.bucket, Key=f"{store.prefix}/{key}")


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3_000_000)], ids=["empty", "one byte", "3 MB"])
def test_what_is_put_comes_back_and_a_second_put_replaces_it(store: ObjectStore, data: bytes) -> None:
    store.put("plate/0/c/1", b"earlier")
    store.put("plate/0/c/1", data)
    assert store.get("plate/0/c/1") == data


def test_keys_with_unusual_characters_come_back(store: ObjectStore) -> None:
    keys = ["with space", "plus+and%20percent", "ümlaut/日本", "a=b&c", "tilde~(1)", "a#b", "50%"]
    store.put_many((key, key.encode()) for key in keys)
    assert store.list() == sorted(keys)
    assert store.get_many(keys) == [key.encode() for key in keys]
    assert all(store.exists(key) for key in keys)
    if store.root:
        assert [(store.root / key).read_bytes() for key in keys] == [key.encode() for key in keys]
    assert sum(store.delete_prefix(key) for key in keys) == len(keys)


def test_many_objects_keep_their_order_list_in_pages_and_are_deleted_in_batches(
    store: ObjectStore,
) -> None:
    keys = [f"site/{n:04d}" for n in range(1203)]  # a page and a delete batch are 1000
    store.put_many((key, key.encode()) for key in reversed(keys))
    store.put("sites-of-another-prefix", b"")
    assert store.list("site/") == keys
    shuffled = keys[600:] + keys[:600]
    assert store.get_many(shuffled) == [key.encode() for key in shuffled]
    assert (store.requests["gets"], store.requests["puts"]) == (1203, 1204)
    assert store.delete_prefix("site/") == 1203
    assert store.list() == ["sites-of-another-prefix"]


def test_put_many_draws_items_as_it_goes(store: ObjectStore) -> None:
    drawn = 0
    most_ahead = 0

    def items() -> Iterator[tuple[str, bytes]]:
        nonlocal drawn, most_ahead
        for n in range(200):
            drawn += 1
            most_ahead = max(most_ahead, drawn - store.requests["puts"])
            yield f"{n}", b"x"

    store.put_many(items())
    assert drawn == 200
    assert most_ahead < 100


def test_an_error_of_the_generator_reaches_the_caller_as_it_is(store: ObjectStore) -> None:
    def items() -> Iterator[tuple[str, bytes]]:
        yield "a", b"x"
        raise InputError("well B03 is damaged")

    with pytest.raises(InputError, match=r"^well B03 is damaged$"):
        store.put_many(items())


def test_of_eight_conditional_writers_one_wins_and_its_data_stay(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        for key in ("first", "second", "third"):
            won = list(pool.map(lambda n, key=key: store.put_if_absent(key, b"%d" % n), range(8)))
            assert sum(won) == 1
            assert store.get(key) == b"%d" % won.index(True)


def test_an_object_is_replaced_only_where_it_is_of_the_version_that_was_read(store: ObjectStore) -> None:
    store.put("a/b", b"first")
    content, first = store.get_versioned("a/b")
    assert content == b"first"
    assert store.put_if_version("a/b", b"second", first)
    assert not store.put_if_version("a/b", b"late", first)
    content, second = store.get_versioned("a/b")
    assert (content, second == first) == (b"second", False)
    assert store.put_if_version("a/b", b"third", second)
    assert store.get("a/b") == b"third"
    assert store.list() == ["a/b"]
    assert list(store.unfinished_uploads("")) == []


def test_what_is_not_there_has_no_version_and_is_not_written(store: ObjectStore) -> None:
    store.put("a", b"x")
    _, version = store.get_versioned("a")
    store.delete("a")
    for key in ("a", "b/c"):
        with pytest.raises(MissingObjectError, match=store.uri(key)):
            store.get_versioned(key)
        assert not store.put_if_version(key, b"y", version)
    assert store.list() == []


def test_of_eight_writers_on_one_version_one_wins_and_its_data_stay(store: ObjectStore) -> None:
    store.put("a", b"start")
    with ThreadPoolExecutor(8) as pool:
        for n in range(12):
            _, version = store.get_versioned("a")
            data = [b"%d by %d" % (n, writer) for writer in range(8)]
            won = list(pool.map(lambda each, version=version: store.put_if_version("a", each, version), data))
            assert sum(won) == 1
            assert store.get("a") == data[won.index(True)]


def test_threads_share_a_store(store: ObjectStore) -> None:
    def work(n: int) -> bool:
        store.put_many((f"{n}/{i}", b"%d" % (n * i)) for i in range(20))
        return store.get_many([f"{n}/{i}" for i in range(20)]) == [b"%d" % (n * i) for i in range(20)]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert (store.requests["gets"], store.requests["puts"]) == (120, 120)


def test_files_over_the_multipart_threshold_come_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 40)  # two parts of up to 32 MiB
    target.write_bytes(b"earlier")
    store.upload_file(source, "weights")
    store.download_file("weights", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_missing_object_is_named_and_leaves_no_file(store: ObjectStore, tmp_path: Path) -> None:
    for read in (
        lambda: store.get("gone"),
        lambda: store.get_many(["gone"]),
        lambda: store.download_file("gone", tmp_path / "target"),
    ):
        with pytest.raises(MissingObjectError, match=store.uri("gone")):
            read()
    assert not store.exists("gone")
    assert list(tmp_path.iterdir()) == []


def test_local_files_that_cannot_be_read_or_written_are_named(store: ObjectStore, tmp_path: Path) -> None:
    store.put("a", b"1")
    missing = tmp_path / "no-folder" / "file"
    with pytest.raises(InputError, match="no-folder/file: cannot be read"):
        store.upload_file(missing, "b")
    with pytest.raises(InputError, match="no-folder/file: cannot be written"):
        store.download_file("a", missing)


def test_a_scan_tells_size_and_time_of_what_a_list_names(store: ObjectStore) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)  # a bucket's times are whole seconds
    sizes = {"plates/a/zarr.json": 2, "plates/a/B/03/c.0": 3000, "plates/ab": 0, "other": 5}
    store.put_many((key, b"x" * size) for key, size in sizes.items())
    begin_upload(store, "plates/a/B/03/c.1")
    for prefix in ("", "plates/", "plates/a", "plates/a/", "plates/a/zarr.json", "nothing/"):
        found = {object.key: object for object in store.scan(prefix)}
        assert sorted(found) == store.list(prefix) == sorted(key for key in sizes if key.startswith(prefix))
        assert {key: object.size for key, object in found.items()} == {key: sizes[key] for key in found}
        assert all(begun <= object.modified <= datetime.now(UTC) for object in found.values())
    time.sleep(1.1)
    (earlier,) = store.scan("other")
    store.put("other", b"later")
    (later,) = store.scan("other")
    assert later.modified > earlier.modified


def test_a_scan_is_drawn_as_it_goes_and_what_goes_meanwhile_is_no_error(store: ObjectStore) -> None:
    keys = [f"{folder}/{n:03}" for folder in range(6) for n in range(200)]  # a bucket's page is 1000
    store.put_many((key, b"x") for key in keys)
    lists = store.requests["lists"]
    scan = store.scan("")
    first: StoredObject = next(scan)
    drawn = store.requests["lists"]
    store.delete_many([key for key in keys if key != first.key])
    left = [first.key, *(found.key for found in scan)]
    assert len(left) == len(set(left)) <= 1000
    assert lists < drawn
    assert store.list() == [first.key]
    assert store.requests["lists"] > drawn


def test_many_are_deleted_and_missing_ones_are_no_error(store: ObjectStore) -> None:
    keys = [f"plates/a/{n % 7}/{n}" for n in range(1003)]  # a bucket takes 1000 a request
    store.put_many((key, b"x") for key in [*keys, "plates/ab", "runs/a"])
    store.delete_many([*keys, "plates/none", "none/at/all", "plates/ab/deeper"])
    assert store.list() == ["plates/ab", "runs/a"]
    store.delete_many(keys)
    store.delete_many([])
    if store.root:
        assert sorted(path.name for path in store.root.rglob("*")) == ["a", "ab", "plates", "runs"]


def test_unfinished_uploads_are_no_objects_and_can_be_given_up(store: ObjectStore) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    store.put("finished/a/whole", b"x")
    for key in ("finished/a/weights", "finished/b/weights", "other"):
        begin_upload(store, key)
    assert store.list() == ["finished/a/whole"]
    assert len(list(store.unfinished_uploads(""))) == 3
    assert len(list(store.unfinished_uploads("finished/"))) == 2
    (upload,) = store.unfinished_uploads("finished/a/")
    assert upload.key.startswith("finished/a/")
    assert begun <= upload.started <= datetime.now(UTC)
    for _ in range(2):  # the second time it is gone
        store.give_up_upload(upload)
        assert list(store.unfinished_uploads("finished/a/")) == []
    assert store.list() == ["finished/a/whole"]
    assert len(list(store.unfinished_uploads(""))) == 2
