"""The tables of a study from what its experiments have left, and their print.

A value stands in the table of every cell that shares its experiment. The scores of the random model
are listed once a study.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.console import Console

from raysers.engine import output
from raysers.errors import ObjectMissing
from raysers.evaluation.rows import number, report_console
from raysers.evaluation.scores import RANDOM
from raysers.io import storage
from raysers.schemas import CELLS, CURVES, METRICS, STUDY_METRICS
from raysers.studies.experiments import Cell, Grid
from raysers.studies.work import MEASURED, Place
from raysers.text import one_line
from raysers.tuning.trials import TrialRecord, stored
from raysers.types import DIMENSIONS

_NAME_WIDTH, _DATASET_WIDTH, _MAX_ERROR = 44, 24, 300

Rows = Iterator[dict[str, Any]]
Records = Mapping[str, TrialRecord | None]


def write_tables(grid: Grid, place: Place) -> dict[str, pa.Table]:
    """Write `cells`, `metrics` and `curves`; returns them.

    Raises:
        WriteError: the output cannot be written.
    """
    records = {name: stored(place.uri(name)) for name in grid.runs}
    done = [cell for cell in grid.cells if status_of(records[cell.run]) == "done"]
    rows: dict[str, tuple[list[dict[str, Any]], pa.Schema]] = {
        "cells": ([_cell_row(cell, records[cell.run]) for cell in grid.cells], CELLS),
        "metrics": (list(_metric_rows(done, place)), STUDY_METRICS),
        "curves": ([row for cell in done for row in _curve_rows(cell, place)], CURVES),
    }
    tables = {
        name: pa.Table.from_pylist(found, schema=schema) for name, (found, schema) in rows.items()
    }
    for name, table in tables.items():
        output.write_part(storage.join(place.output, name, "part-00000.parquet"), table)
    return tables


def status_of(record: TrialRecord | None) -> str:
    """done, failed, or waiting for the same command to be given again."""
    status = record.status if record else ""
    return status if status in ("done", "failed") else "waiting"


def _key(cell: Cell) -> dict[str, Any]:
    names = ("study", "cell", "factor", "factor_value", "seed")
    return {name: getattr(cell, name) for name in names}


def _cell_row(cell: Cell, record: TrialRecord | None) -> dict[str, Any]:
    result: Mapping[str, Any] = record.result if record else {}
    status = status_of(record)
    return {
        **_key(cell),
        "kind": cell.job,
        "model": cell.model,
        "status": status,
        "error": record.error if record and status == "failed" else "",
        "path": f"runs/{cell.run}",
        "wall_s": result.get("wall_s", record.wall_s if record else None),
        "audio_s": result.get("audio_s"),
        "workers": result.get("workers", 1 if status == "done" else None),
        "device": result.get("device", ""),
        "run_id": str(record.notes.get("run_id", "")) if record else "",
    }


def _metric_rows(done: list[Cell], place: Place) -> Rows:
    listed: dict[tuple[str, ...], str] = {}
    for cell in done:
        for row in _own_metrics(cell, place):
            if row["model"] == RANDOM:
                key = (cell.study, *(str(row[n]) for n in METRICS.names[1:7]))
                if listed.setdefault(key, cell.cell) != cell.cell:
                    continue
            yield {**_key(cell), **_with_labels(row, cell, place)}


def _own_metrics(cell: Cell, place: Place) -> Rows:
    """Rows of the metrics tables that belong to a cell."""
    folder = place.uri(cell.run)
    if cell.job == "train":
        yield from _rows(storage.join(folder, MEASURED, "metrics"))
    for row in _rows(storage.join(folder, "metrics")):
        # of the training itself: what chose the epoch
        own = row["split"] == "dev" and not row["group"]
        if own if cell.job == "train" else row["group"] != "epoch":
            yield row


def _with_labels(row: dict[str, Any], cell: Cell, place: Place) -> dict[str, Any]:
    """The row, naming models as the reader knows them; the parts of a fusion keep their names."""
    labels = {place.uri(run): label for run, label in cell.labels.items()}
    if cell.job == "train" and row["model"] != RANDOM:
        labels[row["model"]] = cell.labels[cell.run]
    changed = {"model": labels.get(row["model"], row["model"])}
    if row["group"] == "model":
        changed["group_value"] = labels.get(row["group_value"], row["group_value"])
    return {**row, **changed}


def _curve_rows(cell: Cell, place: Place) -> Rows:
    if cell.job != "train":
        return
    uri = storage.join(place.uri(cell.run), "training.json")
    document = json.loads(storage.read_bytes(uri))
    by_step = {one["step"]: one for one in (*document.get("evaluations", ()), *document["history"])}
    for _, epoch in sorted(by_step.items()):
        values = {**(epoch["dev_ccc"] or {}), "mean": epoch["dev_ccc_mean"]}
        for dimension in (*DIMENSIONS, "mean"):
            yield {
                **_key(cell),
                "model": cell.model,
                "epoch": epoch["epoch"],
                "step": epoch["step"],
                "dimension": dimension,
                "ccc": values.get(dimension),
            }


def _rows(folder: str) -> list[dict[str, Any]]:
    try:
        table = output.read_part(storage.join(folder, "part-00000.parquet"))
    except ObjectMissing:
        return []
    return [] if table is None else table.to_pylist()


def print_cells(cells: pa.Table, metrics: pa.Table, console: Console | None = None) -> None:
    """A line for every cell of `schemas.CELLS` and dataset, with CCC of `schemas.STUDY_METRICS`."""
    console = console or report_console()
    ccc = metrics.to_pandas()
    ccc = ccc[(ccc["metric"] == "ccc") & (ccc["group"] == "") & (ccc["model"] != RANDOM)]
    heads = "".join(f"{name:>11}" for name in DIMENSIONS)
    head = f"{'study, cell':{_NAME_WIDTH}} {'CCC on':{_DATASET_WIDTH}}{heads}"
    console.print(head, soft_wrap=True)
    for row in cells.to_pylist():
        own = ccc[(ccc["study"] == row["study"]) & (ccc["cell"] == row["cell"])]
        for line in _lines(row, own):
            console.print(line, soft_wrap=True)


def _lines(row: Mapping[str, Any], ccc: pd.DataFrame) -> Iterator[str]:
    name = one_line(f"{row['study']}, {row['cell']}")
    if row["status"] != "done":
        error = one_line(row["error"])[:_MAX_ERROR]
        yield f"{name:{_NAME_WIDTH}} {row['status']}" + (f": {error}" if error else "")
    elif row["kind"] != "train" or ccc.empty:
        wall = "" if row["wall_s"] is None else f" in {row['wall_s']:.0f} s"
        yield f"{name:{_NAME_WIDTH}} {row['kind']} done{wall}"
    else:
        measured = ccc[ccc["split"] != "dev"]
        for (dataset, split), own in (measured if len(measured) else ccc).groupby(
            ["dataset", "split"], sort=False
        ):
            values = dict(zip(own["dimension"], own["value"], strict=True))
            shown = "".join(f"{number(values[d]) if d in values else '':>11}" for d in DIMENSIONS)
            yield f"{name:{_NAME_WIDTH}} {one_line(f'{dataset} {split}'):{_DATASET_WIDTH}}{shown}"
            name = ""
