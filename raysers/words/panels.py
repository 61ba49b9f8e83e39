"""Parts the probe's pictures share: panels by model and dimension, and outlines of scores.

An outline is a histogram smoothed by a fixed width, so that pictures compare; a few scores are
ticks instead, because a smooth curve over five values would promise more than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysers.evaluation.metrics import Floats
from raysers.plotting import (
    BETWEEN,
    HIGH,
    LOW,
    PAPER,
    SMALL_PT,
    SOFT,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    word_colour,
)
from raysers.types import DIMENSIONS

#: Colours of the sentiments.
SENTIMENTS = {"negative": LOW, "neutral": BETWEEN, "positive": HIGH}


def grid(height_in: float, lines: int, *, title_pt: float = 22) -> tuple[Any, Any]:
    """A figure with so many lines of panels, one a dimension, and the panels [lines, 3].

    The names of the dimensions are `title_pt` above the first line.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.2)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=layout)
    panels = figure.subplots(lines, len(DIMENSIONS), squeeze=False, sharey=True, sharex=True)
    for axis, dimension in zip(panels[0], DIMENSIONS, strict=True):
        axis.set_title(dimension, fontsize=TITLE_PT, pad=title_pt)
    return figure, panels


def name_lines(axis: Any, names: Sequence[str], colours: Sequence[str]) -> None:
    """Names of the lines 0, 1, ... of a chart in their colours, left of its first column."""
    axis.set_yticks([])
    if axis.get_subplotspec().is_first_col():
        for y, (name, colour) in enumerate(zip(names, colours, strict=True)):
            axis.annotate(
                name, (0, y), xytext=(-7, 0), xycoords=("axes fraction", "data"), ha="right",
                textcoords="offset points", va="center", color=word_colour(colour),
                annotation_clip=False,
            )  # fmt: skip


def over(axis: Any, text: str, side: str, *, lift_pt: float = 5) -> None:
    """Soft text over the left or right end of a panel."""
    left = side == "left"
    note = axis.annotate(
        text, (0 if left else 1, 1), xytext=(0, lift_pt), xycoords="axes fraction", color=SOFT,
        textcoords="offset points", ha=side, fontsize=TEXT_PT if left else SMALL_PT,
        annotation_clip=False,
    )  # fmt: skip
    note.set_in_layout(False)  # it may reach over the next panel, which is not to make room


def at_mean(axis: Any, text: str, value: float, y: float, colour: str) -> None:
    """Small text under a mean, turned inwards where the mean is near an edge of the panel."""
    low, high = axis.get_xlim()
    place = (value - low) / (high - low)
    axis.annotate(
        text, (min(max(value, low), high), y),
        ha="left" if place < 0.34 else "right" if place > 0.66 else "center", va="center",
        color=word_colour(colour), fontsize=SMALL_PT, annotation_clip=False, zorder=6,
    )  # fmt: skip


def caption(figure: Any, text: str) -> None:
    """Small soft text below all panels."""
    figure.supxlabel(text, color=SOFT, fontsize=SMALL_PT + 0.5)


def score_axis(axis: Any) -> None:
    """Ticks of the scale 0..1, named at its ends and middle."""
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])
    axis.grid(axis="x")
    if not axis.get_subplotspec().is_last_row():
        axis.tick_params(labelbottom=False, length=0)


def shorter(value: float) -> str:
    """Two decimals without the zero before the point, as the paper writes scores.

    >>> shorter(-0.341), shorter(1), shorter(-0.001)
    ('−.34', '1.00', '.00')
    """
    text = f"{abs(value):.2f}"
    sign = "−" if value <= -0.005 else ""
    return sign + (text[1:] if text.startswith("0") else text)


#: Up to so many scores are drawn one by one.
MOST_TICKS = 40
_WIDTH = 0.018
_STEP = 0.01


def density(values: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """Where, and how dense the values are there, smoothed by a Gaussian; the highest is 1."""
    edges = np.arange(low, high + _STEP, _STEP)
    counts, _ = np.histogram(np.clip(values, low, high), edges)
    reach = np.arange(-int(4 * _WIDTH / _STEP), int(4 * _WIDTH / _STEP) + 1) * _STEP
    kernel = np.exp(-((reach / _WIDTH) ** 2) / 2)
    smooth = np.convolve(counts, kernel)[len(kernel) // 2 :][: len(counts)]
    return (edges[:-1] + edges[1:]) / 2, np.asarray(smooth / max(smooth.max(), 1e-9), np.float64)


def limits(values: Floats) -> tuple[float, float]:
    """The scale, 0..1, and beyond it as far as there are values; for an axis."""
    there = values[np.isfinite(values)]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    return min(0.0, low - 0.02), max(1.0, high + 0.02)


def draw_spread(
    axis: Any, values: Floats, foot: float, height: float, colour: str, *, filled: bool = True
) -> None:
    """The scores over the line at `foot`, which grows downwards, up to `height` high."""
    there = values[np.isfinite(values)]
    if there.size <= MOST_TICKS:
        tops = np.full(there.size, foot - 0.45 * height)
        axis.vlines(there, tops, foot, color=colour, linewidth=1.1, alpha=0.75, zorder=2)
        return
    where, dense = density(there, *axis.get_xlim())
    inner = np.flatnonzero(dense > 0.002)
    shown = (np.arange(len(dense)) >= inner[0]) & (np.arange(len(dense)) <= inner[-1])
    if filled:
        axis.fill_between(
            where, foot - height * dense, foot, where=shown, color=colour, alpha=0.28,
            linewidth=0, zorder=2,
        )  # fmt: skip
    line = np.where(shown, foot - height * dense, np.nan)
    axis.plot(where, line, color=colour, linewidth=1.3, zorder=3)


def draw_mean(axis: Any, value: float, low: float, high: float, y: float, colour: str) -> None:
    """A mean as a point in the bar of its interval, if it has one."""
    if np.isfinite(low) and np.isfinite(high):
        axis.plot([low, high], [y, y], color=colour, linewidth=4, solid_capstyle="butt", zorder=4)
    axis.plot(
        value, y, "o", color=PAPER, ms=4.2, mec=colour, mew=1.3, zorder=5, clip_on=False
    )  # fmt: skip
