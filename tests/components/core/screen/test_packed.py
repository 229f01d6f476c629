"""Reading packed sites back, and what is said when a chunk is not what the manifest promises."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.screen.packed import SiteReader
from components.core.storage.folder_store import FolderStore
from components.core.storage.node_cache import NodeCache
from tests.tiny_screen import SIZE, TinyScreen

INDICES = st.lists(st.integers(0, 79), max_size=12)


@settings(max_examples=30, deadline=None)
@given(indices=INDICES)
def test_sites_come_in_the_order_asked_for(packed_screen, indices):
    store, manifest = packed_screen
    reader = SiteReader(store, manifest, verify=True)
    table = reader.table
    assert table.sites == 80
    batch = reader.read(np.array(indices, np.int64))
    assert (batch.shape, batch.dtype) == ((len(indices), 6, SIZE, SIZE), np.uint8)
    for site, pixels in zip(indices, batch, strict=True):
        well = table.well_S[site]
        plate = manifest.plates[table.plate_W[well]]
        expected = TinyScreen.pixels(plate.experiment, plate.plate, str(table.well_W[well]), int(table.site_S[site]))
        assert np.array_equal(pixels, expected)


def damaged(packed_screen, index, change):
    """A reader of a copy of the store in which one chunk is changed (or, with None, missing)."""
    store, manifest = packed_screen
    store = copy.deepcopy(store)
    reader = SiteReader(store, manifest)
    key = reader.table.key_S[index]
    data = change(store.objects.pop(key))
    if data is not None:
        store.objects[key] = data
    return store, manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: None, "is missing"),
        (lambda data: data[:-5], "the manifest says"),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: b"\0" * len(data), "truncated or damaged"),
    ],
)
def test_a_missing_or_broken_chunk_is_named_by_plate_well_and_site(packed_screen, change, message):
    store, manifest = damaged(packed_screen, 13, change)
    with pytest.raises(InputError, match=rf"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* ({message})"):
        SiteReader(store, manifest).read([2, 13, 40])
    assert SiteReader(store, manifest).read([2, 40]).shape[0] == 2


def test_a_changed_pixel_is_noticed_where_digests_are_verified(packed_screen):
    store, manifest = packed_screen
    # Random pixels do not compress, so Blosc stores them as they are, and a changed byte decodes to a changed pixel.
    other = damaged(packed_screen, 0, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert not np.array_equal(SiteReader(*other).read([0]), SiteReader(store, manifest).read([0]))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        SiteReader(*other, verify=True).read([0])


class Counted:
    """A store that counts what is asked of it, and gives out views where the other gives bytes."""

    def __init__(self, store):
        self.asked = []
        self._store = store

    def get(self, key):
        self.asked.append(key)
        return self._store.get(key)

    def view(self, key):
        return memoryview(self.get(key))

    def get_many(self, keys):
        return [self.get(key) for key in keys]


@pytest.fixture
def cached(packed_screen, tmp_path):
    """A counted store and a reader with a node cache in a folder of its own."""
    store, manifest = packed_screen
    counted = Counted(store)
    return counted, SiteReader(counted, manifest, verify=True, node_cache=NodeCache(tmp_path / "node", 10**9))


@pytest.mark.parametrize("sites", [[5], [5, 13, 40]])
def test_the_nodes_cache_gives_the_same_pixels_and_saves_the_requests(packed_screen, cached, sites):
    counted, reader = cached
    expected = SiteReader(*packed_screen).read(sites)
    for _ in range(3):
        assert np.array_equal(reader.read(sites), expected)
    assert sorted(counted.asked) == sorted(reader.table.key_S[site] for site in sites)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x", lambda data: bytes(len(data))]
)
@pytest.mark.parametrize("other_process", [False, True])
def test_a_damaged_file_of_the_nodes_cache_is_fetched_again(packed_screen, cached, tmp_path, damage, other_process):
    counted, reader = cached
    expected = reader.read([5, 13])
    (file,) = tmp_path.rglob(reader.table.sha256_S[5])
    file.write_bytes(damage(file.read_bytes()))
    if other_process:
        reader = SiteReader(counted, packed_screen[1], verify=True, node_cache=NodeCache(tmp_path / "node", 10**9))
    counted.asked.clear()
    assert np.array_equal(reader.read([5, 13]), expected)
    assert counted.asked == [reader.table.key_S[5]]
    assert np.array_equal(reader.read([5, 13]), expected)
    assert len(counted.asked) == 1, "and kept again"


def test_a_changed_byte_in_the_nodes_cache_is_noticed_by_the_next_process(packed_screen, cached, tmp_path):
    counted, reader = cached
    expected = reader.read([5])
    (file,) = tmp_path.rglob(reader.table.sha256_S[5])
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    later = SiteReader(counted, packed_screen[1], verify=True, node_cache=NodeCache(tmp_path / "node", 10**9))
    assert np.array_equal(later.read([5]), expected)


@pytest.mark.parametrize("verify", [False, True])
def test_nothing_wrong_enters_the_nodes_cache(packed_screen, tmp_path, verify):
    store, manifest = damaged(packed_screen, 0, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    reader = SiteReader(store, manifest, verify=verify, node_cache=NodeCache(tmp_path, 10**9))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        reader.read([0])
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_is_hashed_the_first_time_only(packed_screen, monkeypatch):
    hashed = []
    real = hashlib.sha256
    monkeypatch.setattr("components.core.screen.packed.hashlib.sha256", lambda data: hashed.append(1) or real(data))
    reader = SiteReader(*packed_screen, verify=True)
    for _ in range(3):
        reader.read([3, 9, 9])
    assert len(hashed) == 2


def test_a_folder_of_files_is_read_without_asking_for_their_bytes(packed_screen, tmp_path, monkeypatch):
    memory, manifest = packed_screen
    memory.dump(tmp_path)
    store = FolderStore(tmp_path)
    monkeypatch.setattr(store, "get_many", None)
    reader = SiteReader(store, manifest, verify=True)
    assert np.array_equal(reader.read(np.arange(80)), SiteReader(memory, manifest).read(np.arange(80)))
    file = store.local_path(reader.table.key_S[13])
    for change, message in (
        (lambda data: data[:-5], "the manifest says"),
        (lambda data: data + b"more", "bytes or more, the manifest says"),
        (lambda data: b"", "has 0 bytes"),
    ):
        data = file.read_bytes()
        file.write_bytes(change(data))
        with pytest.raises(InputError, match=rf"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* {message}"):
            reader.read([2, 13])
        file.write_bytes(data)
    file.unlink()
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* is missing"):
        reader.read([2, 13])


def _train(folder, files, manifest, seed, wrong):
    """Reads sites in random order through a node cache that holds a tenth of them."""
    store = FolderStore(files)
    plain = SiteReader(store, manifest)
    size = int(plain.table.size_S.sum()) // 10
    reader = SiteReader(store, manifest, verify=True, node_cache=NodeCache(folder, size))
    order = np.random.default_rng(seed).integers(0, 80, 300)
    wrong.put(sum(not np.array_equal(reader.read([site]), plain.read([site])) for site in order))


def test_processes_with_a_tiny_cache_between_them_read_no_wrong_pixel(packed_screen, tmp_path):
    store, manifest = packed_screen
    store.dump(tmp_path / "files")
    context = multiprocessing.get_context("spawn")
    wrong = context.Queue()
    where = (tmp_path / "node", tmp_path / "files", manifest)
    processes = [context.Process(target=_train, args=(*where, seed, wrong)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [wrong.get(timeout=5) for _ in processes] == [0, 0]
    kept = sum(
        path.stat().st_size for path in (tmp_path / "node").rglob("*") if path.is_file() and path.name != ".lock"
    )
    assert 0 < kept <= int(SiteReader(store, manifest).table.size_S.sum()) // 10
