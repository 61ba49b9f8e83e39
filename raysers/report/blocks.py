"""Chapters, exhibits, figures and tables as markup.

A table's first cell heads its row, and every wide table scrolls within itself, reachable by
keyboard: the page never scrolls sideways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from raysers.report.html import Child, Html, element, foreign, joined, text
from raysers.report.parts import Cell, Chart, Exhibit, Fact, Grid, Section
from raysers.report.svg import Styles, inline

#: A cell that is a number, with its unit, bounds, or several of them.
_NUMBER = re.compile(r"[\N{MINUS SIGN}-]?\d[\d.,:]*( ?%| (h|s|min|M))?( \[.*\])?( / .*)?|–")
_SHORT_CELL, _LONG_WORD = 20, 28


def section_block(section: Section, styles: Styles) -> Html:
    """A chapter with its exhibits."""
    return element(
        "section",
        element("h2", section.title, id=f"{section.key}-title"),
        element("p", section.lead, class_="lead") if section.lead else None,
        [_exhibit(exhibit, styles) for exhibit in section.exhibits],
        id=section.key,
        aria_labelledby=f"{section.key}-title",
    )


def _exhibit(exhibit: Exhibit, styles: Styles) -> Html:
    number = element("span", exhibit.name, class_="no") if exhibit.name else None
    return element(
        "section",
        element("h3", number, " " if number else None, exhibit.title, id=f"{exhibit.key}-title"),
        element("p", exhibit.lead, class_="lead") if exhibit.lead else None,
        [_grid(grid) for grid in exhibit.grids],
        [_chart(chart, styles) for chart in exhibit.charts],
        _notes(exhibit.notes),
        _facts(exhibit.facts),
        id=exhibit.key,
        aria_labelledby=f"{exhibit.key}-title",
    )


def _notes(notes: Sequence[str]) -> Html | None:
    if not notes:
        return None
    return element("ul", [element("li", foreign(note)) for note in notes], class_="notes")


def _facts(facts: Sequence[Fact]) -> Html | None:
    if not facts:
        return None
    grid = Grid(
        caption="The paper, for orientation: its own models, data and splits",
        columns=("claim", "value", "section"),
        rows=[(fact.claim, fact.value, fact.section) for fact in facts],
    )
    return element("div", _grid(grid), class_="aside")


def _chart(chart: Chart, styles: Styles) -> Html:
    drawings = [element("div", inline(chart.picture["svg"], chart.key, styles), class_="wide")]
    if chart.narrow:
        small = inline(chart.narrow["svg"], f"{chart.key}-narrow", styles)
        drawings.append(element("div", small, class_="narrow"))
    picture = element("div", drawings, class_="drawing", role="img", aria_label=chart.alt)
    if not chart.narrow:  # scrolls on a narrow screen, by keyboard too
        picture = element(
            "div",
            picture,
            class_="scroll",
            tabindex="0",
            role="group",
            aria_label="Picture, may be wider than the screen",
        )
    return element(
        "figure",
        element("h4", chart.title) if chart.title else None,
        picture,
        element("details", element("summary", *_summary(chart)), _grid(chart.grid)),
    )


def _summary(chart: Chart) -> Iterator[Child]:
    yield "Numbers"
    if chart.title:
        yield joined(": ", foreign(chart.title))


def _grid(grid: Grid) -> Html:
    numeric = [_is_numeric(grid, i) for i in range(len(grid.columns))]
    head = [
        element("th", name, scope="col", class_="number" if right else None)
        for name, right in zip(grid.columns, numeric, strict=True)
    ]
    rows = [element("tr", list(_cells(row, numeric))) for row in grid.rows]
    caption = grid.caption
    if grid.left_out:
        caption += f" ({grid.left_out:,} more rows are in the runs' tables)"
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        element("tbody", rows),
    )
    return element(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label=grid.caption
    )


def _cells(row: Sequence[Cell], numeric: Sequence[bool]) -> Iterator[Html]:
    for place, (cell, right) in enumerate(zip(row, numeric, strict=True)):
        content = _content(cell)
        kind = "number" if right else _width(cell)
        if place == 0:
            yield element("th", content, scope="row", class_=kind)
        else:
            yield element("td", content, class_=kind)


def _width(cell: Cell) -> str | None:
    """Few words stay on a line; a word without end may be broken, to keep to its column."""
    if not isinstance(cell, str) or isinstance(cell, Html):
        return None
    if len(cell) <= _SHORT_CELL:
        return "short"
    return "long" if any(len(word) > _LONG_WORD for word in cell.split()) else None


def _content(cell: Cell) -> Child:
    if cell is None:
        return "–"
    if isinstance(cell, Html):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return foreign(cell) if isinstance(cell, str) else text(f"{cell:,.3g}")


def _is_numeric(grid: Grid, place: int) -> bool:
    cells = [row[place] for row in grid.rows]
    return place > 0 and bool(cells) and all(map(_looks_numeric, cells))


def _looks_numeric(cell: Cell) -> bool:
    return not isinstance(cell, str) or bool(_NUMBER.fullmatch(cell))
