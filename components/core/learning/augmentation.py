"""Training views, batched on the training device: turns, flips, shift/scale/aspect, zoom, crop, erasing, CutMix. torch only.

Every random number comes from the generator that is passed in, always on the CPU, so that a seed gives the same views on
every device. Only a few numbers per image are drawn, and no step makes the host wait for the device. Images are
standardised already, so zero fill is the mean.
B batch, C channel, H and W pixels (square), M moved images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Generator, Tensor
from torch.nn import functional as F

from components.core.config import AugmentConfig
from components.core.learning.device import empty_tensor, to_device

_PIECE_BYTES = 16 * 2**20
_TRIES = 10
"""Rectangles drawn for an image to erase one that fits."""
_OUTSIDE = 4.0
"""A coordinate outside of any image by more than a pixel; image edges are at -1 and 1."""


def dihedral(x_BCHW: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of the square; view 0 is the identity, bits are mirror, flip, transpose."""
    if view & 1:
        x_BCHW = x_BCHW.flip(3)
    if view & 2:
        x_BCHW = x_BCHW.flip(2)
    if view & 4:
        x_BCHW = x_BCHW.transpose(2, 3)
    return x_BCHW


def easy_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Flips, turns and shift/scale/aspect; no erasing."""
    return _drawn_view(x_BCHW, config, generator, crops=False, erases=False)


def normal_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """The easy view with random erasing."""
    return _drawn_view(x_BCHW, config, generator, crops=False, erases=True)


def hard_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """The normal view, cropped and resized back."""
    return _drawn_view(x_BCHW, config, generator, crops=True, erases=True)


def cutmix(
    view_BCHW: Tensor,
    target_B: Tensor,
    type_BT: Tensor | None,
    config: AugmentConfig,
    generator: Generator,
    domains: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Views with a rectangle of another image each (Yun et al. 2019, arXiv 1905.04899), as configured.

    Args:
        view_BCHW: views of labelled images.
        target_B: their classes.
        type_BT: their one-hot cell types, if the network reads them, which are mixed by area.
        config: alpha of the Beta distribution of the share of an image that stays; 0 changes nothing and draws nothing.
        generator: draws shares, rectangles and other images, on the CPU.
        domains: BatchNorm domains of the batch, one after the other with equally many images, which do not mix.

    Returns:
        Views; targets, those of the other images after the first (2B); cell types; and the weights of the targets in
        Classifier.loss, None if nothing was mixed.
    """
    if config.cutmix == 0:
        return view_BCHW, target_B, type_BT, None
    b, _, h, w = view_BCHW.shape
    size = b // domains
    partner_B = torch.cat([first + torch.randperm(size, generator=generator) for first in range(0, b, size)])
    # The inverse distribution function: torch has no public draw of a Beta distribution from a generator.
    uniform_B = torch.rand(b, dtype=torch.float64, generator=generator)
    stays_B = torch.from_numpy(betaincinv(config.cutmix, config.cutmix, uniform_B.numpy())).float()
    half_B = torch.sqrt(1.0 - stays_B) / 2.0
    y_B, x_B = (_uniform(b, 0.0, 1.0, stays_B, generator) for _ in "yx")
    rectangle_4B = torch.stack([(y_B - half_B) * h, (y_B + half_B) * h, (x_B - half_B) * w, (x_B + half_B) * w])
    # A rectangle ends with the image, so that more of it may stay.
    rows_BH, columns_BW = _erased(rectangle_4B, h, w)
    stays_B = 1.0 - rows_BH.sum(1) * columns_BW.sum(1) / (h * w)
    numbers = to_device(torch.cat([rectangle_4B, torch.stack([stays_B, partner_B.float()])]), view_BCHW.device)
    stays_B, partner_B = numbers[4], numbers[5].long()
    rows_BH, columns_BW = _erased(numbers[:4], h, w)
    inside_B1HW = (rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]
    if type_BT is not None:
        type_BT = torch.lerp(type_BT[partner_B], type_BT, stays_B[:, None])
    return (
        torch.where(inside_B1HW, view_BCHW[partner_B], view_BCHW),
        torch.cat([target_B, target_B[partner_B]]),
        type_BT,
        2.0 * torch.cat([stays_B, 1.0 - stays_B]),
    )


def _drawn_view(x_BCHW: Tensor, config: AugmentConfig, generator: Generator, crops: bool, erases: bool) -> Tensor:
    view_B = torch.randint(8, (len(x_BCHW),), generator=generator)
    placement = _draw_placement(x_BCHW, config, generator, crops)
    rectangle_4B = _draw_rectangles(x_BCHW, config, generator) if erases else None
    if rectangle_4B is not None and crops and config.erase_before_crop:
        rectangle_4B = placement.seen_in_crop(rectangle_4B, x_BCHW.shape[-1])
    viewed = _viewed_by_parts if x_BCHW.device.type == "cpu" else _viewed_at_once
    return viewed(x_BCHW, view_B, placement, rectangle_4B)


