"""What holds of a bucket and of a folder alike: what is written comes back whole, and what is missing is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.storage.interface import MissingObjectError, ObjectStorage


@pytest.fixture
def store(either_store: ObjectStorage) -> ObjectStorage:
    return either_store


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3_000_000)], ids=["empty", "one byte", "3 MB"])
def test_what_is_put_comes_back_and_a_second_put_replaces_it(store: ObjectStorage, data: bytes) -> None:
    store.put("plate/0/c/1", b"earlier")
    store.put("plate/0/c/1", data)
    assert store.get("plate/0/c/1") == data


def test_keys_with_unusual_characters_come_back(store: ObjectStorage) -> None:
    keys = ["with space", "plus+and%20percent", "ümlaut", "a=b&c", "tilde~(1)"]
    store.put_many((key, key.encode()) for key in keys)
    assert store.list() == sorted(keys)
    assert store.get_many(keys) == [key.encode() for key in keys]
    assert all(store.exists(key) for key in keys)
    assert sum(store.delete_prefix(key) for key in keys) == len(keys)


def test_many_objects_keep_their_order_list_in_pages_and_are_deleted_in_batches(store: ObjectStorage) -> None:
    keys = [f"site/{n:04d}" for n in range(1203)]  # a page and a delete batch are 1000
    store.put_many((key, key.encode()) for key in reversed(keys))
    store.put("sites-of-another-prefix", b"")
    assert store.list("site/") == keys
    shuffled = keys[600:] + keys[:600]
    assert store.get_many(shuffled) == [key.encode() for key in shuffled]
    assert (store.requests["gets"], store.requests["puts"]) == (1203, 1204)
    assert store.delete_prefix("site/") == 1203
    assert store.list() == ["sites-of-another-prefix"]


def test_put_many_draws_items_as_it_goes(store: ObjectStorage) -> None:
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


def test_an_error_of_the_generator_reaches_the_caller_as_it_is(store: ObjectStorage) -> None:
    def items() -> Iterator[tuple[str, bytes]]:
        yield "a", b"x"
        raise InputError("well B03 is damaged")

    with pytest.raises(InputError, match=r"^well B03 is damaged$"):
        store.put_many(items())


def test_of_eight_conditional_writers_one_wins_and_its_data_stay(store: ObjectStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        for key in ("first", "second", "third"):
            won = list(pool.map(lambda n, key=key: store.put_if_absent(key, b"%d" % n), range(8)))
            assert sum(won) == 1
            assert store.get(key) == b"%d" % won.index(True)


def test_threads_share_a_store(store: ObjectStorage) -> None:
    def work(n: int) -> bool:
        store.put_many((f"{n}/{i}", b"%d" % (n * i)) for i in range(20))
        return store.get_many([f"{n}/{i}" for i in range(20)]) == [b"%d" % (n * i) for i in range(20)]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert (store.requests["gets"], store.requests["puts"]) == (120, 120)


def test_files_over_the_multipart_threshold_come_back_whole(store: ObjectStorage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 40)  # two parts of up to 32 MiB
    target.write_bytes(b"earlier")
    store.upload_file(source, "weights")
    store.download_file("weights", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_missing_object_is_named_and_leaves_no_file(store: ObjectStorage, tmp_path: Path) -> None:
    for read in (
        lambda: store.get("gone"),
        lambda: store.get_many(["gone"]),
        lambda: store.download_file("gone", tmp_path / "target"),
    ):
        with pytest.raises(MissingObjectError, match=store.uri("gone")):
            read()
    assert not store.exists("gone")
    assert list(tmp_path.iterdir()) == []


def test_local_files_that_cannot_be_read_or_written_are_named(store: ObjectStorage, tmp_path: Path) -> None:
    store.put("a", b"1")
    missing = tmp_path / "no-folder" / "file"
    with pytest.raises(InputError, match="no-folder/file: cannot be read"):
        store.upload_file(missing, "b")
    with pytest.raises(InputError, match="no-folder/file: cannot be written"):
        store.download_file("a", missing)
