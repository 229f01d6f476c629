"""Packing a plate: its record comes last, equal content is packed once, and memory stays small."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from components.core.errors import StepError
from components.core.screen.batches import Packing
from components.core.screen.layouts import read_screen
from components.core.screen.packing import PackedPlate, PackResult, pack_plates
from components.core.screen.plane_header import ImageForm
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Plane, Plate, Site, Well
from tests.tiny_screen import CONFIG, FORM, IMAGED, SIZE, MemoryStore, TinyScreen, raw_png


def pack(tiny: TinyScreen, store: MemoryStore) -> PackResult:
    """Packs HUVEC-01 plate 1."""
    plate = read_screen(tiny.root, IMAGED).plates[0]
    (result,) = pack_plates(Packing(ScreenDirectory(tiny.root), FORM, CONFIG.pack, store), [plate])
    return result


def chunks(store: MemoryStore) -> list[str]:
    return [key for key in store.puts if "/c." in key]


def test_the_record_is_written_after_everything_it_describes(tiny: TinyScreen):
    store = MemoryStore()
    prefix = pack(tiny, store).prefix
    record = store.puts.index(f"{prefix}/plate.json")
    assert [key.split("/")[0] for key in store.puts[record + 1 :]] == ["copies"]
    assert PackedPlate.model_validate_json(store.objects[f"{prefix}/plate.json"])


def test_a_damaged_pointer_is_written_again(tiny: TinyScreen):
    store = MemoryStore()
    first = pack(tiny, store)
    for path in (tiny.root / "train" / "HUVEC-01" / "Plate1").glob("*.png"):
        os.utime(path, ns=(1, 1))
    copied = pack(tiny, store)
    (fingerprint,) = store.list("fingerprints/")
    sound = store.objects[fingerprint]
    for damaged in (b"", b"[]", b"{}"):
        store.objects[fingerprint] = damaged
        assert pack(tiny, store) == copied == replace(first, reused=True)
        assert store.objects[fingerprint] == sound


def test_labels_affect_no_packed_plate(tiny: TinyScreen):
    store = MemoryStore()
    first = pack(tiny, store)
    tiny.edit("train.csv", "B03,sirna_7", "B03,sirna_9")
    assert pack(tiny, store) == replace(first, reused=True)
    labelled = {key for key, data in store.objects.items() if b"sirna" in data}
    assert labelled
    assert {key.removeprefix(f"{first.prefix}/").count("/") for key in labelled} == {2}, (
        "metadata of wells, for viewers"
    )


def test_rejects_a_damaged_record(tiny: TinyScreen):
    store = MemoryStore()
    first = pack(tiny, store)
    store.objects[f"{first.prefix}/plate.json"] = b"{}"
    with pytest.raises(StepError, match=r"plate\.json: not the record of a packed plate"):
        pack(tiny, store)


def test_a_changed_image_of_the_same_size_is_no_copy(tiny: TinyScreen):
    store, path = MemoryStore(), tiny.image("HUVEC-01", 1, "B03", 1, 1)
    sizes, prefixes = set(), set()
    for grey in (b"\7", b"\x9a"):
        path.write_bytes(raw_png(SIZE, zlib.compress((b"\0" + grey * SIZE) * SIZE, 0)))
        sizes.add(path.stat().st_size)
        result = pack(tiny, store)
        prefixes.add(result.prefix)
        assert not result.reused
    assert (len(sizes), len(prefixes)) == (1, 2)


def test_memory_holds_a_few_sites_however_many_there_are(tiny: TinyScreen, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"batches.BATCH": 1, "packing.TASKS": 2, "packing.cores": lambda: 1}.items():
        monkeypatch.setattr(f"components.core.screen.{name}", value)
    read, most = 0, 0

    class Source(ScreenDirectory):
        def read_many(self, paths):
            nonlocal read
            read += 1
            return super().read_many(paths)

    class Store(MemoryStore):
        def put(self, key, data):
            nonlocal most
            super().put(key, data)
            most = max(most, read - len(chunks(self)))

    plates = read_screen(tiny.root, IMAGED).plates[:2]
    results = list(pack_plates(Packing(Source(tiny.root), FORM, CONFIG.pack, Store()), plates))
    assert sum(len(well.sites) for result in results for well in result.packed.wells) == 20 == read
    assert most <= 2, "one a thread; half of a plate would be five"


def test_counts_of_16_bit_pixels_are_summed_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("components.core.screen.batches.BATCH", 1)
    sites, image_HW = 60, np.arange(16 * 16, dtype=np.uint16).reshape(16, 16) * 200
    tifffile.imwrite(tmp_path / "a.tif", image_HW)
    planes = ((Plane("a.tif"),), (Plane("a.tif"),))
    well = Well("E_P_A01", "A01", "negative_control", "DMSO", tuple(Site(n + 1, planes) for n in range(sites)))
    plate = Plate("E", "P", "cells", True, False, (well,))
    packing = Packing(ScreenDirectory(tmp_path), ImageForm(("r", "g"), (16, 16), "uint16"), CONFIG.pack, MemoryStore())
    tracemalloc.start()
    try:
        (packed,) = pack_plates(packing, [plate])
        (found,) = pack_plates(packing, [replace(plate, wells=(replace(well, role="positive_control"),))])
        store = packing.store
        store.delete_prefix(next(key for key in store.list("plates/") if "/controls-" in key))
        (counted,) = pack_plates(packing, [plate])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected_CG = np.tile(sites * np.bincount(image_HW.ravel(), minlength=65536), (2, 1))
    for result in (packed, found, counted):
        assert np.array_equal(result.packed.histograms, expected_CG)
        assert np.array_equal(result.control_histograms, expected_CG)
    assert peak < 30e6, "a few counts of 1 MB; those of all batches would be 120"
