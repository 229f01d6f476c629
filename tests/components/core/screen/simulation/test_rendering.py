"""Rendered sites, the phenotypes in them, and batch effects."""

import numpy as np
import pytest

from components.core.config import ScreenConfig, SimulateConfig
from components.core.screen.simulation.batch_effects import plate_effect
from components.core.screen.simulation.cells import perturbation_shifts
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site


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
