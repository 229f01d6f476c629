"""Packing images of any form, and reading them back: 16 bit, not square, few channels, stacks, OME-Zarr, controls, 8 bits."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v05.hcs import HCS
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.well import Well

from components.core.config import BatchNormConfig, StandardiseConfig
from components.core.errors import InputError
from components.core.screen.histograms import check_controls, domain_statistics
from components.core.screen.images import image_form
from components.core.screen.manifests import depth_warning
from components.core.screen.packed import SiteReader
from components.core.screen.packing import pack_plates
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Plane, Plate, Site
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from tests.components.core.screen.built_plates import SHAPE, pack, packing_of, screen_of, site_of, write_plate
from tests.tiny_screen import MemoryStore


def expected(manifest: Manifest, dtype=np.uint16) -> np.ndarray:
    wells = [well for plate in manifest.plates for well in plate.wells]
    return np.array([site_of(well.well, site.site, SHAPE, dtype) for well in wells for site in well.sites])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib", "tile": (16, 16)}], ids=str)
def test_pixels_of_tiffs_are_read_back(tmp_path: Path, dtype, options):
    manifest, store = pack(tmp_path, write_plate(tmp_path, dtype=dtype, **options))
    assert (manifest.channels, manifest.image_shape, manifest.dtype) == (
        ("DNA", "ER", "RNA"),
        SHAPE[1:],
        dtype.__name__,
    )
    found = SiteReader(store, manifest, verify=True).read(range(6))
    assert found.dtype == dtype
    assert np.array_equal(found, expected(manifest, dtype))
    counts_CG = manifest.plates[0].histograms.array
    assert np.array_equal(
        counts_CG, [np.bincount(c.ravel(), minlength=counts_CG.shape[1]) for c in found.swapaxes(0, 1)]
    )


def test_a_packed_plate_is_valid_ome_zarr_with_names_and_labels(tmp_path: Path):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeXUnit": "µm"}
    plate = write_plate(tmp_path / "screen", ome=True, metadata=metadata)
    store = ObjectStore(tmp_path / "store")
    manifest, _ = pack(tmp_path / "screen", plate, store=store)
    group = zarr.open_group(tmp_path / "store" / manifest.plates[0].prefix, mode="r")
    hcs = HCS.from_zarr(group)
    assert sorted(well.path for well in hcs.ome_attributes.plate.wells) == ["A/01", "A/02", "AA/48"]
    assert [len(Well.from_zarr(group[path]).ome_attributes.well.images) for path in ("A/01", "AA/48")] == [2, 2]
    image = Image.from_zarr(group["AA/48/1"])
    omero = Omero.model_validate(image.ome_attributes.omero)
    assert [channel.label for channel in omero.channels] == ["DNA", "ER", "RNA"]
    scale = image.ome_attributes.multiscales[0].datasets[0].coordinateTransformations[0].scale
    assert scale == [1.0, 0.65, 0.65]
    assert np.array_equal(group["AA/48/1/0"][:], site_of("AA48", 2))
    assert group["A/02"].attrs["cellsignal"] == {"role": "treatment", "perturbation": "x"}


def test_labels_of_viewers_follow_the_table_and_hide_what_is_held_out(tmp_path: Path):
    plate, store = write_plate(tmp_path), MemoryStore()
    first, _ = pack(tmp_path, plate, store=store)
    before = dict(store.objects)
    first_again, _ = pack(tmp_path, plate, store=store)
    changed = {key for key in store.objects if store.objects[key] != before.get(key)}
    assert {key.split("/")[0] for key in changed} <= {"fingerprints"}
    renamed = replace(plate, wells=(plate.wells[0], replace(plate.wells[1], perturbation="z"), plate.wells[2]))
    second, _ = pack(tmp_path, renamed, store=store)
    assert second.plates[0].prefix == first.plates[0].prefix == first_again.plates[0].prefix
    well = f"{first.plates[0].prefix}/A/02/zarr.json"
    assert json.loads(store.objects[well])["attributes"]["cellsignal"]["perturbation"] == "z"
    pack(tmp_path, replace(plate, holdout=True), store=store)
    assert json.loads(store.objects[well])["attributes"]["cellsignal"]["perturbation"] is None


def test_a_channel_may_be_a_projection_of_a_stack_and_samples_of_a_picture(tmp_path: Path):
    stack = np.random.default_rng(0).integers(0, 4000, (4, *SHAPE[1:]), dtype=np.uint16)
    colour = np.random.default_rng(1).integers(0, 4000, (*SHAPE[1:], 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "colour.tif", colour, photometric="rgb")
    plate = write_plate(tmp_path)
    planes = (tuple(Plane("stack.tif", z) for z in range(4)), (Plane("colour.tif", 2),), (Plane("stack.tif", 1),))
    well = replace(plate.wells[0], sites=(Site(1, planes),))
    manifest, store = pack(tmp_path, replace(plate, wells=(well,)))
    (found,) = SiteReader(store, manifest).read([0])
    assert np.array_equal(found, [stack.max(0), colour[..., 2], stack[1]])


def test_another_choice_of_planes_of_the_same_files_is_another_plate(tmp_path: Path):
    plate, store = write_plate(tmp_path), MemoryStore()
    first, _ = pack(tmp_path, plate, store=store)

    def reversed_channels(site: Site) -> Site:
        return Site(site.site, site.channels[::-1])

    wells = tuple(replace(well, sites=tuple(map(reversed_channels, well.sites))) for well in plate.wells)
    second, _ = pack(tmp_path, replace(plate, wells=wells), store=store)
    assert first.plates[0].prefix != second.plates[0].prefix
    assert np.array_equal(SiteReader(store, second).read(range(6)), expected(second)[:, ::-1])


@pytest.mark.parametrize("version", [2, 3])
def test_planes_of_an_ome_zarr_are_read_back(tmp_path: Path, version):
    plate = write_plate(tmp_path)
    wells = []
    for well in plate.wells:
        sites = []
        for site in well.sites:
            path = f"plate.zarr/{well.well[:-2]}/{well.well[-2:]}/{site.site - 1}"
            group = zarr.open_group(tmp_path / path, mode="w", zarr_format=version)
            group.create_array("0", data=site_of(well.well, site.site), chunks=(1, 16, 16))
            axes = [{"name": name} for name in "cyx"]
            image = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": []}]}]}
            group.attrs.update(image if version == 2 else {"ome": image})
            sites.append(Site(site.site, tuple((Plane(path, c),) for c in range(3))))
        wells.append(replace(well, sites=tuple(sites)))
    plate, store = replace(plate, wells=tuple(wells)), MemoryStore()
    manifest, _ = pack(tmp_path, plate, store=store)
    assert np.array_equal(SiteReader(store, manifest).read(range(6)), expected(manifest))
    for path in (tmp_path / "plate.zarr").rglob("*"):  # a copy: of other times of writing
        if path.is_file():
            path.touch()
    again, _ = pack(tmp_path, plate, store=store)
    assert again.plates[0].prefix == manifest.plates[0].prefix


def test_images_may_lie_outside_of_the_screens_folder(tmp_path: Path):
    plate = write_plate(tmp_path / "elsewhere")
    first, *others = plate.wells
    write_plate(tmp_path / "screen", wells={"A01": ("negative_control", "DMSO")})

    def absolute(site: Site) -> Site:
        return Site(site.site, tuple((Plane(f"{tmp_path}/elsewhere/{each.path}"),) for (each,) in site.channels))

    wells = (first, *(replace(well, sites=tuple(map(absolute, well.sites))) for well in others))
    manifest, store = pack(tmp_path / "screen", replace(plate, wells=wells))
    assert np.array_equal(SiteReader(store, manifest).read(range(6)), expected(manifest))


def control_counts(plate: Plate) -> np.ndarray:
    pixels = np.array([site_of(w.well, s.site) for w in plate.wells if w.role != "treatment" for s in w.sites])
    return np.array([np.bincount(channel.ravel(), minlength=65536) for channel in pixels.swapaxes(0, 1)])


def test_controls_are_counted_when_packed_and_when_the_table_changes_afterwards(tmp_path: Path):
    plate, store = write_plate(tmp_path), MemoryStore()
    first, _ = pack(tmp_path, plate, store=store)
    assert np.array_equal(first.plates[0].control_histograms, control_counts(plate))
    other = replace(plate, wells=(plate.wells[0], replace(plate.wells[1], role="positive_control"), plate.wells[2]))
    second, _ = pack(tmp_path, other, store=store)
    assert second.plates[0].prefix == first.plates[0].prefix
    assert np.array_equal(second.plates[0].control_histograms, control_counts(other))
    none = replace(plate, wells=tuple(replace(well, role="treatment") for well in plate.wells))
    assert len(pack(tmp_path, none, store=store)[0].plates[0].control_histograms) == 0


def test_statistics_of_controls_and_robust_ones_are_those_of_the_pixels(tmp_path: Path):
    manifest, _ = pack(tmp_path, write_plate(tmp_path))
    everything, controls = expected(manifest).astype(float), expected(manifest)[:2].astype(float)
    for wells, pixels in (("all", everything), ("controls", controls)):
        flat = pixels.swapaxes(0, 1).reshape(3, -1)
        ((mean, std),) = domain_statistics(manifest, StandardiseConfig(wells=wells)).values()
        np.testing.assert_allclose(mean, flat.mean(1))
        np.testing.assert_allclose(std, flat.std(1))
        ((median, mad),) = domain_statistics(manifest, StandardiseConfig(wells=wells, robust=True)).values()
        np.testing.assert_allclose(median, np.median(flat, 1))
        np.testing.assert_allclose(mad, 1.4826 * np.median(np.abs(flat - np.median(flat, 1)[:, None]), 1))


def test_plates_without_controls_are_refused_before_packing(tmp_path: Path):
    plate = write_plate(tmp_path)
    bare = replace(plate, plate="2", wells=tuple(replace(well, role="treatment") for well in plate.wells))
    for standardise, batch_norm in (
        (StandardiseConfig(wells="controls"), BatchNormConfig()),
        (StandardiseConfig(), BatchNormConfig(domain="plate", statistics="controls")),
    ):
        with pytest.raises(InputError, match=r"no control wells on batch plate 2, which \w+\.\w+ controls needs"):
            check_controls([plate, bare], standardise, batch_norm)
    check_controls([plate, bare], StandardiseConfig(wells="controls", domain="experiment"), BatchNormConfig())
    check_controls([bare], StandardiseConfig(), BatchNormConfig(statistics="controls"))


def test_eight_bits_are_rescaled_by_the_plates_percentiles(tmp_path: Path):
    manifest, store = pack(tmp_path, write_plate(tmp_path), bits=8)
    (plate,) = manifest.plates
    assert manifest.dtype == "uint8"
    pixels = expected(manifest).astype(float)
    flat = pixels.swapaxes(0, 1).reshape(3, -1)
    low, high = (np.percentile(flat, percent, axis=1, method="inverted_cdf") for percent in (0.1, 99.9))
    assert plate.rescaled == tuple(zip(low.astype(int).tolist(), high.astype(int).tolist(), strict=True))
    found = SiteReader(store, manifest).read(range(6))
    share = (pixels - low[:, None, None]) / (high - low)[:, None, None]
    assert np.array_equal(found, np.rint(255 * share.clip(0, 1)))
    assert np.array_equal(plate.histograms, [np.bincount(c.ravel(), minlength=256) for c in found.swapaxes(0, 1)])
    assert np.array_equal(
        plate.control_histograms, [np.bincount(c.ravel(), minlength=256) for c in found[:2].swapaxes(0, 1)]
    )
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_dark_camera_of_few_bits_is_a_warning(tmp_path: Path):
    plate = write_plate(tmp_path)
    packing = packing_of(tmp_path, screen_of(plate), MemoryStore())
    results = list(pack_plates(packing, [plate]))
    (warning,) = depth_warning(packing, results)
    largest = max(int(site_of(w.well, s.site).max()) for w in plate.wells for s in w.sites)
    assert f"their largest value is {largest:,}: pixels of {largest.bit_length()} bits" in warning


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((20, 29), np.uint16, r"expected 20x28 pixels \(height x width\), found 20x29"),
        ((20, 28), np.uint8, "expected 16-bit pixels, found 8-bit"),
        ((20, 28), np.float32, "expected 8- or 16-bit unsigned pixels, found float32"),
    ],
)
def test_an_image_of_another_form_is_refused_and_leaves_nothing(tmp_path: Path, shape, dtype, message):
    plate, store = write_plate(tmp_path), MemoryStore()
    tifffile.imwrite(tmp_path / "BR_1" / "A02_f2_c1.TIFF", np.ones(shape, dtype))
    packing = packing_of(tmp_path, screen_of(plate), store)
    with pytest.raises(InputError, match=rf"BR_1/A02_f2_c1\.TIFF: channel 2 \(ER\) of well A02, site 2: {message}"):
        list(pack_plates(packing, [plate]))
    assert not store.objects


def test_broken_images_of_a_plate_are_named_together_and_nothing_is_left(tmp_path: Path):
    plate, store = write_plate(tmp_path), MemoryStore()
    names = [f"{well}_f{site}_c{c}.TIFF" for well, site, c in (("A01", 2, 1), ("A01", 2, 2), ("AA48", 2, 0))]
    for name in names:
        path = tmp_path / "BR_1" / name
        path.write_bytes(path.read_bytes()[:-100])
    packing = packing_of(tmp_path, screen_of(plate), store)
    with pytest.raises(InputError, match=r"^3 faults: ") as caught:
        list(pack_plates(packing, [plate]))
    assert [name in place for name, place in zip(names, caught.value.places, strict=True)] == [True] * 3
    assert not store.objects


def test_the_first_image_gives_the_form_which_may_be_required(tmp_path: Path):
    screen = screen_of(write_plate(tmp_path))
    form = image_form(ScreenDirectory(tmp_path), screen, (20, 28))
    assert dataclasses.asdict(form) == {
        "channels": ("DNA", "ER", "RNA"), "shape": (20, 28), "dtype": "uint16", "pixel_size": None,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"A01_f1_c0\.TIFF: .* expected 32x32 pixels, found 20x28"):
        image_form(ScreenDirectory(tmp_path), screen, (32, 32))
