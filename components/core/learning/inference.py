"""Logits and embeddings of wells: means over sites, tiles and dihedral views, before any softmax. torch only.

W wells, B batch, K class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from components.core.learning.augmentation import dihedral, easy_view
from components.core.learning.batch_norm import adapted, domain_of_wells, evaluating, statistics_wells
from components.core.learning.images import Images
from components.core.learning.network import Classifier
from components.core.learning.schedules import FEWEST_WELLS, random_site_batches


def well_logits(
    network: Classifier, images: Images, wells: NDArray[np.intp], views: int, batch_size: int, classes: int
) -> NDArray[np.float32]:
    """Mean logits of each well over its sites and the first `views` (1, 2, 4 or 8) dihedral views; see `well_outputs`."""
    return well_outputs(network, images, wells, views, 0, batch_size, classes)[0]


def well_outputs(
    network: Classifier,
    images: Images,
    wells: NDArray[np.intp],
    logit_views: int,
    embedding_views: int,
    batch_size: int,
    classes: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean logits (W, K) and mean embeddings (W, E) of wells, from one pass through the backbone.

    With a domain in `images.batch_norm`, BatchNorm uses the statistics of each well's domain (AdaBN); of a domain with fewer than
    FEWEST_WELLS wells to compute them from, a network with a neck uses running statistics.

    Args:
        network: the classifier.
        images: the screen's images.
        wells: rows of the well table.
        logit_views: dihedral views whose logits are averaged; 0 returns none, (W, 0).
        embedding_views: dihedral views whose embeddings are averaged; 0 returns none, (W, 0).
        batch_size: sites per forward pass.
        classes: K.

    Raises:
        InputError: a domain without the wells that its statistics are computed from.
    """
    widths = [classes if logit_views else 0, network.embedding_size if embedding_views else 0]

    def outputs(x_BCHW: Tensor, type_BT: Tensor | None) -> Tensor:
        views = range(max(logit_views, embedding_views))
        embedded = [network.embed(dihedral(x_BCHW, view), type_BT) for view in views]
        means = []
        if logit_views:
            means.append(torch.stack([network.head(embedding) for embedding in embedded[:logit_views]]).mean(0))
        if embedding_views:
            means.append(torch.stack(embedded[:embedding_views]).mean(0))
        return torch.cat(means, 1)

    both = _well_means(outputs, network, images, wells, batch_size, sum(widths))
    return both[:, : widths[0]], both[:, widths[0] :]


def _well_means(
    outputs: Callable[[Tensor, Tensor | None], Tensor],
    network: Classifier,
    images: Images,
    wells: NDArray[np.intp],
    batch_size: int,
    width: int,
) -> NDArray[np.float32]:
    """Mean of `outputs` over each well's sites and their tiles, (W, width); the team shares the work."""
    sum_WK = torch.zeros((len(wells), width), dtype=torch.float64, device=images.device)
    table, domain, team = images.table, images.batch_norm.domain, images.team
    if domain == "none":
        rows = np.array_split(np.arange(len(wells)), team.size)[team.rank]
        with evaluating(network):
            _add_outputs(sum_WK, rows, outputs, images, wells[rows], batch_size)
    else:
        domain_W = domain_of_wells(table, domain)
        for which in np.unique(domain_W[wells])[team.rank :: team.size]:
            sources = statistics_wells(table, domain_W, int(which), images.batch_norm.statistics)
            rows = np.flatnonzero(domain_W[wells] == which)
            if len(sources) < FEWEST_WELLS and network.has_neck:
                # The neck has one value an image: by their own statistics, the embeddings of two images would be opposites.
                with evaluating(network):
                    _add_outputs(sum_WK, rows, outputs, images, wells[rows], batch_size)
                continue
            seen = images.batches(_distributed(table.sites_of(sources), batch_size), corners=images.crops.tiles())
            inputs = ((x, None, images.cell_types_of(torch.from_numpy(table.well_S[sites]))) for sites, x in seen)
            with adapted(network, inputs):
                _add_outputs(sum_WK, rows, outputs, images, wells[rows], batch_size)
    total_WK = team.summed(sum_WK.cpu().numpy())
    counts = (table.first_site_W[wells + 1] - table.first_site_W[wells]).astype(np.float64) * len(images.crops.tiles())
    return (total_WK / counts[:, None]).astype(np.float32)


