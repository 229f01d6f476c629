"""Tileable random textures, from which every cell cuts its own piece. Pure NumPy.

Cutting from a prepared texture costs one look-up a pixel; noise made for each cell would cost a Fourier transform.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.settings import stream


class Textures(NamedTuple):
    """Square textures of mean 0 and deviation 1, float32, side a power of two; wavelengths in cell diameters."""

    coarse: NDArray[np.float32]
    """Wavelength 0.6: outlines of cells, bending of filaments."""
    medium: NDArray[np.float32]
    """Wavelength 0.28: chromatin, ER."""
    fine: NDArray[np.float32]
    """Wavelength 0.17: mitochondrial network."""


@lru_cache(maxsize=2)
def textures(diameter: float) -> Textures:
    """The textures for cells of a diameter in pixels; the same in every process."""
    side = 1 << max(7, int(np.ceil(np.log2(8.0 * diameter))))
    return Textures(*(_band(side, diameter * wavelength, name) for name, wavelength in _WAVELENGTHS.items()))


_WAVELENGTHS = {"coarse": 0.6, "medium": 0.28, "fine": 0.17}


def _band(side: int, wavelength: float, name: str) -> NDArray[np.float32]:
    """White noise through a log-normal band-pass of half an octave around 1 / wavelength."""
    frequency_HW = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency_HW[0, 0] = 1e-9
    response_HW = np.exp(-0.5 * (np.log(frequency_HW * wavelength) / 0.35) ** 2)
    white_HW = stream(0, "texture", name).standard_normal((side, side))
    texture_HW = np.fft.irfft2(np.fft.rfft2(white_HW) * response_HW, s=(side, side))
    return np.asarray(texture_HW / texture_HW.std(), dtype=np.float32)
