"""Logits of wells: averaged over sites and dihedral views, before any softmax. torch only.

W wells, B batch, K class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from components.core.config import AugmentConfig, BatchNormConfig
from components.core.learning.augmentation import dihedral, easy_view
from components.core.learning.batch_norm import adapted, domain_of_wells, statistics_wells
from components.core.learning.device_copy import Upload
from components.core.learning.loader import SiteCache, random_site_batches
from components.core.learning.network import Classifier
from components.core.learning.standardise import Standardiser
from components.core.learning.team import Team
from components.core.screen.site_table import SiteTable


@dataclass(frozen=True)
class Images:
    """Everything between a row of the site table and network input.

    Attributes:
        table: the screen's sites and wells.
        cache: their pixels.
        standardise: pixels to input, by plate.
        augment: the training views.
        batch_norm: whether batches and BatchNorm statistics are by domain.
        team: the processes that share inference.
    """

    table: SiteTable
    cache: SiteCache
    standardise: Standardiser
    augment: AugmentConfig
    batch_norm: BatchNormConfig = field(default_factory=BatchNormConfig)
    team: Team = field(default_factory=Team)

    @property
    def device(self) -> torch.device:
        """Where batches are computed."""
        return self.standardise.device

    @property
    def batch_domains(self) -> NDArray[np.intp] | None:
        """Domain of every well of the table, where a training batch holds one domain; None where it may hold any."""
        domain = self.batch_norm.domain
        return None if domain == "none" else domain_of_wells(self.table, domain)

    def batches(
        self, sites: list[NDArray[np.intp]], generators: Sequence[Generator] = ()
    ) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """Site batches and their standardised images, shape (B, C, H, W), channels last.

        Args:
            sites: rows of the site table, a batch each.
            generators: of the jitter, on the CPU, taken in turn; none leaves images without.
        """
        upload = Upload(self.device)
        for k, (chosen, pixels) in enumerate(zip(sites, self.cache.batches(sites), strict=True)):
            generator = generators[k % len(generators)] if generators else None
            plate_B = torch.from_numpy(self.table.plate_W[self.table.well_S[chosen]])
            # Only what does not depend on random numbers is done ahead: jitter is drawn when a batch is taken.
            yield chosen, self.standardise(upload(pixels), plate_B, generator)


def chunks(sites: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """Consecutive pieces of at most `size`."""
    return [sites[k : k + size] for k in range(0, len(sites), size)]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


def well_logits(
    network: nn.Module, images: Images, wells: NDArray[np.intp], views: int, batch_size: int, classes: int
) -> NDArray[np.float32]:
    """Mean logits of each well over its sites and the first `views` dihedral views, shape (W, K).

    Where `images.batch_norm` names a domain, BatchNorm takes the statistics of each well's domain (AdaBN).

    Args:
        network: standardised images to logits.
        images: the screen's images.
        wells: rows of the well table.
        views: 1, 2, 4 or 8.
        batch_size: sites a forward pass.
        classes: K.

    Raises:
        InputError: a domain without the wells that its statistics are taken from.
    """
    return _well_means(network, network, images, wells, views, batch_size, classes)


def well_embeddings(
    network: Classifier, images: Images, wells: NDArray[np.intp], views: int, batch_size: int
) -> NDArray[np.float32]:
    """Mean output of the backbone of each well over its sites and the first `views` dihedral views, shape (W, E).

    Args and errors as in well_logits.
    """
    return _well_means(network.embed, network, images, wells, views, batch_size, network.embedding_size)


def _well_means(
    forward: Callable[[Tensor], Tensor],
    network: nn.Module,
    images: Images,
    wells: NDArray[np.intp],
    views: int,
    batch_size: int,
    width: int,
) -> NDArray[np.float32]:
    """Mean output of `forward`, a part of the network or all of it, of each well, (W, width), shared by the team."""
    sum_WK = np.zeros((len(wells), width), dtype=np.float64)
    table, domain, team = images.table, images.batch_norm.domain, images.team
    if domain == "none":
        rows = np.array_split(np.arange(len(wells)), team.size)[team.rank]
        with evaluating(network):
            _add_outputs(sum_WK, rows, forward, images, wells[rows], views, batch_size)
    else:
        domain_W = domain_of_wells(table, domain)
        for which in np.unique(domain_W[wells])[team.rank :: team.size]:
            sources = statistics_wells(table, domain_W, int(which), images.batch_norm.statistics)
            rows = np.flatnonzero(domain_W[wells] == which)
            with adapted(network, (x for _, x in images.batches(_dealt(table.sites_of(sources), batch_size)))):
                _add_outputs(sum_WK, rows, forward, images, wells[rows], views, batch_size)
    sum_WK = team.summed(sum_WK)
    counts = (table.first_site_W[wells + 1] - table.first_site_W[wells]).astype(np.float64)
    return (sum_WK / counts[:, None]).astype(np.float32)


def _add_outputs(
    sum_WK: NDArray[np.float64],
    rows: NDArray[np.intp],
    forward: Callable[[Tensor], Tensor],
    images: Images,
    wells: NDArray[np.intp],
    views: int,
    batch_size: int,
) -> None:
    """Adds the outputs of every site, averaged over views, to the row of its well."""
    row_W = np.zeros(images.table.wells, dtype=np.intp)
    row_W[wells] = rows
    sites = images.table.sites_of(wells).astype(np.intp)
    for chosen, x in images.batches(chunks(sites, batch_size)):
        output_BK = torch.stack([forward(dihedral(x, view)) for view in range(views)]).mean(0)
        np.add.at(sum_WK, row_W[images.table.well_S[chosen]], output_BK.cpu().numpy())


def _dealt(sites: NDArray[np.int64], size: int) -> list[NDArray[np.intp]]:
    """Sites dealt round to as few batches of at most `size` as there must be, so that batches are alike."""
    batches = -(-len(sites) // size)
    return [sites[k::batches].astype(np.intp) for k in range(batches)]


def adaptive_logits(
    network: nn.Module,
    images: Images,
    wells: NDArray[np.intp],
    passes: int,
    batch_size: int,
    classes: int,
    generator: Generator,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Mean logits over passes of the easy view with BatchNorm in train mode, shape (W, K).

    Batches in plate order, each of one plate, give BatchNorm that plate's statistics, in effect AdaBN (Li et al. 2016,
    arXiv 1603.04779); where `images.batch_norm` names a domain, its wells are dealt evenly to batches instead.
    The running statistics are left as they were.

    Args:
        network: standardised images to logits.
        images: the screen's images.
        wells: rows of the well table, any order.
        passes: passes over the wells, a random site each.
        batch_size: largest batch; a batch never spans plates (domains).
        classes: K.
        generator: of the views of this process's share, on the CPU.
        rng: of the sites.
    """
    table = images.table
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    training = network.training
    network.train()
    sum_WK = np.zeros((len(wells), classes), dtype=np.float64)
    domain = images.batch_norm.domain
    domain_w = domain_of_wells(table, "plate" if domain == "none" else domain)[wells]
    groups = [np.flatnonzero(domain_w == which) for which in np.unique(domain_w)]
    # A wider domain is dealt evenly, as its training batches are drawn: in plate order each would be nearly one plate.
    rows = [
        part
        for group in groups
        for part in (
            np.array_split(group, -(-len(group) // batch_size)) if domain == "none" else _dealt(group, batch_size)
        )
    ]
    # All processes draw the sites of all batches, and each computes its share of them.
    own = range(images.team.rank, len(rows), images.team.size)
    try:
        with torch.no_grad():
            for _ in range(passes):
                sites = random_site_batches(table, [wells[part] for part in rows], rng)
                for k, (_, x) in zip(own, images.batches([sites[k] for k in own]), strict=True):
                    part = rows[k]
                    # BatchNorm has no variance of a single value, which a batch of one may give at 1 x 1 pixels.
                    network.train(len(part) > 1)
                    sum_WK[part] += network(easy_view(x, images.augment, generator)).cpu().numpy()
    finally:
        network.train(training)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    return (images.team.summed(sum_WK) / passes).astype(np.float32)
