"""How scores are spread, as an outline over a line of a chart.

The outline is a histogram smoothed by a fixed width, so that pictures compare; a few scores are
ticks instead, because a smooth curve over five values would promise more than there is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raysers.evaluation.metrics import Floats
from raysers.plotting import PAPER

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
