from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.core.evaluation.plate_statistics import batch_effects, compute_statistics, moments, quantile
from components.core.storage.manifest import PlateRecord


def plate(experiment: str, number: int, pixels_CN: np.ndarray) -> PlateRecord:
    histograms = tuple(tuple(int(n) for n in np.bincount(row, minlength=256)) for row in pixels_CN)
    return PlateRecord(
        experiment=experiment,
        plate=number,
        cell_type=experiment.split("-")[0],
        labelled=True,
        prefix="p",
        histograms=histograms,
        wells=(),
    )


@pytest.fixture
def pixels() -> dict[tuple[str, int], np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        (experiment, number): rng.integers(0, top, (6, 500))
        for experiment, top in (("RPE-01", 60), ("RPE-02", 200), ("U2OS-01", 256))
        for number in (1, 2)
    }


@given(arrays(np.uint8, st.integers(1, 200)))
def test_histograms_give_the_pixels_own_moments_and_quantiles(pixels: np.ndarray) -> None:
    counts = np.bincount(pixels, minlength=256).astype(float)
    mean, std = moments(counts)
    assert mean == pytest.approx(pixels.mean())
    assert std == pytest.approx(pixels.std(), abs=1e-5)
    for q in (0.05, 0.5, 0.95):
        assert quantile(counts, q) == np.quantile(pixels, q, method="inverted_cdf")


@pytest.mark.parametrize("domain", ["none", "global", "cell_type", "experiment", "plate"])
def test_standardised_means_agree_with_standardising_the_pixels(pixels: dict, domain: str) -> None:
    plates = [plate(*key, values) for key, values in pixels.items()]
    name = {
        "global": lambda k: 0,
        "cell_type": lambda k: k[0].split("-")[0],
        "experiment": lambda k: k[0],
        "plate": lambda k: k,
    }.get(domain)
    statistics = compute_statistics(plates, domain)  # type: ignore[arg-type]
    for p, (key, values) in enumerate(pixels.items()):
        if name is None:
            expected = values / 255
        else:
            all_of_domain = np.concatenate([v for k, v in pixels.items() if name(k) == name(key)], axis=1)
            expected = (values - all_of_domain.mean(axis=1)[:, None]) / all_of_domain.std(axis=1)[:, None]
        np.testing.assert_allclose(statistics.after_mean_PC[p], expected.mean(axis=1), atol=1e-9)
        np.testing.assert_allclose(
            statistics.after_high_PC[p], np.quantile(expected, 0.95, axis=1, method="inverted_cdf"), atol=1e-9
        )


def test_batch_effects_are_the_spread_of_log_means(pixels: dict) -> None:
    found = batch_effects(compute_statistics([plate(*k, v) for k, v in pixels.items()], "plate"), ["U2OS", "RPE"])
    assert [(e.cell_type, e.experiments) for e in found] == [("U2OS", 1), ("RPE", 2)]
    assert found[0].between_experiments_C is None
    logs = np.log([[pixels[e, n].mean(axis=1) for n in (1, 2)] for e in ("RPE-01", "RPE-02")])
    np.testing.assert_allclose(found[1].between_experiments_C, logs.mean(axis=1).std(axis=0, ddof=1))
    np.testing.assert_allclose(found[1].between_plates_C, np.sqrt(logs.var(axis=1, ddof=1).mean(axis=0)))


def test_a_channel_without_pixels_is_an_error() -> None:
    with pytest.raises(ValueError, match="channel without pixels"):
        compute_statistics([plate("RPE-01", 1, np.zeros((6, 0), int))], "plate")
