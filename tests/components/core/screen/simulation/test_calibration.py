"""The simulator's defaults against the pixel statistics of RxRx1's 204 plates (published figures)."""

import numpy as np
import pytest

from components.core.config import ScreenConfig, SimulateConfig
from components.core.screen.simulation.cells import CELL_TYPES
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site

EXPERIMENTS, PLATES, SITES = 6, 4, 10
MEAN_C, STD_C = (6, 15, 10, 10, 6, 9), (7, 13, 6, 7, 5, 5)
BETWEEN = {"HUVEC": (0.19, 0.36), "RPE": (0.11, 0.42), "HEPG2": (0.39, 0.94), "U2OS": (0.37, 0.98)}
WITHIN = (0.04, 0.12)


@pytest.fixture(scope="module")
def simulated():
    """Mean and standard deviation of grey levels by cell type, (experiment, plate, channel)."""
    counts = dict.fromkeys(CELL_TYPES, EXPERIMENTS)
    settings = SimulationSettings(
        seed=2019,
        screen=ScreenConfig(image_size=64),
        simulate=SimulateConfig(labelled=counts, unlabelled={}, treatments_per_group=SITES, positive_controls=0),
    )
    found = {cell_type: np.zeros((2, EXPERIMENTS, PLATES, 6)) for cell_type in CELL_TYPES}
    for plate in design_screen(settings):
        wells = [well for well in plate.wells if well.role == "treatment"]
        pixels_SCHW = np.stack([render_site(settings, plate, well, 1) for well in wells]).astype(float)
        place = (slice(None), int(plate.experiment[-2:]) - 1, plate.number - 1)
        found[plate.cell_type][place] = pixels_SCHW.mean((0, 2, 3)), pixels_SCHW.std((0, 2, 3))
    return found


def test_channel_means_and_deviations_are_those_of_rxrx1(simulated):
    mean_C = np.mean([means.mean((0, 1)) for means, _ in simulated.values()], axis=0)
    std_C = np.mean([deviations.mean((0, 1)) for _, deviations in simulated.values()], axis=0)
    np.testing.assert_allclose(mean_C, MEAN_C, rtol=0.25)
    np.testing.assert_allclose(std_C, STD_C, rtol=0.25)


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_experiments_and_their_plates_differ_as_those_of_rxrx1(simulated, cell_type):
    low, high = BETWEEN[cell_type]
    log_mean_EPC = np.log(simulated[cell_type][0])
    spread_C = log_mean_EPC.mean(1).std(0, ddof=1)
    # Six experiments estimate a deviation to about a third of it.
    assert spread_C.min() > low * 0.67
    assert spread_C.max() < high * 1.33
    assert low < spread_C.mean() < high
    low, high = WITHIN
    spread_C = np.sqrt(log_mean_EPC.var(1, ddof=1).mean(0))
    assert low * 0.8 < spread_C.min()
    # Ten wells a plate, against 308: their perturbations and cell counts add to what plates differ by.
    assert spread_C.max() < high * 1.5
    assert low < spread_C.mean() < high * 1.1
