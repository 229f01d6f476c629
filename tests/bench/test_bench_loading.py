import time

import numpy as np
import pytest
import torch

from components.core.config import AugmentConfig
from tests.bench import loading
from tests.bench.baseline import PngSites, endless
from tests.tiny_screen import write_png

STILL = AugmentConfig(geometric_probability=0.0, erase_probability=0.0)


@pytest.fixture
def pngs(tmp_path):
    """Five sites of six random channels, and the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 16, 16), dtype=np.uint8)
    paths = [tuple(tmp_path / f"s{s}_w{c}.png" for c in range(6)) for s in range(5)]
    for site, files in zip(pixels, paths, strict=True):
        for channel, path in zip(site, files, strict=True):
            write_png(path, channel)
    return paths, pixels


def test_the_baselines_images_are_standardised_symmetries_of_the_pngs(pngs):
    paths, pixels = pngs
    mean, std = np.arange(6, dtype=np.float32), np.arange(1, 7, dtype=np.float32)
    sites = PngSites(paths, mean, std, 0.0, STILL)
    for index in range(5):
        x = sites[index]
        assert (x.shape, x.dtype) == ((6, 16, 16), torch.float32)
        expected = (pixels[index] - mean[:, None, None]) / std[:, None, None]
        turned = [np.rot90(image, k, (1, 2)) for image in (expected, expected[:, :, ::-1]) for k in range(4)]
        assert any(np.allclose(x, image, atol=1e-4) for image in turned)


def test_the_baselines_views_move_and_erase(pngs):
    paths, _ = pngs
    zeros = np.zeros(6, np.float32)
    moving = AugmentConfig(
        geometric_probability=1.0, erase_probability=1.0, erase_area=(0.3, 0.3), erase_aspect=(1.0, 1.0)
    )
    torch.manual_seed(0)
    batch = next(iter(endless(PngSites(paths, zeros - 1, zeros + 1, 0.1, moving), 32, 0)))
    assert batch.shape == (32, 6, 16, 16)
    assert 0.2 < float((batch == 0).float().mean()) < 0.45


@pytest.mark.parametrize("guess", [150.0, 1700.0, 9000.0])
def test_the_highest_rate_is_found_and_what_was_read_ahead_does_not_count(monkeypatch, guess):
    """A feed that makes a batch every 8 ms and keeps three ready, on a clock that only sleeping moves."""
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)

    def feed():
        nonlocal now
        free_at = [-1.0] * 3  # when each place of the buffer is filled
        while True:
            ready = free_at.pop(0)
            now = max(now, ready)
            free_at.append(max(now, free_at[-1]) + 0.008)
            yield None

    found = loading.highest_rate(feed(), guess)
    assert found == pytest.approx(loading.BATCH / 0.008, rel=0.1)
