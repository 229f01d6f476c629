"""The measurements of the bench, on small inputs."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from components.core.config import AugmentConfig
from components.core.storage.object_store import ObjectStore
from tests.bench import loading, packing
from tests.bench.baseline import PngSites
from tests.bench.sites import write_screen
from tests.tiny_screen import write_png

STILL = AugmentConfig(geometric_probability=0.0, erase_probability=0.0)


@pytest.fixture
def small_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites of 512 pixels that need no rendering."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (2, 6, 512, 512), dtype=np.uint8)
    sites = tuple(tuple(cv2.imencode(".png", image)[1].tobytes() for image in site) for site in images)
    for module in ("tests.bench.packing", "tests.bench.sites"):
        monkeypatch.setattr(f"{module}.png_sites", lambda: sites)


def test_a_child_packs_the_whole_screen_and_measures_its_cost(small_sites: None, tmp_path: Path):
    source = write_screen(tmp_path / "screen", plates=2, wells=3)
    seconds, megabytes = packing.measured_child(str(source), tmp_path / "out")
    assert 0 < seconds < 60
    assert 20 < megabytes < 1000
    keys = ObjectStore(tmp_path / "out" / "store").list("plates/")
    assert sum(key.endswith("/c.0.0.0") for key in keys) == 6
    assert sum(key.endswith("/plate.json") for key in keys) == 2


def test_the_baselines_images_are_standardised_symmetries_of_the_pngs(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 16, 16), dtype=np.uint8)
    paths = [tuple(tmp_path / f"s{s}_w{c}.png" for c in range(6)) for s in range(3)]
    for site, files in zip(pixels, paths, strict=True):
        for channel, path in zip(site, files, strict=True):
            write_png(path, channel)
    mean, std = np.arange(6, dtype=np.float32), np.arange(1, 7, dtype=np.float32)
    sites = PngSites(paths, mean, std, 0.0, STILL)
    for index in range(3):
        x = sites[index]
        assert (x.shape, x.dtype) == ((6, 16, 16), torch.float32)
        expected = (pixels[index] - mean[:, None, None]) / std[:, None, None]
        turned = [np.rot90(image, k, (1, 2)) for image in (expected, expected[:, :, ::-1]) for k in range(4)]
        assert any(np.allclose(x, image, atol=1e-4) for image in turned)


@pytest.mark.parametrize("guess", [150.0, 1700.0, 9000.0])
def test_the_highest_rate_excludes_batches_read_ahead(monkeypatch: pytest.MonkeyPatch, guess: float):
    """A feed that makes a batch every 8 ms and keeps three ready, on a clock that only sleeping moves."""
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)

    def feed():
        nonlocal now
        free_at = [-1.0] * 3  # the time at which each slot of the buffer is filled
        while True:
            ready = free_at.pop(0)
            now = max(now, ready)
            free_at.append(max(now, free_at[-1]) + 0.008)
            yield None

    found = loading.highest_rate(feed(), guess)
    assert found == pytest.approx(loading.BATCH / 0.008, rel=0.1)
