"""What a training epoch is made of: learning rates, EMA decay, ramps, and batches of wells and sites. NumPy only.

W wells of an epoch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.core.config import MeanTeacherConfig
from components.core.screen.packed import SiteTable


def step_rate(epoch: int, rates: Sequence[float], milestones: Sequence[int]) -> float:
    """Learning rate of an epoch (from 0): rates[k] from milestones[k-1] up to milestones[k]."""
    return rates[bisect_right(milestones, epoch)]


def one_cycle_rate(progress: float, peak: float) -> float:
    """Learning rate after a share of the training, 0 to 1: cosine from peak / 25 to the peak at 0.3, then nearly to 0.

    Source: Smith & Topin 2017, arXiv 1708.07120, with the learning rates of torch's OneCycleLR, without its cycle of momentum.
    """
    first, last = peak / 25.0, peak / 250_000.0
    start, end, phase = (first, peak, progress / 0.3) if progress < 0.3 else (peak, last, (progress - 0.3) / 0.7)
    return end + (start - end) * (1.0 + math.cos(math.pi * phase)) / 2.0


def ema_decay(step: int, epoch: int, decays: Sequence[float], epochs: Sequence[int]) -> float:
    """Decay of the teacher, min(1 - 1/(step + 1), a), a by epoch (Tarvainen & Valpola 2017, arXiv 1703.01780).

    `step` counts from 0 or 1, see `ema_first_step`, `epoch` from 1; `decays` are the values of a, `epochs` the last epoch of each
    but the last.
    """
    a = decays[sum(epoch > last for last in epochs)]
    return min(1.0 - 1.0 / (step + 1), a)


def ramp(epoch: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t = epoch / length, at most 1 (Laine & Aila 2017, arXiv 1610.02242)."""
    if length <= 0:
        return 1.0
    t = min(max(epoch / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


@dataclass(frozen=True)
class CycleSchedule:
    """Cosine cycles of equal length, then a constant tail; epochs count from 0."""

    config: MeanTeacherConfig
    cycle_epochs: int  # epochs of one cycle
    cut: int  # first epoch of `pseudo_label`; equal to `total` if the configuration has no pseudo-labels
    total: int  # epochs of `finetune` and `pseudo_label` together

    @classmethod
    def of(cls, config: MeanTeacherConfig, cell_type: str) -> CycleSchedule:
        """The schedule of a cell type: its ratio shortens the cycles, at least one epoch each."""
        length = max(1, round(config.cycle_epochs * config.ratio.get(cell_type, 1.0)))
        total = length * config.cycles + config.final_epochs
        cut = max(1, round(length * config.finetune_cycles))
        return cls(config, length, total if config.pseudo_labels == "none" else cut, total)

    def rate(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch: low + (high - low)(1 + cos(pi phase)) / 2 within a cycle."""
        if epoch >= self.cycle_epochs * self.config.cycles:
            return self.config.final_learning_rate
        phase = math.fmod(epoch, self.cycle_epochs) / self.cycle_epochs
        high, low = self.config.learning_rate, self.config.learning_rate_low
        return low + (high - low) * (1.0 + math.cos(math.pi * phase)) / 2.0


def balanced_draw(
    wells: NDArray[np.intp], class_w: NDArray[np.integer[Any]], power: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    """As many wells, drawn in proportion to n^-power, n being the number of wells of the well's class; in random order.

    Systematic sampling: a well that is expected x times occurs floor(x) or ceil(x) times.
    """
    order = rng.permutation(len(wells))
    weight_w = np.bincount(class_w)[class_w[order]] ** -power
    until_w = np.cumsum(weight_w) * (len(wells) / weight_w.sum())
    drawn = np.searchsorted(until_w, np.arange(len(wells)) + rng.random(), side="right")
    return wells[order[np.minimum(drawn, len(wells) - 1)]]


FEWEST_WELLS = 4
"""BatchNorm statistics of fewer wells tell more of their perturbations than of their domain."""


def domains_of_step(wells: NDArray[np.intp], domain_W: NDArray[np.intp] | None, wanted: int) -> int:
    """Number of domains in every batch of wells: as many as wanted, or all that batches may have; 1 without domains."""
    if domain_W is None or not len(wells):
        return 1
    count_D = np.bincount(domain_W[wells])
    return max(1, min(wanted, int((count_D >= _fewest(count_D, wanted)).sum())))


def _fewest(count_D: NDArray[np.intp], domains: int) -> int:
    """Number of wells below which a domain is left out: a few would occur again and again to fill their share of a batch."""
    return FEWEST_WELLS if domains > 1 and (count_D >= FEWEST_WELLS).sum() > 1 else 2


def well_batches(
    wells: NDArray[np.intp],
    size: int,
    rng: np.random.Generator,
    domain_W: NDArray[np.intp] | None = None,
    domains: int = 1,
) -> list[NDArray[np.intp]]:
    """An epoch's batches of about `size` wells: in random order, batches of nearly equal size.

    Without domains, or with one in a batch, every well occurs once, but for those of domains that are left out.
    With a domain of every well of the table, a batch holds wells of one, or of as many as `domains` says, so that BatchNorm
    normalises each domain separately; batches come in random order. A domain of a single well is left out: BatchNorm cannot
    normalise one image. Several domains of a batch come one after the other, with equally many wells each; wells occur again to
    fill them, and domains of fewer than FEWEST_WELLS wells are left out, see `_joined`.
    """
    order = rng.permutation(wells)
    if domain_W is None:
        return list(np.array_split(order, max(1, round(len(order) / size))))
    order = order[np.argsort(domain_W[order], kind="stable")]
    fewest = _fewest(np.bincount(domain_W[order]), domains)
    starts = np.flatnonzero(np.diff(domain_W[order])) + 1
    batches = [
        part
        for of_domain in np.split(order, starts)
        if len(of_domain) >= fewest
        for part in np.array_split(of_domain, max(1, min(round(len(of_domain) * domains / size), len(of_domain) // 2)))
    ]
    if domains > 1:
        batches = _joined(batches, domains, domain_W, rng)
    return [batches[k] for k in rng.permutation(len(batches))]


def _joined(
    portions: Sequence[NDArray[np.intp]], domains: int, domain_W: NDArray[np.intp], rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Batches of several portions, each of one domain, that hold every portion once.

    The portions of a batch are of different domains, unless one domain has more portions than there are batches. Two kinds of
    gaps are filled by wells that occur again, with other sites and views: the last batch has portions of other domains drawn
    again, and a portion that is shorter than its batch's longest has further wells of its domain, its own if there are none.
    """
    portions_of: dict[int, list[NDArray[np.intp]]] = {}
    for portion in portions:
        portions_of.setdefault(int(domain_W[portion[0]]), []).append(portion)
    wells_of = {domain: np.concatenate(own) for domain, own in portions_of.items()}
    left = {domain: list(own) for domain, own in portions_of.items()}
    batches = []
    while left:
        chosen: list[tuple[int, NDArray[np.intp]]] = []
        while left and len(chosen) < domains:
            # Those with the most portions left come first, so that different ones are left until the end.
            order = sorted(left, key=lambda domain: (-len(left[domain]), rng.random()))
            chosen += [(domain, left[domain].pop()) for domain in order[: domains - len(chosen)]]
            left = {domain: own for domain, own in left.items() if own}
        while len(chosen) < domains:
            longest = max(len(portion) for _, portion in chosen)
            # Rather domains that the batch does not have, and that do not need to occur more than twice to fill their share.
            cost = [
                (2 * len(wells_of[own]) < longest, own in dict(chosen))
                for own in (int(domain_W[portion[0]]) for portion in portions)
            ]
            k = min(rng.permutation(len(portions)).tolist(), key=cost.__getitem__)
            chosen.append((int(domain_W[portions[k][0]]), portions[k]))
        longest = max(len(portion) for _, portion in chosen)
        for domain, portion in chosen:
            more = np.setdiff1d(wells_of[domain], portion)
            filling = np.resize(rng.permutation(more) if len(more) else portion, longest - len(portion))
            batches.append(np.concatenate([portion, filling]))
    return [np.concatenate(batches[k : k + domains]) for k in range(0, len(batches), domains)]


def random_sites(table: SiteTable, wells: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """One random site of each well."""
    first = table.first_site_W[wells]
    return np.asarray(first + rng.integers(0, table.first_site_W[wells + 1] - first), dtype=np.intp)


def random_site_batches(
    table: SiteTable, batches: Sequence[NDArray[np.intp]], rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """One random site of each well of each batch; same draws as calling random_sites for each batch, but in one call."""
    if not batches:
        return []
    sites = random_sites(table, np.concatenate(batches), rng)
    return np.split(sites, np.cumsum([len(wells) for wells in batches])[:-1])


def concatenated(batches: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """The batches one after the other; empty if there are none."""
    return np.concatenate([*batches, np.empty(0, dtype=np.intp)])


class MixedBatch(NamedTuple):
    """The sites of a step of the mean teacher; labelled ones come first."""

    sites: NDArray[np.intp]
    labelled: int  # number of labelled sites
    domains: tuple[int, int] = (1, 1)  # of the labelled part and of the other, each with equally many wells


def mixed_batches(
    table: SiteTable,
    labelled: NDArray[np.intp],
    unlabelled: NDArray[np.intp],
    config: MeanTeacherConfig,
    rng: np.random.Generator,
    domain_W: NDArray[np.intp] | None = None,
    wanted: int = 1,
) -> list[MixedBatch]:
    """An epoch's batches for the mean teacher.

    With mix `fixed`, every labelled well occurs once; unlabelled wells, if any, repeat as often as needed. With `natural`, every
    well occurs once, and batches differ in their number of labelled wells, which may be 0. With a domain of every well, each part
    of a batch has `wanted` domains, or with `natural` both together twice as many, and wells may occur again or be left out, see
    `well_batches`.
    """
    if config.mix == "natural":
        return _natural_batches(table, labelled, unlabelled, config, rng, domain_W, wanted)
    if domain_W is not None:
        domains = domains_of_step(labelled, domain_W, wanted), domains_of_step(unlabelled, domain_W, wanted)
        supervised = well_batches(labelled, config.labelled_batch, rng, domain_W, domains[0])
        others_of: list[NDArray[np.intp]] = []
        while len(unlabelled) and len(others_of) < len(supervised):
            found = well_batches(unlabelled, config.unlabelled_batch, rng, domain_W, domains[1])
            if not found:
                break
            others_of += found
        mixed = [np.concatenate([own, others_of[k]]) if others_of else own for k, own in enumerate(supervised)]
        return [
            MixedBatch(random_sites(table, both, rng), len(own), domains)
            for own, both in zip(supervised, mixed, strict=True)
        ]
    sites = random_sites(table, rng.permutation(labelled), rng)
    parts = np.array_split(sites, max(1, round(len(sites) / config.labelled_batch)))
    needed = len(parts) * config.unlabelled_batch if len(unlabelled) else 0
    rounds = [
        random_sites(table, rng.permutation(unlabelled), rng) for _ in range(-(-needed // max(1, len(unlabelled))))
    ]
    others = concatenated(rounds)[:needed]
    pairs = zip(parts, np.array_split(others, len(parts)), strict=True)
    return [MixedBatch(np.concatenate([own, more]), len(own)) for own, more in pairs]


def _natural_batches(
    table: SiteTable,
    labelled: NDArray[np.intp],
    unlabelled: NDArray[np.intp],
    config: MeanTeacherConfig,
    rng: np.random.Generator,
    domain_W: NDArray[np.intp] | None,
    wanted: int,
) -> list[MixedBatch]:
    """Batches of labelled and unlabelled wells as they come; a domain's labelled and unlabelled wells are two portions."""
    hidden_W = np.zeros(table.wells, dtype=np.intp)
    hidden_W[unlabelled] = 1
    wells = np.concatenate([labelled, unlabelled])
    portion_W = None if domain_W is None else 2 * domain_W + hidden_W
    portions = domains_of_step(wells, portion_W, 2 * wanted)
    batches = []
    for batch in well_batches(wells, config.labelled_batch + config.unlabelled_batch, rng, portion_W, portions):
        ordered = batch[np.argsort(hidden_W[batch], kind="stable")]
        count = int((hidden_W[batch] == 0).sum())
        own = count * portions // len(batch) if domain_W is not None else 1
        domains = (max(1, own), max(1, portions - own))
        batches.append(MixedBatch(random_sites(table, ordered, rng), count, domains))
    return batches
