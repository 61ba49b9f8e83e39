"""The metrics as tables to read in a terminal, 100 columns wide.

What is printed is a selection: every value is a row of the metrics table. Three digits, no zero
before the point, the 95 % interval in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.table import Table

from raysers.evaluation.categories import CATEGORY_METRICS, EMOTION
from raysers.evaluation.correctness import COVERAGE
from raysers.evaluation.join import Coverage
from raysers.evaluation.metrics import METRICS
from raysers.evaluation.rows import Row
from raysers.text import visible
from raysers.types import DIMENSIONS, Status

WIDTH = 100
_MOST_GROUPS = 12
_NAME_WIDTH = 36


@dataclass(frozen=True, slots=True)
class Section:
    """A table: its title, what the figures mean, and which metric it shows."""

    title: str
    metric: str


_SECTIONS = (
    Section("CCC (-1..1, 1 is best)", "ccc"),
    Section("Pearson correlation (-1..1)", "pearson"),
    Section("mean absolute error (0 is best)", "mae"),
    Section("labels within the model's 90 % intervals (share, .9 is right)", COVERAGE),
    Section("sex fairness score: CCC of women - CCC of men", "sex_fairness_score"),
    Section("sex fairness bias: shift of women's values - of men's", "sex_fairness_bias"),
    Section("CCC lost against the home corpus (share)", "ccc_drop"),
    Section("difference in CCC, paired draws (share of draws above 0)", "ccc_difference"),
    Section("rank correlation of speakers between models (Spearman)", "speaker_spearman"),
)

_SPEAKERS = "CCC per speaker: lowest / median / highest mean (largest deviation over the draws)"
#: Dimensions that stand beside each other.
_COLUMNS: Sequence[Sequence[str]] = (DIMENSIONS, ("mean",))
#: Tables of the emotion categories: title and metrics.
_CATEGORIES = (
    (
        "emotion categories (0..1, 1 is best; calibration error ece: 0 is best)",
        ("uar", "macro_f1", "accuracy", "ece"),
    ),
    ("unweighted average recall over the categories that the model knows", ("uar_known",)),
)
#: Metrics of groups of clips, and those of them that are printed.
_OF_GROUPS = {*METRICS, *CATEGORY_METRICS, COVERAGE}
_PRINTED_OF_GROUPS = {"ccc", *CATEGORY_METRICS}


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    cells: Mapping[str, str] = field(default_factory=dict)
    style: str = ""


def number(value: float) -> str:
    """Three digits without the zero before the point; a dash where undefined.

    >>> number(-0.0456), number(1.0), number(float("nan"))
    ('-.046', '1.000', '-')
    """
    if math.isnan(value):
        return "-"
    text = f"{value:.3f}"
    text = "0.000" if text == "-0.000" else text
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def print_metrics(rows: Sequence[Row], console: Console | None = None) -> None:
    """Every section that has rows; groups of clips are printed for CCC and categories only."""
    console = console or report_console()
    shares = {_key(r): r.value for r in rows if r.metric == "ccc_difference_above_0"}
    names = short_names([r.model for r in rows] + [r.group_value for r in rows if _pair(r)])
    for section in _SECTIONS:
        chosen, left = _chosen([row for row in rows if row.metric == section.metric])
        for columns in _COLUMNS:
            lines = _lines([row for row in chosen if row.dimension in columns], shares, names)
            _print_lines(console, section.title, columns, list(lines))
        _print_left(console, left)
    chosen, left = _chosen([row for row in rows if row.dimension == EMOTION])
    for title, columns in _CATEGORIES:
        lines = _lines([row for row in chosen if row.metric in columns], shares, names)
        _print_lines(console, title, columns, list(lines))
    _print_left(console, left)
    speakers = [row for row in rows if row.metric.startswith("speaker_ccc")]
    _print_lines(console, _SPEAKERS, DIMENSIONS, list(_speaker_lines(speakers, names)))


def _print_left(console: Console, groups: int) -> None:
    if groups:
        console.print(f"{groups:,} more groups are in the table on disk\n", style="dim")


def print_coverage(coverage: Mapping[str, Coverage]) -> None:
    """What became of every model's predictions."""
    table = Table(title="clips", title_justify="left", box=None, pad_edge=False)
    names = short_names(list(coverage))
    table.add_column("", overflow="fold", max_width=_NAME_WIDTH)
    for head in ("predicted", "with label", "scored", "failed", "no label", "not predicted"):
        table.add_column(head, justify="right")
    for model, found in coverage.items():
        joined, ok = sum(found.statuses.values()), found.statuses.get(Status.OK, 0)
        counts = (found.rows, joined, ok, joined - ok, found.unlabelled, found.unpredicted)
        style = "yellow" if joined > ok or found.unpredicted else None
        table.add_row(names[model], *(f"{count:,}" for count in counts), style=style)
    report_console().print(table)


def print_notes(notes: Sequence[str]) -> None:
    """One line each."""
    for note in notes:
        report_console().print(f"note: {visible(note)}", style="yellow")


def report_console() -> Console:
    """A console of the report's width; long names fold instead of being cut."""
    return Console(width=WIDTH, highlight=False, markup=False)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """By name, its last folder where that is still its own, else the whole name."""
    whole = list(dict.fromkeys(names))
    last = [name.rstrip("/").rpartition("/")[2] or name for name in whole]
    return {n: s if last.count(s) == 1 else n for n, s in zip(whole, last, strict=True)}


