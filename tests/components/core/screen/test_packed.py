"""Reading packed sites: from a store, a folder and the node's cache, and chunks that differ from the manifest."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.screen.packed import SiteReader
from components.core.storage.node_cache import NodeCache
from components.core.storage.object_store import ObjectStore
from tests.tiny_screen import SIZE, MemoryStore, TinyScreen

INDICES = st.lists(st.integers(0, 79), max_size=12)


@settings(max_examples=30, deadline=None)
@given(indices=INDICES)
def test_sites_come_in_the_requested_order(screen, indices):
    store, manifest = screen
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


def damaged(screen, index, change):
    """A reader of a copy of the store in which one chunk is changed (or, with None, missing)."""
    store, manifest = screen
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
def test_rejects_a_missing_or_broken_chunk(screen, change, message):
    store, manifest = damaged(screen, 13, change)
    with pytest.raises(InputError, match=rf"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* ({message})"):
        SiteReader(store, manifest).read([2, 13, 40])
    assert SiteReader(store, manifest).read([2, 40]).shape[0] == 2


def test_a_changed_pixel_is_noticed_if_digests_are_verified(screen):
    store, manifest = screen
    # Random pixels do not compress, so Blosc stores them as they are, and a changed byte decodes to a changed pixel.
    other = damaged(screen, 0, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert not np.array_equal(SiteReader(*other).read([0]), SiteReader(store, manifest).read([0]))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        SiteReader(*other, verify=True).read([0])


class Counted(MemoryStore):
    """A copy of a store that records the keys requested of it."""

    def __init__(self, store):
        super().__init__()
        self.objects, self.requested = store.objects, []

    def get(self, key):
        self.requested.append(key)
        return super().get(key)


@pytest.fixture
def cached(screen, tmp_path):
    """A counted store and a reader with a node cache in a folder of its own."""
    store, manifest = screen
    counted = Counted(store)
    return counted, SiteReader(counted, manifest, verify=True, node_cache=NodeCache(tmp_path / "node", 10**9))


@pytest.mark.parametrize("sites", [[5], [5, 13, 40]])
def test_the_nodes_cache_gives_the_same_pixels_and_saves_the_requests(screen, cached, sites):
    counted, reader = cached
    expected = SiteReader(*screen).read(sites)
    for _ in range(3):
        assert np.array_equal(reader.read(sites), expected)
    assert sorted(counted.requested) == sorted(reader.table.key_S[site] for site in sites)


@pytest.mark.parametrize(
    ("damage", "other_process"),
    [
        (lambda data: data[:-1], False),
        (lambda data: bytes(len(data)), False),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), True),  # noticed by its digest
    ],
)
def test_a_damaged_file_of_the_nodes_cache_is_fetched_again(screen, cached, tmp_path, damage, other_process):
    counted, reader = cached
    expected = reader.read([5, 13])
    (file,) = tmp_path.rglob(reader.table.sha256_S[5])
    file.write_bytes(damage(file.read_bytes()))
    if other_process:
        reader = SiteReader(counted, screen[1], verify=True, node_cache=NodeCache(tmp_path / "node", 10**9))
    counted.requested.clear()
    assert np.array_equal(reader.read([5, 13]), expected)
    assert counted.requested == [reader.table.key_S[5]]
    assert np.array_equal(reader.read([5, 13]), expected)
    assert len(counted.requested) == 1, "and kept again"


@pytest.mark.parametrize("verify", [False, True])
def test_nothing_wrong_enters_the_nodes_cache(screen, tmp_path, verify):
    store, manifest = damaged(screen, 0, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    reader = SiteReader(store, manifest, verify=verify, node_cache=NodeCache(tmp_path, 10**9))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        reader.read([0])
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_folder_are_read_directly(screen, tmp_path, monkeypatch):
    memory, manifest = screen
    store = ObjectStore(tmp_path)
    store.put_many(memory.objects.items())
    monkeypatch.setattr(store, "get_many", None)
    reader = SiteReader(store, manifest, verify=True)
    assert np.array_equal(reader.read(np.arange(80)), SiteReader(memory, manifest).read(np.arange(80)))
    file = store.root / reader.table.key_S[13]
    data = file.read_bytes()
    for damaged, message in ((data[:-5], "the manifest says"), (data + b"more", "bytes or more, the manifest says")):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* {message}"):
            reader.read([2, 13])
    file.unlink()
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* is missing"):
        reader.read([2, 13])
