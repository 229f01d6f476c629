"""Rendered sites, the phenotypes in them, and batch effects."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from components.core.config import ScreenConfig, SimulateConfig
from components.core.errors import InputError
from components.core.screen.simulation.batch_effects import plate_effect
from components.core.screen.simulation.cells import TRAITS, perturbation_shifts
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.real_cells import perturbed_cells
from components.core.screen.simulation.rendering import render_site
from components.core.screen.simulation.writer import simulate


def settings_of(**fields):
    return SimulationSettings(seed=0, screen=ScreenConfig(image_size=64), simulate=SimulateConfig(**fields))


def test_a_site_is_the_same_each_time_and_sites_and_seeds_differ():
    settings = settings_of()
    plate = design_screen(settings)[0]
    first = render_site(settings, plate, plate.wells[1], 1)
    np.testing.assert_array_equal(first, render_site(settings, plate, plate.wells[1], 1))
    assert (first != render_site(settings, plate, plate.wells[1], 2)).mean() > 0.2
    other = settings.model_copy(update={"seed": 1})
    assert (first != render_site(other, plate, plate.wells[1], 1)).mean() > 0.2


def test_shifts_share_the_configured_part_between_cell_types():
    shared, specific = 0.7, 0.3
    one_ST, two_ST = (perturbation_shifts(0, cell_type, 400, 1.0, specific) for cell_type in ("RPE", "U2OS"))
    assert np.corrcoef(one_ST.ravel(), two_ST.ravel())[0, 1] == pytest.approx(shared, abs=0.05)
    assert one_ST.std() == pytest.approx(1.0, abs=0.03)


def test_the_phenotype_survives_standardisation_by_plate():
    """Wells of a perturbation in two experiments are nearest to each other, in simple per-plate features."""
    settings = settings_of(labelled={"RPE": 2}, unlabelled={}, treatments_per_group=12, missing_wells=0.0)
    features = {1: {}, 2: {}}
    for plate in design_screen(settings):
        wells = [well for well in plate.wells if well.role == "treatment"]
        images = np.stack([[render_site(settings, plate, well, s) for s in (1, 2)] for well in wells]).astype(float)
        raw = np.concatenate(
            [
                np.log(images.mean((1, 3, 4)) + 1),
                np.log(images.std((1, 3, 4)) + 1),
                np.log(np.abs(np.diff(images, axis=4)).mean((1, 3, 4)) + 1),
            ],
            axis=1,
        )
        scaled = (raw - raw.mean(0)) / raw.std(0)
        features[int(plate.experiment[-2:])].update({w.perturbation: row for w, row in zip(wells, scaled, strict=True)})
    one, two = (np.stack([features[e][s] for s in sorted(features[e])]) for e in (1, 2))
    nearest = ((one[:, None] - two[None]) ** 2).sum(-1).argmin(1)
    assert (nearest == np.arange(len(one))).mean() > 8 / len(one)


def test_strength_scales_every_deviation_and_zero_makes_plates_alike():
    none, half, full = (plate_effect(5, "RPE", 2, 3, strength) for strength in (0.0, 0.5, 1.0))
    for name in ("log_gain_C", "log_offset_C", "log_blur_C", "gradient_C2", "log_density", "culture_T"):
        assert not np.any(getattr(none, name))
        np.testing.assert_allclose(2 * np.asarray(getattr(half, name)), getattr(full, name), rtol=1e-6, atol=1e-9)
        assert np.any(getattr(full, name))


def test_sixteen_bits_show_the_same_light_in_finer_steps():
    coarse, fine = (settings_of(bits=bits) for bits in (8, 16))
    plate = design_screen(fine)[0]
    pixels = render_site(fine, plate, plate.wells[1], 1)
    assert pixels.dtype == np.uint16
    assert len(np.unique(pixels)) > 256
    difference = pixels / 257 - render_site(coarse, plate, plate.wells[1], 1)
    assert np.abs(difference).max() <= 0.5 + 1e-3


def photographs(folder: Path, side: int = 256) -> str:
    """Two photographed sites of RPE: smooth blobs, a channel of its own each."""
    rng = np.random.default_rng(0)
    for site in (1, 2):
        for channel in range(1, 7):
            blobs = cv2.GaussianBlur(rng.random((side, side)).astype(np.float32), (0, 0), 4)
            blobs = (blobs - blobs.min()) / (blobs.max() - blobs.min()) * 180
            path = folder / f"RPE-01/Plate1/B02_s{site}_w{channel}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), blobs.astype(np.uint8))
    return str(folder)


def test_perturbations_of_photographed_cells_differ_and_repeat(tmp_path: Path):
    fields = {"labelled": {"RPE": 2}, "unlabelled": {}, "treatments_per_group": 3, "effect": 2.0, "well_noise": 0.0}
    settings = settings_of(photographs=photographs(tmp_path), cell_diameter=40, batch_strength=0, **fields)
    one, two = (
        {
            well.perturbation: render_site(settings, plate, well, 1).astype(float).std((1, 2))
            for plate in design_screen(settings)
            if plate.experiment == experiment
            for well in plate.wells
            if well.role == "treatment"
        }
        for experiment in ("RPE-01", "RPE-02")
    )
    names = sorted(one)
    apart = np.array([[np.abs(one[a] - two[b]).sum() for b in names] for a in names])
    own = np.diag(apart)
    assert own.mean() < 0.5 * apart[~np.eye(len(names), dtype=bool)].mean()
    plate = design_screen(settings)[0]
    first = render_site(settings, plate, plate.wells[1], 1)
    assert first.shape == (6, 64, 64)
    np.testing.assert_array_equal(first, render_site(settings, plate, plate.wells[1], 1))


def test_a_screen_of_other_photographs_is_another_one_wherever_they_lie(tmp_path: Path):
    fields = {"labelled": {"RPE": 1}, "unlabelled": {}, "treatments_per_group": 1, "positive_controls": 0}
    first, out = photographs(tmp_path / "one", 128), tmp_path / "out"
    assert simulate(settings_of(photographs=first, cell_diameter=60, **fields), out)
    moved = photographs(tmp_path / "two", 128)
    assert not simulate(settings_of(photographs=moved, cell_diameter=60, **fields), out)
    image = next(Path(moved).rglob("*.png"))
    cv2.imwrite(str(image), 255 - cv2.imread(str(image), cv2.IMREAD_GRAYSCALE))
    with pytest.raises(InputError, match=r"holds a screen simulated with other settings \(photographs\)"):
        simulate(settings_of(photographs=moved, cell_diameter=60, **fields), out)


def test_photographs_that_cannot_be_used_are_refused(tmp_path: Path):
    settings = settings_of(photographs=photographs(tmp_path / "p", 128), cell_diameter=20, labelled={"RPE": 1})
    plate = next(plate for plate in design_screen(settings) if plate.cell_type == "RPE")
    with pytest.raises(InputError, match=r"smaller than crops of 96; raise the diameter"):
        render_site(settings, plate, plate.wells[0], 1)
    with pytest.raises(InputError, match="no site of HUVEC"):
        simulate(settings_of(photographs=str(tmp_path / "p"), labelled={"HUVEC": 1}, unlabelled={}), tmp_path / "out")
    with pytest.raises(ValueError, match="traits are of drawn cells"):
        settings_of(photographs=str(tmp_path), traits=("er_texture",))
    with pytest.raises(InputError, match=r"simulate\.photographs: .*/none: no images"):
        simulate(settings_of(photographs=str(tmp_path / "none")), tmp_path / "out")


def test_photographs_may_have_a_single_channel():
    site_CHW = np.random.default_rng(0).random((1, 100, 100), dtype=np.float32) * 100
    images = [
        perturbed_cells(0, [site_CHW], (32, 32), "RPE", p, 1.0, np.zeros(4), np.random.default_rng(0)) for p in range(9)
    ]
    assert all(image.shape == (1, 32, 32) and np.isfinite(image).all() for image in images)


def test_only_the_chosen_traits_shift():
    chosen = ("er_texture", "nucleus_size")
    shifts_ST = perturbation_shifts(0, "RPE", 20, 1.0, 0.5, chosen)
    all_ST = perturbation_shifts(0, "RPE", 20, 1.0, 0.5)
    shifted = np.array([name in chosen for name in TRAITS])
    np.testing.assert_array_equal(shifts_ST[:, shifted], all_ST[:, shifted])
    assert not shifts_ST[:, ~shifted].any()