@dataclass(frozen=True)
class _Placement:
    """Sampling positions of a view, on the CPU: input = output * range + offset, in coordinates from -1 to 1."""

    moved_B: Tensor  # whether an image is resampled
    range_B2: Tensor  # range in x and y
    offset_B2: Tensor  # offset in x and y
    crop_B3: Tensor | None  # the last crop, in the hard view its own: range, offset in x and y

    def seen_in_crop(self, rectangle_4B: Tensor, size: int) -> Tensor:
        """Where rectangles of an image of `size` pixels, before its crop, are in the crop that is resized back; (4, B) pixels."""
        assert self.crop_B3 is not None
        offset_4B = self.crop_B3[:, [2, 2, 1, 1]].T
        seen_4B: Tensor = (2.0 * rectangle_4B / size - 1.0 - offset_4B) / self.crop_B3[:, 0]
        return (seen_4B + 1.0) * (size / 2.0)


def _draw_placement(x_BCHW: Tensor, config: AugmentConfig, generator: Generator, crop: bool) -> _Placement:
    """Shift, scale and aspect for some images; the zoom for all, if configured, and the hard view's crop."""
    b = len(x_BCHW)
    scale_B = 1.0 + _uniform(b, -config.scale, config.scale, x_BCHW, generator)
    root_aspect_B = torch.sqrt(1.0 + _uniform(b, -config.aspect, config.aspect, x_BCHW, generator))
    shift_B2 = torch.stack([_uniform(b, -2.0 * config.shift, 2.0 * config.shift, x_BCHW, generator) for _ in "xy"], 1)
    moved_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) < config.geometric_probability
    # From output to input: larger cells are a smaller sampled range.
    range_B2 = torch.stack([1.0 / (scale_B * root_aspect_B), root_aspect_B / scale_B], 1)
    range_B2 = torch.where(moved_B[:, None], range_B2, torch.ones_like(range_B2))
    offset_B2 = torch.where(moved_B[:, None], shift_B2, torch.zeros_like(shift_B2))
    crop_B3 = None
    zooms = config.zoom != (1.0, 1.0)
    for bounds in [config.zoom] * zooms + [config.crop] * crop:
        side_B = _uniform(b, *bounds, x_BCHW, generator)
        free_B1 = (1.0 - side_B)[:, None]
        corner_B2 = torch.stack([_uniform(b, -1.0, 1.0, x_BCHW, generator) for _ in "xy"], 1) * free_B1
        # The crop is taken from the shifted and scaled image, so it is applied inside the first map.
        offset_B2 = offset_B2 + range_B2 * corner_B2
        range_B2 = range_B2 * side_B[:, None]
        moved_B = torch.ones_like(moved_B)
        crop_B3 = torch.cat([side_B[:, None], corner_B2], 1)
    return _Placement(moved_B, range_B2, offset_B2, crop_B3)


