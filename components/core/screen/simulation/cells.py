"""Where the cells of a site lie and what each looks like. Pure NumPy. N cells, T traits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.noise import textures
from components.core.screen.simulation.phenotypes import TRAITS, cell_properties

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
    size: int,
    diameter: float,
    density: float,
) -> Cells:
    """The cells of one site: a jittered lattice, of which the fullest places are taken.

    Args:
        rng: generator of the site.
        cell_type: one of phenotypes.CELL_TYPES.
        traits_T: phenotype of the well.
        size: side of the image, pixels.
        diameter: typical cell diameter, pixels.
        density: expected sum of cell areas over the image area, before the phenotype's crowding.

    Returns:
        At least one cell; their number grows linearly with the image's area.
    """
    typical = cell_properties(cell_type, traits_T[None])
    cell_diameter = diameter * float(typical["cell_size"][0])
    covered = density * float(typical["crowding"][0]) * float(np.exp(_COUNT_NOISE * rng.standard_normal()))
    spacing = cell_diameter * np.sqrt(np.pi / 4.0 / _CONFLUENT)
    y_M, x_M = _lattice(rng, size + 2 * _MARGIN * diameter, float(spacing))
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
    rng: np.random.Generator, extent: float, spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a staggered lattice over a square, shifted as a whole and jittered one by one, (M,) each."""
    steps = np.arange(int(np.ceil(extent / spacing)) + 1, dtype=np.float64)
    row_M, column_M = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    shift = rng.random(2)
    jitter_2M = rng.uniform(-_JITTER, _JITTER, (2, len(row_M)))
    y_M = (row_M - shift[0] + jitter_2M[0]) * spacing
    x_M = (column_M + 0.5 * (row_M % 2) - 0.5 - shift[1] + jitter_2M[1]) * spacing
    inside_M = (y_M >= 0) & (y_M < extent) & (x_M >= 0) & (x_M < extent)
    if not inside_M.any():
        return np.array([extent / 2]), np.array([extent / 2])
    return y_M[inside_M], x_M[inside_M]


def _fullness(
    rng: np.random.Generator, y_M: NDArray[np.float64], x_M: NDArray[np.float64], diameter: float, clumping: float
) -> NDArray[np.float64]:
    """How likely a place is taken: a smooth field (wavelength about three cells) mixed with chance, (M,)."""
    field_HW = textures(diameter).coarse
    side = len(field_HW)
    start = rng.integers(side, size=2)
    row_M = (y_M / 5.0 + start[0]).astype(np.int64) % side
    column_M = (x_M / 5.0 + start[1]).astype(np.int64) % side
    field_M = field_HW[row_M, column_M].astype(np.float64)
    return np.asarray(clumping * field_M + (1.0 - clumping) * rng.standard_normal(len(y_M)))
