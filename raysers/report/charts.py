"""From numbers to charts: the picture in both widths, what it says in words, the table behind it.

A table holds every number, the picture at most so many rows; where it shows a selection, its
table's caption says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.report.dots import DotStyle, dot_chart
from raysers.report.lines import LineStyle, line_chart
from raysers.report.numbers import Dot, Point, blocks
from raysers.report.parts import Cell, Chart, Grid, shown, with_bounds

#: Rows of a panel, and of a table of a page.
MOST_ROWS, MOST_CELLS = 24, 400
#: Marks in a row of a picture.
MOST_SERIES = 4


def dots_chart(
    key: str, title: str, dots: Sequence[Dot], how: DotStyle, *, row: str, series: str = ""
) -> Chart | None:
    """A dot chart with its table; None without a value.

    Args:
        key: of the chart.
        title: above it.
        dots: all of them.
        how: drawn.
        row: what a row is, in the table's head.
        series: what a series is.
    """
    drawn, selection = selected(dots)
    picture = dot_chart(drawn, how)
    if not picture:
        return None
    return Chart(
        key=key,
        title=title,
        alt=_dots_in_words(drawn, how.axis),
        picture=picture,
        grid=dots_grid(f"{how.axis}{selection}", dots, row=row, series=series),
        narrow=dot_chart(drawn, how, narrow=True),
    )


def selected(dots: Sequence[Dot]) -> tuple[list[Dot], str]:
    """What fits into a picture: the first and last rows of a block, the first few series."""
    kept: list[Dot] = []
    series = list(dict.fromkeys(d.series for d in dots))
    left_out = series[MOST_SERIES:]
    cut = False
    for _, mine in blocks(dots):
        rows = list(dict.fromkeys(d.row for d in mine))
        half = MOST_ROWS // 2
        few = set(rows if len(rows) <= MOST_ROWS else rows[:half] + rows[-half:])
        cut = cut or len(few) < len(rows)
        kept += [d for d in mine if d.row in few and d.series not in left_out]
    said = []
    if cut:
        said.append(f"the picture shows the first and last {MOST_ROWS // 2} rows")
    if left_out:
        said.append(f"the picture shows the first {MOST_SERIES} of {len(series)}")
    return kept, f" ({'; '.join(said)})" if said else ""


def dots_grid(caption: str, dots: Sequence[Dot], *, row: str, series: str = "") -> Grid:
    """One line per block, row and series; a column per dimension, with intervals."""
    columns = list(dict.fromkeys(d.column for d in dots))
    papers = any(not math.isnan(d.paper) for d in dots)
    several = any(d.series for d in dots)
    lines: dict[tuple[str, str, str], dict[str, Dot]] = {}
    for d in dots:
        lines.setdefault((d.block, d.row, d.series), {})[d.column] = d
    rows: list[list[Cell]] = []
    for (block, name, own), found in lines.items():
        cells: list[Cell] = [name, *([own] if several else []), block]
        cells += [_bounded(found.get(c)) for c in columns]
        cells += [_papers(found, columns)] if papers else []
        rows.append([*cells, max(d.n for d in found.values())])
    head = [row, *([series or "of"] if several else []), "data", *(f"{c} [95 %]" for c in columns)]
    head += ["the paper"] if papers else []
    return _grid(caption, [*head, "n"], rows)


def points_chart(
    key: str, title: str, points: Sequence[Point], how: LineStyle, *, bounds: str
) -> Chart | None:
    """A line chart with its table; None without a value.

    Args:
        key: of the chart.
        title: above it.
        points: all of them.
        how: drawn.
        bounds: what the interval of a point is, `95 %`.
    """
    picture = line_chart(points, how)
    if not picture:
        return None
    lines: dict[tuple[str, float], dict[str, Point]] = {}
    for p in points:
        lines.setdefault((p.series, p.x), {})[p.column] = p
    columns = list(dict.fromkeys(p.column for p in points))
    rows: list[list[Cell]] = [
        [series, how.tick(x), *(_point(found.get(c)) for c in columns)]
        for (series, x), found in lines.items()
    ]
    head = ["of", how.axis, *(f"{c} [{bounds}]" for c in columns)]
    return Chart(
        key=key,
        title=title,
        alt=_points_in_words(points, how),
        picture=picture,
        grid=_grid(f"{how.values} over {how.axis}", head, rows),
        narrow=line_chart(points, how, narrow=True),
    )


def _grid(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Grid:
    left = max(0, len(rows) - MOST_CELLS)
    return Grid(caption=caption, columns=columns, rows=rows[:MOST_CELLS], left_out=left)


def _bounded(d: Dot | None) -> Cell:
    return "–" if d is None else with_bounds(d.value, d.low, d.high)


def _point(p: Point | None) -> Cell:
    return "–" if p is None else with_bounds(p.value, p.low, p.high)


def _papers(found: dict[str, Dot], columns: Sequence[str]) -> Cell:
    there = [shown(found[c].paper) if c in found else "–" for c in columns]
    return "–" if set(there) == {"–"} else " / ".join(there)


def _dots_in_words(dots: Sequence[Dot], axis: str) -> str:
    """Per panel, the rows with the highest and the lowest value."""
    said = [f"Dot chart of {axis}."]
    for block, mine in blocks(d for d in dots if d.row != RANDOM and not math.isnan(d.value)):
        for column in dict.fromkeys(d.column for d in mine):
            own = [d for d in mine if d.column == column]
            best, worst = max(own, key=lambda d: d.value), min(own, key=lambda d: d.value)
            place = f"{block}, {column}: " if block else f"{column}: "
            said.append(f"{place}highest {_of(best)}, lowest {_of(worst)}.")
    return " ".join([*said, "All values are in the table below."])


def _of(d: Dot) -> str:
    return f"{' '.join(filter(None, (d.row, d.series)))} with {shown(d.value, 2)}"


def _points_in_words(points: Sequence[Point], how: LineStyle) -> str:
    said = [f"Line chart of {how.values} over {how.axis}."]
    for column in dict.fromkeys(p.column for p in points):
        for series in dict.fromkeys(p.series for p in points):
            own = sorted(
                (p for p in points if (p.column, p.series) == (column, series)), key=lambda p: p.x
            )
            if own:
                first, last = own[0], own[-1]
                said.append(
                    f"{column}, {series}: {shown(first.value, 2)} at {how.tick(first.x)}, "
                    f"{shown(last.value, 2)} at {how.tick(last.x)}."
                )
    return " ".join([*said, "All values are in the table below."])
