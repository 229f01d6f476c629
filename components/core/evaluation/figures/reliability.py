"""Reliability diagrams: accuracy against confidence before and after temperature calibration. Draws; reads nothing."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.core.evaluation.calibration import expected_calibration_error, reliability_bins
from components.core.evaluation.figures.style import MUTED, SERIES, inline_svg, styled
from components.core.evaluation.scores import CONFIDENCE, SCORES, Accuracy, Score, Stage, correct, scored

TITLES: dict[Score, str] = {"out_of_fold": "Out of fold", "unlabelled": "Unlabelled", "holdout": "Holdout"}


def draw(predictions: pd.DataFrame, prior_used: bool) -> str | None:
    """Inline SVG: one column a score with known truth; None if no truth is known.

    One row a stage: raw, and assigned if the plate design was used.
    """
    stages: tuple[Stage, ...] = ("raw", "assigned") if prior_used else ("raw",)
    columns = [(score, known) for score in SCORES if not (known := scored(predictions, score)).empty]
    if not columns:
        return None
    sentences = []
    with styled("reliability"):
        figure = Figure(figsize=(0.5 + 3.05 * len(columns), 2.8 * len(stages)), layout="constrained")
        axes = figure.subplots(len(stages), len(columns), squeeze=False, sharex=True, sharey=True)
        for c, (score, known) in enumerate(columns):
            hits = correct(known)
            for r, stage in enumerate(stages):
                ax = axes[r][c]
                ax.plot([0, 1], [0, 1], color="#9aa7b3", linewidth=0.8, linestyle=(0, (3, 2)))
                calibrated = known[CONFIDENCE[stage]]
                ece = expected_calibration_error(calibrated, hits[stage])
                shown = f"ECE {ece:.3f}"
                if stage == "raw":
                    before = known["raw_confidence_uncalibrated"]
                    bins = reliability_bins(before, hits["raw"])
                    ax.plot(
                        bins["confidence"], bins["accuracy"], color=SERIES[1], marker="o", markersize=3.5,
                        markerfacecolor="white", linewidth=0.8, clip_on=False, label="before",
                    )  # fmt: skip
                    shown = f"ECE {expected_calibration_error(before, hits['raw']):.3f} → {ece:.3f}"
                _draw_calibrated(ax, calibrated, hits[stage])
                ticks = (0, 0.25, 0.5, 0.75, 1)
                ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=ticks, yticks=ticks)
                title = f"{TITLES[score]}, {stage}" if prior_used else TITLES[score]
                ax.set_title(title)
                ax.set_title(shown, loc="right", fontsize=8, fontweight="normal", color=MUTED)
                if c == 0:
                    ax.set_ylabel("fraction correct")
                if r == len(stages) - 1:
                    ax.set_xlabel("confidence")
                if stage == "raw" and c == 0:
                    ax.legend(loc="lower right", markerscale=0.8)
                sentences.append(f"{title}: expected calibration error {ece:.3f}.")
        return inline_svg(figure, "Accuracy against confidence in ten bins. " + " ".join(sentences))


def _draw_calibrated(ax: Axes, confidence: pd.Series[float], hits: pd.Series[bool]) -> None:
    bins = reliability_bins(confidence, hits)
    x, y = bins["confidence"], bins["accuracy"]
    # Intervals and areas, so that a stray bin of three wells does not look like evidence.
    spans = [Accuracy(round(share * wells), wells).interval() for share, wells in zip(y, bins["wells"], strict=True)]
    ax.vlines(x, *zip(*spans, strict=True), color=SERIES[0], alpha=0.5, linewidth=1)
    ax.plot(x, y, color=SERIES[0], linewidth=0.9, alpha=0.6)
    ax.scatter(
        x, y, clip_on=False, label="calibrated", s=10 + 90 * bins["wells"] / len(hits), color=SERIES[0], linewidths=0,
        zorder=3,
    )  # fmt: skip
