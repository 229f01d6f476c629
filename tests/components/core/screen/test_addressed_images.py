"""Images in a bucket that tables in a folder name by their addresses."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.core.errors import InputError
from components.core.screen.images import image_form, plate_files
from components.core.screen.packed import SiteReader
from components.core.screen.packing import pack_plates
from components.core.screen.screen_source import UnreadableError
from components.core.screen.wells import Plane, Plate, Site
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_screen
from tests.components.core.screen.built_plates import manifest_of, packing_of, screen_of, site_of, write_plate
from tests.tiny_screen import MemoryStore


@pytest.fixture
def plate(store: ObjectStore, tmp_path: Path) -> Plate:
    """Its first well's images are in the folder, the others' in the bucket alone."""
    plate = write_plate(tmp_path)
    in_bucket = [path for path in tmp_path.rglob("*.TIFF") if not path.name.startswith("A01")]
    store.put_many((f"images/{path.name}", path.read_bytes()) for path in in_bucket)
    for path in in_bucket:
        path.unlink()

    def moved(site: Site) -> Site:
        names = [plane.path.rpartition("/")[2] for (plane,) in site.channels]
        return Site(site.site, tuple((Plane(store.uri(f"images/{name}")),) for name in names))

    first, *others = plate.wells
    return replace(plate, wells=(first, *(replace(well, sites=tuple(map(moved, well.sites))) for well in others)))


def test_images_are_packed_from_wherever_they_are(store: ObjectStore, tmp_path: Path, plate: Plate):
    source, screen, packed = open_screen(str(tmp_path)), screen_of(plate), MemoryStore()
    packing = replace(packing_of(tmp_path, screen, packed), source=source, form=image_form(source, screen, None))
    results = list(pack_plates(packing, [plate]))
    manifest = manifest_of(screen, packing, results)
    expected = [site_of(well.well, site.site) for well in plate.wells for site in well.sites]
    assert np.array_equal(SiteReader(packed, manifest).read(range(6)), expected)
    (again,) = pack_plates(packing, [plate])
    assert again.reused


def test_missing_objects_are_named_by_their_addresses(store: ObjectStore, tmp_path: Path, plate: Plate):
    source, address = open_screen(str(tmp_path)), store.uri("images/A02_f1_c0.TIFF")
    store.delete("images/A02_f1_c0.TIFF")
    with pytest.raises(InputError, match=rf"missing image file: {address} \(well A02, site 1\)"):
        plate_files(source, plate)
    with pytest.raises(UnreadableError) as caught:
        source.read_many(["BR_1/A01_f1_c0.TIFF", address])
    assert (caught.value.path, caught.value.missing) == (address, True)
    assert source.address(address) == address


def test_a_source_pickles_for_other_processes(store: ObjectStore, tmp_path: Path, plate: Plate):
    path = plate.wells[1].sites[0].channels[0][0].path
    source = open_screen(str(tmp_path))
    expected = source.read_many([path])
    assert pickle.loads(pickle.dumps(source)).read_many([path]) == expected
    assert source.list_trees([store.uri("images")]) != []
    assert all(facts.name.startswith(store.uri("images/")) for facts in source.list_trees([store.uri("images")]))


def test_a_bucket_that_cannot_be_opened_says_how_to_read_its_images_elsewhere(tmp_path: Path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        InputError, match=r"AWS_ACCESS_KEY_ID is not set.*screen\.path_prefixes to \{s3://lab: FOLDER\}"
    ):
        open_screen(str(tmp_path)).read_many(["s3://lab/a.tif"])
