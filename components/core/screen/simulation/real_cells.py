"""Simulated perturbations of real cells: crops of photographed sites, changed by operators of each perturbation. NumPy and OpenCV.

A screen of this kind has the textures, shapes and noise of real cells, and phenotypes that no renderer of cells has drawn. An
operator changes one channel, or mixes a second one into it, by an amount particular to the perturbation; every cell type has
operators of its own. C channels, H and W pixels, S source sites.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError
from components.core.screen.simulation.batch_effects import BatchEffect
from components.core.screen.simulation.plate_design import stream
from components.core.storage.digests import digest_file, digest_text, file_names

Array = NDArray[np.float32]

CELL_DIAMETER = 80.0
"""Diameter of a typical photographed cell, pixels, as in RxRx1's images."""
_MARGIN = 1.5
"""Side of a crop over that of the image, so that rotated and stretched images are filled."""
OPERATOR_COUNT = 4
"""Operators of a perturbation."""
_ZOOM, _STRETCH = 0.07, 0.10
"""Deviations of a perturbation's log size and log elongation, which are those of all cells."""
_BLUR, _GAIN, _OFFSET = 0.35, 0.5, 2.0
"""Optical blur in pixels, share of the calibrated gains, and background in grey levels: the photographs have some already."""


@lru_cache(maxsize=2)
def source_sites(folder: str, channels: int, diameter: float) -> dict[str, list[Array]]:
    """The photographed sites by cell type, float32 (C, H, W), scaled to cells of a diameter in pixels.

    Args:
        folder: images as RxRx1 names them, CELLTYPE-NN/PlateP/WELL_sS_wC.png, at any depth.
        channels: C.
        diameter: wanted diameter of a typical cell, pixels.

    Raises:
        InputError: no such images, or one that cannot be read.
    """
    found: dict[str, list[Array]] = {}
    for first in sorted(Path(folder).resolve().rglob("*_w1.png")):
        planes = []
        for channel in range(1, channels + 1):
            path = first.with_name(first.name.replace("_w1.png", f"_w{channel}.png"))
            plane_HW = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
            if plane_HW is None:
                raise InputError(f"simulate.photographs: {path}: missing, or no image")
            scale = diameter / CELL_DIAMETER
            planes.append(cv2.resize(plane_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        found.setdefault(first.parts[-3].rpartition("-")[0], []).append(np.stack(planes).astype(np.float32))
    if not found:
        raise InputError(f"simulate.photographs: {folder}: no images CELLTYPE-NN/PlateP/WELL_sS_w1.png")
    return found


def photographs_digest(folder: str) -> str:
    """SHA-256 of the images below a folder: of their names there, and their bytes."""
    root = Path(folder)
    return digest_text(
        json.dumps([[name, digest_file(root / name)] for name in file_names(root) if name.endswith(".png")])
    )


def perturbed_cells(
    seed: int,
    sites: list[Array],
    shape: tuple[int, int],
    cell_type: str,
    perturbation: int | None,
    strength: float,
    noise_J: NDArray[np.float64],
    rng: np.random.Generator,
) -> Array:
    """A crop of one of the sites, at a random place and angle, changed as the perturbation does; float32 (C, H, W).

    Args:
        seed: the run's seed, which decides the operators.
        sites: of the cell type.
        shape: height and width, pixels.
        cell_type: which operators.
        perturbation: its index; None changes nothing.
        strength: factor of the operators' amounts.
        noise_J: the well's additions to the amounts of the operators.
        rng: generator of the site.

    Raises:
        InputError: the scaled sites are smaller than a crop.
    """
    site_CHW = sites[rng.integers(len(sites))]
    room = int(np.ceil(_MARGIN * max(shape)))
    free = np.array(site_CHW.shape[1:]) - room
    if free.min() < 0:
        raise InputError(
            f"simulate.photographs: sites of {site_CHW.shape[1]} pixels, once cells have simulate.cell_diameter, are smaller "
            f"than crops of {room}; raise the diameter or lower screen.image_size"
        )
    top, left = rng.integers(free + 1)
    crop_CHW = site_CHW[:, top : top + room, left : left + room]
    zoom = stretch = 0.0
    if perturbation is not None:
        zoom, stretch = (_ZOOM, _STRETCH) * stream(seed, "geometry", cell_type, perturbation).standard_normal(2)
    angle = rng.uniform(0.0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Cells are stretched along the axis at this angle; the crop itself is turned by a multiple of a quarter.
    matrix = turn @ np.diag(np.exp([-zoom - stretch, stretch - zoom])) @ turn.T @ _quarter_turn(int(rng.integers(4)))
    centre = (np.array(shape[::-1]) - 1) / 2
    affine = np.column_stack([matrix, (room - 1) / 2 - matrix @ centre]).astype(np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image_CHW: Array = np.stack(
        [cv2.warpAffine(p_HW, affine, shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT) for p_HW in crop_CHW]
    ).astype(np.float32)
    if perturbation is not None:
        drawn = stream(seed, "operators", cell_type, perturbation)
        for kind, noise in zip(drawn.choice(len(OPERATORS), OPERATOR_COUNT, replace=False), noise_J, strict=True):
            # Of a single channel, the other one is itself.
            channel, step = int(drawn.integers(len(image_CHW))), int(drawn.integers(1, max(2, len(image_CHW))))
            amount, period = float(drawn.standard_normal()) * strength + float(noise), float(drawn.uniform(2.5, 7.0))
            plane_HW, other_HW = image_CHW[channel], image_CHW[(channel + step) % len(image_CHW)]
            image_CHW[channel] = np.maximum(OPERATORS[kind](plane_HW, other_HW, amount, period, rng), 0.0)
    return image_CHW


def _quarter_turn(quarters: int) -> NDArray[np.float64]:
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    return np.array([[cosine, -sine], [sine, cosine]], dtype=np.float64)


def rephotograph(rng: np.random.Generator, image_CHW: Array, effect: BatchEffect) -> NDArray[np.uint8]:
    """The image under a plate's batch effect: blur, illumination, gain, background and noise; uint8 (C, H, W)."""
    height, width = image_CHW.shape[1:]
    down_H, right_W = (np.linspace(-1.0, 1.0, side, dtype=np.float32) for side in (height, width))
    grey_CHW = np.empty_like(image_CHW)
    for c, plane_HW in enumerate(image_CHW):
        down, right = effect.gradient_C2[c].astype(np.float32)
        light_HW = _blurred(plane_HW, _BLUR * float(np.exp(2 * effect.log_blur_C[c])))
        light_HW *= (1.0 + down * down_H[:, None] + right * right_W) * np.float32(np.exp(_GAIN * effect.log_gain_C[c]))
        grey_CHW[c] = light_HW + np.float32(_OFFSET * np.exp(effect.log_offset_C[c]))
    noise_CHW = rng.standard_normal(grey_CHW.shape, dtype=np.float32)
    grey_CHW += noise_CHW * np.sqrt(np.float32(0.05) * grey_CHW + np.float32(0.1))
    return np.clip(np.rint(grey_CHW), 0, 255).astype(np.uint8)


def _blurred(plane_HW: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(plane_HW, (0, 0), sigma, borderType=cv2.BORDER_REFLECT))


# An operator takes a plane, another channel's plane, an amount, a period in pixels and the site's generator.
Operator = Callable[[Array, Array, float, float, np.random.Generator], Array]


def _sharpened(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    return plane + np.float32(0.8 * np.clip(amount, -1.0, 2.0)) * (plane - _blurred(plane, 1.2))


def _gamma(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    curved = (plane / (plane.max() + np.float32(1e-3))) ** np.float32(np.exp(0.25 * amount))
    return np.asarray(curved * plane.mean() / (curved.mean() + np.float32(1e-6)))


def _grown(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    disc, share = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)), np.float32(min(0.7 * abs(amount), 1.0))
    return (1 - share) * plane + share * np.asarray((cv2.dilate if amount > 0 else cv2.erode)(plane, disc))


def _mixed(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    scale = plane.std() / (other.std() + np.float32(1e-3))
    return np.asarray(plane + np.float32(0.35 * amount) * scale * (other - other.mean()))


def _mottled(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    white = rng.standard_normal(plane.shape, dtype=np.float32)
    band = _blurred(white, period / 5) - _blurred(white, period / 2.5)
    return np.asarray(plane * np.maximum(1.0 + np.float32(0.3 * abs(amount)) / band.std() * band, 0.0))


def _displaced(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    angle, reach = rng.uniform(0.0, 2 * np.pi), 1.6 * abs(amount)
    affine = np.array([[1, 0, reach * np.cos(angle)], [0, 1, reach * np.sin(angle)]], dtype=np.float32)
    return np.asarray(cv2.warpAffine(plane, affine, plane.shape[::-1], borderMode=cv2.BORDER_REFLECT))


def _spotted(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return np.asarray(plane + np.float32(0.9 * amount) * cv2.morphologyEx(plane, cv2.MORPH_TOPHAT, disc))


def _brightened(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    return plane * np.float32(np.exp(0.2 * amount))


def _contrasted(plane: Array, other: Array, amount: float, period: float, rng: np.random.Generator) -> Array:
    local = _blurred(plane, 2 * period)
    return local + np.float32(np.exp(0.35 * amount)) * (plane - local)


OPERATORS: tuple[Operator, ...] = (
    _sharpened,
    _gamma,
    _grown,
    _mixed,
    _mottled,
    _displaced,
    _spotted,
    _brightened,
    _contrasted,
)
