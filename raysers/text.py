"""Pieces of Markdown that say what they are given, whatever that holds.

Names of files, corpora and speakers come from strangers: they may hold tables, links, HTML, control
characters or half a byte, and must read as text in every viewer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

#: What begins a construct somewhere in a line, bare addresses and mentions included.
_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~$@#]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LONGEST = 300


def visible(value: object) -> str:
    """The value with a space for every control, line end and stray byte."""
    return "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in str(value))


def one_line(value: object) -> str:
    """The value as a line of visible words."""
    return " ".join(visible(value).split())


def plain(value: object) -> str:
    """The value as text within a sentence, a heading or a table's cell; cut when very long."""
    text = one_line(value)
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return _SPECIAL.sub(lambda match: "\\" + match.group(), text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0) -> str:
    """A table of plain cells; its last `numbers` columns are flush right."""
    words = len(head) - numbers
    rule = ["---"] * words + ["---:"] * numbers
    lines = [[plain(name) for name in head], rule, *([plain(cell) for cell in r] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code that no run of backticks within can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
