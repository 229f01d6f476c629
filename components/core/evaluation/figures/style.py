"""Palette and rendering shared by the figures: matplotlib to accessible inline SVG, without global state."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe & Ito 2008: distinct with every common form of colour blindness, and in grey in this order.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, MUTED = "#1b2733", "#5b6875"

_RC: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable and in the page's own font
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9aa7b3",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8edf1",
    "grid.linewidth": 0.7,
    "xtick.color": "#9aa7b3",
    "ytick.color": "#9aa7b3",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def styled(name: str) -> Iterator[None]:
    """The report's matplotlib style; `name` salts the ids inside the SVG so that figures of one page do not collide."""
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        yield


def series_colour(index: int) -> str:
    """Colour of the index-th series; repeats after seven."""
    return SERIES[index % len(SERIES)]


def inline_svg(figure: Figure, alt: str) -> str:
    """A figure as an <svg> element that scales with the page; `alt` describes it. Call this inside its `styled`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--sans)", svg)
    # matplotlib numbers its groups the same way in every figure; only ids that are referred to matter.
    svg = re.sub(
        r' id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|\w+Collection)_\d+"', "", svg
    )
    width, height = figure.get_size_inches() * 72
    opening = (
        f'<svg class="plot" role="img" aria-label="{escape(alt, quote=True)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{width * 4 / 3:.0f}px" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
