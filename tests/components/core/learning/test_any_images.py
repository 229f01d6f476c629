"""Network inputs from 16-bit images that are not square: crops, bins, tiles, and images standardised by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.core.config import HeadConfig, ScreenConfig, StandardiseConfig
from components.core.errors import InputError
from components.core.learning.crops import Crops, network_input
from components.core.learning.images import Images, open_images
from components.core.learning.inference import well_logits
from components.core.learning.network import Classifier
from components.core.storage.manifest import Manifest
from tests.components.core.learning.tiny_networks import CPU, RUN, SMALL
from tests.components.core.screen.built_plates import SHAPE, pack, site_of, write_plate
from tests.tiny_screen import MemoryStore

SEEN = {"bin": 2, "crop": 8}
WELLS = ("A01", "A02", "AA48")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, MemoryStore]:
    folder = tmp_path_factory.mktemp("sixteen")
    return pack(folder, write_plate(folder))


def images_of(packed: tuple[Manifest, MemoryStore], standardise: StandardiseConfig, **screen) -> Images:
    manifest, store = packed
    update = {"standardise": standardise, "screen": ScreenConfig(**screen)}
    return open_images(RUN.model_copy(update=update), manifest, store, CPU)


def binned(pixels_CHW: np.ndarray, n: int = 2) -> np.ndarray:
    c, h, w = pixels_CHW.shape
    return pixels_CHW.reshape(c, h // n, n, w // n, n).astype(float).mean((2, 4))


def test_a_batch_is_the_binned_centre_standardised_by_all_pixels_of_the_plate(packed):
    images = images_of(packed, StandardiseConfig(jitter=0.0), **SEEN)
    ((_, x),) = images.batches([np.array([4, 1])])
    everything = np.array([site_of(well, site) for well in WELLS for site in (1, 2)]).astype(float)
    mean, std = everything.mean((0, 2, 3)), everything.std((0, 2, 3))
    top, left = (20 - 16) // 2, (28 - 16) // 2
    for row, pixels in zip(x, (site_of("AA48", 1), site_of("A01", 2)), strict=True):
        cut = binned(pixels[:, top : top + 16, left : left + 16])
        np.testing.assert_allclose(row, (cut - mean[:, None, None]) / std[:, None, None], atol=1e-4)


@pytest.mark.parametrize("robust", [False, True])
def test_an_image_standardised_by_itself_has_mean_0_and_deviation_1(packed, robust):
    images = images_of(packed, StandardiseConfig(domain="image", robust=robust, jitter=0.0), crop=20)
    ((_, x),) = images.batches([np.arange(6)])
    flat = x.flatten(2).double()
    if robust:
        middle = flat.median(-1).values
        spread = 1.4826 * (flat - middle[..., None]).abs().median(-1).values
    else:
        middle, spread = flat.mean(-1), flat.std(-1, correction=0)
    assert middle.abs().max() < 1e-5
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-4, rtol=1e-4)


def test_training_sees_random_crops_and_the_same_ones_again_by_the_seed(packed):
    images = images_of(packed, StandardiseConfig(jitter=0.0), crop=9)
    site = [np.array([2])]

    def seen(seed: int) -> list[bytes]:
        generator = torch.Generator().manual_seed(seed)
        return [x.numpy().tobytes() for _ in range(30) for _, x in images.batches(site, [generator])]

    assert len(set(seen(0))) > 20
    assert seen(0) == seen(0) != seen(1)
    jittered = torch.Generator().manual_seed(0)
    of_crop = images_of(packed, StandardiseConfig(jitter=0.5), crop=9).batches(site, [jittered], jitter=False)
    assert next(of_crop)[1].numpy().tobytes() == seen(0)[0]


def test_inference_averages_over_the_tiles(packed):
    manifest, _ = packed
    images = images_of(packed, StandardiseConfig(), tile=True, crop=16)
    assert images.crops.tiles() == [(0, 0), (0, 12), (4, 0), (4, 12)]
    inputs = network_input(ScreenConfig(crop=16), manifest)
    assert inputs == (3, 16, 1)
    torch.manual_seed(0)
    network = Classifier(SMALL, HeadConfig(), 5, *inputs).eval()
    wells = np.array([2, 0])
    found_WK = well_logits(network, images, wells, 2, batch_size=3, classes=5)
    for row, well in zip(found_WK, wells, strict=True):
        passes = []
        for site in images.table.sites_of(np.array([well])):
            for corner in images.crops.tiles():
                ((_, x),) = images.batches([np.array([site])], corners=[corner])
                passes += [network(view)[0].detach().numpy() for view in (x, x.flip(3))]
        assert len(passes) == 2 * 4 * 2
        np.testing.assert_allclose(row, np.mean(passes, axis=0), atol=1e-5)


def test_a_crop_larger_than_the_images_is_refused():
    with pytest.raises(InputError, match=r"screen\.crop 21 is larger than the images, whose shorter side is 20 pixels"):
        Crops.of(ScreenConfig(crop=21), SHAPE[1:])
