import numpy as np
import pytest

from components.core.screen.simulation.batch_effects import plate_effect
from components.core.screen.simulation.cells import CELL_TYPES

# Ranges over the six channels in RxRx1: standard deviation of log channel means between experiments of a cell type.
EXPERIMENT_RANGE = {"HUVEC": (0.19, 0.36), "RPE": (0.11, 0.42), "HEPG2": (0.39, 0.94), "U2OS": (0.37, 0.98)}
PLATE_RANGE = (0.04, 0.12)


def log_gains(cell_type, experiments, seed=0):
    """(experiments, plates, channels)."""
    return np.array(
        [[plate_effect(seed, cell_type, e, p, 1.0).log_gain_C for p in (1, 2, 3, 4)] for e in range(1, experiments + 1)]
    )


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_gains_of_many_experiments_spread_as_in_rxrx1(cell_type):
    gains_EPC = log_gains(cell_type, 300)
    between_experiments_C = gains_EPC.mean(1).std(0, ddof=1)
    between_plates_C = np.sqrt(gains_EPC.var(1, ddof=1).mean(0))
    low, high = EXPERIMENT_RANGE[cell_type]
    assert (between_experiments_C > 0.95 * low).all()
    assert (between_experiments_C < 1.05 * high).all()
    assert between_experiments_C.max() > 0.8 * high
    assert between_experiments_C.min() < 1.35 * low
    assert (between_plates_C > PLATE_RANGE[0]).all()
    assert (between_plates_C < PLATE_RANGE[1]).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_few_experiments_spread_like_many(seed):
    few = log_gains("HEPG2", 4, seed).mean(1).std(0, ddof=1).mean()
    assert 0.45 < few / log_gains("HEPG2", 200, seed).mean(1).std(0, ddof=1).mean() < 1.7


def test_channels_of_hepg2_move_together():
    gains_EC = log_gains("HEPG2", 200).mean(1)
    assert np.corrcoef(gains_EC.T)[np.triu_indices(6, 1)].mean() > 0.75


def test_strength_scales_every_deviation_and_zero_makes_plates_alike():
    none, half, full = (plate_effect(5, "RPE", 2, 3, strength) for strength in (0.0, 0.5, 1.0))
    for name in ("log_gain_C", "log_offset_C", "log_blur_C", "gradient_C2", "log_density", "culture_T"):
        assert not np.any(getattr(none, name))
        np.testing.assert_allclose(2 * np.asarray(getattr(half, name)), getattr(full, name), rtol=1e-6, atol=1e-9)
        assert np.any(getattr(full, name))


def test_plates_of_an_experiment_share_its_conditions():
    one, two, other = (plate_effect(0, "HEPG2", e, p, 1.0) for e, p in ((1, 1), (1, 2), (2, 1)))
    assert np.abs(one.culture_T - two.culture_T).mean() < 0.6 * np.abs(one.culture_T - other.culture_T).mean()
