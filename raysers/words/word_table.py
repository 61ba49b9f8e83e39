"""Word error rates as a table to read in a terminal.

Names come from manifests, so nothing is printed as it is: control characters and marks of direction
become blanks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from raysers.evaluation.rows import Row
from raysers.evaluation.tables import report_console
from raysers.text import one_line

_MOST_LINES = 24
_HEADS = ("clips", "words", "WER", "CER", "substituted", "deleted", "inserted")


def print_word_errors(rows: Sequence[Row], console: Console | None = None) -> None:
    """A line for every cell: rates in percent, with 95 % intervals where there are some."""
    console = console or report_console()
    table = Table(title="word and character errors", title_justify="left", box=None, pad_edge=False)
    table.add_column("", overflow="fold", max_width=32)
    for head in _HEADS:
        table.add_column(head, justify="right")
    cells = [list(group) for _, group in groupby(rows, key=_cell)]
    for cell in cells[:_MOST_LINES]:
        table.add_row(_name(cell[0]), f"{cell[0].n:,}", *_figures(cell))
    console.print(table)
    if len(cells) > _MOST_LINES:
        console.print(f"{len(cells) - _MOST_LINES:,} more groups are on disk", style="dim")


def _cell(row: Row) -> tuple[str, str, str, str]:
    return row.dataset, row.split, row.group, row.group_value


def _name(row: Row) -> str:
    split = "" if row.split == "all" else row.split
    group = f"{row.group} {row.group_value}" if row.group else ""
    return one_line(" ".join(filter(None, (row.dataset, split, group))))


def _figures(cell: Iterable[Row]) -> list[str]:
    by_metric = {row.metric: row for row in cell}
    rates = [by_metric[name] for name in ("wer", "cer")]
    parts = [by_metric[name] for name in ("substitutions", "deletions", "insertions")]
    return [
        f"{by_metric['words'].value:,.0f}",
        *(_percent(row.value) + _interval(row) for row in rates),
        *(_percent(row.value) for row in parts),
    ]


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"


def _interval(row: Row) -> str:
    if row.ci_low != row.ci_low:
        return ""
    return f" [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]"
