"""Reliability diagrams: accuracy against confidence before and after temperature calibration. Draws; reads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from components.core.evaluation.figures.style import MUTED, SERIES, inline_svg, styled
from components.core.evaluation.named_wells import NamedWell, Score, Stage, scored
from components.core.evaluation.reliability import expected_calibration_error, reliability_bins
from components.core.evaluation.scores import Accuracy

TITLES: dict[Score, str] = {"out_of_fold": "Out of fold", "unlabelled": "Unlabelled", "holdout": "Holdout"}
ROWS: tuple[tuple[Stage, str], ...] = (("raw", "raw"), ("assigned", "assigned"))


def draw(wells: Mapping[Score, Sequence[NamedWell]]) -> str | None:
    """One column a score with known truth, one row a stage; None where no truth is known."""
    columns = [(score, known) for score, members in wells.items() if (known := scored(members))]
    if not columns:
        return None
    sentences = []
    with styled("reliability"):
        figure = Figure(figsize=(0.5 + 3.05 * len(columns), 5.6), layout="constrained")
        axes = figure.subplots(2, len(columns), squeeze=False, sharex=True, sharey=True)
        for c, (score, known) in enumerate(columns):
            for r, (stage, label) in enumerate(ROWS):
                ax = axes[r][c]
                correct = [w.correct_at(stage) for w in known]
                after = [w.confidence_at(stage) for w in known]
                ece = expected_calibration_error(after, correct)
                ax.plot([0, 1], [0, 1], color="#9aa7b3", linewidth=0.8, linestyle=(0, (3, 2)))
                lines = [f"ECE {ece:.3f} calibrated"]
                before = [w.raw_uncalibrated for w in known if w.raw_uncalibrated is not None]
                if stage == "raw" and len(before) == len(known):
                    bins = reliability_bins(before, correct)
                    ax.plot(
                        [b.confidence for b in bins],
                        [b.accuracy for b in bins],
                        color=SERIES[1],
                        marker="o",
                        markersize=3.5,
                        markerfacecolor="white",
                        linewidth=0.8,
                        clip_on=False,
                        label="before",
                    )
                    lines.append(f"ECE {expected_calibration_error(before, correct):.3f} before")
                bins = reliability_bins(after, correct)
                # Intervals and areas, so that a stray bin of three wells does not look like evidence.
                spans = [Accuracy(round(b.accuracy * b.wells), b.wells).interval() for b in bins]
                ax.vlines(
                    [b.confidence for b in bins], *zip(*spans, strict=True), color=SERIES[0], alpha=0.5, linewidth=1
                )
                ax.plot(
                    [b.confidence for b in bins], [b.accuracy for b in bins], color=SERIES[0], linewidth=0.9, alpha=0.6
                )
                ax.scatter(
                    [b.confidence for b in bins],
                    [b.accuracy for b in bins],
                    clip_on=False,
                    label="calibrated",
                    s=[10 + 90 * b.wells / len(known) for b in bins],
                    color=SERIES[0],
                    linewidths=0,
                    zorder=3,
                )
                ax.set(
                    xlim=(0, 1),
                    ylim=(0, 1),
                    aspect="equal",
                    xticks=(0, 0.25, 0.5, 0.75, 1),
                    yticks=(0, 0.25, 0.5, 0.75, 1),
                )
                ax.set_title(f"{TITLES[score]}, {label}")
                ax.text(0.03, 0.97, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=8, color=MUTED)
                if c == 0:
                    ax.set_ylabel("fraction correct")
                if r == 1:
                    ax.set_xlabel("confidence")
                if stage == "raw" and c == 0 and len(before) == len(known):
                    ax.legend(loc="lower right", markerscale=0.8)
                sentences.append(f"{TITLES[score]}, {label}: expected calibration error {ece:.3f}.")
        return inline_svg(figure, "reliability", "Accuracy against confidence in ten bins. " + " ".join(sentences))
