"""Dots with intervals on named rows: models, perturbations, speakers; a panel per dimension.

One drawing for all figures that compare things by name. It is drawn twice: wide, with the
dimensions side by side, and narrow, with them one below the other, for a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysers import plotting
from raysers.evaluation.baseline import NAME as RANDOM
from raysers.plotting import COLOURS, INK, SOFT, Picture, series_colour, word_colour
from raysers.report.numbers import Dot, blocks
from raysers.report.parts import shown

NARROW_IN = 3.55
_EDGES_IN, _BLOCK_IN, _KEY_IN, _AXIS_IN = 0.56, 0.28, 0.2, 0.2
_ROW_IN, _SERIES_IN = 0.235, 0.115
_LONGEST_NAME, _KEYS_ACROSS = 24, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DotStyle:
    """How a dot chart is drawn.

    Attributes:
        axis: what the values are.
        limits: the axis covers at least these.
        at: a value that others are compared with, as a dotted line; NaN: none.
        digits: of the values beside the rows.
    """

    axis: str
    limits: tuple[float, float] = (0.0, 1.0)
    at: float = math.nan
    digits: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chart:
    dots: Sequence[Dot]
    columns: Sequence[str]
    series: Sequence[str]
    limits: tuple[float, float]
    how: DotStyle

    def colour(self, one: Dot) -> str:
        if one.row == RANDOM:
            return SOFT
        if len(self.series) > 1:
            return series_colour(self.series.index(one.series))
        return COLOURS.get(one.column, INK)

    def offset(self, one: Dot) -> float:
        place, count = self.series.index(one.series), len(self.series)
        return (place - (count - 1) / 2) * 0.72 / count

    def row_in(self) -> float:
        return max(_ROW_IN, _SERIES_IN * len(self.series) + 0.1)


def dot_chart(dots: Sequence[Dot], how: DotStyle, *, narrow: bool = False) -> Picture:
    """Rows of dots in a panel per dataset and dimension; nothing without a value."""
    there = [one for one in dots if not math.isnan(one.value)]
    if not there:
        return {}
    return plotting.picture(
        lambda: dot_figure(there, how, narrow=narrow), plotting.formats(narrow=narrow)
    )


def dot_figure(dots: Sequence[Dot], how: DotStyle, *, narrow: bool) -> Any:
    """The matplotlib figure of `dot_chart`; all dots have values."""
    chart = _Chart(
        dots=dots,
        columns=list(dict.fromkeys(one.column for one in dots)),
        series=list(dict.fromkeys(one.series for one in dots)),
        limits=_limits(dots, how.limits),
        how=how,
    )
    return _draw(chart, narrow=narrow)


def _limits(dots: Sequence[Dot], least: tuple[float, float]) -> tuple[float, float]:
    ends = [end for d in dots for end in (d.value, d.low, d.high, d.paper) if not math.isnan(end)]
    low, high = min(least[0], *ends), max(least[1], *ends)
    room = (high - low) * 0.02
    return low - room, high + room


def _draw(chart: _Chart, *, narrow: bool) -> Any:
    by_block = list(blocks(chart.dots))
    counts = [len({d.row for d in dots}) for _, dots in by_block]
    across = 1 if narrow else len(chart.columns)
    panels = [_columns(dots, chart) for _, dots in by_block]
    down = [n for n, own in zip(counts, panels, strict=True) for _ in range(_lines(own, narrow))]
    heights = [n * chart.row_in() for n in down]
    key, several = _key(chart), len(by_block) > 1
    edges_in = _EDGES_IN * len(down) + _BLOCK_IN * several * len(by_block)
    height_in = sum(heights) + edges_in + _KEY_IN * _key_lines(key, narrow) + _AXIS_IN
    figure = plotting.new_figure(height_in, NARROW_IN if narrow else plotting.WIDTH_IN)
    grid = figure.subplots(len(down), across, squeeze=False, height_ratios=heights)
    line = 0
    for (block, dots), own in zip(by_block, panels, strict=True):
        places = grid[line : line + _lines(own, narrow)].flat
        _block(list(places), chart, dots, own, block if several else "", narrow=narrow)
        line += _lines(own, narrow)
    if key:
        _show_key(figure, key, narrow=narrow)
    return figure


def _columns(dots: Sequence[Dot], chart: _Chart) -> list[str]:
    """The dimensions a block has; they are packed to the left."""
    there = {one.column for one in dots}
    return [column for column in chart.columns if column in there]


def _lines(columns: Sequence[str], narrow: bool) -> int:
    return len(columns) if narrow else 1


def _block(
    places: Sequence[Any],
    chart: _Chart,
    dots: Sequence[Dot],
    columns: Sequence[str],
    name: str,
    *,
    narrow: bool,
) -> None:
    rows = list(dict.fromkeys(one.row for one in dots))
    for number, axis in enumerate(places):
        if number >= len(columns):
            axis.set_axis_off()
            continue
        mine = [one for one in dots if one.column == columns[number]]
        _panel(axis, chart, mine, rows, named=narrow or not number)
        if name and not number:
            _above_title(axis, plotting.short(name, 40))
    plotting.axis_name(places[len(columns) - 1], chart.how.axis)


def _above_title(axis: Any, text: str) -> None:
    axis.annotate(
        text, (0, 1), xytext=(0, 24), xycoords="axes fraction", textcoords="offset points",
        fontsize=plotting.TITLE_PT, fontweight="bold", annotation_clip=False,
    )  # fmt: skip


def _panel(
    axis: Any, chart: _Chart, mine: Sequence[Dot], rows: Sequence[str], *, named: bool
) -> None:
    plotting.name_rows(axis, [plotting.short(row, _LONGEST_NAME) for row in rows])
    axis.tick_params(labelleft=named)
    axis.set_xlim(*chart.limits)
    plotting.value_grid(axis, "x", most=4)
    column = mine[0].column
    colour = COLOURS.get(column, INK) if len(chart.series) == 1 else INK
    title = column if len(chart.columns) > 1 or column in COLOURS else ""
    plotting.panel_title(axis, title, colour=word_colour(colour), pad_pt=6)
    if not math.isnan(chart.how.at):
        plotting.guide(axis, chart.how.at)
    for one in mine:
        height = rows.index(one.row) + chart.offset(one)
        plotting.interval(axis, one.value, (one.low, one.high), height, chart.colour(one))
        plotting.published(axis, one.paper, height)
        if len(chart.series) == 1:
            plotting.end_label(axis, height, shown(one.value, chart.how.digits), chart.colour(one))


def _key(chart: _Chart) -> list[tuple[str, str, str]]:
    """Marks to explain: name, colour, marker."""
    several = chart.series if len(chart.series) > 1 else []
    marks = [(plotting.short(s, 22), series_colour(i), "o") for i, s in enumerate(several)]
    if any(not math.isnan(d.paper) for d in chart.dots):
        marks.append(("the paper", INK, "D"))
    return marks


def _key_lines(marks: Sequence[object], narrow: bool) -> int:
    return len(marks) if narrow else math.ceil(len(marks) / _KEYS_ACROSS)


def _show_key(figure: Any, marks: Sequence[tuple[str, str, str]], *, narrow: bool) -> None:
    """The names of the marks, each in its colour, over the panels."""
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D(
            [], [], linestyle="", marker=marker, color=colour, label=name,
            mfc="none" if marker == "D" else colour, ms=plotting.DOT_PT,
        )
        for name, colour, marker in marks
    ]  # fmt: skip
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=1 if narrow else min(_KEYS_ACROSS, len(handles)),
        frameon=False,
        borderaxespad=0.3,
        borderpad=0.2,
        columnspacing=1.4,
        handlelength=1.0,
        handletextpad=0.3,
        labelcolor=[word_colour(colour) for _, colour, _ in marks],
    )
