"""Dot and line charts of frames, each with the table of its numbers.

A dot chart has a panel per dataset (`block`) and dimension (`column`), in it a line per model,
perturbation or speaker (`row`) with one mark per `series`; a line chart a panel per dimension. A
table has every number, a picture at most so many rows; the caption says what was left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from raysers import display
from raysers.display import COLOURS, INK, SOFT, Picture, series_colour, word_colour
from raysers.evaluation.bootstrap import FEW_UNITS, FEWEST_UNITS
from raysers.evaluation.scores import RANDOM

#: A cell of a table: text from the data, or a number.
Cell = str | int | float | None
_MOST_LINES = 400
#: A cell that is a number, with its unit, bounds, or several of them.
_NUMBER = re.compile(
    r"[\N{MINUS SIGN}-]?\d[\d.,:]*( ?%| (h|s|min|M|dB))?( \[.*\])?( / .*)?|\N{EN DASH}"
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page; the first cell of a row names it, `left_out` rows are not shown."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    left_out: int


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table of at most `_MOST_LINES` rows."""

    def is_number(cell: Cell) -> bool:
        return not isinstance(cell, str) or _NUMBER.fullmatch(cell) is not None

    kept = rows[:_MOST_LINES]
    cells = list(zip(*kept, strict=True)) or [()] * len(columns)
    numeric = [bool(own) and i > 0 and all(map(is_number, own)) for i, own in enumerate(cells)]
    return Table(caption, columns, kept, numeric, max(0, len(rows) - _MOST_LINES))


def frame_table(caption: str, frame: pd.DataFrame, digits: int = 3) -> Table:
    """A frame as a table: numbers with so many digits, a dash for what is missing."""

    def plain(value: Any) -> Cell:
        if value is None or value != value:
            return "\N{EN DASH}"
        if isinstance(value, float):
            return shown(value, digits)
        return value if isinstance(value, str) else int(value)

    rows = [list(map(plain, row)) for row in frame.itertuples(index=False, name=None)]
    return table(caption, [*map(str, frame.columns)], rows)


@dataclass(frozen=True, slots=True)
class Chart:
    """Pictures by file name, what they show in words, and the numbers behind them."""

    title: str
    alt: str
    pictures: Mapping[str, Picture]
    numbers: Table


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A figure or table of the paper (`name`), or one of ours; `key` is its anchor, `figure-2`.

    `lead` is how to read it, `notes` what to know, `clips` a table of clips to listen to.
    """

    key: str
    title: str
    lead: str = ""
    name: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    facts: Table | None = None
    clips: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Section:
    """A chapter of the page."""

    key: str
    title: str
    exhibits: Sequence[Exhibit]
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that the runs have no data for, and the command that makes them."""

    name: str
    title: str
    why: str
    command: str


