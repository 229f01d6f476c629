"""Renders a site: phenotype, cells, stains, camera. Pure NumPy.

All cells of a pass are drawn at once on square patches around their centres, then added to the image: the cost is
linear in the number of cells, and drawing large images in passes bounds memory. Each cell cuts its texture out of a
prepared tile, one look-up a pixel; noise made for each cell would cost a Fourier transform.

N cells of a pass, P patch side, J spots of a cell, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS
from components.core.screen.simulation.batch_effects import photograph, plate_effect
from components.core.screen.simulation.cells import TRAITS, Cells, grow, perturbation_shifts, textures
from components.core.screen.simulation.plate_design import (
    SimulatedPlate,
    SimulatedWell,
    SimulationSettings,
    stream,
    treatment_count,
)
from components.core.screen.simulation.real_cells import OPERATOR_COUNT, perturbed_cells, rephotograph, source_sites

Array = NDArray[np.float32]

_PASS_PIXELS = 400_000
"""Patch pixels of a pass, about 1.6 MB a float32 plane."""
_REACH = 1.3
"""Nothing of a cell lies further out than this many semi-major axes."""
_NUCLEOLI, _MITOCHONDRIA, _GOLGI = 6, 20, 7
"""Most spots of a cell."""
_CELL_BRIGHTNESS = 0.15
"""Log deviation of a cell's brightness in all stains alike (cell cycle, thickness)."""


