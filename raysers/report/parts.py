"""What a report is made of: exhibits with charts, the tables behind them, and what is missing.

Every chart carries the table it was drawn from; a reader who cannot see the one reads the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from raysers.plotting import Picture
from raysers.report.html import Html

#: A cell of a table: text from the data, a number, or markup of our own.
Cell = str | int | float | Html | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of a page.

    Attributes:
        caption: what it holds.
        columns: their heads.
        rows: cells; the first of a row names it.
        left_out: rows there would have been beyond these.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture with its text alternative and the table it was drawn from.

    Attributes:
        key: name of its files, unique on the page.
        title: above it; empty when the exhibit's says it all.
        alt: what it shows, in words.
        picture: as it is saved, and shown on wide screens and on paper.
        grid: its numbers.
        narrow: the same for narrow screens; empty: the wide one is shown there too.
    """

    key: str
    title: str
    alt: str
    picture: Picture
    grid: Grid
    narrow: Picture = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What the paper says: a claim, its value as printed, and the section."""

    claim: str
    value: str
    section: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A figure or table of the paper, or one of our own.

    Attributes:
        key: its anchor, `figure-2`.
        name: as the paper numbers it, `Figure 2`; empty for our own.
        title: what it is about.
        lead: how to read it.
        charts: pictures.
        grids: tables that stand by themselves.
        notes: what a reader must know, from the runs.
        facts: the paper's numbers, for orientation.
    """

    key: str
    name: str
    title: str
    lead: str = ""
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    facts: Sequence[Fact] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A figure or table the given runs have no data for, and the command that makes it."""

    name: str
    title: str
    why: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A chapter of the page."""

    key: str
    title: str
    lead: str = ""
    exhibits: Sequence[Exhibit] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A figure worth seeing first."""

    label: str
    value: str
    note: str = ""


def shown(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where undefined.

    >>> shown(0.12345), shown(-0.0001), shown(float("nan"))
    ('0.123', '0.000', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def with_bounds(value: float, low: float, high: float, digits: int = 3) -> str:
    """`0.635 [0.601, 0.668]`, without bounds where there are none."""
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return shown(value, digits)
    return f"{shown(value, digits)} [{shown(low, digits)}, {shown(high, digits)}]"


def last_part(path: str) -> str:
    """The last name of a path or URI."""
    return path.rstrip("/").rpartition("/")[2] or path