def _draw_rectangles(x_BCHW: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Rectangles to erase, in pixels, on the CPU: top, bottom, left, right of each image, (4, B); some are empty."""
    b, _, h, w = x_BCHW.shape
    if config.erase_uniform_aspect:
        area_TB, aspect_TB = (
            _uniform(_TRIES * b, *bounds, x_BCHW, generator).view(_TRIES, b)
            for bounds in (config.erase_area, config.erase_aspect)
        )
        # The first try whose rectangle fits into a square; where none does, as almost never, the first of all is cut.
        try_1B = ((area_TB * aspect_TB <= 1.0) & (area_TB <= aspect_TB)).int().argmax(0, keepdim=True)
        area_B, aspect_B = (each_TB.gather(0, try_1B)[0] for each_TB in (area_TB, aspect_TB))
        area_B = area_B * (h * w)
    else:
        area_B = _uniform(b, *config.erase_area, x_BCHW, generator) * (h * w)
        low, high = config.erase_aspect
        aspect_B = torch.exp(_uniform(b, math.log(low), math.log(high), x_BCHW, generator))
    rows_B = torch.sqrt(area_B * aspect_B).clamp(max=h)
    columns_B = torch.sqrt(area_B / aspect_B).clamp(max=w)
    top_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) * (h - rows_B)
    left_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) * (w - columns_B)
    chosen_B = _uniform(b, 0.0, 1.0, x_BCHW, generator) < config.erase_probability
    bottom_B = torch.where(chosen_B, top_B + rows_B, top_B)
    return torch.stack([top_B, bottom_B, left_B, left_B + columns_B])


def _viewed_by_parts(x_BCHW: Tensor, view_B: Tensor, placement: _Placement, rectangle_4B: Tensor | None) -> Tensor:
    """For the CPU, where interpolation is expensive: only moved images are resampled, and symmetries are exact."""
    h, w = x_BCHW.shape[2:]
    # Erased batches are channels first, as masked_fill leaves them: networks round differently in the two formats.
    last = x_BCHW.is_contiguous(memory_format=torch.channels_last)
    out_BCHW = empty_tensor(tuple(x_BCHW.shape), x_BCHW.dtype, channels_last=last and rectangle_4B is None)
    moved = placement.moved_B.nonzero().squeeze(1)
    source_MCHW = empty_tensor((len(moved), *x_BCHW.shape[1:]), x_BCHW.dtype, channels_last=last)
    sources = iter(source_MCHW)
    for out_CHW, one_CHW, view, moves in zip(
        out_BCHW, x_BCHW, view_B.tolist(), placement.moved_B.tolist(), strict=True
    ):
        (next(sources) if moves else out_CHW).copy_(dihedral(one_CHW[None], view)[0])
    # A few images at a time, one per thread, so that the allocator reuses memory without page faults.
    few = max(torch.get_num_threads(), _PIECE_BYTES // (x_BCHW[:1].nbytes or 1), 1)
    for source_FCHW, place_F in zip(torch.split(source_MCHW, few), torch.split(moved, few), strict=True):
        range_F2, offset_F2 = placement.range_B2[place_F], placement.offset_B2[place_F]
        column_FW = _centres(w, range_F2) * range_F2[:, :1] + offset_F2[:, :1]
        row_FH = _centres(h, range_F2) * range_F2[:, 1:] + offset_F2[:, 1:]
        out_BCHW[place_F] = _sampled(source_FCHW, _grid(column_FW[:, None, :], row_FH[:, :, None]))
    if rectangle_4B is not None:
        rows_BH, columns_BW = _erased(rectangle_4B, h, w)
        for out_CHW, rows, columns in zip(out_BCHW, _ranges(rows_BH), _ranges(columns_BW), strict=True):
            out_CHW[:, rows, columns] = 0.0
    return out_BCHW


def _viewed_at_once(x_BCHW: Tensor, view_B: Tensor, placement: _Placement, rectangle_4B: Tensor | None) -> Tensor:
    """For a GPU: one interpolation turns, places and erases all images, and reads every pixel once.

    Equals _viewed_by_parts except for the rounding of coordinates, 1e-4 of a pixel at 512.
    """
    h, w = x_BCHW.shape[2:]
    mirror_B, flip_B = 1 - 2 * (view_B & 1), 1 - 2 * (view_B >> 1 & 1)
    host = [*placement.range_B2.T, *placement.offset_B2.T, mirror_B, flip_B, view_B >> 2]
    if rectangle_4B is not None:
        host += [*rectangle_4B]
    numbers = to_device(torch.stack([each.to(x_BCHW.dtype) for each in host]), x_BCHW.device)
    range_x, range_y, offset_x, offset_y, mirror, flip, transposed = numbers[:7, :, None, None]
    column_B1W = _centres(w, numbers) * range_x + offset_x
    row_BH1 = _centres(h, numbers)[:, None] * range_y + offset_y
    turn = transposed > 0.5
    grid_BHW2 = _grid(mirror * torch.where(turn, row_BH1, column_B1W), flip * torch.where(turn, column_B1W, row_BH1))
    if rectangle_4B is not None:
        rows_BH, columns_BW = _erased(numbers[7:], h, w)
        # Samples from outside of the image are zero.
        grid_BHW2.masked_fill_((rows_BH[:, :, None] & columns_BW[:, None, :])[..., None], _OUTSIDE)
    last = x_BCHW.is_contiguous(memory_format=torch.channels_last)
    out_BCHW = _sampled(x_BCHW, grid_BHW2)
    return out_BCHW.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _grid(x: Tensor, y: Tensor) -> Tensor:
    """Coordinates (M, H, W, 2) from x and y, each of a shape that broadcasts to (M, H, W).

    Not by affine_grid, a matrix product: ten times slower here, and of ten bits on a GPU that uses TF32.
    """
    m, h, w = (max(sizes) for sizes in zip(x.shape, y.shape, strict=True))
    out = empty_tensor((m, h, w, 2), x.dtype) if x.device.type == "cpu" else x.new_empty(m, h, w, 2)
    out[..., 0], out[..., 1] = x, y
    return out


def _sampled(x_MCHW: Tensor, grid_MHW2: Tensor) -> Tensor:
    return F.grid_sample(x_MCHW, grid_MHW2, mode="bilinear", padding_mode="zeros", align_corners=False)


def _centres(n: int, like: Tensor) -> Tensor:
    """Coordinates of n pixels' centres, from -1 to 1 at the image's edges, (N,)."""
    return torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) * (n - 1) / n if n > 1 else like.new_zeros(1)


def _erased(rectangle_4B: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Masks of the rows (B, H) and columns (B, W) whose centres are in the rectangle."""
    top_B1, bottom_B1, left_B1, right_B1 = rectangle_4B[:, :, None]
    row_H = torch.arange(h, device=rectangle_4B.device) + 0.5
    column_W = torch.arange(w, device=rectangle_4B.device) + 0.5
    return (row_H >= top_B1) & (row_H < bottom_B1), (column_W >= left_B1) & (column_W < right_B1)


def _ranges(inside_BN: Tensor) -> list[slice]:
    """The run of true values of each row."""
    first_B, count_B = inside_BN.int().argmax(1).tolist(), inside_BN.sum(1).tolist()
    return [slice(first, first + count) for first, count in zip(first_B, count_B, strict=True)]


def _uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """N uniform numbers in [low, high) on the CPU, in the type of `like`."""
    return low + (high - low) * torch.rand(n, generator=generator, dtype=like.dtype)