def draw(rng: np.random.Generator, cells: Cells, shape: tuple[int, int], diameter: float) -> Array:
    """The six stains before optics and camera, float32 (C, H, W), in units of a typical cell's brightness.

    `shape`, height and width, and the typical cell `diameter` are in pixels.
    """
    height, width = shape
    reach = int(np.ceil(_REACH * float(_semi_axes(cells.properties, diameter)[0].max()))) + 1
    side = 2 * reach + 1
    image_CHW = np.zeros((len(CHANNELS), height + 2 * side, width + 2 * side), dtype=np.float32)
    step = max(1, _PASS_PIXELS // side**2)
    for start in range(0, len(cells), step):
        some = cells.part(start, start + step)
        floor_y_N, floor_x_N = np.floor(some.y_N), np.floor(some.x_N)
        patches_NCPP = _patches(rng, some, reach, diameter, some.y_N - floor_y_N, some.x_N - floor_x_N)
        row_N, column_N = floor_y_N.astype(int), floor_x_N.astype(int)
        for patch_CPP, row, column in zip(patches_NCPP, row_N + side - reach, column_N + side - reach, strict=True):
            if 0 < row < height + side and 0 < column < width + side:
                image_CHW[:, row : row + side, column : column + side] += patch_CPP
    return image_CHW[:, side : side + height, side : side + width]


def _semi_axes(properties: Mapping[str, Array], diameter: float) -> tuple[Array, Array]:
    """Semi-axes of the cell bodies in pixels; elongation keeps the area."""
    radius_N = np.float32(0.5 * diameter) * properties["cell_size"]
    stretch_N = np.sqrt(np.minimum(properties["cell_elongation"], np.float32(2.5)))
    return np.asarray(radius_N * stretch_N, np.float32), np.asarray(radius_N / stretch_N, np.float32)


def _patches(rng: np.random.Generator, cells: Cells, reach: int, diameter: float, dy_N: Array, dx_N: Array) -> Array:
    """The six stains of each cell on its patch, (N, C, P, P)."""
    p = {name: values[:, None, None] for name, values in cells.properties.items()}
    count, side, d = len(cells), 2 * reach + 1, np.float32(diameter)
    offset_P = np.arange(-reach, reach + 1, dtype=np.float32)
    y_NPP = offset_P[None, :, None] - dy_N[:, None, None]
    x_NPP = offset_P[None, None, :] - dx_N[:, None, None]
    cosine, sine = np.cos(cells.angle_N)[:, None, None], np.sin(cells.angle_N)[:, None, None]
    along_NPP, across_NPP = cosine * x_NPP + sine * y_NPP, cosine * y_NPP - sine * x_NPP
    coarse, medium, fine = _cut_textures(rng, count, side, diameter)

    major_N, minor_N = _semi_axes(cells.properties, diameter)
    major, minor = major_N[:, None, None], minor_N[:, None, None]
    outline = 1.0 + 0.10 * coarse
    radius = np.sqrt((along_NPP / major) ** 2 + (across_NPP / minor) ** 2) * outline
    body = _edge(1.0 - radius, 0.25)
    nucleus_radius = np.float32(0.5) * d * p["nucleus_size"]
    stretch = np.sqrt(p["nucleus_elongation"])
    in_nucleus = np.sqrt((along_NPP / stretch) ** 2 + (across_NPP * stretch) ** 2) / nucleus_radius
    nucleus = _edge(1.0 - in_nucleus * (1.0 + 0.04 * coarse), 0.3)
    cytoplasm = body * (1.0 - 0.75 * nucleus)

    def spots(along_NJ: Array, across_NJ: Array, sigma_N1: Array, weight_NJ: Array) -> Array:
        """Gaussian spots in the cell's own axes; separable, so a product of two small matrices draws them."""
        c, s = cosine[:, :, 0], sine[:, :, 0]
        x_NJ = c * along_NJ - s * across_NJ + dx_N[:, None]
        y_NJ = s * along_NJ + c * across_NJ + dy_N[:, None]
        scale_N1 = np.float32(-0.5) / sigma_N1[..., None] ** 2
        gauss_y_NJP = weight_NJ[..., None] * np.exp(scale_N1 * (offset_P - y_NJ[..., None]) ** 2)
        gauss_x_NJP = np.exp(scale_N1 * (offset_P - x_NJ[..., None]) ** 2)
        return np.asarray(np.matmul(gauss_y_NJP.transpose(0, 2, 1), gauss_x_NJP))

    def column(name: str) -> Array:
        return cells.properties[name][:, None]

    brightness = np.exp(np.float32(_CELL_BRIGHTNESS) * rng.standard_normal((count, 1, 1), dtype=np.float32))
    out_NCPP = np.empty((count, len(CHANNELS), side, side), dtype=np.float32)

    # Nuclei: Hoechst, mottled by chromatin.
    out_NCPP[:, 0] = p["nucleus_brightness"] * nucleus * np.maximum(1.0 + p["chromatin_contrast"] * medium, 0.1)

    # ER: densest around the nucleus.
    from_nucleus = np.exp(-((radius / p["er_spread"]) ** 2))
    reticulum = np.maximum(1.0 + p["er_texture"] * (medium + 0.5 * fine), 0.05)
    out_NCPP[:, 1] = p["er_brightness"] * cytoplasm * (0.12 + from_nucleus) * reticulum

    # Actin: stress fibres along the cell, bent by a coarse field, and the cortex under the membrane.
    phase_N11 = rng.uniform(0.0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
    phase = across_NPP * (np.float32(2 * np.pi) / (d * p["filament_period"])) + phase_N11
    fibres = 0.5 + 0.5 * np.cos(phase + p["filament_waviness"] * coarse)
    cortex = np.exp(-(((radius - 0.88) / 0.12) ** 2))
    sheet = body * (0.35 + p["filament_contrast"] * fibres * fibres) + p["cortical_actin"] * cortex
    out_NCPP[:, 2] = p["actin_brightness"] * sheet * (1.0 - 0.3 * nucleus)

    # Nucleoli and cytoplasmic RNA: SYTO 14. A fractional count fades the last nucleolus in.
    turn_NJ, out_NJ = _scatter(rng, count, _NUCLEOLI, 0.75)
    radius_N1 = nucleus_radius[:, :, 0]
    weight_NJ = np.asarray(
        np.clip(column("nucleoli_count") - np.arange(_NUCLEOLI, dtype=np.float32), 0.0, 1.0), np.float32
    )
    nucleoli = spots(
        radius_N1 * out_NJ * np.cos(turn_NJ),
        radius_N1 * out_NJ * np.sin(turn_NJ),
        np.maximum(d * column("nucleoli_size"), 0.5),
        weight_NJ * column("nucleoli_brightness"),
    )
    rna = p["cytoplasm_rna"] * cytoplasm * (0.2 + 0.5 * np.exp(-((radius / 0.8) ** 2))) * (1.0 + 0.15 * medium)
    out_NCPP[:, 3] = rna + 0.4 * nucleus + nucleoli

    # Mitochondria: a network and bright bodies in a ring of the cytoplasm.
    turn_NJ, out_NJ = _scatter(rng, count, _MITOCHONDRIA, 0.45)
    distance_NJ = column("mitochondria_spread") + (out_NJ - 0.3)
    bodies = spots(
        major_N[:, None] * distance_NJ * np.cos(turn_NJ),
        minor_N[:, None] * distance_NJ * np.sin(turn_NJ),
        np.full((count, 1), max(0.045 * diameter, 0.5), dtype=np.float32),
        np.broadcast_to(0.5 * column("mitochondria_granularity"), turn_NJ.shape),
    )
    ring = np.exp(-(((radius - 0.8 * p["mitochondria_spread"]) / 0.35) ** 2))
    network = ring * np.maximum(0.6 + 0.35 * fine + 0.25 * medium, 0.0)
    out_NCPP[:, 4] = p["mitochondria_brightness"] * cytoplasm * (network + bodies)

    # Golgi: a few blobs beside the nucleus; WGA also stains membranes faintly.
    turn_NJ, out_NJ = _scatter(rng, count, _GOLGI, 1.6)
    spread_N1 = d * column("golgi_spread")
    blobs = spots(
        d * column("golgi_offset") + spread_N1 * out_NJ * np.cos(turn_NJ),
        spread_N1 * out_NJ * np.sin(turn_NJ),
        np.maximum(0.45 * spread_N1, 0.5),
        np.full(turn_NJ.shape, 0.8, dtype=np.float32),
    )
    out_NCPP[:, 5] = p["golgi_brightness"] * blobs + body * (0.30 + 0.06 * medium) + 0.15 * cortex

    out_NCPP *= brightness[:, None]
    return out_NCPP


def _edge(depth: Array, width: float) -> Array:
    """0 outside, 1 from `width` inside on, smooth in between (cubic)."""
    t = np.clip(depth * np.float32(1.0 / width), 0.0, 1.0)
    return np.asarray(t * t * (np.float32(3.0) - np.float32(2.0) * t))


def _scatter(rng: np.random.Generator, count: int, spots: int, farthest: float) -> tuple[Array, Array]:
    """Directions (radians) and distances of spots, evenly over a disc, (N, J) each."""
    turn_NJ = rng.uniform(0.0, 2 * np.pi, (count, spots)).astype(np.float32)
    out_NJ = np.float32(farthest) * np.sqrt(rng.random((count, spots), dtype=np.float32))
    return turn_NJ, out_NJ


def _cut_textures(rng: np.random.Generator, count: int, side: int, diameter: float) -> tuple[Array, Array, Array]:
    """Each cell's piece of the three textures, (N, P, P) each."""
    bank = textures(diameter)
    period = len(bank.coarse)
    start_N2 = rng.integers(period, size=(count, 2), dtype=np.int32)
    step_P = np.arange(side, dtype=np.int32)
    row_NP = (start_N2[:, :1] + step_P) % period
    column_NP = (start_N2[:, 1:] + step_P) % period
    index_NPP = row_NP[:, :, None] * period + column_NP[:, None, :]
    coarse, medium, fine = (texture.ravel().take(index_NPP) for texture in bank)
    return coarse, medium, fine


def render_site(
    settings: SimulationSettings, plate: SimulatedPlate, well: SimulatedWell, site: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The channels of a site, uint8 or uint16 (C, H, W); a function of its arguments alone."""
    config = settings.simulate
    position = (plate.experiment, plate.number, well.well)
    experiment_number = int(plate.experiment.rpartition("-")[2])
    effect = plate_effect(settings.seed, plate.cell_type, experiment_number, plate.number, config.batch_strength)

    rng = stream(settings.seed, "site", *position, site)
    form = settings.images
    if config.photographs:
        sites = source_sites(config.photographs, len(form.channels), config.cell_diameter)
        noise_J = stream(settings.seed, "well", *position).standard_normal(OPERATOR_COUNT)
        image_CHW = perturbed_cells(
            settings.seed, sites[plate.cell_type], form.shape, plate.cell_type, well.perturbation,
            config.effect * well.strength, config.well_noise * config.effect * noise_J, rng,
        )  # fmt: skip
        return rephotograph(rng, image_CHW, effect)

    well_noise_T = stream(settings.seed, "well", *position).standard_normal(len(TRAITS))
    traits_T = config.well_noise * config.effect * well_noise_T + effect.culture_T
    if well.perturbation is not None:
        perturbations = treatment_count(config) + config.positive_controls
        shifts_ST = perturbation_shifts(
            settings.seed,
            plate.cell_type,
            perturbations,
            config.effect,
            config.cell_type_specificity,
            config.traits,
        )
        traits_T += well.strength * shifts_ST[well.perturbation]

    density = config.density * float(np.exp(effect.log_density))
    diameter = config.cell_diameter
    cells = grow(rng, plate.cell_type, traits_T.astype(np.float32), form.shape, diameter, density)
    stains_CHW = draw(rng, cells, form.shape, diameter)
    chosen_CHW = stains_CHW[np.arange(len(form.channels)) % len(CHANNELS)]
    return photograph(rng, chosen_CHW, plate.cell_type, effect, diameter, config.bits)
