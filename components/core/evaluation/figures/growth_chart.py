"""The growth chart: accuracy of every rung beside the curve that the method's authors published. Draws only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from components.core.evaluation.figures.style import INK, MUTED, series_colour, styled


@dataclass(frozen=True)
class Point:
    """One rung: its label, the accuracies of the seeds in the order of the seeds, and the published score."""

    label: str
    per_seed: Sequence[float]
    published: float | None


def draw_growth(route: Sequence[Point], adabn: Sequence[Point], assigned: Point | None) -> Figure:
    """The chart, 10 x 5 inches.

    Args:
        route: rungs by standardised pixels, the baseline first.
        adabn: rungs of the AdaBN route, drawn from the second rung on.
        assigned: after post-processing, drawn last.
    """
    ours, theirs, other = series_colour(0), MUTED, series_colour(1)
    with styled("growth"):
        figure = Figure(figsize=(10.0, 5.0), layout="constrained", facecolor="white")
        axes = figure.subplots()
        x = np.arange(len(route))
        mean = np.array([np.mean(point.per_seed) for point in route])
        everything = [*route, *([assigned] if assigned else [])]
        published = [(k, point.published) for k, point in enumerate(everything) if point.published is not None]
        axes.plot(
            [k for k, _ in published], [score for _, score in published], color=theirs, linestyle=(0, (4, 2)),
            marker="D", markersize=5,
            label="published (RxRx1, public leaderboard)",
        )  # fmt: skip
        if adabn:
            positions = np.arange(1, len(adabn) + 1)
            axes.plot(
                [0, *positions], [mean[0], *(np.mean(point.per_seed) for point in adabn)], color=other, marker="s",
                markersize=5, linestyle="-", label="AdaBN route (simulated)",
            )  # fmt: skip
            _seeds(axes, positions + 0.08, adabn, other)
        axes.plot(x, mean, color=ours, marker="o", markersize=7, linewidth=2.2, label="standardised pixels (simulated)")
        _seeds(axes, x - 0.08, route, ours)
        for k, value in enumerate(mean):
            axes.annotate(
                f"{value:.3f}", (k, value), xytext=(-4, 9), textcoords="offset points", ha="right", color=ours,
                fontweight="bold", fontsize=8.5,
            )  # fmt: skip
        labels = [point.label for point in route]
        if assigned is not None:
            end = float(np.mean(assigned.per_seed))
            axes.axvline(len(route) - 0.5, color="#c9d2da", linewidth=0.9)
            axes.plot(
                [len(route)], [end], color=ours, marker="*", markersize=15, linestyle="none", label="after assignment"
            )
            _seeds(axes, np.array([len(route) - 0.08]), [assigned], ours)
            axes.annotate(
                f"{end:.3f}", (len(route), end), xytext=(0, -18), textcoords="offset points", ha="center", color=ours,
                fontweight="bold", fontsize=8.5,
            )  # fmt: skip
            labels.append(assigned.label)
        axes.set_xticks(np.arange(len(labels)), labels)
        axes.tick_params(axis="x", labelsize=8.5, labelcolor=INK, length=0)
        axes.set_ylim(0.0, 1.04)
        axes.set_xlim(-0.5, len(labels) - 0.4)
        axes.set_ylabel("top-1 on wells of unlabelled experiments")
        seeds = len(route[0].per_seed)
        axes.set_title(f"Growth of accuracy, rung by rung: mean of {seeds} seed{'s' * (seeds != 1)}, dots are seeds")
        axes.legend(loc="lower right", fontsize=8.5)
    return figure


def _seeds(axes, positions, points: Sequence[Point], colour: str) -> None:  # type: ignore[no-untyped-def]
    for position, point in zip(positions, points, strict=True):
        if len(point.per_seed) > 1:
            axes.plot([position] * len(point.per_seed), point.per_seed, ".", color=colour, alpha=0.55, markersize=5)
