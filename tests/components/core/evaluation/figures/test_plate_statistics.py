from __future__ import annotations

import numpy as np
import pytest

from components.core.config import StandardiseConfig
from components.core.evaluation.figures.plate_statistics import channel_spread, plate_statistics
from components.core.storage.manifest import Manifest
from tests.components.core.manifests import manifest, plate_record


def screen_of(pixels: dict[tuple[str, int], np.ndarray]) -> Manifest:
    return manifest(
        plate_record(*key, histograms=tuple(tuple(np.bincount(row, minlength=256).tolist()) for row in pixels_CN))
        for key, pixels_CN in pixels.items()
    )


@pytest.fixture
def pixels() -> dict[tuple[str, int], np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        (experiment, number): rng.integers(0, top, (6, 500))
        for experiment, top in (("RPE-01", 60), ("RPE-02", 200), ("U2OS-01", 256))
        for number in (1, 2)
    }


@pytest.mark.parametrize("domain", ["none", "global", "cell_type", "experiment", "plate"])
def test_agrees_with_standardising_the_pixels(pixels: dict, domain: str) -> None:
    name = {
        "global": lambda k: 0,
        "cell_type": lambda k: k[0].split("-")[0],
        "experiment": lambda k: k[0],
        "plate": lambda k: k,
    }.get(domain)
    imaged, standardised = plate_statistics(screen_of(pixels), StandardiseConfig(domain=domain))  # type: ignore[arg-type]
    for p, (key, values) in enumerate(pixels.items()):
        if name is None:
            expected = values / 255
        else:
            all_of_domain = np.concatenate([v for k, v in pixels.items() if name(k) == name(key)], axis=1)
            expected = (values - all_of_domain.mean(axis=1)[:, None]) / all_of_domain.std(axis=1)[:, None]
        for found, own in ((imaged, values), (standardised, expected)):
            percentiles = [np.quantile(own, q, axis=1, method="inverted_cdf") for q in (0.05, 0.95)]
            np.testing.assert_allclose(found[:, p], [own.mean(axis=1), *percentiles], atol=1e-9)


def test_spread_is_the_deviation_of_log_means(pixels: dict) -> None:
    screen = screen_of(pixels)
    found = channel_spread(screen.plates, plate_statistics(screen, StandardiseConfig())[0][0], ["U2OS", "RPE"])
    assert list(found.index) == [
        (name, between)
        for name, count in (("U2OS", "1 experiment"), ("RPE", "2 experiments"))
        for between in (count, "plates of one experiment")
    ]
    logs = np.log([[pixels[e, n].mean(axis=1) for n in (1, 2)] for e in ("RPE-01", "RPE-02")])
    assert found.iloc[0].isna().all()
    np.testing.assert_allclose(found.iloc[2], logs.mean(axis=1).std(axis=0, ddof=1))
    np.testing.assert_allclose(found.iloc[3], np.sqrt(logs.var(axis=1, ddof=1).mean(axis=0)))
