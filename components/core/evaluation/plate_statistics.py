"""A plate's pixels before and after standardisation, exactly, from its histograms: numbers and figure. No image is read.

P plates, C channels. A histogram of 256 counts a plate and channel is exact for 8-bit pixels and adds over plates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from components.core.config import CHANNELS, Domain
from components.core.evaluation.figures.style import MUTED, inline_svg, listed, series_colour, styled
from components.core.storage.manifest import PlateRecord

Floats = NDArray[np.float64]
QUANTILES = (0.05, 0.95)


@dataclass(frozen=True)
class PlateStatistics:
    """Per plate and channel, before (grey levels 0-255) and after standardisation (units of the domain's deviation)."""

    plates: tuple[PlateRecord, ...]
    mean_PC: Floats
    low_PC: Floats
    """5th percentile of the pixels"""
    high_PC: Floats
    """95th percentile"""
    after_mean_PC: Floats
    after_low_PC: Floats
    after_high_PC: Floats


def compute_statistics(plates: Sequence[PlateRecord], domain: Domain) -> PlateStatistics:
    """Statistics of every plate under x' = (x - mean[d, c]) / std[d, c].

    Args:
        plates: at least one, each with pixels in every channel.
        domain: the set of plates d whose mean and deviation standardise a plate; `none` is x / 255.

    Raises:
        ValueError: no plates, or a channel without pixels.
    """
    if not plates:
        raise ValueError("statistics of no plates are not defined")
    counts_PCV = np.array([plate.histograms for plate in plates], np.float64)
    if not counts_PCV.sum(axis=2).all():
        raise ValueError("a plate has a channel without pixels")
    mean_PC, _ = moments(counts_PCV)
    low_PC, high_PC = (quantile(counts_PCV, q) for q in QUANTILES)
    if domain == "none":
        shift_PC, scale_PC = np.zeros_like(mean_PC), np.full_like(mean_PC, 255.0)
    else:
        names = [_domain_of(plate, domain) for plate in plates]
        shift_PC, scale_PC = np.empty_like(mean_PC), np.empty_like(mean_PC)
        for name in set(names):
            members = np.array([other == name for other in names])
            domain_mean_C, domain_std_C = moments(counts_PCV[members].sum(axis=0))
            shift_PC[members] = domain_mean_C
            scale_PC[members] = np.maximum(domain_std_C, 1e-6)  # an all-black channel stays at zero
    after = [(values_PC - shift_PC) / scale_PC for values_PC in (mean_PC, low_PC, high_PC)]
    return PlateStatistics(tuple(plates), mean_PC, low_PC, high_PC, *after)


def moments(counts: Floats) -> tuple[Floats, Floats]:
    """Mean and population deviation of grey levels from counts, shape (..., 256)."""
    levels = np.arange(counts.shape[-1])
    total = counts.sum(axis=-1)
    mean: Floats = (counts * levels).sum(axis=-1) / total
    square: Floats = (counts * levels**2).sum(axis=-1) / total
    std: Floats = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean, std


def quantile(counts: Floats, q: float) -> Floats:
    """The smallest grey level at or below which a fraction q of the pixels lies; counts (..., 256)."""
    cumulative = counts.cumsum(axis=-1)
    reached: NDArray[np.bool_] = cumulative >= q * cumulative[..., -1:]
    return np.asarray(reached.argmax(axis=-1), np.float64)


@dataclass(frozen=True)
class BatchEffect:
    """How far channel means differ, as the standard deviation of their natural logarithm.

    Attributes:
        between_experiments_C: None with fewer than two experiments.
        between_plates_C: within an experiment, pooled; None if no experiment has two plates.
    """

    cell_type: str
    experiments: int
    between_experiments_C: tuple[float, ...] | None
    between_plates_C: tuple[float, ...] | None


def batch_effects(statistics: PlateStatistics, cell_types: Sequence[str]) -> list[BatchEffect]:
    """The spread of raw channel means between experiments and between the plates of one, by cell type."""
    logs = pd.DataFrame(np.log(np.maximum(statistics.mean_PC, 1e-6)))
    cell_type = pd.Series([plate.cell_type for plate in statistics.plates])
    experiment = pd.Series([plate.experiment for plate in statistics.plates])
    found = []
    for name in cell_types:
        own = logs[cell_type == name]
        if own.empty:
            continue
        by_experiment = own.groupby(experiment[own.index])
        count, freedom = by_experiment.ngroups, len(own) - by_experiment.ngroups
        within = (own - by_experiment.transform("mean")).pow(2).sum()
        between = by_experiment.mean().std() if count > 1 else None
        found.append(
            BatchEffect(
                cell_type=name,
                experiments=count,
                between_experiments_C=None if between is None else tuple(between),
                between_plates_C=tuple((within / freedom).pow(0.5)) if freedom else None,
            )
        )
    return found


def _domain_of(plate: PlateRecord, domain: Domain) -> str:
    names = {"cell_type": plate.cell_type, "experiment": plate.experiment, "plate": f"{plate.experiment}/{plate.plate}"}
    return names.get(domain, "")


def draw_statistics(statistics: PlateStatistics, cell_types: Sequence[str], domain: str) -> str:
    """Inline SVG: a column a channel; above grey levels as imaged, below as the network sees them.

    A dot is a plate's mean, its line the 5th to 95th percentile of the pixels; plates of an experiment are adjacent.
    """
    plates = statistics.plates
    rank = {name: i for i, name in enumerate(cell_types)}
    order = sorted(range(len(plates)), key=lambda p: (rank[plates[p].cell_type], plates[p].experiment, plates[p].plate))
    # A gap between experiments, a wider one between cell types, so that batches are seen as batches.
    x, at = np.zeros(len(plates)), 0.0
    for n, p in enumerate(order):
        before = plates[order[n - 1]] if n else plates[p]
        at += (n > 0) + (before.experiment != plates[p].experiment) + 2.0 * (before.cell_type != plates[p].cell_type)
        x[p] = at
    colours = [series_colour(rank[plate.cell_type]) for plate in plates]
    channels = statistics.mean_PC.shape[1]
    names = channel_names(channels)
    size = max(1.5, min(12.0, 700 / len(plates)))
    with styled("plate_statistics"):
        figure = Figure(figsize=(11.0, 4.6), layout="constrained")
        axes = figure.subplots(2, channels, squeeze=False, sharex=True, sharey="row")
        rows = (
            (statistics.mean_PC, statistics.low_PC, statistics.high_PC),
            (statistics.after_mean_PC, statistics.after_low_PC, statistics.after_high_PC),
        )
        for r, (mean_PC, low_PC, high_PC) in enumerate(rows):
            for c in range(channels):
                ax = axes[r][c]
                width = min(1.6, 140 / at + 0.3)
                ax.vlines(x, low_PC[:, c], high_PC[:, c], colors=colours, alpha=0.45, linewidth=width)
                ax.scatter(x, mean_PC[:, c], s=size, c=colours, linewidths=0, zorder=3)
                ax.set_xticks([])
                ax.grid(visible=False, axis="x")
                ax.set_title(names[c] if r == 0 else "")
        axes[0][0].set_ylabel("as imaged\ngrey level")
        axes[0][0].set_ylim(bottom=0)
        axes[1][0].set_ylabel(f"standardised by {domain.replace('_', ' ')}" if domain != "none" else "divided by 255")
        present = [name for name in cell_types if any(plate.cell_type == name for plate in plates)]
        handles = [
            Line2D([], [], color=series_colour(rank[name]), marker="o", markersize=4, label=name) for name in present
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(8, len(handles)))
        figure.supxlabel("plates, by cell type and experiment", fontsize=8, color=MUTED)
        spread = statistics.mean_PC.max(axis=0) / np.maximum(statistics.mean_PC.min(axis=0), 1e-6)
        alt = (
            f"Channel means and 5th to 95th percentiles of {len(plates)} plates of {listed(present)}, before and after "
            f"standardisation. As imaged, the brightest plate's mean is {spread.min():.1f} to {spread.max():.1f} times "
            f"the dimmest's, depending on the channel."
        )
        return inline_svg(figure, "plate_statistics", alt)


def channel_names(channels: int) -> Sequence[str]:
    """The names of the channels; numbers if there are not six."""
    return CHANNELS if channels == len(CHANNELS) else [f"channel {c + 1}" for c in range(channels)]
