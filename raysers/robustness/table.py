"""The robustness of a model as tables to read in a terminal.

What is printed is a selection: every value is a row of the metrics table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.rows import Row
from raysers.evaluation.tables import number, report_console
from raysers.robustness.changes import Comparison
from raysers.robustness.measures import MEAN, OVERALL
from raysers.robustness.numbers import TONE, of_ser_tests, ser_tests, ser_tests_share
from raysers.types import DIMENSIONS

_MOST_GROUPS, _MOST_WITH_BOUNDS = 8, 3
#: Datasets and splits in one picture.
MOST_PANELS = 6
_SHARE, _SIZE, _CCC = f"{OVERALL}_", "mean_change_", "ccc_change_"
_ALL_OF_THEM = "all small changes"


def print_robustness(
    rows: Sequence[Row],
    model: str,
    how: Comparison | None = None,
    console: Console | None = None,
) -> None:
    """The share of unchanged scores per dataset, then the change of CCC, then groups."""
    how = how or Comparison()
    console = console or report_console()
    for (dataset, split), block in groupby(rows_by_place(rows), key=place):
        mine = list(block)
        whole = [row for row in mine if not row.group]
        title = f"{dataset} {split}: share of scores that {how.text}"
        _print(console, title, _share_table(whole, model, how))
        _print(console, "absolute change: mean / 95th percentile", _size_table(whole))
        _print(console, "change of CCC", _ccc_table(whole, model, how))
        for group in dict.fromkeys(row.group for row in mine if row.group):
            parts = [row for row in mine if row.group == group and row.model != RANDOM]
            _print(console, f"share unchanged (mean) by {group}", _group_table(parts))


def rows_by_place(rows: Sequence[Row]) -> list[Row]:
    """Rows grouped by dataset and split, otherwise in their order."""
    order = {where: i for i, where in enumerate(dict.fromkeys(map(place, rows)))}
    return sorted(rows, key=lambda row: order[place(row)])


def place(row: Row) -> tuple[str, str]:
    """Dataset and split."""
    return row.dataset, row.split


def _print(console: Console, title: str, table: Table | None) -> None:
    if table is not None:
        console.print(title, style="italic")
        console.print(table)
        console.print()


def _share_table(rows: Sequence[Row], model: str, how: Comparison) -> Table | None:
    values = {(r.model == RANDOM, r.metric, r.dimension): r for r in rows}
    metrics = dict.fromkeys(r.metric for r in rows if r.metric.startswith(OVERALL))
    table = _table("", *DIMENSIONS, "mean [95 %]", "paper", "ser-tests", "random")
    small = [m.removeprefix(_SHARE) for m in metrics if m.removeprefix(_SHARE) in of_ser_tests()]
    for metric in metrics:
        name = metric.removeprefix(_SHARE) if metric != OVERALL else _ALL_OF_THEM
        mean, random = (values.get((r, metric, MEAN)) for r in (False, True))
        if mean is None:
            continue
        cells = [values[False, metric, d].value for d in DIMENSIONS]
        names = small if metric == OVERALL else [name]
        beside = ser_tests_share(names, model, threshold=how.threshold, tone_snr=how.tone_snr)
        own = (mean.paper, beside, random.value if random else math.nan)
        style = "bold" if metric == OVERALL else None
        table.add_row(name, *map(number, cells), _with_bounds(mean), *map(number, own), style=style)
    return table if table.row_count else None


def _size_table(rows: Sequence[Row]) -> Table | None:
    of = {(row.metric, row.dimension): row.value for row in rows}
    table = _table("", *DIMENSIONS)
    for metric in dict.fromkeys(row.metric for row in rows if row.metric.startswith(_SIZE)):
        name = metric.removeprefix(_SIZE)
        sizes = ((of[metric, d], of[f"p95_change_{name}", d]) for d in DIMENSIONS)
        table.add_row(name, *(" / ".join(map(number, pair)) for pair in sizes))
    return table if table.row_count else None


def _ccc_table(rows: Sequence[Row], model: str, how: Comparison) -> Table | None:
    mine = [row for row in rows if row.metric.startswith(_CCC)]
    table = _table("", *DIMENSIONS, "ser-tests, mean")
    for metric, block in groupby(mine, key=lambda row: row.metric):
        name = metric.removeprefix(_CCC)
        cells = {row.dimension: _with_bounds(row) for row in block}
        other_tone = name == TONE and how.tone_snr != "rms"
        beside = math.nan if other_tone else ser_tests("ccc_change", name, MEAN, model)
        table.add_row(name, *(cells.get(d, "-") for d in DIMENSIONS), number(beside))
    return table if table.row_count else None


def _group_table(rows: Sequence[Row]) -> Table | None:
    mine = [r for r in rows if r.metric.startswith(OVERALL) and r.dimension == MEAN]
    values = list(dict.fromkeys(row.group_value for row in mine))[:_MOST_GROUPS]
    if len(values) < 2:  # one group is all clips, or nothing is known
        return None
    text = _with_bounds if len(values) <= _MOST_WITH_BOUNDS else _without_bounds
    table = _table("", *values)
    for metric in dict.fromkeys(row.metric for row in mine):
        name = metric.removeprefix(_SHARE) if metric != OVERALL else _ALL_OF_THEM
        of = {row.group_value: text(row) for row in mine if row.metric == metric}
        table.add_row(name, *(of.get(value, "-") for value in values))
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def _with_bounds(row: Row) -> str:
    bounds = f" [{number(row.ci_low)}, {number(row.ci_high)}]" if row.ci_low == row.ci_low else ""
    return number(row.value) + bounds


def _without_bounds(row: Row) -> str:
    return number(row.value)


def reading_notes(
    rows: Sequence[Row], names: Sequence[str], how: Comparison, *, amr: bool
) -> Iterator[str]:
    """What a reader should know of the figures, and of those beside ours.

    Args:
        rows: of the metrics table.
        names: the perturbations of the run.
        how: as they were compared.
        amr: whether the phone has its codec.
    """
    compared = {row.metric for row in rows}
    lost = [name for name in names if _SHARE + name not in compared]
    if lost:
        yield f"no clip could be compared: {', '.join(lost)}"
    shown = {place(row) for row in rows if row.metric.startswith(_SHARE) and not row.group}
    if (places := len(shown)) > MOST_PANELS:
        yield f"the picture shows the first {MOST_PANELS} of {places} datasets and splits"
    yield f"unchanged: {how.text}; published shares stand beside a threshold of .05 only"
    if TONE in names:
        whose = "paper's" if how.tone_snr == "peak" else "ser-tests'"
        yield f"{TONE}: SNR of the clip's {how.tone_snr}, so beside it are the {whose} figures only"
    yield "paper: means over its models, corpora and dimensions (section 4.5)"
    yield "ser-tests: mean over its corpora for this model, or for the paper's eight models"
    if "phone" in names and not amr:
        yield "phone: without the AMR codec, which needs the package av"
    if any(name.startswith("tilt") for name in names):
        yield "tilt: filters of our own, 3 dB per octave, not ser-tests' recordings"
