"""A plate's pixels before and after standardisation, exactly, from its histograms: numbers and figure. No image is read.

P plates, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from components.core.config import Domain, StandardiseConfig
from components.core.errors import shortened
from components.core.evaluation.figures.style import MUTED, inline_svg, series_colour, styled
from components.core.screen.histograms import domain_statistics, mean_std, percentile
from components.core.screen.wells import natural_key
from components.core.storage.manifest import Manifest, PlateRecord

Floats = NDArray[np.float64]


def plate_statistics(manifest: Manifest, config: StandardiseConfig) -> tuple[Floats, Floats]:
    """Mean, 5th and 95th percentile of every plate's pixels, as imaged (grey levels) and as standardised, each (3, P, C).

    Args:
        manifest: at least one plate.
        config: as in the run; pixels of its domain standardise a plate.

    Raises:
        ValueError: a channel without pixels.
    """
    imaged_P3C = []
    for plate in manifest.plates:
        counts_CG = plate.histograms.array
        imaged_P3C.append([mean_std(counts_CG)[0], *(percentile(counts_CG, percent) for percent in (5, 95))])
    imaged_3PC = np.array(imaged_P3C).swapaxes(0, 1)
    scales = domain_statistics(manifest, config)
    mean_std_P2C = np.array([scales[plate.experiment, plate.plate] for plate in manifest.plates])
    return imaged_3PC, (imaged_3PC - mean_std_P2C[:, 0]) / mean_std_P2C[:, 1]


def channel_spread(plates: Sequence[PlateRecord], mean_PC: Floats, cell_types: Sequence[str]) -> pd.DataFrame:
    """How far channel means differ between experiments and between plates, as the deviation of their natural logarithm.

    Args:
        plates: in the order of the means.
        mean_PC: mean grey levels as imaged.
        cell_types: in the order of the rows.

    Returns:
        Two rows a cell type (experiments; plates within an experiment, pooled), a column a channel; NaN if there are no two.
    """
    logs = pd.DataFrame(np.log(np.maximum(mean_PC, 1e-6)))
    cell_type = pd.Series([plate.cell_type for plate in plates])
    experiment = pd.Series([plate.experiment for plate in plates])
    rows = {}
    for name in cell_types:
        own = logs[cell_type == name]
        by_experiment = own.groupby(experiment[own.index])
        count, freedom = by_experiment.ngroups, len(own) - by_experiment.ngroups
        within = (own - by_experiment.transform("mean")).pow(2).sum()
        rows[name, f"{count} experiment{'s' * (count != 1)}"] = by_experiment.mean().std()
        rows[name, "plates of one experiment"] = (within / freedom if freedom else within * np.nan) ** 0.5
    return pd.DataFrame(rows).T


def draw_statistics(
    plates: Sequence[PlateRecord],
    imaged_3PC: Floats,
    standardised_3PC: Floats,
    cell_types: Sequence[str],
    channels: Sequence[str],
    domain: Domain,
) -> str:
    """Inline SVG: a column a channel; grey levels as imaged above, as the network sees them below.

    A dot is a plate's mean, its line the 5th to 95th percentile of the pixels; plates of an experiment are adjacent.
    The statistics come from `plate_statistics`; the order of `cell_types` determines their colours.
    """
    rank = {name: i for i, name in enumerate(cell_types)}
    order = sorted(
        range(len(plates)),
        key=lambda p: (rank[plates[p].cell_type], plates[p].experiment, natural_key(plates[p].plate)),
    )
    # A gap between experiments, a wider one between cell types, so that batches are seen as batches.
    x, at = np.zeros(len(plates)), 0.0
    for n, p in enumerate(order):
        before = plates[order[n - 1]] if n else plates[p]
        at += (n > 0) + (before.experiment != plates[p].experiment) + 2.0 * (before.cell_type != plates[p].cell_type)
        x[p] = at
    colours = [series_colour(rank[plate.cell_type]) for plate in plates]
    size = max(1.5, min(12.0, 700 / len(plates)))
    with styled("plate_statistics"):
        figure = Figure(figsize=(11.0, 4.6), layout="constrained")
        axes = figure.subplots(2, len(channels), squeeze=False, sharex=True, sharey="row")
        for r, (mean_PC, low_PC, high_PC) in enumerate((imaged_3PC, standardised_3PC)):
            for c, channel in enumerate(channels):
                ax = axes[r][c]
                width = min(1.6, 140 / max(at, 1.0) + 0.3)
                ax.vlines(x, low_PC[:, c], high_PC[:, c], colors=colours, alpha=0.45, linewidth=width)
                ax.scatter(x, mean_PC[:, c], s=size, c=colours, linewidths=0, zorder=3)
                ax.set_xticks([])
                ax.grid(visible=False, axis="x")
                ax.set_title(channel if r == 0 else "")
        axes[0][0].set_ylabel("as imaged\ngrey level")
        axes[0][0].set_ylim(bottom=0)
        axes[1][0].set_ylabel(
            "divided by the range"
            if domain == "none"
            else f"standardised by {'plate' if domain == 'image' else domain.replace('_', ' ')}"
        )
        present = [name for name in cell_types if any(plate.cell_type == name for plate in plates)]
        dots = [series_colour(rank[name]) for name in present]
        handles = [
            Line2D([], [], color=c, marker="o", markersize=4, label=n) for c, n in zip(dots, present, strict=True)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(8, len(handles)))
        figure.supxlabel("plates, by cell type and experiment", fontsize=8, color=MUTED)
        spread = imaged_3PC[0].max(axis=0) / np.maximum(imaged_3PC[0].min(axis=0), 1e-6)
        alt = (
            f"Channel means and 5th to 95th percentiles of {len(plates)} plates of {shortened(present, 6)}, before and after "
            f"standardisation. As imaged, the brightest plate's mean is {spread.min():.1f} to {spread.max():.1f} times "
            f"the dimmest's, depending on the channel."
        )
        return inline_svg(figure, alt)