def _key(row: Row) -> tuple[str, ...]:
    return row.model, row.dataset, row.split, row.group, row.group_value, row.dimension


def _pair(row: Row) -> bool:
    return row.group == "model"


def _header(row: Row) -> str:
    place = " ".join(filter(None, (row.dataset, row.split)))
    if row.group in ("", "model") or row.metric.startswith("sex_fairness"):
        return place
    if row.group == "dataset":
        return f"{row.group_value} -> {place}"
    return f"{place}, {row.group} {row.group_value}"


def _chosen(rows: list[Row]) -> tuple[list[Row], int]:
    """The rows to print, and how many groups of clips are left for the table on disk."""
    whole = [row for row in rows if not _is_part(row)]
    parts = [row for row in rows if _is_part(row) and row.metric in _PRINTED_OF_GROUPS]
    heads = list(dict.fromkeys(map(_header, parts)))
    shown = set(heads[:_MOST_GROUPS])
    return [*whole, *(row for row in parts if _header(row) in shown)], len(heads) - len(shown)


def _is_part(row: Row) -> bool:
    """Whether the row is about a group of the clips of its split."""
    return row.group not in ("", "model", "dataset") and row.metric in _OF_GROUPS


def _lines(
    rows: Sequence[Row], shares: Mapping[tuple[str, ...], float], names: Mapping[str, str]
) -> Iterator[_Line]:
    for head, block in _blocks(rows, _header):
        counted = "speakers" if block[0].metric == "speaker_spearman" else "clips"
        yield _Line(f"{head} ({max(row.n for row in block):,} {counted})", style="bold")
        for label, line in _blocks(block, lambda row: _label(row, names)):
            yield _Line(f"  {label}", {_column(row): _cell(row, shares) for row in line})
            papers = {r.dimension: number(r.paper) for r in line if not math.isnan(r.paper)}
            if papers:
                yield _Line("    the paper", papers, style="cyan")


def _column(row: Row) -> str:
    return row.metric if row.dimension == EMOTION else row.dimension


def _print_lines(
    console: Console, title: str, columns: Sequence[str], lines: Sequence[_Line]
) -> None:
    """Lines under one another; a name too long for its values gets a separate line."""
    if not lines:
        return
    used = [name for name in columns if any(name in line.cells for line in lines)]
    widths = {n: max(len(n), *(len(line.cells.get(n, "")) for line in lines)) for n in used}
    most = WIDTH - sum(width + 2 for width in widths.values())
    first = min(most, max((len(line.name) for line in lines if line.cells), default=0))
    console.print(title, style="italic")
    heads = _Line("", {name: name for name in used}, style="dim")
    for line in (heads, *lines):
        name = line.name
        if line.cells and len(name) > first:
            console.print(name, style=line.style, soft_wrap=True)
            name = ""
        cells = "".join(f"  {line.cells.get(n, ''):<{width}}" for n, width in widths.items())
        console.print(f"{name:<{first}}{cells}".rstrip(), style=line.style, soft_wrap=True)
    console.print()


def _blocks(rows: Sequence[Row], key: Callable[[Row], str]) -> Iterator[tuple[str, list[Row]]]:
    """Rows by what `key` says of them, in the order in which they first appear."""
    order = {name: i for i, name in enumerate(dict.fromkeys(map(key, rows)))}
    for name, block in groupby(sorted(rows, key=lambda row: order[key(row)]), key=key):
        yield name, list(block)


def _label(row: Row, names: Mapping[str, str]) -> str:
    if not _pair(row):
        return names[row.model]
    sign = "-" if row.metric.endswith("difference") else "and"
    return f"{names[row.model]} {sign} {names[row.group_value]}"


def _cell(row: Row, shares: Mapping[tuple[str, ...], float]) -> str:
    text = number(row.value)
    if not math.isnan(row.ci_low):
        text += f" [{number(row.ci_low)}, {number(row.ci_high)}]"
    share = shares.get(_key(row)) if row.metric == "ccc_difference" else None
    return text if share is None or math.isnan(share) else f"{text} {share:.0%}"


def _speaker_lines(rows: Sequence[Row], names: Mapping[str, str]) -> Iterator[_Line]:
    """Per model and dimension: lowest, middle and highest mean CCC, and the largest deviation."""
    for head, block in _blocks(rows, lambda row: f"{row.dataset} {row.split}"):
        speakers = len({row.group_value for row in block})
        yield _Line(f"{head} ({speakers:,} speakers)", style="bold")
        for model, line in _blocks(block, lambda row: names[row.model]):
            spreads = {name: _spread(line, name) for name in DIMENSIONS}
            yield _Line(f"  {model}", {name: text for name, text in spreads.items() if text})


def _spread(rows: Sequence[Row], dimension: str) -> str:
    mine = [row for row in rows if row.dimension == dimension and not math.isnan(row.value)]
    means = [row.value for row in mine if row.metric == "speaker_ccc"]
    if not means:
        return ""
    sd = max(row.value for row in mine if row.metric == "speaker_ccc_sd")
    low, middle, high = min(means), float(np.median(means)), max(means)
    return f"{number(low)} / {number(middle)} / {number(high)} ({number(sd)})"