def _add_outputs(
    sum_WK: Tensor,
    rows: NDArray[np.intp],
    outputs: Callable[[Tensor, Tensor | None], Tensor],
    images: Images,
    wells: NDArray[np.intp],
    batch_size: int,
) -> None:
    """Adds the outputs of every tile of every site to its well's row."""
    row_W = np.zeros(images.table.wells, dtype=np.intp)
    row_W[wells] = rows
    sites = images.table.sites_of(wells).astype(np.intp)
    batches = [sites[k : k + batch_size] for k in range(0, len(sites), batch_size)]
    for chosen, x in images.batches(batches, corners=images.crops.tiles()):
        well_B = torch.from_numpy(images.table.well_S[chosen])
        row_B = torch.from_numpy(row_W)[well_B].to(sum_WK.device)
        # Summed on the device, in float64 and in a fixed order; copying each batch would make the device wait for the host.
        sum_WK.index_put_((row_B,), outputs(x, images.cell_types_of(well_B)).double(), accumulate=True)


def _distributed(sites: NDArray[np.int64], size: int) -> list[NDArray[np.intp]]:
    """Sites distributed in turn over the smallest number of batches of at most `size`, so that batches are similar."""
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
    """Mean logits over several random easy views with BatchNorm in train mode, shape (W, K).

    A batch holds wells of one plate, so BatchNorm uses that plate's statistics, in effect AdaBN (Li et al. 2016,
    arXiv 1603.04779), if there are at least FEWEST_WELLS. With a domain in `images.batch_norm`, the domain's wells are
    distributed evenly over batches instead.
    Running statistics are not changed.

    Args:
        network: maps standardised images, without targets, and cell types to logits.
        images: the screen's images.
        wells: rows of the well table, any order.
        passes: passes over the wells, each with a random site per well.
        batch_size: largest batch, in sites.
        classes: K.
        generator: draws the views of this process's share, on the CPU.
        rng: draws the sites.
    """
    table = images.table
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    training = network.training
    network.train()
    sum_WK = torch.zeros((len(wells), classes), dtype=torch.float64, device=images.device)
    domain = images.batch_norm.domain
    domain_w = domain_of_wells(table, "plate" if domain == "none" else domain)[wells]
    groups = [np.flatnonzero(domain_w == which) for which in np.unique(domain_w)]
    # A wider domain is distributed evenly, as in training: in plate order each batch would be nearly one plate.
    rows = [
        part
        for group in groups
        for part in (
            np.array_split(group, -(-len(group) // batch_size)) if domain == "none" else _distributed(group, batch_size)
        )
    ]
    few_w = np.zeros(len(wells), dtype=bool)
    for group in groups:
        few_w[group] = len(group) < FEWEST_WELLS
    # All processes draw the sites of all batches, and each computes its share.
    own = range(images.team.rank, len(rows), images.team.size)
    try:
        with torch.no_grad():
            for _ in range(passes):
                sites = random_site_batches(table, [wells[part] for part in rows], rng)
                # Where images are larger than the networks' input, each pass sees another crop of them.
                jitter = images.standardise.per_image
                batches = images.batches([sites[k] for k in own], (generator,), jitter=jitter)
                for k, (_, x) in zip(own, batches, strict=True):
                    part = rows[k]
                    # BatchNorm cannot normalise a single value, which a batch of one image may be at 1 x 1 pixels.
                    network.train(len(part) > 1 and not few_w[part].any())
                    row_B = torch.from_numpy(part).to(sum_WK.device)
                    type_BT = images.cell_types_of(torch.from_numpy(wells[part]))
                    logits_BK = network(easy_view(x, images.augment, generator), None, type_BT)
                    sum_WK.index_add_(0, row_B, logits_BK.double())
    finally:
        network.train(training)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    return (images.team.summed(sum_WK.cpu().numpy()) / passes).astype(np.float32)
