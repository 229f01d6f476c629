"""Loss and validation accuracy by epoch: pretraining by backbone, mean teacher by cell type. Draws only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from components.core.evaluation.figures.style import MUTED, inline_svg, listed, series_colour, styled

Record = Mapping[str, Any]
COLUMNS = 4
"""Panels side by side."""
DASHES = ("-", (0, (3, 1.2)))
"""One a backbone: solid, dashed."""


def draw_pretrain(history: Sequence[Record]) -> str | None:
    """One column a backbone, one line a fold; None without pretrain records."""
    records = [r for r in history if r["step"] == "pretrain"]
    return _draw("pretrain", records, "backbone", "Pretraining, all cell types")


def draw_mean_teacher(history: Sequence[Record], cell_types: Sequence[str]) -> str | None:
    """One column a cell type, one line a fold and backbone; the start of the pseudo-labels is marked."""
    order = {name: i for i, name in enumerate(cell_types)}
    records = [r for r in history if r["step"] in ("finetune", "pseudo_label")]
    records.sort(key=lambda r: order.get(r["cell_type"], len(order)))
    return _draw("mean_teacher", records, "cell_type", "Mean teacher")


def _draw(name: str, records: Sequence[Record], column: str, what: str) -> str | None:
    panels = list(dict.fromkeys(str(r[column]) for r in records))
    if not panels:
        return None
    folds = sorted({int(r["fold"]) for r in records})
    backbones = list(dict.fromkeys(str(r["backbone"]) for r in records))
    columns = min(COLUMNS, len(panels))
    bands = math.ceil(len(panels) / columns)
    # A lone panel of pretraining would be absurdly wide at full width, so it gets the width of two columns at most.
    width = 11.0 if columns > 2 else 3.6 * columns + 0.6
    with styled(name):
        figure = Figure(figsize=(width, 3.9 * bands + 0.35), layout="constrained")
        axes = figure.subplots(2 * bands, columns, squeeze=False, sharex=False, sharey="row")
        for ax in axes.flat:
            ax.set_visible(False)
        for number, panel in enumerate(panels):
            band, c = divmod(number, columns)
            loss_ax, accuracy_ax = axes[2 * band][c], axes[2 * band + 1][c]
            mine = [r for r in records if str(r[column]) == panel]
            for ax in (loss_ax, accuracy_ax):
                ax.set_visible(True)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
                _mark_switch(ax, mine, label=ax is loss_ax)
            validated = _draw_panel(loss_ax, accuracy_ax, mine, folds, backbones, dashed=column != "backbone")
            loss_ax.set_title(panel)
            accuracy_ax.set_ylim(0, 1)
            accuracy_ax.set_xlabel("epoch")
            if not validated:
                accuracy_ax.text(0.5, 0.5, "not validated", transform=accuracy_ax.transAxes, ha="center", color=MUTED)
            if c == 0:
                loss_ax.set_ylabel("training loss")
                accuracy_ax.set_ylabel("validation well top-1")
        handles = [Line2D([], [], color=series_colour(i), label=f"fold {fold}") for i, fold in enumerate(folds)]
        if column != "backbone" and len(backbones) > 1:
            handles += [
                Line2D([], [], color=MUTED, linestyle=DASHES[i % 2], label=backbone)
                for i, backbone in enumerate(backbones)
            ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(10, len(handles)))
        alt = (
            f"{what}: training loss and validation accuracy by epoch for {listed(panels)}; "
            f"{len(folds)} folds. {_final_sentence(records)}"
        )
        return inline_svg(figure, name, alt)


def _draw_panel(
    loss_ax: Any,
    accuracy_ax: Any,
    records: Sequence[Record],
    folds: Sequence[int],
    backbones: Sequence[str],
    *,
    dashed: bool,
) -> bool:
    """Draws the lines of one panel; whether any epoch was validated."""
    validated = False
    for i, fold in enumerate(folds):
        for b, backbone in enumerate(backbones):
            line = sorted(
                (r for r in records if r["fold"] == fold and r["backbone"] == backbone), key=lambda r: r["epoch"]
            )
            look = {"color": series_colour(i), "linestyle": DASHES[b % 2] if dashed else "-"}
            loss_ax.plot([r["epoch"] for r in line], [r["loss"] for r in line], **look)
            known = [r for r in line if r["accuracy"] is not None]
            validated = validated or bool(known)
            # Few validations make a short line: mark its points, or a single one would be invisible.
            accuracy_ax.plot(
                [r["epoch"] for r in known],
                [r["accuracy"] for r in known],
                **look,
                marker="o" if len(known) <= 12 else None,
                markersize=2.5,
            )
    return validated


def _mark_switch(ax: Any, records: Sequence[Record], *, label: bool) -> None:
    """A line between the last epoch of finetune and the first with pseudo-labels."""
    first = min((r["epoch"] for r in records if r["step"] == "pseudo_label"), default=None)
    if first is None or not any(r["step"] == "finetune" for r in records):
        return
    ax.axvline(first - 0.5, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    if label:
        ax.annotate(
            "pseudo-labels →",
            (first - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -8),
            textcoords="offset points",
            fontsize=7.5,
            color=MUTED,
        )


def _final_sentence(records: Sequence[Record]) -> str:
    known = [r for r in records if r["accuracy"] is not None]
    if not known:
        return "No fold was validated."
    best = max(known, key=lambda r: r["accuracy"])
    return f"Best validation accuracy {best['accuracy']:.3f} (fold {best['fold']}, epoch {best['epoch']})."
