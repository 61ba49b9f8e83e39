"""Rows of the metrics table, one value of one metric with its interval, and how they print.

The table is long, so that a report can pivot it as it likes; an undefined value is null. What is
printed, 100 columns wide, is a selection of it: three digits, no zero before the point, the 95 %
interval in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console

from raysers.evaluation.bootstrap import Draws
from raysers.evaluation.metrics import METRICS as CORRECTNESS
from raysers.evaluation.metrics import Floats, Integers
from raysers.evaluation.scores import Subset
from raysers.schemas import METRICS
from raysers.text import visible
from raysers.types import DIMENSIONS

NAN = math.nan
#: Where the metrics table of an output is.
METRICS_PART = "metrics/part-00000.parquet"
#: Dimension of emotion categories, and their metrics in the order of their rows.
EMOTION = "emotion"
CATEGORY_METRICS = ("uar", "uar_known", "macro_f1", "accuracy", "ece")
#: Metric of the intervals that a model states.
COVERAGE = "coverage_90"
WIDTH, _MOST_GROUPS = 100, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One value; see `schemas.METRICS` for the meaning of the fields. NaN: undefined."""

    model: str
    dataset: str
    split: str
    group: str = ""
    group_value: str = ""
    dimension: str
    metric: str
    value: float
    ci_low: float = NAN
    ci_high: float = NAN
    n: int
    speakers: int = 0
    trained_on: int = 0
    paper: float = NAN


def dimension_rows(
    cell: Subset,
    model: str,
    metric: str,
    value: Floats,
    n: Integers,
    bounds: tuple[Floats, Floats] | None = None,
    *,
    speakers: Integers | None = None,
    dimensions: Sequence[str] = DIMENSIONS,
) -> Iterator[Row]:
    """A row for every dimension there are clips for; all arrays are [dimensions]."""
    count = len(dimensions)
    low, high = bounds or (np.full(count, NAN), np.full(count, NAN))
    known = np.zeros(count, np.int64) if speakers is None else speakers
    for d, dimension in enumerate(dimensions):
        if n[d]:
            yield Row(
                model=model,
                dataset=cell.dataset,
                split=cell.split,
                group=cell.group,
                group_value=cell.group_value,
                dimension=dimension,
                metric=metric,
                value=float(value[d]),
                ci_low=float(low[d]),
                ci_high=float(high[d]),
                n=int(n[d]),
                speakers=int(known[d]),
            )


