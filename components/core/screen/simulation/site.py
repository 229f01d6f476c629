"""One site of a well: phenotype, cells, stains, camera, in that order. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.batch_effects import plate_effect
from components.core.screen.simulation.camera import photograph
from components.core.screen.simulation.cells import grow
from components.core.screen.simulation.phenotypes import TRAITS, sirna_shifts
from components.core.screen.simulation.plate_design import PLATES, Plate, Well
from components.core.screen.simulation.rendering import draw
from components.core.screen.simulation.settings import SimulationSettings, stream


def render_site(settings: SimulationSettings, plate: Plate, well: Well, site: int) -> NDArray[np.uint8]:
    """The six channels of a site, uint8 (C, H, W); depends on nothing but its arguments."""
    config = settings.simulate
    place = (plate.experiment, plate.number, well.well)
    experiment_number = int(plate.experiment.rpartition("-")[2])
    effect = plate_effect(settings.seed, plate.cell_type, experiment_number, plate.number, config.batch_strength)

    well_noise_T = stream(settings.seed, "well", *place).standard_normal(len(TRAITS))
    traits_T = config.well_noise * config.effect * well_noise_T + effect.culture_T
    if well.sirna is not None:
        sirnas = PLATES * config.treatments_per_group + config.positive_controls
        shifts_ST = sirna_shifts(settings.seed, plate.cell_type, sirnas, config.effect, config.cell_type_specificity)
        traits_T += shifts_ST[well.sirna]

    rng = stream(settings.seed, "site", *place, site)
    density = config.density * float(np.exp(effect.log_density))
    size, diameter = settings.screen.image_size, config.cell_diameter
    cells = grow(rng, plate.cell_type, traits_T.astype(np.float32), size, diameter, density)
    return photograph(rng, draw(rng, cells, size, diameter), plate.cell_type, effect, diameter)