def shown(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where undefined.

    >>> shown(0.12345), shown(-0.0001), shown(float("nan"))
    ('0.123', '0.000', '–')
    """
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:z,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def with_bounds(mark: Mapping[str, Any]) -> str:
    """A mark of a chart as `0.635 [0.601, 0.668]`, without bounds where there are none."""
    value, low, high = (mark[name] for name in ("value", "low", "high"))
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return shown(value)
    return f"{shown(value)} [{shown(low)}, {shown(high)}]"


MOST_ROWS, MOST_SERIES, _MOST_MARKS = 24, 4, 30
_EDGES_IN, _BLOCK_IN, _KEY_IN, _ROW_IN, _SERIES_IN, _LINES_IN = 0.6, 0.28, 0.4, 0.235, 0.115, 2.9
_MARKS = ["block", "column", "row", "series", "value", "low", "high", "paper", "n", "speakers"]
_FEW = (
    f"intervals over fewer than {FEW_UNITS} speakers are rough, over fewer than {FEWEST_UNITS} "
    "there are none"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """A dot chart in files named `key`: `rows` makes a frame of `dots` of the metrics.

    `axis` is what the values are, `row` and `series` what these are. The axis covers at least
    `limits`; `at` is a reference value, drawn as a dotted line.
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
    found = found.assign(block=block, row=row, series=series)[_MARKS]
    found = found.drop_duplicates(["block", "row", "series", "column"], keep="last")
    return found.sort_values("row", key=lambda names: names == RANDOM, kind="stable")


def chart(spec: Dots | Lines, frame: pd.DataFrame) -> Chart | None:
    """The chart with its table; None without a value, or where no line has two points."""
    found, is_line = spec.rows(frame), isinstance(spec, Lines)
    there = found[found.value.notna()] if len(found) else found
    if there.empty or (is_line and there.groupby(["column", "series"]).size().max() < 2):
        return None
    found = found.reindex(columns=[*_MARKS, *(["x"] if is_line else [])])
    order = (*COLOURS, "mean") if is_line else found.column.unique()
    columns = [str(column) for column in order if column in set(found.column)]
    several = found.series.nunique() > 1 or found.series.iloc[0] != ""
    has_paper, has_speakers = bool(found.paper.notna().any()), bool((found.speakers > 0).any())
    rows: list[list[Cell]] = []
    keys = ["series", "x"] if is_line else ["block", "row", "series"]
    for key, own in found.groupby(keys, sort=False):
        by = {one["column"]: one for one in own.to_dict("records")}
        cells: list[Cell] = [key[0], spec.tick(key[1])] if isinstance(spec, Lines) else [key[1]]
        if not is_line:
            cells += [*([key[2]] if several else []), key[0]]
        cells += [with_bounds(by[c]) if c in by else "–" for c in columns]
        if has_paper:
            papers = [shown(by[c]["paper"]) if c in by else "–" for c in columns]
            cells.append("–" if set(papers) == {"–"} else " / ".join(papers))
        if not is_line:
            cells.append(int(own.n.max()))
            cells += [int(own.speakers.max()) or "–"] if has_speakers else []
        rows.append(cells)
    if isinstance(spec, Lines):
        head, caption, what = ["of", spec.axis], f"{spec.values} over {spec.axis}", spec.bounds
        pictures = {spec.key: display.picture(lambda: _draw_lines(there, columns, spec))}
    else:
        drawn, left_out = _selected(there)
        head = [spec.row, *([spec.series or "of"] if several else []), "data"]
        caption, what = spec.axis + left_out, "95 %"
        pictures = {spec.key: display.picture(lambda: _draw_dots(drawn, spec))}
    head += [*(f"{c} [{what}]" for c in columns), *(["the paper"] if has_paper else [])]
    head += [] if is_line else ["clips", *(["speakers"] if has_speakers else [])]
    few = there.reindex(columns=["speakers"]).speakers.between(2, FEW_UNITS - 1).any()
    alt = f"{'Line' if is_line else 'Dot'} chart of {caption}: the table has all values."
    return Chart(spec.title, alt, pictures, table(caption + f" ({_FEW})" * int(few), head, rows))


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
    figure = display.new_figure(sum(heights) + edges_in + _KEY_IN * has_key + 0.2)
    axes = figure.subplots(len(blocks), len(columns), squeeze=False, height_ratios=heights)
    for (block, own), places in zip(blocks, axes, strict=True):
        rows, mine = list(own.row.unique()), [c for c in columns if c in set(own.column)]
        for axis in places[len(mine) :]:
            axis.set_axis_off()
        for axis, column in zip(places, mine, strict=False):
            display.name_rows(axis, [display.short(name, 24) for name in rows])
            axis.tick_params(labelleft=column == mine[0])
            axis.set_xlim(low - room, high + room)
            display.value_grid(axis, "x", most=4)
            colour = COLOURS.get(column, INK) if len(series) == 1 else INK
            title = column if len(columns) > 1 or column in COLOURS else ""
            display.panel_title(axis, title, colour=word_colour(colour), pad_pt=6)
            if not math.isnan(spec.at):
                display.guide(axis, spec.at)
            for one in own[own.column == column].itertuples():
                place, count = series.index(one.series), len(series)
                height = rows.index(one.row) + (place - (count - 1) / 2) * 0.72 / count
                ink = SOFT if one.row == RANDOM else series_colour(place) if count > 1 else colour
                display.interval(axis, one.value, (one.low, one.high), height, ink)
                display.published(axis, one.paper, height)
                if count == 1:
                    display.end_label(axis, height, shown(one.value, spec.digits), ink)
        if len(blocks) > 1:
            places[0].annotate(
                display.short(str(block), 40), (0, 1), xytext=(0, 24), xycoords="axes fraction",
                textcoords="offset points", fontsize=display.TITLE_PT, fontweight="bold",
                annotation_clip=False,
            )  # fmt: skip
        display.axis_name(places[len(mine) - 1], spec.axis)
    if has_key:
        marks = [(s, series_colour(i), "o") for i, s in enumerate(series)] * (len(series) > 1)
        _key(figure, [*marks, *[("the paper", INK, "D")] * bool(drawn.paper.notna().any())])
    return figure


def _key(figure: Any, marks: Sequence[tuple[str, str, str]]) -> None:
    """The names of the marks, each in its colour, over the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=display.short(name, 22),
               mfc="none" if marker == "D" else colour, ms=display.DOT_PT)
        for name, colour, marker in marks
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(4, len(handles)), frameon=False,
        handlelength=1.0, handletextpad=0.3, columnspacing=1.4,
        labelcolor=[word_colour(colour) for _, colour, _ in marks],
    )  # fmt: skip


def _draw_lines(found: pd.DataFrame, columns: Sequence[str], spec: Lines) -> Any:
    series = list(found.series.unique())
    ends = found[["value", "low", "high"]]
    low, high = min(0.0, ends.min().min()), ends.max().max()
    figure = display.new_figure(_LINES_IN)
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, column in zip(axes, columns, strict=True):
        if spec.log:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_ylim(low - (low < 0) * 0.03, min(1.02, high + 0.06) if high <= 1 else high)
        places = sorted(found.x.unique())
        ticks = places if len(places) <= 5 else places[:: math.ceil(len(places) / 5)]
        axis.set_xticks(ticks, [spec.tick(x) for x in ticks])
        display.value_grid(axis, "y", most=6)
        labels = {}
        for index, name in enumerate(series):
            own = found[(found.column == column) & (found.series == name)].sort_values("x")
            if own.empty:
                continue
            colour = series_colour(index) if len(series) > 1 else COLOURS.get(column, INK)
            known = own.dropna(subset=["low", "high"])
            display.band(axis, known.x, known.low, known.high, colour)
            display.line(axis, own.x, own.value, colour)
            for one in own.itertuples() if len(own) <= _MOST_MARKS else ():
                display.dot(axis, one.value, one.x, colour, along="y")
            labels[display.short(name, 20)] = (own.value.iloc[-1], colour)
        if len(series) > 1 and column == columns[-1]:
            display.end_labels(axis, labels, gap=0.075)
        display.panel_title(axis, column, pad_pt=8)
    display.axis_name(axes[-1], spec.axis)
    display.above(axes[0], (0.0, 1.0), "axes fraction", -7, spec.values, ha="right")
    return figure
