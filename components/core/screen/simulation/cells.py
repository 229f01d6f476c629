"""Phenotypes of cell types and perturbations, and the cells that grow in a site. Pure NumPy.

A phenotype is a vector of traits in units of a perturbation's typical shift. Each trait multiplies one property of the cell by
exp(scale x trait), so all properties stay positive and shifts compose. T traits, S perturbations, N cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.plate_design import stream

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


@lru_cache(maxsize=16)
def perturbation_shifts(
    seed: int, cell_type: str, perturbations: int, effect: float, specificity: float, traits: tuple[str, ...] = ()
) -> NDArray[np.float64]:
    """The phenotype shift of every perturbation in one cell type, read-only, (S, T).

    A part common to all cell types and a part particular to this one, mixed so that a trait's variance over perturbations is
    (effect x penetrance)^2 whatever the share.

    Args:
        seed: the run's seed.
        cell_type: one of CELL_TYPES.
        perturbations: S.
        effect: standard deviation of a trait over perturbations, in trait units.
        specificity: share of the variance that is particular to the cell type, 0 to 1.
        traits: those of TRAITS that perturbations shift; none: all.
    """
    shared_ST = stream(seed, "shared phenotype").standard_normal((perturbations, len(TRAITS)))
    specific_ST = stream(seed, "specific phenotype", cell_type).standard_normal((perturbations, len(TRAITS)))
    mixed_ST = np.sqrt(1.0 - specificity) * shared_ST + np.sqrt(specificity) * specific_ST
    shifts_ST = effect * PENETRANCE[cell_type] * mixed_ST
    shifts_ST *= [name in traits or not traits for name in TRAITS]
    shifts_ST.setflags(write=False)
    return np.asarray(shifts_ST)


def cell_properties(cell_type: str, traits_NT: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The properties of cells, float32 (N,) each, in the units of `TRAITS`."""
    factor_NT = np.exp(_SCALES_T * np.clip(traits_NT, -_EXTREME, _EXTREME))
    return {
        name: np.float32(getattr(trait, cell_type)) * factor_NT[:, t] for t, (name, trait) in enumerate(TRAITS.items())
    }


class Textures(NamedTuple):
    """Square textures of mean 0 and deviation 1, float32, side a power of two."""

    coarse: NDArray[np.float32]  # Outlines of cells, bending of filaments
    medium: NDArray[np.float32]  # Chromatin, ER
    fine: NDArray[np.float32]  # Mitochondrial network


_WAVELENGTHS = {"coarse": 0.6, "medium": 0.28, "fine": 0.17}
"""In cell diameters."""


@lru_cache(maxsize=2)
def textures(diameter: float) -> Textures:
    """The textures for cells of a diameter in pixels; the same in every process."""
    side = 1 << max(7, int(np.ceil(np.log2(8.0 * diameter))))
    return Textures(*(_band(side, diameter * wavelength, name) for name, wavelength in _WAVELENGTHS.items()))


def _band(side: int, wavelength: float, name: str) -> NDArray[np.float32]:
    """White noise through a log-normal band-pass of half an octave around 1 / wavelength."""
    frequency_HW = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency_HW[0, 0] = 1e-9
    response_HW = np.exp(-0.5 * (np.log(frequency_HW * wavelength) / 0.35) ** 2)
    white_HW = stream(0, "texture", name).standard_normal((side, side))
    texture_HW = np.fft.irfft2(np.fft.rfft2(white_HW) * response_HW, s=(side, side))
    return np.asarray(texture_HW / texture_HW.std(), dtype=np.float32)


CLUMPING = {"HUVEC": 0.3, "RPE": 0.3, "HEPG2": 0.8, "U2OS": 0.3}
"""How much cells grow in islands, 0 to 1; HepG2 do."""
_CONFLUENT = 1.05
"""Sum of cell areas over the image area when the monolayer is closed."""
_CELL_NOISE = 0.5
"""Deviation of a cell's traits from its well's, in trait units."""
_COUNT_NOISE = 0.12
_JITTER = 0.3
_MARGIN = 0.6
"""Cells up to this far outside of the image, in cell diameters, still reach into it."""


