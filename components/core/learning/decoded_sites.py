"""Decoded sites in memory, up to a limit. Pure NumPy; safe in threads.

S sites of a screen, B of a batch, C channel, H and W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NONE, _COMING = -1, -2


class DecodedSites:
    """The first sites that were read, as many as the limit has room for.

    They stay: an epoch reads every site about once, so that replacing any by later ones would only cost copies.

    Args:
        sites: S.
        shape: (C, H, W) of a site.
        limit_bytes: largest memory for pixels.
    """

    def __init__(self, sites: int, shape: tuple[int, int, int], limit_bytes: float) -> None:
        self._sites = sites
        self._shape = shape
        self._lock = threading.Lock()
        self._empty(int(min(sites, limit_bytes // np.prod(shape))))

    def _empty(self, capacity: int) -> None:
        # Pages of an untouched allocation cost nothing, so the limit is not paid before it is used.
        self._pixels = np.empty((capacity, *self._shape), dtype=np.uint8)
        self._slot_S = np.full(self._sites, _NONE, dtype=np.intp)
        self._used = 0

    @property
    def nbytes(self) -> int:
        """Largest memory that pixels may take."""
        return self._pixels.nbytes

    def release(self) -> None:
        """Gives the memory back, for good."""
        with self._lock:
            self._empty(0)

    def copy_into(self, sites_B: NDArray[np.intp], out_BCHW: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Copies the pixels of the sites that are here to their places; which those are, (B,)."""
        with self._lock:
            pixels, slot_B = self._pixels, self._slot_S[sites_B]
        found_B = slot_B >= 0
        if found_B.all():
            # Without `clip`, NumPy would copy twice to be safe from indices out of range.
            np.take(pixels, slot_B, axis=0, out=out_BCHW, mode="clip")
        elif found_B.any():
            out_BCHW[found_B] = pixels[slot_B[found_B]]
        return found_B

    def keep(self, sites: NDArray[np.intp], pixels: Sequence[NDArray[np.uint8]]) -> None:
        """Copies sites here while there is room; one that another thread keeps already is left to it."""
        if self._used >= len(self._pixels):
            return
        with self._lock:
            new = [k for k, slot in enumerate(self._slot_S[sites]) if slot == _NONE][: len(self._pixels) - self._used]
            here, slots, slot_S = self._pixels, range(self._used, self._used + len(new)), self._slot_S
            slot_S[sites[new]] = _COMING
            self._used += len(new)
        for k, slot in zip(new, slots, strict=True):
            np.copyto(here[slot], pixels[k])
        # Seen by readers only now; after a release in between, these arrays are nobody's.
        with self._lock:
            slot_S[sites[new]] = slots
