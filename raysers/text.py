"""Untrusted text made safe to show: in Markdown, figures, pages and messages.

Names of files, corpora and speakers may hold tables, links, HTML, control characters or half a
byte, and must read as text in every viewer.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

#: What begins a construct somewhere in a line, bare addresses and mentions included.
_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~$@#]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LONGEST = 300
_NAMED = 3
#: Shown for a character that cannot be.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Characters that are no text: controls, half characters, and those no document may hold.
_NO_TEXT = frozenset({"Cc", "Cs", "Cn"})


def visible(value: object) -> str:
    """The value with a space for every control, line end and stray byte."""
    return "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in str(value))


def one_line(value: object) -> str:
    """The value as one visible line."""
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


def printable(text: str) -> str:
    r"""The text with a visible mark for every character that is none; line ends and tabs stay.

    >>> printable("s\x1b1"), printable("a\ud800b"), printable("two\nlines")
    ('s�1', 'a�b', 'two\nlines')
    """
    return "".join(
        REPLACEMENT if unicodedata.category(c) in _NO_TEXT and c not in "\n\t" else c for c in text
    )


def some(names: Iterable[str]) -> str:
    """How many names there are and the first few of them, for a note.

    >>> some(["d", "b", "a", "c"])
    '4 (a, b, c, ...)'
    """
    found = sorted(names)
    more = ", ..." if len(found) > _NAMED else ""
    return f"{len(found):,} ({', '.join(found[:_NAMED])}{more})"


_EXTRA = re.compile(r"pip install '?raysers\[(\w+)\]'?")


def with_packages(message: str) -> str:
    """The message with `pip install 'raysers[EXTRA]'` as pip can do it.

    In a clone that is the clone's path; elsewhere the packages of the extra themselves.
    """

    def install(advice: re.Match[str]) -> str:
        clone = Path(__file__).parents[1]
        if (clone / "pyproject.toml").is_file():
            return f"pip install {shlex.quote(f'{clone}[{advice[1]}]')}"
        mark = re.compile(rf"\s*;\s*extra == ['\"]{advice[1]}['\"]$")
        lines = metadata.requires("raysers") or []
        return (
            f"pip install {shlex.join(mark.sub('', line) for line in lines if mark.search(line))}"
        )

    return _EXTRA.sub(install, message)
