"""Channel intensity of every plate before and after standardisation, one dot a plate. Draws; reads nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from components.core.config import CHANNELS
from components.core.evaluation.figures.style import MUTED, inline_svg, listed, series_colour, styled
from components.core.evaluation.plate_statistics import PlateStatistics


def draw(statistics: PlateStatistics, cell_types: Sequence[str], domain: str) -> str:
    """Two rows of one panel a channel: above grey levels as imaged, below as the network sees them.

    A dot is a plate's mean, its line the 5th to 95th percentile of the pixels; plates of an experiment stand together.
    """
    plates = statistics.plates
    rank = {name: i for i, name in enumerate(cell_types)}
    order = sorted(range(len(plates)), key=lambda p: (rank[plates[p].cell_type], plates[p].experiment, plates[p].plate))
    # A gap between experiments, a wider one between cell types, so that batches are seen as batches.
    x, at = np.zeros(len(plates)), 0.0
    for before, p in zip([None, *order], order, strict=False):
        if before is not None:
            at += 1.0
            if plates[before].experiment != plates[p].experiment:
                at += 1.0
            if plates[before].cell_type != plates[p].cell_type:
                at += 2.0
        x[p] = at
    colours = [series_colour(rank[plate.cell_type]) for plate in plates]
    channels = statistics.mean_PC.shape[1]
    names = CHANNELS if channels == len(CHANNELS) else tuple(f"channel {c + 1}" for c in range(channels))
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
