"""Lines over a number: epochs, layers, share of the data; a panel per dimension.

Drawn twice, as the dot charts are. Values are joined by lines for the eye; nothing was measured
between the marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raysers import plotting
from raysers.plotting import COLOURS, INK, Picture, series_colour
from raysers.report.dots import NARROW_IN
from raysers.report.numbers import Point

_PANEL_IN, _NARROW_PANEL_IN = 2.9, 2.4
#: Shares of a panel's width: a letter of a tick's label, and the room between two.
_LETTER_SHARE, _BETWEEN_TICKS = 0.06, 0.04
_MOST_MARKS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStyle:
    """How a line chart is drawn: names of its axes, what a place on the lower one is called."""

    axis: str
    values: str = "CCC"
    tick: Callable[[float], str] = "{:g}".format
    log: bool = False


def line_chart(points: Sequence[Point], how: LineStyle, *, narrow: bool = False) -> Picture:
    """A line for each series in a panel per dimension; nothing without a value."""
    there = [p for p in points if not math.isnan(p.value)]
    if not there:
        return {}
    return plotting.picture(
        lambda: _draw(there, how, narrow=narrow), plotting.formats(narrow=narrow)
    )


def _draw(points: Sequence[Point], how: LineStyle, *, narrow: bool) -> Any:
    columns = [c for c in (*COLOURS, "mean") if any(p.column == c for p in points)]
    series = list(dict.fromkeys(p.series for p in points))
    down, across = (len(columns), 1) if narrow else (1, len(columns))
    height_in = (_NARROW_PANEL_IN if narrow else _PANEL_IN) * down
    figure = plotting.new_figure(height_in, NARROW_IN if narrow else plotting.WIDTH_IN)
    axes = figure.subplots(down, across, squeeze=False, sharey=True).flat
    for number, (axis, column) in enumerate(zip(axes, columns, strict=True)):
        mine = [p for p in points if p.column == column]
        last = number == len(columns) - 1
        _panel(axis, mine, points, series, how, labelled=narrow or last)
        plotting.panel_title(axis, column, pad_pt=8)
        if last:
            plotting.axis_name(axis, how.axis)
        if narrow or not number:
            plotting.above(axis, (0.0, 1.0), "axes fraction", -7, how.values, ha="right")
    return figure


def _panel(
    axis: Any,
    mine: Sequence[Point],
    everything: Sequence[Point],
    series: Sequence[str],
    how: LineStyle,
    *,
    labelled: bool,
) -> None:
    if how.log:
        axis.set_xscale("log")
        axis.minorticks_off()
    _limits(axis, everything, how)
    plotting.value_grid(axis, "y", most=6)
    ends = {}
    for index, name in enumerate(series):
        own = sorted((p for p in mine if p.series == name), key=lambda p: p.x)
        if not own:
            continue
        colour = series_colour(index) if len(series) > 1 else COLOURS.get(own[0].column, INK)
        _series(axis, own, colour)
        ends[plotting.short(name, 20)] = (own[-1].value, colour)
    if labelled and len(series) > 1:
        plotting.end_labels(axis, ends, gap=0.075)


def _series(axis: Any, own: Sequence[Point], colour: str) -> None:
    x, y = [p.x for p in own], [p.value for p in own]
    bounded = [p for p in own if not (math.isnan(p.low) or math.isnan(p.high))]
    if len(bounded) > 1:
        plotting.band(
            axis, [p.x for p in bounded], [p.low for p in bounded], [p.high for p in bounded],
            colour,
        )  # fmt: skip
    plotting.line(axis, x, y, colour)
    for p in own if len(own) <= _MOST_MARKS else ():
        bounds = (p.low, p.high) if len(bounded) == 1 else (math.nan, math.nan)
        plotting.interval(axis, p.value, bounds, p.x, colour, along="y")


def _limits(axis: Any, points: Sequence[Point], how: LineStyle) -> None:
    ends = [v for p in points for v in (p.value, p.low, p.high) if not math.isnan(v)]
    low, high = min(0.0, *ends), max(ends)
    axis.set_ylim(low - (low < 0) * 0.03, min(1.02, high + 0.06) if high <= 1 else high)
    places = sorted({p.x for p in points})
    first, last = places[0], places[-1]
    if how.log:
        axis.set_xlim(first / 1.12, last * 1.12)
    else:
        room = max((last - first) * 0.03, 0.4 if first == last else 0)
        axis.set_xlim(first - room, last + room)
    ticks = _apart(places, how)
    axis.set_xticks(ticks, [how.tick(t) for t in ticks])


def _apart(places: Sequence[float], how: LineStyle) -> list[float]:
    """Places far enough from each other for their labels, the last one among them."""
    turn = math.log if how.log else float
    length = turn(places[-1]) - turn(places[0]) or 1.0
    kept: list[float] = []
    for place in reversed(places):
        needed = _LETTER_SHARE * len(how.tick(place)) + _BETWEEN_TICKS
        if not kept or turn(kept[-1]) - turn(place) >= length * needed:
            kept.append(place)
    return kept[::-1]
