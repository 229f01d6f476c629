"""What cells of a cell type look like and how a siRNA changes that. Pure NumPy.

A phenotype is a vector of traits in units of a siRNA's typical shift. Each trait multiplies one property of the cell by
exp(scale x trait), so all properties stay positive and shifts compose. T traits, S siRNAs, N cells.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError
from components.core.screen.simulation.settings import stream

CELL_TYPES = ("HUVEC", "RPE", "HEPG2", "U2OS")
PENETRANCE = {"HUVEC": 1.0, "RPE": 1.0, "HEPG2": 1.1, "U2OS": 0.85}
"""How strongly a knock-down shows in a cell type; U2OS is the hardest in RxRx1 (baseline of its organisers)."""


class Trait(NamedTuple):
    """A property of cells: the log change of one trait unit, and the untreated value of each cell type."""

    scale: float
    HUVEC: float
    RPE: float
    HEPG2: float
    U2OS: float


TRAITS = {
    # Shape and growth. Sizes are fractions of the configured cell diameter, elongations axis ratios.
    "cell_size": Trait(0.08, 1.05, 1.00, 0.86, 1.14),
    "cell_elongation": Trait(0.14, 1.70, 1.30, 1.10, 1.35),
    "crowding": Trait(0.14, 1.00, 1.05, 1.05, 1.05),
    "nucleus_size": Trait(0.11, 0.50, 0.50, 0.54, 0.50),
    "nucleus_elongation": Trait(0.12, 1.35, 1.20, 1.10, 1.25),
    # Intensities are relative to the channel's level.
    "nucleus_brightness": Trait(0.18, 1.00, 1.00, 1.00, 1.00),
    "chromatin_contrast": Trait(0.40, 0.25, 0.20, 0.25, 0.22),
    "nucleoli_count": Trait(0.30, 2.50, 2.00, 2.50, 3.20),
    "nucleoli_size": Trait(0.16, 0.058, 0.058, 0.062, 0.055),
    "nucleoli_brightness": Trait(0.25, 1.80, 1.60, 2.00, 1.80),
    "cytoplasm_rna": Trait(0.20, 1.00, 1.00, 1.00, 1.00),
    "er_brightness": Trait(0.18, 1.00, 1.00, 1.00, 1.00),
    "er_spread": Trait(0.22, 0.62, 0.70, 0.80, 0.62),
    "er_texture": Trait(0.35, 0.30, 0.25, 0.25, 0.35),
    "actin_brightness": Trait(0.18, 1.00, 1.00, 1.00, 1.00),
    "filament_contrast": Trait(0.35, 0.80, 1.00, 0.45, 0.90),
    "filament_period": Trait(0.16, 0.24, 0.26, 0.22, 0.26),
    "filament_waviness": Trait(0.35, 0.60, 0.50, 1.20, 0.80),
    "cortical_actin": Trait(0.35, 0.55, 0.70, 1.30, 0.50),
    "mitochondria_brightness": Trait(0.18, 1.00, 1.00, 1.00, 1.00),
    "mitochondria_spread": Trait(0.18, 0.55, 0.55, 0.60, 0.58),
    "mitochondria_granularity": Trait(0.45, 0.90, 0.80, 1.20, 1.00),
    "golgi_brightness": Trait(0.18, 1.00, 1.00, 1.00, 1.00),
    "golgi_spread": Trait(0.28, 0.11, 0.11, 0.10, 0.12),
    "golgi_offset": Trait(0.22, 0.24, 0.22, 0.24, 0.24),
}
"""The latent dimensions of the simulated biology, in the order of a phenotype vector."""

_SCALES_T = np.array([trait.scale for trait in TRAITS.values()], dtype=np.float32)
_EXTREME = 3.0
"""Traits are clipped here: beyond, cells would grow out of any plausible morphology."""


def known_cell_type(cell_type: str) -> str:
    """The cell type itself.

    Raises:
        InputError: the simulator has no morphology for it.
    """
    if cell_type not in CELL_TYPES:
        raise InputError(
            f"simulate.labelled / simulate.unlabelled: no simulated morphology for cell type {cell_type!r}; "
            f"choose among {', '.join(CELL_TYPES)}"
        )
    return cell_type


@lru_cache(maxsize=16)
def sirna_shifts(seed: int, cell_type: str, sirnas: int, effect: float, specificity: float) -> NDArray[np.float64]:
    """The phenotype shift of every siRNA in one cell type, read-only, (S, T).

    A part common to all cell types and a part particular to this one, mixed so that a trait's variance over siRNAs is
    (effect x penetrance)^2 whatever the share.

    Args:
        seed: the run's seed.
        cell_type: one of CELL_TYPES.
        sirnas: S.
        effect: deviation of a trait over siRNAs, in trait units.
        specificity: share of the variance that is particular to the cell type, 0 to 1.
    """
    shared_ST = stream(seed, "shared phenotype").standard_normal((sirnas, len(TRAITS)))
    specific_ST = stream(seed, "specific phenotype", cell_type).standard_normal((sirnas, len(TRAITS)))
    mixed_ST = np.sqrt(1.0 - specificity) * shared_ST + np.sqrt(specificity) * specific_ST
    shifts_ST = effect * PENETRANCE[cell_type] * mixed_ST
    shifts_ST.setflags(write=False)
    return np.asarray(shifts_ST)


def cell_properties(cell_type: str, traits_NT: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The properties of cells, float32 (N,) each, in the units of `TRAITS`."""
    factor_NT = np.exp(_SCALES_T * np.clip(traits_NT, -_EXTREME, _EXTREME))
    return {
        name: np.float32(getattr(trait, cell_type)) * factor_NT[:, t] for t, (name, trait) in enumerate(TRAITS.items())
    }
