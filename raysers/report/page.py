"""The page: exhibits as data, and one template that escapes whatever it shows.

The page works from a disk, without a network, on paper, in light and dark. It allows itself only
its own style sheet and script, named by their hashes, and pictures and audio beside it: markup that
slipped through could load and run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raysers.display import Picture, printable

#: A cell of a table: text from the data, or a number.
Cell = str | int | float | None
MOST_ROWS = 400
#: A cell that is a number, with its unit, bounds, or several of them.
_NUMBER = re.compile(
    r"[\N{MINUS SIGN}-]?\d[\d.,:]*( ?%| (h|s|min|M|dB))?( \[.*\])?( / .*)?|\N{EN DASH}"
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page; the first cell of a row names it.

    Attributes:
        numeric: which columns hold numbers only.
        left_out: rows that are not shown.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    left_out: int


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table of at most `MOST_ROWS` rows."""

    def is_number(cell: Cell) -> bool:
        return not isinstance(cell, str) or _NUMBER.fullmatch(cell) is not None

    kept = rows[:MOST_ROWS]
    cells = list(zip(*kept, strict=True)) or [()] * len(columns)
    numeric = [bool(own) and i > 0 and all(map(is_number, own)) for i, own in enumerate(cells)]
    return Table(caption, columns, kept, numeric, max(0, len(rows) - MOST_ROWS))


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
    """A figure or table of the paper (`name`), or one of ours.

    Attributes:
        key: its anchor, `figure-2`.
        lead: how to read it.
        notes: what a reader must know, from the runs.
        clips: rows of a table of clips to listen to, see `listen`.
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


def page(**content: Any) -> str:
    """The document; see `report.html.j2` for the content.

    Text from the data is escaped, and a character that is no text gets a visible mark.
    """
    sheet, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(sheet)}'; script-src '{_hash(script)}'; "
        "img-src data:; media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    made = {"policy": policy, "sheet": Markup(sheet), "script": Markup(script)}
    return _environment().get_template("report.html.j2").render(made | content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("raysers", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters |= {"cell": _cell, "data_uri": _data_uri}
    return environment


def _safe(value: object) -> object:
    return value if isinstance(value, Markup) else printable(str(value))


def _cell(value: Cell) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:,.3g}"


def _data_uri(picture: Picture) -> str:
    """Shown as an image, where an SVG can neither run nor load anything."""
    kind = "svg" if "svg" in picture else "png"
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(picture[kind]).decode()}"


def _asset(name: str) -> str:
    return resources.files("raysers").joinpath(f"assets/report/{name}").read_text("utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def shown(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where undefined.

    >>> shown(0.12345), shown(-0.0001), shown(float("nan"))
    ('0.123', '0.000', '–')
    """
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    text = f"{value:,.{digits}f}"
    sign = "\N{MINUS SIGN}" if float(text.replace(",", "")) else ""
    return text.replace("-", sign)


def with_bounds(mark: Mapping[str, Any]) -> str:
    """A mark of a chart as `0.635 [0.601, 0.668]`, without bounds where there are none."""
    value, low, high = (mark[name] for name in ("value", "low", "high"))
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return shown(value)
    return f"{shown(value)} [{shown(low)}, {shown(high)}]"


def last_part(path: str) -> str:
    """The last name of a path or URI."""
    return path.rstrip("/").rpartition("/")[2] or path
