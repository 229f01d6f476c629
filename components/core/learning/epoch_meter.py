"""What an epoch took: sites a second, how long it waited for data, and its peak of memory. torch only."""

from __future__ import annotations

import resource
import time

import torch

from components.core.learning.inference import Images


class EpochMeter:
    """Starts when it is made.

    Args:
        images: whose loader may be waited for.
        earlier: `state` of the epoch's beginning, where it was interrupted.
    """

    def __init__(self, images: Images, earlier: tuple[float, float, int] | None = None) -> None:
        self._images = images
        seconds, waited, self._sites = earlier or (0.0, 0.0, 0)
        self._begun = time.monotonic() - seconds
        self._waited = images.cache.waited - waited
        if images.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(images.device)

    def saw(self, sites: int) -> None:
        """Counts sites that this process trained on."""
        self._sites += sites

    def state(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and sites so far."""
        return time.monotonic() - self._begun, self._images.cache.waited - self._waited, self._sites

    def measured(self) -> dict[str, float]:
        """Figures of the epoch so far, for its record; the device's work must have ended.

        Returns:
            sites_per_s: sites of all processes a second; seconds; data_wait: share of them in which this process waited
            for pixels; peak_memory_gib: of the GPU during the epoch, or of this process since its start.
        """
        seconds = time.monotonic() - self._begun
        if self._images.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._images.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "sites_per_s": self._sites * self._images.team.size / seconds,
            "seconds": seconds,
            "data_wait": min(1.0, (self._images.cache.waited - self._waited) / seconds),
            "peak_memory_gib": round(peak / 2**30, 3),
        }
