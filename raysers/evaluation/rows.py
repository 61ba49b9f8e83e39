"""Rows of the metrics table, one value of one metric with its interval, and how they print.

The table is long, so that a report can pivot it as it likes; an undefined value is null. What is
printed, 100 columns wide, is a selection of it: three digits, no zero before the point, the 95 %
interval in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from raysers.display import model_names, visible
from raysers.evaluation.bootstrap import Draws
from raysers.evaluation.scores import METRICS as CORRECTNESS
from raysers.evaluation.scores import Floats, Integers, Subset
from raysers.schemas import METRICS
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
_CELL = ("dataset", "split", "group", "group_value")
#: Smallest and largest possible value, of metrics whose intervals would reach beyond.
_LIMITS = (
    dict.fromkeys(("ccc", "pearson"), (-1.0, 1.0))
    | dict.fromkeys((*CATEGORY_METRICS, "js_distance"), (0.0, 1.0))
    | dict.fromkeys(("mae", "sd", "wer", "cer", "substitutions", "deletions", "insertions"),
                    (0.0, math.inf))
)  # fmt: skip


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


def row_of(
    cell: Subset,
    model: str,
    metric: str,
    value: Any,
    n: Any,
    bounds: tuple[Any, Any] = (NAN, NAN),
    *,
    dimension: str = "",
    speakers: Any = 0,
) -> Row:
    """One number of a subset; its bounds reach no farther than the metric can."""
    least, most = _LIMITS.get(metric, (-math.inf, math.inf))
    if metric.startswith("mean_change_"):
        least = 0.0
    low, high = np.clip(np.asarray(bounds, np.float64), least, most).tolist()  # NaN for None
    where: dict[str, Any] = dict(zip(_CELL, cell.key, strict=True))
    where |= {"model": model, "dimension": dimension, "metric": metric, "value": float(value)}
    return Row(**where, ci_low=low, ci_high=high, n=int(n), speakers=int(speakers))


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
    low, high = bounds or (np.full(len(dimensions), NAN),) * 2
    known = np.zeros(len(dimensions)) if speakers is None else speakers
    for d, dimension in enumerate(dimensions):
        if n[d]:
            ends, about = (low[d], high[d]), {"dimension": dimension, "speakers": known[d]}
            yield row_of(cell, model, metric, value[d], n[d], ends, **about)


def drawn_rows(
    cell: Subset,
    model: str,
    metric: str,
    drawn: Draws,
    n: Integers,
    speakers: Integers | None = None,
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


#: Printed tables: title, and the metric, whose dimensions are the columns.
_SECTIONS = {
    "CCC (-1..1, 1 is best)": "ccc",
    "Pearson correlation (-1..1)": "pearson",
    "mean absolute error (0 is best)": "mae",
    "labels within the model's 90 % intervals (share, .9 is right)": COVERAGE,
    "sex fairness score: CCC of women - CCC of men": "sex_fairness_score",
    "sex fairness bias: shift of women's values - of men's": "sex_fairness_bias",
    "CCC lost against the home corpus (share)": "ccc_drop",
    "difference in CCC, paired draws (share of draws above 0)": "ccc_difference",
    "rank correlation of speakers between models (Spearman)": "speaker_spearman",
    "emotion categories (0..1, 1 is best; calibration error ece: 0 is best)": EMOTION,
}
_SPEAKERS = "CCC per speaker: lowest / median / highest mean (largest deviation over the draws)"
#: Metrics of groups of clips, and those of them that are printed.
_OF_GROUPS = {*CORRECTNESS, *CATEGORY_METRICS, COVERAGE}
_PRINTED_OF_GROUPS = {"ccc", *CATEGORY_METRICS}
_Lines = list[tuple[str, Mapping[str, str], str]]  # name, cells, style


def number(value: float) -> str:
    """Three digits without the zero before the point; a dash where undefined.

    >>> number(-0.0456), number(1.0), number(-0.0001), number(float("nan"))
    ('-.046', '1.000', '.000', '-')
    """
    if math.isnan(value):
        return "-"
    text = f"{value:z.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def bounded(row: Any) -> str:
    """The value of a row, with its interval where it has one."""
    if math.isnan(row.ci_low):
        return number(row.value)
    return f"{number(row.value)} [{number(row.ci_low)}, {number(row.ci_high)}]"


def print_metrics(rows: Sequence[Row]) -> None:
    """Every section that has rows; groups of clips are printed for CCC and categories only."""
    if not rows:
        return
    frame = to_frame(rows)
    above = frame[frame["metric"] == "ccc_difference_above_0"]
    key = ["model", "dataset", "split", "group_value", "dimension"]
    shares = above.set_index(key)["value"].to_dict()
    short = model_names([*frame["model"], *frame["group_value"][frame["group"] == "model"]], WIDTH)
    texts = [
        _texts(row, short, shares.get(tuple(getattr(row, name) for name in key), NAN))
        for row in frame.itertuples()
    ]
    frame[["head", "label", "cell"]] = texts
    for title, of in _SECTIONS.items():
        # of categories the metrics are the columns
        by, where = ("metric", "dimension") if of == EMOTION else ("dimension", "metric")
        own = frame[frame[where] == of]
        part = ~own["group"].isin(("", "model", "dataset")) & own["metric"].isin(_OF_GROUPS)
        printed = part & own["metric"].isin(_PRINTED_OF_GROUPS)
        heads = own["head"][printed].drop_duplicates()
        own = pd.concat([own[~part], own[printed & own["head"].isin(heads[:_MOST_GROUPS])]])
        # the mean over dimensions is a table by itself, and so is another average of recall
        for some in ((*DIMENSIONS, "uar", "macro_f1", "accuracy", "ece"), ("mean", "uar_known")):
            _print_lines(title, some, list(_lines(own[own[by].isin(some)], by)))
        if len(heads) > _MOST_GROUPS:
            print(f"{len(heads) - _MOST_GROUPS:,} more groups are in the table on disk\n")
    speakers = frame[frame["metric"].str.startswith("speaker_ccc")]
    _print_lines(_SPEAKERS, DIMENSIONS, list(_speaker_lines(speakers)))


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
    cell = bounded(row)
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


def _print_lines(title: str, columns: Sequence[str], lines: _Lines) -> None:
    used = [name for name in columns if any(name in cells for _, cells, _ in lines)]
    texts = [[name, *(cells.get(n, "") for n in used)] for name, cells, _ in lines]
    print_table(title, ["", *used], texts, [style for *_, style in lines])


def print_table(
    title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    """Lines of text under their heads, all but the first flush right; nothing without lines."""
    if not lines:
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(heads[0], overflow="fold")
    for head in heads[1:]:
        table.add_column(head, justify="right", no_wrap=True, overflow="fold")
    for line, style in zip_longest(lines, styles):
        table.add_row(*map(visible, line), style=style)
    _console().print(table, "")


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
        _console().print(f"note: {visible(note)}", style="yellow")


def _console() -> Console:
    """Of a fixed width; long names fold instead of being cut."""
    return Console(width=WIDTH, highlight=False, markup=False)
