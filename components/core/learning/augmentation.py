"""Training views, batched on the training device: quarter turns, flips, shift/scale/aspect, crops, random erasing. torch only.

Every random number comes from the generator that is passed in. Images are standardised already, so zero fill is the mean.
B batch, C channel, H and W pixels (square).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from components.core.config import AugmentConfig


def dihedral(x_BCHW: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of the square; view 0 is the identity, bits are mirror, flip, transpose."""
    if view & 1:
        x_BCHW = x_BCHW.flip(3)
    if view & 2:
        x_BCHW = x_BCHW.flip(2)
    if view & 4:
        x_BCHW = x_BCHW.transpose(2, 3)
    return x_BCHW


def random_dihedral(x_BCHW: Tensor, generator: Generator) -> Tensor:
    """A symmetry of the square for each image, all eight equally likely."""
    view_B = torch.randint(8, (len(x_BCHW),), generator=generator, device=x_BCHW.device)
    out = torch.empty_like(x_BCHW)
    for view in range(8):
        chosen = (view_B == view).nonzero().squeeze(1)
        if len(chosen):
            out[chosen] = dihedral(x_BCHW[chosen], view)
    return out


def easy_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Flips, turns and shift/scale/aspect; no erasing."""
    return _resample(random_dihedral(x_BCHW, generator), config, generator, crop=False)


def normal_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """The easy view with random erasing."""
    return random_erasing(easy_view(x_BCHW, config, generator), config, generator)


def hard_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """The normal view, cropped and resized back."""
    x = _resample(random_dihedral(x_BCHW, generator), config, generator, crop=True)
    return random_erasing(x, config, generator)


def random_erasing(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Zeroes a rectangle of random area and aspect in some images (Zhong et al. 2020, arXiv 1708.04896)."""
    b, _, h, w = x_BCHW.shape
    area_B = _uniform(b, *config.erase_area, x_BCHW, generator) * (h * w)
    low, high = config.erase_aspect
    aspect_B = torch.exp(_uniform(b, math.log(low), math.log(high), x_BCHW, generator))
    rows_B = torch.sqrt(area_B * aspect_B).clamp(max=h)
    columns_B = torch.sqrt(area_B / aspect_B).clamp(max=w)
    top_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) * (h - rows_B)
    left_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) * (w - columns_B)
    chosen_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) < config.erase_probability
    row_H = torch.arange(h, device=x_BCHW.device) + 0.5
    column_W = torch.arange(w, device=x_BCHW.device) + 0.5
    in_rows_BH = (row_H >= top_B[:, None]) & (row_H < (top_B + rows_B)[:, None]) & chosen_B[:, None]
    in_columns_BW = (column_W >= left_B[:, None]) & (column_W < (left_B + columns_B)[:, None])
    erased_BHW = in_rows_BH[:, :, None] & in_columns_BW[:, None, :]
    return x_BCHW.masked_fill(erased_BHW[:, None], 0.0)


def _resample(x_BCHW: Tensor, config: AugmentConfig, generator: Generator, crop: bool) -> Tensor:
    """Shift, scale and aspect in some images and, for the hard view, a crop in all, in one interpolation."""
    b = len(x_BCHW)
    scale_B = 1.0 + _uniform(b, -config.scale, config.scale, x_BCHW, generator)
    root_aspect_B = torch.sqrt(1.0 + _uniform(b, -config.aspect, config.aspect, x_BCHW, generator))
    shift_B2 = torch.stack([_uniform(b, -2.0 * config.shift, 2.0 * config.shift, x_BCHW, generator) for _ in "xy"], 1)
    chosen_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) < config.geometric_probability
    # affine_grid maps output to input coordinates in [-1, 1]: a larger cell is a smaller sampled range.
    range_B2 = torch.stack([1.0 / (scale_B * root_aspect_B), root_aspect_B / scale_B], 1)
    range_B2 = torch.where(chosen_B[:, None], range_B2, torch.ones_like(range_B2))
    offset_B2 = torch.where(chosen_B[:, None], shift_B2, torch.zeros_like(shift_B2))
    if crop:
        side_B = _uniform(b, *config.crop, x_BCHW, generator)
        free_B1 = (1.0 - side_B)[:, None]
        corner_B2 = torch.stack([_uniform(b, -1.0, 1.0, x_BCHW, generator) for _ in "xy"], 1) * free_B1
        # The crop is taken from the shifted and scaled image, so it is applied inside the first map.
        offset_B2 = offset_B2 + range_B2 * corner_B2
        range_B2 = range_B2 * side_B[:, None]
        moved = torch.arange(b, device=x_BCHW.device)
    else:
        moved = chosen_B.nonzero().squeeze(1)
        if len(moved) == 0:
            return x_BCHW
    theta_M23 = x_BCHW.new_zeros(len(moved), 2, 3)
    theta_M23[:, 0, 0], theta_M23[:, 1, 1] = range_B2[moved, 0], range_B2[moved, 1]
    theta_M23[:, :, 2] = offset_B2[moved]
    source = x_BCHW[moved]
    grid = F.affine_grid(theta_M23, list(source.shape), align_corners=False)
    out = x_BCHW.clone()
    out[moved] = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out


def _uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """N uniform numbers in [low, high) on the device and in the type of `like`."""
    return low + (high - low) * torch.rand(n, generator=generator, device=like.device, dtype=like.dtype)
