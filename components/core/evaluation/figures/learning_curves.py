"""Loss and validation accuracy by epoch: pretraining by backbone, mean teacher by cell type. Draws only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from components.core.errors import shortened
from components.core.evaluation.figures.style import MUTED, inline_svg, series_colour, styled

COLUMNS = 4
"""Panels side by side."""
DASHES = ("-", (0, (3, 1.2)))
"""One a backbone: solid, dashed."""


def draw_pretrain(history: Sequence[Mapping[str, Any]], title: str = "Pretraining") -> str | None:
    """Inline SVG: one column a backbone, one line a fold; None without pretrain records. The title begins its description."""
    records = [record for record in history if record["step"] == "pretrain"]
    return _draw("pretrain", pd.DataFrame(records), "backbone", title) if records else None


def draw_mean_teacher(history: Sequence[Mapping[str, Any]], cell_types: Sequence[str]) -> str | None:
    """Inline SVG: one column a cell type, one line a fold and backbone; the start of the pseudo-labels is marked."""
    order = {name: i for i, name in enumerate(cell_types)}
    records = [record for record in history if record["step"] in ("finetune", "pseudo_label")]
    records.sort(key=lambda record: order.get(record["cell_type"], len(order)))
    return _draw("mean_teacher", pd.DataFrame(records), "cell_type", "Mean teacher") if records else None


def _draw(name: str, records: pd.DataFrame, column: str, what: str) -> str:
    panels = [str(panel) for panel in records[column].unique()]
    folds, backbones = sorted(records["fold"].unique()), list(records["backbone"].unique())
    columns = min(COLUMNS, len(panels))
    bands = math.ceil(len(panels) / columns)
    # One or two panels would be too wide at full width.
    width = 11.0 if columns > 2 else 3.6 * columns + 0.6
    dashed = column != "backbone"
    with styled(name):
        figure = Figure(figsize=(width, 3.9 * bands + 0.35), layout="constrained")
        axes = figure.subplots(2 * bands, columns, squeeze=False, sharex=False, sharey="row")
        for ax in axes.flat:
            ax.set_visible(False)
        for number, panel in enumerate(panels):
            band, c = divmod(number, columns)
            loss_ax, accuracy_ax = axes[2 * band][c], axes[2 * band + 1][c]
            own = records[records[column] == panel]
            for ax in (loss_ax, accuracy_ax):
                ax.set_visible(True)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
                _mark_switch(ax, own, label=ax is loss_ax)
            for i, fold in enumerate(folds):
                for b, backbone in enumerate(backbones):
                    line = own[(own["fold"] == fold) & (own["backbone"] == backbone)].sort_values("epoch")
                    known = line.dropna(subset="accuracy")
                    look = {"color": series_colour(i), "linestyle": DASHES[b % 2] if dashed else "-"}
                    for ax, points, value in ((loss_ax, line, "loss"), (accuracy_ax, known, "accuracy")):
                        # A single point without a mark would be invisible.
                        marker = "o" if len(points) <= 12 else None
                        ax.plot(points["epoch"], points[value], **look, marker=marker, markersize=2.5)
            loss_ax.set_title(panel)
            if own["epoch"].nunique() == 1:
                loss_ax.set_xlim(own["epoch"].min() - 0.5, own["epoch"].min() + 0.5)
            accuracy_ax.set_xlim(loss_ax.get_xlim())  # validation may be of few epochs
            accuracy_ax.set_ylim(0, 1)
            accuracy_ax.set_xlabel("epoch")
            if own["accuracy"].isna().all():
                accuracy_ax.text(0.5, 0.5, "not validated", transform=accuracy_ax.transAxes, ha="center", color=MUTED)
            if c == 0:
                loss_ax.set_ylabel("training loss")
                accuracy_ax.set_ylabel("validation well top-1")
        handles = [Line2D([], [], color=series_colour(i), label=f"fold {fold}") for i, fold in enumerate(folds)]
        if dashed and len(backbones) > 1:
            handles += [
                Line2D([], [], color=MUTED, linestyle=DASHES[i % 2], label=backbone)
                for i, backbone in enumerate(backbones)
            ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(10, len(handles)))
        best = "No fold was validated."
        if records["accuracy"].notna().any():
            row = records.sort_values("accuracy", kind="stable", ascending=False).iloc[0]
            best = f"Best validation accuracy {row['accuracy']:.3f} (fold {row['fold']}, epoch {row['epoch']})."
        alt = f"{what}: training loss and validation accuracy by epoch for {shortened(panels, 6)}; {len(folds)} folds. {best}"
        return inline_svg(figure, alt)


def _mark_switch(ax: Any, records: pd.DataFrame, *, label: bool) -> None:
    """A line between the last epoch of finetune and the first with pseudo-labels."""
    first = records.loc[records["step"] == "pseudo_label", "epoch"].min()
    if pd.isna(first) or not (records["step"] == "finetune").any():
        return
    ax.axvline(first - 0.5, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    if label:
        ax.annotate(
            "pseudo-labels →", (first - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, -8),
            textcoords="offset points", fontsize=7.5, color=MUTED, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
