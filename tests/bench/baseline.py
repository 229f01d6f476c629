"""The baseline of loading: a torch Dataset of PNGs with all host work in NumPy and OpenCV, and a DataLoader.

The usual design of image classifiers, without waste: interleaved channels as in OpenCV, one OpenCV thread per worker,
arithmetic in place, interpolation only for images that a view moves. H height, W width, C channel.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from components.core.config import AugmentConfig

Pixels = NDArray[np.float32]


class PngSites(Dataset[Tensor]):
    """Sites of six PNGs each, as standardised and augmented float32 tensors; all sites are one domain."""

    def __init__(
        self, sites: list[tuple[Path, ...]], mean_C: Pixels, std_C: Pixels, jitter: float, augment: AugmentConfig
    ) -> None:
        self._sites = [tuple(map(str, paths)) for paths in sites]
        self._mean_C, self._std_C, self._jitter = mean_C, std_C, jitter
        self._augment = augment

    def __len__(self) -> int:
        return len(self._sites)

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        x_HWC = self.augmented(self.standardised(self.pixels(index), rng), rng)
        return torch.from_numpy(np.ascontiguousarray(x_HWC.transpose(2, 0, 1)))

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Decoded channels, (H, W, C)."""
        return np.stack([cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in self._sites[index]], axis=-1)

    def standardised(self, pixels_HWC: NDArray[np.uint8], rng: np.random.Generator) -> Pixels:
        """(x - mean) / std with jitter."""
        factor_2C = (1.0 + rng.uniform(-self._jitter, self._jitter, (2, len(self._mean_C)))).astype(np.float32)
        x_HWC = pixels_HWC.astype(np.float32)
        x_HWC -= self._mean_C * factor_2C[0]
        x_HWC /= self._std_C * factor_2C[1]
        return x_HWC

    def augmented(self, x_HWC: Pixels, rng: np.random.Generator) -> Pixels:
        """Flips and turns, shift/scale/aspect in some, random erasing in some."""
        config, (h, w, _) = self._augment, x_HWC.shape
        if rng.random() < 0.5:
            x_HWC = x_HWC[:, ::-1]
        x_HWC = np.ascontiguousarray(np.rot90(x_HWC, int(rng.integers(4))))
        if rng.random() < config.geometric_probability:
            scale = 1.0 + rng.uniform(-config.scale, config.scale)
            root = np.sqrt(1.0 + rng.uniform(-config.aspect, config.aspect))
            sx, sy = scale * root, scale / root
            tx, ty = rng.uniform(-config.shift, config.shift, 2) * (w, h)
            matrix = np.array([[sx, 0.0, (1 - sx) * (w - 1) / 2 + tx], [0.0, sy, (1 - sy) * (h - 1) / 2 + ty]])
            x_HWC = cv2.warpAffine(x_HWC, matrix, (w, h), flags=cv2.INTER_LINEAR)
        if rng.random() < config.erase_probability:
            area, aspect = rng.uniform(*config.erase_area) * h * w, np.exp(rng.uniform(*np.log(config.erase_aspect)))
            rows, columns = min(h, int(np.sqrt(area * aspect))), min(w, int(np.sqrt(area / aspect)))
            top, left = rng.integers(h - rows + 1), rng.integers(w - columns + 1)
            x_HWC[top : top + rows, left : left + columns] = 0.0
        return x_HWC


def endless(dataset: PngSites, batch_size: int, workers: int) -> DataLoader[Tensor]:
    """A DataLoader whose batches never end, so that workers start once."""
    sampler = RandomSampler(dataset, num_samples=2**40)
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, worker_init_fn=_one_thread)


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