@dataclass(frozen=True)
class Cells:
    """Cells in image coordinates, pixels, float32 (N,)."""

    y_N: NDArray[np.float32]
    x_N: NDArray[np.float32]
    angle_N: NDArray[np.float32]
    properties: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.y_N)

    def part(self, start: int, stop: int) -> Cells:
        """Some of the cells, to bound the memory of a rendering pass."""
        chosen = slice(start, stop)
        return Cells(
            self.y_N[chosen],
            self.x_N[chosen],
            self.angle_N[chosen],
            {name: values[chosen] for name, values in self.properties.items()},
        )


def grow(
    rng: np.random.Generator,
    cell_type: str,
    traits_T: NDArray[np.float32],
    shape: tuple[int, int],
    diameter: float,
    density: float,
) -> Cells:
    """The cells of one site, at least one: a jittered lattice, whose fullest positions are taken.

    Args:
        rng: generator of the site.
        cell_type: one of CELL_TYPES.
        traits_T: phenotype of the well.
        shape: height and width of the image, pixels.
        diameter: typical cell diameter, pixels.
        density: expected sum of cell areas over the image area, before the phenotype's crowding.
    """
    typical = cell_properties(cell_type, traits_T[None])
    cell_diameter = diameter * float(typical["cell_size"][0])
    covered = density * float(typical["crowding"][0]) * float(np.exp(_COUNT_NOISE * rng.standard_normal()))
    spacing = cell_diameter * np.sqrt(np.pi / 4.0 / _CONFLUENT)
    margin = 2 * _MARGIN * diameter
    y_M, x_M = _lattice(rng, shape[0] + margin, shape[1] + margin, float(spacing))
    order_M = np.argsort(-_fullness(rng, y_M, x_M, diameter, CLUMPING[cell_type]), kind="stable")
    taken_N = order_M[: max(1, round(min(covered / _CONFLUENT, 1.0) * len(y_M)))]

    count = len(taken_N)
    noise_NT = rng.standard_normal((count, len(TRAITS)), dtype=np.float32)
    # Neighbours align: one direction a site, with a deviation a cell.
    angle_N = rng.uniform(0.0, np.pi) + 0.6 * rng.standard_normal(count, dtype=np.float32)
    return Cells(
        y_N=(y_M[taken_N] - _MARGIN * diameter).astype(np.float32),
        x_N=(x_M[taken_N] - _MARGIN * diameter).astype(np.float32),
        angle_N=angle_N.astype(np.float32),
        properties=cell_properties(cell_type, traits_T + np.float32(_CELL_NOISE) * noise_NT),
    )


def _lattice(
    rng: np.random.Generator, height: float, width: float, spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a staggered lattice over a rectangle, shifted as a whole and jittered one by one, (M,) each."""
    steps = [np.arange(int(np.ceil(extent / spacing)) + 1, dtype=np.float64) for extent in (height, width)]
    row_M, column_M = (grid.ravel() for grid in np.meshgrid(*steps, indexing="ij"))
    shift = rng.random(2)
    jitter_2M = rng.uniform(-_JITTER, _JITTER, (2, len(row_M)))
    y_M = (row_M - shift[0] + jitter_2M[0]) * spacing
    x_M = (column_M + 0.5 * (row_M % 2) - 0.5 - shift[1] + jitter_2M[1]) * spacing
    inside_M = (y_M >= 0) & (y_M < height) & (x_M >= 0) & (x_M < width)
    if not inside_M.any():
        return np.array([height / 2]), np.array([width / 2])
    return y_M[inside_M], x_M[inside_M]


def _fullness(
    rng: np.random.Generator, y_M: NDArray[np.float64], x_M: NDArray[np.float64], diameter: float, clumping: float
) -> NDArray[np.float64]:
    """How likely a position is taken: a smooth field (wavelength about three cells) mixed with noise, (M,)."""
    field_HW = textures(diameter).coarse
    side = len(field_HW)
    start = rng.integers(side, size=2)
    row_M = (y_M / 5.0 + start[0]).astype(np.int64) % side
    column_M = (x_M / 5.0 + start[1]).astype(np.int64) % side
    field_M = field_HW[row_M, column_M].astype(np.float64)
    return np.asarray(clumping * field_M + (1.0 - clumping) * rng.standard_normal(len(y_M)))
