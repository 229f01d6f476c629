"""Standardised images and their jitter."""

import numpy as np
import pytest
import torch

from components.core.config import StandardiseConfig
from components.core.learning.images import SMALLEST_STD, Standardiser, open_images
from tests.components.core.learning.tiny_networks import CPU, RUN
from tests.tiny_screen import TinyScreen


@pytest.mark.parametrize("domain", ["none", "global", "cell_type", "experiment", "plate"])
def test_a_screens_images_are_standardised_by_their_domain(screen, domain):
    """Against NumPy over the source pixels of all plates of the domain, four of the eight plates' first sites."""
    store, manifest = screen
    config = RUN.model_copy(update={"standardise": StandardiseConfig(domain=domain, jitter=0.1)})
    images = open_images(config, manifest, store, CPU)
    key_of = {
        "none": lambda p: "none",
        "global": lambda p: "all",
        "cell_type": lambda p: p.cell_type,
        "experiment": lambda p: p.experiment,
        "plate": lambda p: (p.experiment, p.plate),
    }[domain]

    def source(plate):
        sites = [(well.well, site.site) for well in plate.wells for site in well.sites]
        return np.stack([TinyScreen.pixels(plate.experiment, plate.plate, *site) for site in sites])

    for row in (0, 3, 5, 6):
        plate = manifest.plates[row]
        own = np.concatenate([source(p) for p in manifest.plates if key_of(p) == key_of(plate)]).astype(np.float64)
        mean, std = own.mean((0, 2, 3)), own.std((0, 2, 3))
        if domain == "none":
            mean, std = np.zeros(6), np.full(6, 255.0)
        first = int(np.flatnonzero(images.table.plate_W[images.table.well_S] == row)[0])
        ((_, x),) = images.batches([np.array([first])])
        expected = (source(plate)[0] - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(x[0], expected, atol=1e-4)


def test_jitter_after_standardising_is_jitter_of_mean_and_deviation():
    mean_PC, std_PC = torch.tensor([[10.0, 40.0]]), torch.tensor([[4.0, 9.0]])
    pixels = torch.randint(0, 256, (50, 2, 3, 3), dtype=torch.uint8)
    plate_B = torch.zeros(50, dtype=torch.long)
    for jitter, noise in ((0.1, 0.0), (0.1, 0.3), (0.0, 0.3)):
        standardise = Standardiser(mean_PC, std_PC, jitter, CPU, noise=noise)
        at_once = standardise(pixels, plate_B, torch.Generator().manual_seed(7))
        afterwards = standardise.jittered(standardise(pixels, plate_B), plate_B, torch.Generator().manual_seed(7))
        torch.testing.assert_close(afterwards, at_once, atol=1e-4, rtol=1e-4)
    for unchanged in (Standardiser(mean_PC, std_PC, 0.0, CPU), Standardiser(mean_PC, std_PC, 0.1, CPU, per_image=True)):
        assert unchanged.jittered(at_once, plate_B, torch.Generator()) is at_once


def test_channel_noise_is_one_gaussian_number_an_image_and_channel():
    quiet, noisy = (
        Standardiser(torch.full((1, 6), 9.0), torch.full((1, 6), 4.0), 0.0, CPU, noise=s) for s in (0.0, 0.3)
    )
    pixels, plate_B = torch.randint(0, 99, (2000, 6, 2, 2), dtype=torch.uint8), torch.zeros(2000, dtype=torch.long)
    added = noisy(pixels, plate_B, torch.Generator().manual_seed(7)) - quiet(pixels, plate_B)
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), atol=1e-5, rtol=0)
    noise_BC = added[:, :, 0, 0]
    assert float(noise_BC.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise_BC.mean())) < 0.01
    assert (torch.corrcoef(noise_BC.T) - torch.eye(6)).abs().max() < 0.1, "drawn for each channel"
    assert torch.equal(noisy(pixels, plate_B), quiet(pixels, plate_B)), "only in training"


def test_jitter_stays_within_its_bounds_and_follows_the_generator():
    standardise = Standardiser(torch.full((1, 1), 10.0), torch.full((1, 1), 4.0), 0.1, CPU)
    # Two grey levels give back the mean and the deviation that were used.
    x = torch.tensor([0, 100], dtype=torch.uint8).expand(5000, 1, 1, 2)
    y = standardise(x, torch.zeros(5000, dtype=torch.long), torch.Generator().manual_seed(7))
    std_B = 100.0 / (y[:, 0, 0, 1] - y[:, 0, 0, 0])
    mean_B = -y[:, 0, 0, 0] * std_B
    for factor_B in (mean_B / 10.0, std_B / 4.0):
        assert factor_B.min() > 0.9 - 1e-4
        assert factor_B.max() < 1.1 + 1e-4
        assert float(factor_B.std()) == pytest.approx(0.2 / 12**0.5, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([mean_B, std_B]))[0, 1])) < 0.05
    again = standardise(x, torch.zeros(5000, dtype=torch.long), torch.Generator().manual_seed(7))
    assert torch.equal(y, again)


def test_a_black_channel_stays_finite():
    standardise = Standardiser(torch.zeros(1, 1), torch.zeros(1, 1), 0.1, CPU)
    x = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    assert torch.equal(standardise(x, torch.zeros(2, dtype=torch.long)), torch.zeros(2, 1, 3, 3))
    x[0, 0, 0, 0] = 1
    assert float(standardise(x, torch.zeros(2, dtype=torch.long))[0, 0, 0, 0]) == pytest.approx(1 / SMALLEST_STD)
