"""What determines a simulated screen, and its random streams. Pure.

Every plate, well and site draws from a stream of its own, named by its place in the screen, so that the pixels do not
depend on how many processes render them, and so that a screen with one more experiment contains the smaller one.
"""

from __future__ import annotations

import zlib

import numpy as np

from components.core.config import FrozenModel, ScreenConfig, SimulateConfig


class SimulationSettings(FrozenModel):
    """The sections of a RunConfig that the simulated screen depends on."""

    seed: int = 0
    screen: ScreenConfig = ScreenConfig()
    simulate: SimulateConfig = SimulateConfig()


def stream(seed: int, *place: str | int) -> np.random.Generator:
    """The random generator of one place in the screen.

    Args:
        seed: the run's seed.
        place: names and numbers that identify the place, for example ("site", "HUVEC-01", 2, "B03", 1).
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in place]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))
