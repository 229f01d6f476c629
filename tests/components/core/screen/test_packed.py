"""Reading packed sites back, and what is said when a chunk is not what the manifest promises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.screen.packed import SiteReader
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
