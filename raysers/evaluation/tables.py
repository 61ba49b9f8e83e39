"""The metrics as tables to read in a terminal, 100 columns wide.

What is printed is a selection: every value is a row of the metrics table. Three digits, no zero
before the point, the 95 % interval in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from rich.console import Console
from rich.table import Table

from raysers.evaluation.categories import CATEGORY_METRICS, EMOTION
from raysers.evaluation.correctness import COVERAGE
from raysers.evaluation.join import Coverage
from raysers.evaluation.metrics import METRICS
from raysers.evaluation.rows import Row, to_frame
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
    if not rows:
        return
    frame = _worded(to_frame(rows))
    for section in _SECTIONS:
        chosen, left = _chosen(frame[frame["metric"] == section.metric])
        for columns in _COLUMNS:
            lines = _lines(chosen[chosen["dimension"].isin(columns)])
            _print_lines(console, section.title, columns, list(lines))
        _print_left(console, left)
    chosen, left = _chosen(frame[frame["dimension"] == EMOTION])
    for title, columns in _CATEGORIES:
        _print_lines(console, title, columns, list(_lines(chosen[chosen["metric"].isin(columns)])))
    _print_left(console, left)
    speakers = frame[frame["metric"].str.startswith("speaker_ccc")]
    _print_lines(console, _SPEAKERS, DIMENSIONS, list(_speaker_lines(speakers)))


def _worded(frame: pd.DataFrame) -> pd.DataFrame:
    """The metrics with the texts they are printed by: head, label, column and cell."""
    paired = frame["group"] == "model"
    names = short_names([*frame["model"], *frame["group_value"][paired]])
    above = frame[frame["metric"] == "ccc_difference_above_0"]
    key = ["model", "dataset", "split", "group", "group_value", "dimension"]
    shares = above.set_index(key)["value"].to_dict()
    texts = []
    for row in frame.itertuples():
        place = " ".join(filter(None, (row.dataset, row.split)))
        head = f"{place}, {row.group} {row.group_value}"
        if row.group in ("", "model") or row.metric.startswith("sex_fairness"):
            head = place
        elif row.group == "dataset":
            head = f"{row.group_value} -> {place}"
        label = names[row.model]
        if row.group == "model":
            sign = "-" if row.metric.endswith("difference") else "and"
            label = f"{label} {sign} {names[row.group_value]}"
        if row.trained_on:
            label += f" (trained on {row.trained_on:,} of these clips)"
        cell = number(row.value)
        if not math.isnan(row.ci_low):
            cell += f" [{number(row.ci_low)}, {number(row.ci_high)}]"
        share = shares.get(tuple(getattr(row, name) for name in key), math.nan)
        if row.metric == "ccc_difference" and not math.isnan(share):
            cell += f" {share:.0%}"
        column = row.metric if row.dimension == EMOTION else row.dimension
        texts.append((head, label, column, cell))
    columns = pd.DataFrame(texts, frame.index, ["head", "label", "column", "cell"])
    return frame.join(columns)


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


def _chosen(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows to print, and how many groups of clips are left for the table on disk."""
    part = ~rows["group"].isin(("", "model", "dataset")) & rows["metric"].isin(_OF_GROUPS)
    printed = part & rows["metric"].isin(_PRINTED_OF_GROUPS)
    heads = rows["head"][printed].drop_duplicates()
    shown = rows["head"].isin(heads[:_MOST_GROUPS])
    chosen = pd.concat([rows[~part], rows[printed & shown]])
    return chosen, max(len(heads) - _MOST_GROUPS, 0)


def _lines(rows: pd.DataFrame) -> Iterator[_Line]:
    for head, block in rows.groupby("head", sort=False):
        most = block.loc[block["n"].idxmax()]
        counted = f"{most['n']:,} clips"
        if most["metric"] == "speaker_spearman":
            counted = f"{most['n']:,} speakers"
        elif most["speakers"]:
            counted += f", {most['speakers']:,} speakers"
        yield _Line(f"{head} ({counted})", style="bold")
        for label, line in block.groupby("label", sort=False):
            yield _Line(f"  {label}", dict(zip(line["column"], line["cell"], strict=True)))
            papers = line.dropna(subset="paper")
            if len(papers):
                values = map(number, papers["paper"])
                cells = dict(zip(papers["dimension"], values, strict=True))
                yield _Line("    the paper", cells, style="cyan")


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


def _speaker_lines(rows: pd.DataFrame) -> Iterator[_Line]:
    """Per model and dimension: lowest, middle and highest mean CCC, and the largest deviation."""
    for (dataset, split), block in rows.groupby(["dataset", "split"], sort=False):
        speakers = block["group_value"].nunique()
        yield _Line(f"{dataset} {split} ({speakers:,} speakers)", style="bold")
        for label, mine in block.dropna(subset="value").groupby("label", sort=False):
            cells = {str(d): _spread(line) for d, line in mine.groupby("dimension", sort=False)}
            yield _Line(f"  {label}", cells)


def _spread(rows: pd.DataFrame) -> str:
    means, deviations = (
        rows["value"][rows["metric"] == name] for name in ("speaker_ccc", "speaker_ccc_sd")
    )
    low, middle, high, most = means.min(), means.median(), means.max(), deviations.max()
    return f"{number(low)} / {number(middle)} / {number(high)} ({number(most)})"
