"""The growth chart: accuracy of every rung beside the curve that the method's authors published. Draws only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
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
    ours, other = series_colour(0), series_colour(1)
    points = [*route, *([assigned] if assigned else [])]
    means = [float(np.mean(point.per_seed)) for point in points]
    bold: dict[str, Any] = {"textcoords": "offset points", "color": ours, "fontweight": "bold", "fontsize": 8.5}
    with styled("growth"):
        figure = Figure(figsize=(10.0, 5.0), layout="constrained", facecolor="white")
        axes = figure.subplots()
        published = [(x, point.published) for x, point in enumerate(points) if point.published is not None]
        axes.plot(
            [x for x, _ in published], [score for _, score in published], color=MUTED, linestyle=(0, (4, 2)),
            marker="D", markersize=5, label="published (RxRx1, public leaderboard)",
        )  # fmt: skip
        if adabn:
            axes.plot(
                range(len(adabn) + 1), [means[0], *(float(np.mean(point.per_seed)) for point in adabn)], color=other, marker="s",
                markersize=5, linestyle="-", label="AdaBN route (simulated)",
            )  # fmt: skip
            _seeds(axes, 1.08, adabn, other)
        line: dict[str, Any] = {"color": ours, "marker": "o", "markersize": 7, "linewidth": 2.2}
        axes.plot(range(len(route)), means[: len(route)], **line, label="standardised pixels (simulated)")
        _seeds(axes, -0.08, points, ours)
        for x, mean in enumerate(means[: len(route)]):
            axes.annotate(f"{mean:.3f}", (x, mean), xytext=(-4, 9), ha="right", **bold)
        if assigned is not None:
            end, mean = len(route), means[-1]
            axes.axvline(end - 0.5, color="#c9d2da", linewidth=0.9)
            axes.plot([end], [mean], color=ours, marker="*", markersize=15, linestyle="none", label="after assignment")
            axes.annotate(f"{mean:.3f}", (end, mean), xytext=(0, -18), ha="center", **bold)
        axes.set_xticks(range(len(points)), [point.label for point in points])
        axes.tick_params(axis="x", labelsize=8.5, labelcolor=INK, length=0)
        axes.set_ylim(0.0, 1.04)
        axes.set_xlim(-0.5, len(points) - 0.4)
        axes.set_ylabel("top-1 on wells of unlabelled experiments")
        seeds = len(route[0].per_seed)
        axes.set_title(f"Growth of accuracy, rung by rung: mean of {seeds} seed{'s' * (seeds != 1)}, dots are seeds")
        axes.legend(loc="lower right", fontsize=8.5)
    return figure


def _seeds(axes: Axes, first: float, points: Sequence[Point], colour: str) -> None:
    for n, point in enumerate(points):
        if len(point.per_seed) > 1:
            axes.plot([first + n] * len(point.per_seed), point.per_seed, ".", color=colour, alpha=0.55, markersize=5)
