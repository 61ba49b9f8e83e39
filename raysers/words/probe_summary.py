"""What the probe found, as tables to read in a terminal (Wagner et al. 2022, section 5.3).

What is printed is a selection: every value is a row of the metrics table or of the words table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from raysers.evaluation.rows import Row
from raysers.evaluation.tables import number, report_console
from raysers.types import DIMENSIONS
from raysers.words.probe_numbers import ser_tests_shift
from raysers.words.respoken import AGREEMENT, GROUP, ORIGINAL, RESPOKEN

_WORDS = 10
_SHIFTS = ("positive - neutral", "negative - neutral", "positive - negative")
_AGAINST_ALL = ("positive - all", "neutral - all", "negative - all")


def print_probe(
    rows: Sequence[Row], words: pa.Table | None = None, console: Console | None = None
) -> None:
    """Words of both sides, shifts by sentiment beside ser-tests', and what re-speaking leaves.

    Args:
        rows: of the three parts, in any order; a part without rows is not printed.
        words: rated words, a table of `probe_words.WORDS`.
        console: where to; the report's by default.
    """
    console = console or report_console()
    if words is not None and len(words):
        _print(console, "words by mean valence (occurrences)", _word_table(words))
    for model in dict.fromkeys(row.model for row in rows if row.group in ("sentiment", "text")):
        mine = [row for row in rows if row.model == model]
        title = f"{model}: scores by sentiment of the words [95 %]"
        _print(console, title, _sentiment_table(mine))
        _print(console, "the paper's sentences", _sentence_table(mine))
        _print(console, "shift of the mean against all sentences", _against_all_table(mine, model))
    for cell in dict.fromkeys((row.dataset, row.split) for row in rows if row.group == GROUP):
        here = [row for row in rows if (row.dataset, row.split) == cell and row.group == GROUP]
        _print(console, f"{' '.join(cell)}, re-spoken: CCC [95 %]", _ccc_table(here))


def reading_notes(rows: Sequence[Row]) -> Iterator[str]:
    """What a reader should know of the figures, and of those beside ours."""
    groups = {row.group for row in rows}
    if "word" in groups:
        yield "words: a word counts as often as it is said; intervals draw speakers"
    if "sentiment" in groups:
        yield "sentiment: intervals draw words, and templates and voices where there are several"
        yield "ser-tests: English sentences in its voices, scores rounded to 2 decimals"
    if "text" in groups:
        yield "paper: its w2v2-L-robust with 24 layers and another synthetic voice"
    if GROUP in groups:
        yield "re-spoken: the labels are of the original speech, the voice is neutral"


def _print(console: Console, title: str, table: Table | None) -> None:
    if table is not None:
        console.print(title, style="italic")
        console.print(table)
        console.print()


def _word_table(words: pa.Table) -> Table | None:
    sides = {
        side: sorted((w for w in words.to_pylist() if w["side"] == side), key=_rank)[:_WORDS]
        for side in ("low", "high")
    }
    table = _table("lowest", "valence [95 %]", "highest", "valence [95 %]")
    for i in range(max(map(len, sides.values()))):
        cells = [part for found in sides.values() for part in _word_cells(found[i : i + 1])]
        table.add_row(*cells)
    return table if table.row_count else None


def _rank(word: dict[str, int]) -> int:
    return word["rank"]


def _word_cells(found: Sequence[dict[str, object]]) -> tuple[str, str]:
    if not found:
        return "", ""
    word = found[0]
    numbers = [math.nan if word[k] is None else word[k] for k in ("valence", "ci_low", "ci_high")]
    text = _bounded(*map(float, numbers))  # type: ignore[arg-type]
    return f"{word['word']} ({word['occurrences']:,})", text


def _sentiment_table(rows: Sequence[Row]) -> Table | None:
    return _by_dimension(rows, (("sentiment_mean", _MEANS), ("mean_shift", _SHIFTS)), "sentiment")


_MEANS = ("positive", "neutral", "negative")


def _by_dimension(
    rows: Sequence[Row], wanted: Sequence[tuple[str, Sequence[str]]], group: str
) -> Table | None:
    values = {(r.metric, r.group_value, r.dimension): r for r in rows if r.group == group}
    table = _table("", *DIMENSIONS)
    for metric, names in wanted:
        for name in names:
            cells = [values.get((metric, name, dimension)) for dimension in DIMENSIONS]
            if any(cells):
                table.add_row(name, *(_cell(row) for row in cells))
    return table if table.row_count else None


def _sentence_table(rows: Sequence[Row]) -> Table | None:
    table = _table("", "valence", "paper")
    for row in rows:
        if (row.metric, row.dimension) == ("sentence_score", "valence"):
            table.add_row(row.group_value, number(row.value), number(row.paper))
    return table if table.row_count else None


def _against_all_table(rows: Sequence[Row], model: str) -> Table | None:
    values = {(r.group_value, r.dimension): r for r in rows if r.metric == "mean_shift"}
    table = _table("", *(part for name in DIMENSIONS for part in (name, "ser-tests")))
    for shift in _AGAINST_ALL:
        cells = []
        for dimension in DIMENSIONS:
            row = values.get((shift, dimension))
            theirs = ser_tests_shift(shift.partition(" ")[0], dimension, model=model)
            cells += [number(row.value) if row else "-", number(theirs)]
        if any(values.get((shift, dimension)) for dimension in DIMENSIONS):
            table.add_row(shift, *cells)
    return table if table.row_count else None


def _ccc_table(rows: Sequence[Row]) -> Table | None:
    names = {
        ORIGINAL: "original, labels",
        RESPOKEN: "re-spoken, labels",
        AGREEMENT: "re-spoken, original",
    }
    values = {(r.model, r.group_value, r.dimension): r for r in rows if r.metric == "ccc"}
    table = _table("model", "CCC of", *DIMENSIONS)
    for model in dict.fromkeys(row.model for row in rows):
        for value, name in names.items():
            cells = [values.get((model, value, dimension)) for dimension in DIMENSIONS]
            if any(cells):
                table.add_row(model, name, *(_cell(row) for row in cells))
    return table if table.row_count else None


def _cell(row: Row | None) -> str:
    return "-" if row is None else _bounded(row.value, row.ci_low, row.ci_high)


def _bounded(value: float, low: float, high: float) -> str:
    bounds = "" if math.isnan(low) else f" [{number(low)}, {number(high)}]"
    return number(value) + bounds


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        left = i == 0 or head in ("highest", "CCC of")
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    return table
