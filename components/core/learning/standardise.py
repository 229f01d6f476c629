"""Pixels to network input on the training device: (x - mean) / std of the site's domain, with jitter. torch only."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

# A channel that is black over a whole domain has no spread; dividing by less than a tenth of a grey level only
# amplifies quantisation.
SMALLEST_STD = 0.1


class Standardiser:
    """Standardises batches by plate index.

    Args:
        mean_PC: mean of each plate's domain and channel, grey levels.
        std_PC: population standard deviation likewise.
        jitter: training only: mean and std times 1 + U(-jitter, jitter) per image and channel.
        device: where batches are.
    """

    def __init__(self, mean_PC: Tensor, std_PC: Tensor, jitter: float, device: torch.device) -> None:
        self._mean_PC = mean_PC.to(device, torch.float32)
        self._std_PC = std_PC.to(device, torch.float32).clamp_min(SMALLEST_STD)
        self._jitter = jitter
        self.device = device

    def __call__(self, pixels_BCHW: Tensor, plate_B: Tensor, generator: Generator | None = None) -> Tensor:
        """float32 batch, shape (B, C, H, W), of uint8 pixels; jittered where a generator is given."""
        mean_BC, std_BC = self._mean_PC[plate_B], self._std_PC[plate_B]
        if generator is not None and self._jitter > 0:
            mean_BC = mean_BC * self._factor(mean_BC, generator)
            std_BC = std_BC * self._factor(std_BC, generator)
        scale_BC = 1.0 / std_BC
        # One fused multiply-add over the pixels: x * scale - mean * scale.
        x = pixels_BCHW.to(self.device, non_blocking=True).float()
        return torch.addcmul((-mean_BC * scale_BC)[:, :, None, None], x, scale_BC[:, :, None, None])

    def jittered(self, x_BCHW: Tensor, plate_B: Tensor, generator: Generator) -> Tensor:
        """A standardised batch as it would be with mean and std jittered anew: an affine map of each image's channels.

        (x std + mean - mean (1 + a)) / (std (1 + b)) = (x - a mean / std) / (1 + b).
        """
        if self._jitter == 0:
            return x_BCHW
        mean_BC, std_BC = self._mean_PC[plate_B], self._std_PC[plate_B]
        shift_BC = (self._factor(mean_BC, generator) - 1.0) * mean_BC / std_BC
        scale_BC = 1.0 / self._factor(std_BC, generator)
        return torch.addcmul((-shift_BC * scale_BC)[:, :, None, None], x_BCHW, scale_BC[:, :, None, None])

    def _factor(self, like_BC: Tensor, generator: Generator) -> Tensor:
        uniform = torch.rand(like_BC.shape, generator=generator, device=like_BC.device)
        return 1.0 + self._jitter * (2.0 * uniform - 1.0)
