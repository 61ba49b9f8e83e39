"""Cells of a study in the terminal: how they ended, and how well their models predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from rich.console import Console

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.tables import number, report_console
from raysers.report.values import main_splits, values_of
from raysers.text import one_line
from raysers.types import DIMENSIONS

_NAME_WIDTH, _DATASET_WIDTH, _MOST_ERROR = 44, 24, 300

#: CCC by dataset and split, then dimension.
Ccc = dict[str, dict[str, float]]


def print_cells(cells: pa.Table, metrics: pa.Table, console: Console | None = None) -> None:
    """A line for every cell of `schemas.CELLS` and dataset, with CCC of `schemas.STUDY_METRICS`."""
    console = console or report_console()
    found = main_ccc(metrics)
    heads = "".join(f"{name:>11}" for name in DIMENSIONS)
    head = f"{'study, cell':{_NAME_WIDTH}} {'CCC on':{_DATASET_WIDTH}}{heads}"
    console.print(head, soft_wrap=True)
    for row in cells.to_pylist():
        for line in _lines(row, found.get((row["study"], row["cell"]), {})):
            console.print(line, soft_wrap=True)


def _lines(row: Mapping[str, Any], ccc: Ccc) -> Iterator[str]:
    name = one_line(f"{row['study']}, {row['cell']}")
    if row["status"] != "done":
        error = one_line(row["error"])[:_MOST_ERROR]
        yield f"{name:{_NAME_WIDTH}} {row['status']}" + (f": {error}" if error else "")
        return
    if row["kind"] != "train" or not ccc:
        wall = "" if row["wall_s"] is None else f" in {row['wall_s']:.0f} s"
        yield f"{name:{_NAME_WIDTH}} {row['kind']} done{wall}"
        return
    for dataset, values in ccc.items():
        shown = "".join(f"{number(values[d]) if d in values else '':>11}" for d in DIMENSIONS)
        yield f"{name:{_NAME_WIDTH}} {one_line(dataset):{_DATASET_WIDTH}}{shown}"
        name = ""


def main_ccc(metrics: pa.Table) -> dict[tuple[str, str], Ccc]:
    """CCC by (study, cell), of every dataset by its main split."""
    whole = [v for v in values_of(metrics) if v.metric == "ccc" and not v.group]
    found: dict[tuple[str, str], Ccc] = {}
    for value in main_splits([v for v in whole if v.model != RANDOM]):
        ccc = found.setdefault((value.study, value.cell), {})
        ccc.setdefault(f"{value.dataset} {value.split}", {})[value.dimension] = value.value
    return found
