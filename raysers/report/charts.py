"""Dot and line charts of frames, each with the table of its numbers.

A dot chart has a panel per dataset (`block`) and dimension (`column`), in it a line per model,
perturbation or speaker (`row`) with one mark per `series`; a line chart a panel per dimension. A
table has every number, a picture at most so many rows; the caption says what was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raysers import plotting
from raysers.plotting import COLOURS, INK, SOFT, series_colour, word_colour
from raysers.report.evidence import RANDOM
from raysers.report.page import Cell, Chart, shown, table, with_bounds

MOST_ROWS, MOST_SERIES, _MOST_MARKS = 24, 4, 30
_EDGES_IN, _BLOCK_IN, _KEY_IN, _ROW_IN, _SERIES_IN, _LINES_IN = 0.6, 0.28, 0.4, 0.235, 0.115, 2.9
_DOTS = ["block", "column", "row", "series", "value", "low", "high", "paper", "n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """A dot chart: what is drawn of the metrics, and how.

    Attributes:
        key: name of its files.
        rows: metrics -> a frame of `dots`.
        axis: what the values are.
        row, series: what these are, in the table's head.
        limits: the axis covers at least these.
        at: a reference value, drawn as a dotted line.
    """

    key: str
    title: str = ""
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    axis: str
    row: str = "model"
    series: str = ""
    limits: tuple[float, float] = (0.0, 1.0)
    at: float = math.nan
    digits: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A line chart: values over numbers, from a frame `column, series, x, value, low, high`."""

    key: str
    title: str = ""
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    axis: str
    values: str = "CCC"
    bounds: str = "95 %"
    tick: Callable[[float], str] = "{:g}".format
    log: bool = False


def dots(metrics: pd.DataFrame, row: pd.Series, series: pd.Series | str = "") -> pd.DataFrame:
    """Rows of metrics as marks of a dot chart, the random model's last."""
    found = metrics.rename(columns={"dimension": "column", "ci_low": "low", "ci_high": "high"})
    block = (metrics.dataset + " " + metrics.split).str.strip()
    found = found.assign(block=block, row=row, series=series)[_DOTS]
    found = found.drop_duplicates(["block", "row", "series", "column"], keep="last")
    return found.sort_values("row", key=lambda names: names == RANDOM, kind="stable")


def dots_chart(spec: Dots, metrics: pd.DataFrame) -> Chart | None:
    """The chart with its table; None without a value."""
    found = spec.rows(metrics)
    there = found[found.value.notna()]
    if there.empty:
        return None
    drawn, left_out = _selected(there)
    several = found.series.nunique() > 1 or found.series.iloc[0] != ""
    columns = list(found.column.unique())
    has_paper = bool(found.paper.notna().any())
    rows: list[list[Cell]] = []
    for (block, name, series), own in found.groupby(["block", "row", "series"], sort=False):
        by_column = {one["column"]: one for one in own.to_dict("records")}
        bounds = [_bounded(by_column.get(c)) for c in columns]
        papers = [shown(by_column[c]["paper"]) if c in by_column else "–" for c in columns]
        paper = "–" if set(papers) == {"–"} else " / ".join(papers)
        cells = [name, *([series] if several else []), block, *bounds]
        rows.append([*cells, *([paper] if has_paper else []), int(own.n.max())])
    head = [spec.row, *([spec.series or "of"] if several else []), "data"]
    head += [*(f"{c} [95 %]" for c in columns), *(["the paper"] if has_paper else []), "n"]
    pictures = {spec.key: plotting.picture(lambda: _draw_dots(drawn, spec))}
    numbers = table(spec.axis + left_out, head, rows)
    return Chart(
        spec.title, f"Dot chart of {spec.axis}: the table has all values.", pictures, numbers
    )


def _bounded(one: Mapping[str, Any] | None) -> Cell:
    return "–" if one is None else with_bounds(one["value"], one["low"], one["high"])


