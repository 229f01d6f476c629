"""The node's cache of packed sites: limit, order of eviction, several processes, crashes, damage."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from components.core.storage import node_cache
from components.core.storage.node_cache import NodeCache


def content(number: int, size: int = 1000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def add(cache: NodeCache, *numbers: int, size: int = 1000) -> None:
    for number in numbers:
        data = content(number, size)
        cache.add(digest(data), data)


def has(cache: NodeCache, number: int, size: int = 1000) -> bool:
    """Whether a number's file is there; its bytes must be right."""
    data, buffer = content(number, size), bytearray(size + 1)
    count = cache.read_into(digest(data), buffer)
    assert count < 0 or bytes(buffer[:count]) == data
    return count >= 0


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".partial"))


def total(folder: Path) -> int:
    size = 0
    for path in files(folder):
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # evicted
            continue
    return size


def test_the_least_recently_read_files_are_evicted_first(tmp_path: Path):
    folder = tmp_path / "made" / "when missing"
    cache = NodeCache(folder, 5000)
    assert not has(cache, 0)
    add(cache, 0, 1, 2, 3, 4)
    add(cache, 3)  # again, which takes no room
    assert total(folder) == 5000
    assert has(NodeCache(folder, 5000), 0)
    add(cache, 5)
    assert [n for n in range(6) if has(cache, n)] == [0, 2, 3, 4, 5]


def test_the_limit_holds_for_files_of_any_size(tmp_path: Path):
    rng = np.random.default_rng(0)
    cache = NodeCache(tmp_path, 10_000)
    for number in range(100):
        add(cache, number, size=int(rng.integers(1, 4000)))
        assert total(tmp_path) <= 10_000
    assert total(tmp_path) > 4000, "and is used"
    add(cache, 1000, size=10_001)
    assert not has(cache, 1000, size=10_001), "one that would never fit evicts nothing"
    assert total(tmp_path) > 4000


def test_files_that_are_not_its_own_stay_and_a_lost_count_is_recomputed(tmp_path: Path):
    (tmp_path / "ab").mkdir()
    foreign = [tmp_path / "notes.txt", tmp_path / "ab" / "notes.txt"]
    for path in foreign:
        path.write_text("x" * 5000)
    add(NodeCache(tmp_path, 2000), *range(10))
    (tmp_path / ".lock").write_text("not digits")
    cache = NodeCache(tmp_path, 2000)
    add(cache, 10, 11)
    assert all(path.exists() for path in foreign)
    assert total(tmp_path) <= 2 * 5000 + 2000
    assert has(cache, 11)


def _use(folder: Path, seed: int) -> None:
    """Uses the cache in two threads; half of what they look for is found."""
    cache = NodeCache(folder, 20_000)

    def work(seed: int) -> int:
        hits = 0
        for number in np.random.default_rng(seed).integers(0, 60, 200):
            if has(cache, int(number)):
                hits += 1
            else:
                add(cache, int(number))
        return hits

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(work, (seed, seed + 1))) > 400 * 0.2  # of 60 files 20 fit, or 19 after an eviction


def test_processes_and_threads_keep_the_limit_and_read_right_bytes(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_use, args=(tmp_path, seed)) for seed in (0, 2)]
    for process in processes:
        process.start()
    most, watching = 0, NodeCache(tmp_path, 20_000)
    while any(process.is_alive() for process in processes):
        with watching._locked():  # otherwise files that were never there together would be added up
            most = max(most, total(tmp_path))
        time.sleep(0.001)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert 10_000 < most <= 20_000


def _write_forever(folder: Path) -> None:
    cache = NodeCache(folder, 40_000_000)
    for number in range(10**6):
        add(cache, number % 50, size=1_000_000)
        cache.drop(digest(content((number + 25) % 50, 1_000_000)))


def test_a_killed_writer_leaves_no_wrong_file_and_its_room_is_freed(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    for delay in (0.05, 0.15):
        process = context.Process(target=_write_forever, args=(tmp_path,))
        process.start()
        while not any(files(tmp_path)):
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in files(tmp_path):
            assert digest(path.read_bytes()) == path.name
    cache = NodeCache(tmp_path, 40_000_000)
    add(cache, *range(50), size=1_000_000)
    assert not list(tmp_path.rglob("*.partial"))
    assert 30_000_000 < total(tmp_path) <= 40_000_000


def test_a_disk_that_cannot_be_written_warns_once_and_reading_continues(tmp_path: Path, monkeypatch, capsys):
    cache = NodeCache(tmp_path, 10**6)
    add(cache, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(node_cache.os, "rename", full)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: add(cache, number), range(2, 12)))
    output = capsys.readouterr().out
    assert output.count("warning:") == 1
    assert "cannot be written (No space left on device)" in output
    assert has(cache, 1)
    assert not has(cache, 2)
    (left,) = files(tmp_path)
    elsewhere = NodeCache(left / "cache", 10**6)  # below a file
    add(elsewhere, 1, 2, 3)
    assert capsys.readouterr().out.count("warning:") == 1
    assert not has(elsewhere, 1)
