"""The screen's images as network input: sites from the loader, standardised on the training device. NumPy and torch.

The few random numbers are drawn on the CPU, so that a seed gives the same views on every device. P plates, W wells, B batch,
C channel, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from components.core.config import AugmentConfig, BatchNormConfig, RunConfig
from components.core.errors import InputError
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.crops import Corner, Crops
from components.core.learning.device import empty_tensor, to_device
from components.core.learning.loader import SiteLoader, Upload
from components.core.learning.step_settings import LearningSettings
from components.core.learning.team import ALONE, Team
from components.core.screen.histograms import TO_DEVIATION, domain_statistics
from components.core.screen.packed import CORES, SiteReader, SiteTable
from components.core.storage.manifest import Manifest
from components.core.storage.node_cache import NodeCache

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

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
        own: statistics of each image by itself, float32 (B, C, H, W) to two (B, C), in place of the domain's, which then only
            scale the jitter of batches that are standardised already.
        noise: in training, the standard deviation of a Gaussian number that is added to each standardised channel of an image.
        per_image: whether jitter and noise are drawn for images as they are read, not for each of their views.
    """

    def __init__(
        self,
        mean_PC: Tensor,
        std_PC: Tensor,
        jitter: float,
        device: torch.device,
        own: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        noise: float = 0.0,
        per_image: bool = False,
    ) -> None:
        self._mean_PC = mean_PC.to(device, torch.float32)
        self._std_PC = std_PC.to(device, torch.float32).clamp_min(SMALLEST_STD)
        self._jitter, self._noise = jitter, noise
        self._own = own
        self.per_image = per_image
        self.device = device

    def __call__(self, pixels_BCHW: Tensor, plate_B: Tensor, generator: Generator | None = None) -> Tensor:
        """Standardised float32 batch, shape (B, C, H, W), channels last, of pixels, binned ones included.

        Pixels and plate indices may be on the device or the host. The generator draws jitter and noise, on the CPU; None for none.
        """
        if self.device.type == "cpu":
            x = empty_tensor(tuple(pixels_BCHW.shape), torch.float32, channels_last=True).copy_(pixels_BCHW)
        else:
            pixels_BCHW = pixels_BCHW.to(self.device, non_blocking=True)
            x = pixels_BCHW.to(
                torch.float32, memory_format=torch.channels_last, copy=pixels_BCHW.dtype == torch.float32
            )
        mean_BC, std_BC = self._own(x) if self._own else self._statistics(plate_B)
        noise_BC = None
        if generator is not None and (self._jitter or self._noise):
            mean_factor_BC, std_factor_BC, noise_BC = self._drawn(mean_BC, generator)
            mean_BC, std_BC = mean_BC * mean_factor_BC, std_BC * std_factor_BC
        scale_BC = 1.0 / std_BC
        shift_BC = -mean_BC * scale_BC
        if noise_BC is not None:
            shift_BC = shift_BC + noise_BC
        # One fused multiply-add over the pixels, in place.
        return torch.addcmul(shift_BC[:, :, None, None], x, scale_BC[:, :, None, None], out=x)

    def jittered(self, x_BCHW: Tensor, plate_B: Tensor, generator: Generator) -> Tensor:
        """One view's batch as if it had been standardised with jitter and noise: an affine map of each image's channels.

        (x std + mean - mean (1 + a)) / (std (1 + b)) = (x - a mean / std) / (1 + b). The batch itself if images have theirs
        already.
        """
        if self.per_image or not (self._jitter or self._noise):
            return x_BCHW
        mean_BC, std_BC = self._statistics(plate_B)
        mean_factor_BC, std_factor_BC, noise_BC = self._drawn(mean_BC, generator)
        shift_BC = (mean_factor_BC - 1.0) * mean_BC / std_BC
        scale_BC = 1.0 / std_factor_BC
        shift_BC = -shift_BC * scale_BC
        if noise_BC is not None:
            shift_BC = shift_BC + noise_BC
        return torch.addcmul(shift_BC[:, :, None, None], x_BCHW, scale_BC[:, :, None, None])

    def _statistics(self, plate_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each image's domain, on the device."""
        plate_B = to_device(plate_B, self.device)
        return self._mean_PC[plate_B], self._std_PC[plate_B]

    def _drawn(self, like_BC: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Factors of mean and standard deviation, 1 + U(-jitter, jitter), and noise if any, in one copy to the device."""
        shape, drawn = like_BC.shape, [torch.ones(like_BC.shape)] * 2
        if self._jitter:
            drawn = [1.0 + self._jitter * (2.0 * torch.rand(shape, generator=generator) - 1.0) for _ in ("mean", "std")]
        if self._noise:
            drawn.append(self._noise * torch.randn(shape, generator=generator))
        mean_factor_BC, std_factor_BC, *noise = to_device(torch.stack(drawn), self.device)
        return mean_factor_BC, std_factor_BC, noise[0] if noise else None


def own_statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image's channels, (B, C) each."""
    var_BC, mean_BC = torch.var_mean(x_BCHW, (2, 3), correction=0)
    return mean_BC, var_BC.sqrt().clamp_min(SMALLEST_STD)


def own_robust_statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Median and median absolute deviation x 1.4826 of each image's channels, (B, C) each.

    Where most pixels are equal, the standard deviation takes the place of the deviation of 0.
    """
    flat_BCN = x_BCHW.flatten(2)
    median_BC = flat_BCN.median(-1).values
    robust_BC = TO_DEVIATION * (flat_BCN - median_BC[..., None]).abs_().median(-1).values
    std_BC = own_statistics(x_BCHW)[1]
    return median_BC, torch.where(robust_BC > 0, robust_BC, std_BC).clamp_min(SMALLEST_STD)


@dataclass(frozen=True)
class Images:
    """Turns rows of the site table into network input."""

    table: SiteTable
    loader: SiteLoader
    crops: Crops
    standardise: Standardiser
    augment: AugmentConfig
    batch_norm: BatchNormConfig = field(default_factory=BatchNormConfig)  # domains of batches and BatchNorm statistics
    team: Team = ALONE  # the processes that share inference
    cell_type_WT: Tensor | None = (
        None  # one-hot cell types of the wells, on the device, if the networks take them as input
    )

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.standardise.device

    @property
    def batch_domains(self) -> NDArray[np.intp] | None:
        """Domain of every well of the table; None if a training batch may hold wells of any domain."""
        domain = self.batch_norm.domain
        return None if domain == "none" else domain_of_wells(self.table, domain)

    def cell_types_of(self, well_B: Tensor) -> Tensor | None:
        """One-hot cell types of wells, (B, T), on the device; None if the networks do not take them as input."""
        return None if self.cell_type_WT is None else self.cell_type_WT[well_B]

    def batches(
        self,
        sites: list[NDArray[np.intp]],
        generators: Sequence[Generator] = (),
        jitter: bool = True,
        corners: Sequence[Corner] = (),
    ) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """Site batches, rows of the site table, with their standardised images, shape (B, C, S, S), channels last.

        Args:
            sites: the sites of each batch.
            generators: draw random crops, jitter and noise, on the CPU, used in turn; none for crops at the centre alone.
            jitter: whether they draw jitter and noise, too.
            corners: of the crops of every image; a batch comes once for each. None takes the centre's.
        """
        upload = Upload(self.device)
        for k, (chosen, pixels) in enumerate(zip(sites, self.loader.batches(sites), strict=True)):
            generator = generators[k % len(generators)] if generators else None
            plate_B = torch.from_numpy(self.table.plate_W[self.table.well_S[chosen]])
            # Only what needs no random numbers is done ahead; they are drawn when a batch is taken.
            uploaded = upload(pixels)
            if generator is not None:
                cut = self.crops.cut_at_random(uploaded, generator)
                yield chosen, self.standardise(cut, plate_B, generator if jitter else None)
                continue
            for corner in corners or (self.crops.centre,):
                yield chosen, self.standardise(self.crops.cut(uploaded, corner), plate_B)


def open_images(
    settings: LearningSettings | RunConfig,
    manifest: Manifest,
    store: ObjectStore,
    device: torch.device,
    team: Team = ALONE,
    reference: Manifest | None = None,
) -> Images:
    """The images of a manifest, read and standardised as configured.

    Args:
        settings: the sections screen, standardise, batch_norm, augment, head and loader.
        manifest: the packed screen.
        store: where its plates are.
        device: where batches are computed.
        team: the processes that share inference.
        reference: the training screen, whose statistics are used for domains wider than an experiment, and whose cell types
            the networks know; None for the manifest's own.

    Raises:
        InputError: a cell type that the reference lacks, and that the statistics or the networks need.
    """
    standardise, loading = settings.standardise, settings.loader
    table = SiteTable.of(manifest)
    statistics = domain_statistics(manifest, standardise)
    if reference is not None and standardise.domain in ("global", "cell_type"):
        known = {p.cell_type: (p.experiment, p.plate) for p in reference.plates}
        of_reference = domain_statistics(reference, standardise)
        for plate in manifest.plates:
            if plate.cell_type not in known:
                raise InputError(
                    f"experiment {plate.experiment}: the training screen has no plates of cell type {plate.cell_type}, "
                    f"whose statistics standardise.domain {standardise.domain} needs; use plate or experiment"
                )
        statistics = {(p.experiment, p.plate): of_reference[known[p.cell_type]] for p in manifest.plates}
    means, deviations = zip(*(statistics[p.experiment, p.plate] for p in manifest.plates), strict=True)
    shape = (len(manifest.channels), *manifest.image_shape)
    own = own_robust_statistics if standardise.robust else own_statistics
    node_cache = None
    if loading.node_cache is not None:
        node_cache = NodeCache(Path(loading.node_cache), int(loading.node_cache_gib * 2**30))
    return Images(
        table=table,
        loader=SiteLoader(
            SiteReader(store, manifest, table, verify=True, node_cache=node_cache),
            table.sites,
            shape,
            loading.cache_gib * 2**30,
            # Files have no latency to hide, and more threads than cores only evict each other's pixels from the processor's caches.
            threads=min(loading.requests, 2 * CORES) if store.root is not None else loading.requests,
            ahead=loading.batches_ahead,
            pinned=device.type == "cuda",
            dtype=np.dtype(manifest.dtype),
        ),
        crops=Crops.of(settings.screen, manifest.image_shape),
        standardise=Standardiser(
            torch.from_numpy(np.stack(means)),
            torch.from_numpy(np.stack(deviations)),
            standardise.jitter,
            device,
            own if standardise.domain == "image" else None,
            standardise.channel_noise,
            standardise.jitter_per == "image",
        ),
        augment=settings.augment,
        batch_norm=settings.batch_norm,
        team=team,
        cell_type_WT=_one_hot_cell_types(table, reference or manifest).to(device) if settings.head.cell_types else None,
    )


def _one_hot_cell_types(table: SiteTable, reference: Manifest) -> Tensor:
    """One-hot cell types of a table's wells, float32 (W, T), in the order of those that the reference's networks know."""
    known = reference.cell_types
    for cell_type in table.cell_types:
        if cell_type not in known:
            raise InputError(
                f"cell type {cell_type}: the networks take the cell type as input (head.cell_types) and know only "
                f"{', '.join(known)}; leave its experiments out, or train with them"
            )
    number_T = np.array([known.index(cell_type) for cell_type in table.cell_types])
    return torch.eye(len(known))[torch.from_numpy(number_T[table.cell_type_W])]