def _selected(there: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What fits into a picture: the first and last rows of a block, the first few series."""
    series, half, said = list(there.series.unique()), MOST_ROWS // 2, []
    place = there.groupby("block", sort=False).row.transform(lambda names: pd.factorize(names)[0])
    count = place.groupby(there.block).transform("max") + 1
    few = (count <= MOST_ROWS) | (place < half) | (place >= count - half)
    if not few.all():
        said.append(f"the picture shows the first and last {half} rows")
    if len(series) > MOST_SERIES:
        said.append(f"the picture shows the first {MOST_SERIES} of {len(series)}")
    kept = there[few & there.series.isin(series[:MOST_SERIES])]
    return kept, f" ({'; '.join(said)})" if said else ""


def _draw_dots(drawn: pd.DataFrame, spec: Dots) -> Any:
    columns, series = list(drawn.column.unique()), list(drawn.series.unique())
    blocks = [(name, own) for name, own in drawn.groupby("block", sort=False)]
    ends = drawn[["value", "low", "high", "paper"]]
    low, high = min(spec.limits[0], ends.min().min()), max(spec.limits[1], ends.max().max())
    room = (high - low) * 0.02
    row_in = max(_ROW_IN, _SERIES_IN * len(series) + 0.1)
    heights = [own.row.nunique() * row_in for _, own in blocks]
    has_key = len(series) > 1 or bool(drawn.paper.notna().any())
    edges_in = (_EDGES_IN + _BLOCK_IN * (len(blocks) > 1)) * len(blocks)
    figure = plotting.new_figure(sum(heights) + edges_in + _KEY_IN * has_key + 0.2)
    axes = figure.subplots(len(blocks), len(columns), squeeze=False, height_ratios=heights)
    for (block, own), places in zip(blocks, axes, strict=True):
        rows, mine = list(own.row.unique()), [c for c in columns if c in set(own.column)]
        for axis, column in zip(places, [*mine, *[""] * (len(columns) - len(mine))], strict=True):
            if not column:
                axis.set_axis_off()
                continue
            plotting.name_rows(axis, [plotting.short(name, 24) for name in rows])
            axis.tick_params(labelleft=column == mine[0])
            axis.set_xlim(low - room, high + room)
            plotting.value_grid(axis, "x", most=4)
            colour = COLOURS.get(column, INK) if len(series) == 1 else INK
            title = column if len(columns) > 1 or column in COLOURS else ""
            plotting.panel_title(axis, title, colour=word_colour(colour), pad_pt=6)
            if not math.isnan(spec.at):
                plotting.guide(axis, spec.at)
            for one in own[own.column == column].itertuples():
                _mark(axis, one, rows, series, colour, spec.digits)
        if len(blocks) > 1:
            places[0].annotate(
                plotting.short(str(block), 40), (0, 1), xytext=(0, 24), xycoords="axes fraction",
                textcoords="offset points", fontsize=plotting.TITLE_PT, fontweight="bold",
                annotation_clip=False,
            )  # fmt: skip
        plotting.axis_name(places[len(mine) - 1], spec.axis)
    if has_key:
        marks = [(s, series_colour(i), "o") for i, s in enumerate(series)] * (len(series) > 1)
        _key(figure, [*marks, *[("the paper", INK, "D")] * bool(drawn.paper.notna().any())])
    return figure


def _mark(
    axis: Any, one: Any, rows: list[str], series: list[str], colour: str, digits: int
) -> None:
    place, count = series.index(one.series), len(series)
    height = rows.index(one.row) + (place - (count - 1) / 2) * 0.72 / count
    colour = SOFT if one.row == RANDOM else series_colour(place) if count > 1 else colour
    plotting.interval(axis, one.value, (one.low, one.high), height, colour)
    plotting.published(axis, one.paper, height)
    if count == 1:
        plotting.end_label(axis, height, shown(one.value, digits), colour)


def _key(figure: Any, marks: Sequence[tuple[str, str, str]]) -> None:
    """The names of the marks, each in its colour, over the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=plotting.short(name, 22),
               mfc="none" if marker == "D" else colour, ms=plotting.DOT_PT)
        for name, colour, marker in marks
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(4, len(handles)), frameon=False,
        handlelength=1.0, handletextpad=0.3, columnspacing=1.4,
        labelcolor=[word_colour(colour) for _, colour, _ in marks],
    )  # fmt: skip


def lines_chart(spec: Lines, frame: pd.DataFrame) -> Chart | None:
    """The chart with its table; None where no line has two points."""
    found = spec.rows(frame)
    found = found[found.value.notna()] if len(found) else found
    if found.empty or found.groupby(["column", "series"]).size().max() < 2:
        return None
    columns = [c for c in (*COLOURS, "mean") if c in set(found.column)]
    rows: list[list[Cell]] = []
    for (series, x), own in found.groupby(["series", "x"], sort=False):
        by_column = {one["column"]: one for one in own.to_dict("records")}
        rows.append([series, spec.tick(x), *(_bounded(by_column.get(c)) for c in columns)])
    head = ["of", spec.axis, *(f"{c} [{spec.bounds}]" for c in columns)]
    pictures = {spec.key: plotting.picture(lambda: _draw_lines(found, columns, spec))}
    numbers = table(f"{spec.values} over {spec.axis}", head, rows)
    return Chart(
        spec.title, f"Line chart of {numbers.caption}: the table has all values.", pictures, numbers
    )


def _draw_lines(found: pd.DataFrame, columns: Sequence[str], spec: Lines) -> Any:
    series = list(found.series.unique())
    ends = found[["value", "low", "high"]]
    low, high = min(0.0, ends.min().min()), ends.max().max()
    figure = plotting.new_figure(_LINES_IN)
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, column in zip(axes, columns, strict=True):
        if spec.log:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_ylim(low - (low < 0) * 0.03, min(1.02, high + 0.06) if high <= 1 else high)
        places = sorted(found.x.unique())
        ticks = places if len(places) <= 5 else places[:: math.ceil(len(places) / 5)]
        axis.set_xticks(ticks, [spec.tick(x) for x in ticks])
        plotting.value_grid(axis, "y", most=6)
        labels = {}
        for index, name in enumerate(series):
            own = found[(found.column == column) & (found.series == name)].sort_values("x")
            if own.empty:
                continue
            colour = series_colour(index) if len(series) > 1 else COLOURS.get(column, INK)
            known = own.dropna(subset=["low", "high"])
            plotting.band(axis, known.x, known.low, known.high, colour)
            plotting.line(axis, own.x, own.value, colour)
            for one in own.itertuples() if len(own) <= _MOST_MARKS else ():
                plotting.dot(axis, one.value, one.x, colour, along="y")
            labels[plotting.short(name, 20)] = (own.value.iloc[-1], colour)
        if len(series) > 1 and column == columns[-1]:
            plotting.end_labels(axis, labels, gap=0.075)
        plotting.panel_title(axis, column, pad_pt=8)
    plotting.axis_name(axes[-1], spec.axis)
    plotting.above(axes[0], (0.0, 1.0), "axes fraction", -7, spec.values, ha="right")
    return figure