def drawn_rows(
    cell: Subset, model: str, metric: str, drawn: Draws, n: Integers, speakers: Integers
) -> Iterator[Row]:
    """`dimension_rows` of figures with their draws."""
    return dimension_rows(cell, model, metric, drawn.value, n, drawn.interval(), speakers=speakers)


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a data frame with the columns of the metrics table; NaN: undefined."""
    names = [field.name for field in fields(Row)]
    return pd.DataFrame({name: [getattr(row, name) for row in rows] for name in names})


def to_table(rows: Sequence[Row], run_id: str) -> pa.Table:
    """The rows as a table of `schemas.METRICS`, in the order they are in."""
    frame = to_frame(rows).assign(run_id=run_id)
    return pa.Table.from_pandas(frame[METRICS.names], METRICS, preserve_index=False)


class _Section(NamedTuple):
    """A printed table: its title, and the metrics (or dimensions) that are its columns."""

    title: str
    metric: str
    columns: Sequence[str] = (*DIMENSIONS, "mean")


_SECTIONS = (
    _Section("CCC (-1..1, 1 is best)", "ccc"),
    _Section("Pearson correlation (-1..1)", "pearson"),
    _Section("mean absolute error (0 is best)", "mae"),
    _Section("labels within the model's 90 % intervals (share, .9 is right)", COVERAGE),
    _Section("sex fairness score: CCC of women - CCC of men", "sex_fairness_score"),
    _Section("sex fairness bias: shift of women's values - of men's", "sex_fairness_bias"),
    _Section("CCC lost against the home corpus (share)", "ccc_drop"),
    _Section("difference in CCC, paired draws (share of draws above 0)", "ccc_difference"),
    _Section("rank correlation of speakers between models (Spearman)", "speaker_spearman"),
    _Section(
        "emotion categories (0..1, 1 is best; calibration error ece: 0 is best)",
        "",
        ("uar", "macro_f1", "accuracy", "ece"),
    ),
    _Section(
        "unweighted average recall over the categories that the model knows", "", ("uar_known",)
    ),
)
_SPEAKERS = "CCC per speaker: lowest / median / highest mean (largest deviation over the draws)"
#: Metrics of groups of clips, and those of them that are printed.
_OF_GROUPS = {*CORRECTNESS, *CATEGORY_METRICS, COVERAGE}
_PRINTED_OF_GROUPS = {"ccc", *CATEGORY_METRICS}
_Lines = list[tuple[str, Mapping[str, str], str]]  # name, cells, style


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
    if not rows:
        return
    console = console or report_console()
    frame = to_frame(rows)
    above = frame[frame["metric"] == "ccc_difference_above_0"]
    key = ["model", "dataset", "split", "group_value", "dimension"]
    shares = above.set_index(key)["value"].to_dict()
    short = short_names([*frame["model"], *frame["group_value"][frame["group"] == "model"]])
    texts = [
        _texts(row, short, shares.get(tuple(getattr(row, name) for name in key), NAN))
        for row in frame.itertuples()
    ]
    frame[["head", "label", "cell"]] = texts
    for title, metric, columns in _SECTIONS:
        by = "dimension" if metric else "metric"
        own = frame[frame["metric"].eq(metric) if metric else frame["dimension"].eq(EMOTION)]
        part = ~own["group"].isin(("", "model", "dataset")) & own["metric"].isin(_OF_GROUPS)
        printed = part & own["metric"].isin(_PRINTED_OF_GROUPS)
        heads = own["head"][printed].drop_duplicates()
        own = pd.concat([own[~part], own[printed & own["head"].isin(heads[:_MOST_GROUPS])]])
        # the mean over dimensions is a table by itself
        for some in ((*DIMENSIONS,), ("mean",)) if metric else (columns,):
            _print_lines(console, title, some, list(_lines(own[own[by].isin(some)], by)))
        if len(heads) > _MOST_GROUPS:
            left = len(heads) - _MOST_GROUPS
            console.print(f"{left:,} more groups are in the table on disk\n", style="dim")
    speakers = frame[frame["metric"].str.startswith("speaker_ccc")]
    _print_lines(console, _SPEAKERS, DIMENSIONS, list(_speaker_lines(speakers)))


def _texts(row: Any, short: Mapping[str, str], share: float) -> tuple[str, str, str]:
    """Head, label and cell that a value is printed by; `share` of the draws is above 0."""
    head, label = f"{row.dataset} {row.split}".strip(), short[row.model]
    if row.group == "model":
        sign = "-" if row.metric.endswith("difference") else "and"
        label = f"{label} {sign} {short[row.group_value]}"
    elif row.group == "dataset":
        head = f"{row.group_value} -> {head}"
    elif row.group and not row.metric.startswith("sex_fairness"):
        head = f"{head}, {row.group} {row.group_value}"
    if row.trained_on:
        label += f" (trained on {row.trained_on:,} of these clips)"
    cell = number(row.value)
    if not math.isnan(row.ci_low):
        cell += f" [{number(row.ci_low)}, {number(row.ci_high)}]"
    if row.metric == "ccc_difference" and not math.isnan(share):
        cell += f" {share:.0%}"
    return head, label, cell


def _lines(rows: pd.DataFrame, by: str) -> Iterator[tuple[str, Mapping[str, str], str]]:
    for head, block in rows.groupby("head", sort=False):
        most = block.loc[block["n"].idxmax()]
        is_rank = most["metric"] == "speaker_spearman"
        counted = f"{most['n']:,} {'speakers' if is_rank else 'clips'}"
        counted += f", {most['speakers']:,} speakers" if most["speakers"] else ""
        yield f"{head} ({counted})", {}, "bold"
        for label, line in block.groupby("label", sort=False):
            yield f"  {label}", dict(zip(line[by], line["cell"], strict=True)), ""
            papers = line.dropna(subset="paper")
            if len(papers):
                cells = dict(zip(papers[by], map(number, papers["paper"]), strict=True))
                yield "    the paper", cells, "cyan"


def _print_lines(console: Console, title: str, columns: Sequence[str], lines: _Lines) -> None:
    """Lines under one another; a name too long for its values gets a separate line."""
    if not lines:
        return
    used = [name for name in columns if any(name in cells for _, cells, _ in lines)]
    widths = {n: max(len(n), *(len(cells.get(n, "")) for _, cells, _ in lines)) for n in used}
    most = WIDTH - sum(width + 2 for width in widths.values())
    first = min(most, max((len(name) for name, cells, _ in lines if cells), default=0))
    console.print(title, style="italic")
    for name, cells, style in (("", {name: name for name in used}, "dim"), *lines):
        is_long = bool(cells) and len(name) > first
        if is_long:
            console.print(name, style=style, soft_wrap=True)
        text = "".join(f"  {cells.get(n, ''):<{width}}" for n, width in widths.items())
        text = f"{'' if is_long else name:<{first}}{text}".rstrip()
        console.print(text, style=style, soft_wrap=True)
    console.print()


def _speaker_lines(rows: pd.DataFrame) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Per model and dimension: lowest, middle and highest mean CCC, and the largest deviation."""
    for (dataset, split), block in rows.groupby(["dataset", "split"], sort=False):
        yield f"{dataset} {split} ({block['group_value'].nunique():,} speakers)", {}, "bold"
        known = block.dropna(subset="value")
        means = known[known["metric"] == "speaker_ccc"].groupby(["label", "dimension"], sort=False)
        most = known[known["metric"] == "speaker_ccc_sd"].groupby(["label", "dimension"])["value"]
        lines: dict[str, dict[str, str]] = {}
        for (label, dimension), value in means["value"]:
            low, middle, high = map(number, value.quantile([0, 0.5, 1]))
            largest = number(most.get_group((label, dimension)).max())
            lines.setdefault(label, {})[dimension] = f"{low} / {middle} / {high} ({largest})"
        yield from ((f"  {label}", cells, "") for label, cells in lines.items())


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
