"""Pictures of an annotated archive: how scores spread, and how they move in a recording.

A timeline's line is one window after the other; where there are more than fit, it is the mean of
neighbours, and the band their lowest and highest tenth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysers import plotting
from raysers.evaluation.metrics import Floats
from raysers.plotting import COLOURS, SOFT, Picture, word_colour
from raysers.report.archive import LEVEL_RANGE_DB, SCORE_RANGE, Archive, Timeline
from raysers.report.dots import NARROW_IN
from raysers.report.parts import shown
from raysers.types import DIMENSIONS

_MOST_STEPS = 240
_SCORES_IN, _NARROW_SCORES_IN, _LEVELS_IN, _TIMELINE_IN = 1.9, 1.55, 1.9, 2.3
_MINUTE_S = 60.0


def scores_chart(archive: Archive, *, narrow: bool = False) -> Picture:
    """Distribution of the scores, a panel per dimension with its mean; nothing without scores."""
    if not archive.scores.sum():
        return {}
    return plotting.picture(
        lambda: _draw_scores(archive, narrow=narrow), plotting.formats(narrow=narrow)
    )


def _draw_scores(archive: Archive, *, narrow: bool) -> Any:
    down, across = (3, 1) if narrow else (1, 3)
    height_in = _NARROW_SCORES_IN * 3 if narrow else _SCORES_IN
    figure = plotting.new_figure(height_in, NARROW_IN if narrow else plotting.WIDTH_IN)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat
    most = archive.scores.max() * 1.08
    for number, (axis, dimension) in enumerate(zip(axes, DIMENSIONS, strict=True)):
        colour = COLOURS[dimension]
        plotting.panel_title(axis, dimension, colour=word_colour(colour), pad_pt=6)
        _bars(axis, archive.scores[number], SCORE_RANGE, colour)
        mean, sd = archive.mean_and_sd(number)
        if not math.isnan(mean):
            plotting.guide(axis, mean)
            text = f"mean {shown(mean, 2)}, sd {shown(sd, 2)}"
            plotting.above(axis, (1.0, 1.0), "axes fraction", 0, text, ha="right")
        axis.set_ylim(0, most)
        axis.set_yticks([])
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        if not number:
            axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel("score", loc="right")
    return figure


def levels_chart(archive: Archive, *, narrow: bool = False) -> Picture:
    """Distribution of the clips' levels; nothing without scores."""
    if not archive.levels.sum():
        return {}
    return plotting.picture(
        lambda: _draw_levels(archive, narrow=narrow), plotting.formats(narrow=narrow)
    )


def _draw_levels(archive: Archive, *, narrow: bool) -> Any:
    figure = plotting.new_figure(_LEVELS_IN, NARROW_IN if narrow else plotting.WIDTH_IN)
    axis = figure.subplots()
    _bars(axis, archive.levels, LEVEL_RANGE_DB, SOFT)
    axis.set_ylim(0, archive.levels.max() * 1.08)
    axis.set_yticks([])
    axis.set_xlim(*LEVEL_RANGE_DB)
    plotting.axis_name(axis, "dB re full scale; quieter clips are counted at the left edge")
    return figure


def _bars(axis: Any, counts: Floats, limits: tuple[float, float], colour: str) -> None:
    edges = np.linspace(*limits, len(counts) + 1)
    axis.stairs(counts, edges, fill=True, color=colour, alpha=0.28, linewidth=0)
    axis.stairs(counts, edges, color=colour, linewidth=1.2, clip_on=False)


def timeline_chart(line: Timeline, *, narrow: bool = False) -> Picture:
    """Scores along a recording; nothing when no window has any."""
    if not np.isfinite(line.scores).any():
        return {}
    return plotting.picture(
        lambda: _draw_timeline(line, narrow=narrow), plotting.formats(narrow=narrow)
    )


def _draw_timeline(line: Timeline, *, narrow: bool) -> Any:
    figure = plotting.new_figure(_TIMELINE_IN, NARROW_IN if narrow else plotting.WIDTH_IN)
    axis = figure.subplots()
    ends = {}
    for number, dimension in enumerate(DIMENSIONS):
        middle_s, mean, low, high = thinned(line, number)
        colour = COLOURS[dimension]
        x = middle_s / _MINUTE_S
        if np.isfinite(low).any():
            plotting.band(axis, list(x), list(low), list(high), colour)
        plotting.line(axis, list(x), list(mean), colour, linewidth=1.4)
        last = mean[np.isfinite(mean)]
        if len(last):
            ends[dimension] = (float(last[-1]), colour)
    _timeline_axes(axis, line)
    plotting.end_labels(axis, ends, gap=0.1)
    return figure


def _timeline_axes(axis: Any, line: Timeline) -> None:
    scores = line.scores[np.isfinite(line.scores)]
    axis.set_ylim(min(0.0, float(scores.min())), max(1.0, float(scores.max())))
    axis.set_xlim(float(line.start_s[0]) / _MINUTE_S, float(line.end_s.max()) / _MINUTE_S)
    plotting.value_grid(axis, "y", most=4)
    axis.set_xlabel("minutes", loc="right")
    bare = ~np.isfinite(line.scores).any(axis=1)
    for start, end in zip(line.start_s[bare], line.end_s[bare], strict=True):
        axis.axvspan(start / _MINUTE_S, end / _MINUTE_S, color=SOFT, alpha=0.15, linewidth=0)
    if bare.any():
        plotting.above(axis, (0.0, 1.0), "axes fraction", 0, "grey: no score", ha="left")


def thinned(line: Timeline, dimension: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Middle (seconds), mean, lowest and highest tenth of at most 240 stretches of windows.

    Bounds are NaN where a stretch is one window.
    """
    middle_s = (line.start_s + line.end_s) / 2
    values = line.scores[:, dimension]
    size = math.ceil(len(values) / _MOST_STEPS)
    if size == 1:
        none = np.full(len(values), np.nan)
        return middle_s, values, none, none
    stretches = [slice(i, i + size) for i in range(0, len(values), size)]
    columns = [[float(np.mean(middle_s[s])), *_of_stretch(values[s])] for s in stretches]
    middle, mean, low, high = np.array(columns).T
    return middle, mean, low, high


def _of_stretch(values: Floats) -> Sequence[float]:
    there = values[np.isfinite(values)]
    if not len(there):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(there, [0.1, 0.9])
    return float(there.mean()), float(low), float(high)
