"""A run's metrics as readers of its card want them: a table, and the hub's `model-index`.

Rows of the random baseline stand in the table beside the model's own, and never among its results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raysers.evaluation import baseline
from raysers.evaluation.rows import Row
from raysers.text import one_line, table
from raysers.types import DIMENSIONS

_NAMES = {
    "ccc": "CCC", "mae": "MAE", "pearson": "Pearson", "uar": "UAR",
    "uar_known": "UAR of known categories", "macro_f1": "macro F1", "ece": "calibration error",
}  # fmt: skip
#: Measures in `model-index`, and what the hub calls them.
_HUB_NAMES = {"ccc": "ccc", "uar": "recall"}


def results_table(rows: Sequence[Row]) -> str:
    """One line per data, group and measure; a column per dimension, with intervals.

    The random baseline is shown for whole splits only: in groups it is the same, but noisier.
    """
    rows = [row for row in rows if not (row.group and _is_baseline(row))]
    named = dict.fromkeys(row.dimension for row in rows)
    columns = [d for d in DIMENSIONS if d in named] + [d for d in named if d not in DIMENSIONS]
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(_line_of(row), {})[row.dimension] = row
    cells = [
        [*line, max(row.n for row in found.values()), *(_cell(found.get(c)) for c in columns)]
        for line, found in lines.items()
    ]
    head = ["data", "clips of", "measure", "n", *(column or "all" for column in columns)]
    return table(head, cells, numbers=len(columns) + 1)


def has_intervals(rows: Sequence[Row]) -> bool:
    """Whether any row has an interval."""
    return any(math.isfinite(row.ci_low) for row in rows)


def index_results(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """CCC and UAR of whole splits, as entries of `model-index`."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.metric not in _HUB_NAMES or row.group or _is_baseline(row):
            continue
        if not math.isfinite(row.value):
            continue
        corpus, split = one_line(row.dataset), one_line(row.split)
        result = results.setdefault(
            (corpus, split),
            {
                "task": {"type": "audio-classification", "name": "Speech emotion recognition"},
                "dataset": {"type": corpus, "name": corpus, "split": split},
                "metrics": [],
            },
        )
        value = round(float(row.value), 4)
        name = one_line(f"{_NAMES[row.metric]} {row.dimension}")
        kind = _HUB_NAMES[row.metric]
        result["metrics"].append({"type": kind, "name": name, "value": value})
    return list(results.values())


def _line_of(row: Row) -> tuple[str, ...]:
    group = f"{row.group} {row.group_value}" if row.group else "all"
    measure = _NAMES.get(row.metric, row.metric.replace("_", " "))
    measure += ", random baseline" if _is_baseline(row) else ""
    return f"{row.dataset} {row.split}", group, measure


def _cell(row: Row | None) -> str:
    if row is None or not math.isfinite(row.value):
        return "–"
    has_interval = math.isfinite(row.ci_low) and math.isfinite(row.ci_high)
    interval = f" [{row.ci_low:.3f}, {row.ci_high:.3f}]" if has_interval else ""
    return f"{row.value:.3f}{interval}"


def _is_baseline(row: Row) -> bool:
    return row.model == baseline.NAME
