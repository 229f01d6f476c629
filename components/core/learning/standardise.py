"""Pixels to network input on the training device: (x - mean) / std of the site's domain, with jitter. torch only.

The few random numbers are drawn on the CPU, so that a seed gives the same views on every device. P plates, B batch,
C channel, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from components.core.learning.memory import empty_tensor, to_device

# A channel that is black over a whole domain has no spread; dividing by less than a tenth of a grey level would only
# amplify quantisation.
SMALLEST_STD = 0.1


class Standardiser:
    """Standardises batches by plate index.

    Args:
        mean_PC: mean of each channel over the plate's domain, grey levels.
        std_PC: population standard deviation, same shape and unit.
        jitter: in training, mean and std are multiplied by 1 + U(-jitter, jitter), per image and channel.
        device: the device of the batches.
    """

    def __init__(self, mean_PC: Tensor, std_PC: Tensor, jitter: float, device: torch.device) -> None:
        self._mean_PC = mean_PC.to(device, torch.float32)
        self._std_PC = std_PC.to(device, torch.float32).clamp_min(SMALLEST_STD)
        self._jitter = jitter
        self.device = device

    def __call__(self, pixels_BCHW: Tensor, plate_B: Tensor, generator: Generator | None = None) -> Tensor:
        """Standardised float32 batch, shape (B, C, H, W), channels last, of uint8 pixels.

        Args:
            pixels_BCHW: pixels, on the device or the host.
            plate_B: plate index of each image, on the device or the host.
            generator: draws the jitter, on the CPU; None for no jitter.
        """
        mean_BC, std_BC = self._statistics(plate_B)
        if generator is not None and self._jitter > 0:
            mean_factor_BC, std_factor_BC = self._factors(mean_BC, generator)
            mean_BC, std_BC = mean_BC * mean_factor_BC, std_BC * std_factor_BC
        scale_BC = 1.0 / std_BC
        # One fused multiply-add over the pixels, in place: x * scale - mean * scale.
        if self.device.type == "cpu":
            x = empty_tensor(tuple(pixels_BCHW.shape), torch.float32, channels_last=True).copy_(pixels_BCHW)
        else:
            pixels_BCHW = pixels_BCHW.to(self.device, non_blocking=True)
            x = pixels_BCHW.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul((-mean_BC * scale_BC)[:, :, None, None], x, scale_BC[:, :, None, None], out=x)

    def jittered(self, x_BCHW: Tensor, plate_B: Tensor, generator: Generator) -> Tensor:
        """A standardised batch as if mean and std had been jittered: an affine map of each image's channels.

        (x std + mean - mean (1 + a)) / (std (1 + b)) = (x - a mean / std) / (1 + b).

        Args:
            x_BCHW: standardised images, on the device.
            plate_B: plate index of each image, on the device or the host.
            generator: draws the jitter, on the CPU.
        """
        if self._jitter == 0:
            return x_BCHW
        mean_BC, std_BC = self._statistics(plate_B)
        mean_factor_BC, std_factor_BC = self._factors(mean_BC, generator)
        shift_BC = (mean_factor_BC - 1.0) * mean_BC / std_BC
        scale_BC = 1.0 / std_factor_BC
        return torch.addcmul((-shift_BC * scale_BC)[:, :, None, None], x_BCHW, scale_BC[:, :, None, None])

    def _statistics(self, plate_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each image's domain, on the device."""
        plate_B = to_device(plate_B, self.device)
        return self._mean_PC[plate_B], self._std_PC[plate_B]

    def _factors(self, like_BC: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """1 + U(-jitter, jitter) for mean and standard deviation, in one copy to the device."""
        uniform_2BC = torch.stack([torch.rand(like_BC.shape, generator=generator) for _ in ("mean", "std")])
        mean_factor_BC, std_factor_BC = to_device(1.0 + self._jitter * (2.0 * uniform_2BC - 1.0), self.device)
        return mean_factor_BC, std_factor_BC
