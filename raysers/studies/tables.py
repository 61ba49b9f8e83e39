"""The tables of a study from what its runs have left: cells, metrics, learning curves.

A value stands in the table of every cell that shares its run. What the random model scores is said
once a study.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from raysers.engine import output
from raysers.errors import ObjectMissing
from raysers.evaluation.baseline import NAME as RANDOM
from raysers.io import storage
from raysers.schemas import CELLS, CURVES, METRICS, STUDY_METRICS
from raysers.studies.experiments import PRETRAIN, Cell, Grid
from raysers.studies.units import MEASURED, Place
from raysers.tuning.trials import TrialRecord, stored
from raysers.types import DIMENSIONS

Rows = list[dict[str, Any]]

TABLES = {"cells": CELLS, "metrics": STUDY_METRICS, "curves": CURVES}


def write_tables(grid: Grid, place: Place) -> dict[str, pa.Table]:
    """Write all three; returns them.

    Raises:
        WriteError: the output cannot be written.
    """
    records = {name: stored(place.uri(name)) for name in grid.runs}
    rows: dict[str, Rows] = {
        "cells": [_cell_row(cell, records[cell.run]) for cell in grid.cells],
        "metrics": list(_metric_rows(grid, place, records)),
        "curves": list(_curve_rows(grid, place, records)),
    }
    tables = {
        name: pa.Table.from_pylist(rows[name], schema=schema) for name, schema in TABLES.items()
    }
    for name, table in tables.items():
        output.write_part(storage.join(place.output, name, "part-00000.parquet"), table)
    return tables


def status_of(record: TrialRecord | None) -> str:
    """done, failed, or waiting for the same command to be given again."""
    known = {"done": "done", "failed": "failed"}
    return known.get(record.status, "waiting") if record else "waiting"


def _cell_row(cell: Cell, record: TrialRecord | None) -> dict[str, Any]:
    result: Mapping[str, Any] = record.result if record else {}
    status = status_of(record)
    return {
        **_key(cell),
        "kind": "train" if cell.job == PRETRAIN else cell.job,
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


def _metric_rows(
    grid: Grid, place: Place, records: Mapping[str, TrialRecord | None]
) -> Iterator[dict[str, Any]]:
    with_random: set[tuple[str, ...]] = set()
    for cell in grid.cells:
        if status_of(records[cell.run]) != "done" or cell.job == PRETRAIN:
            continue
        said = set()
        for row in _own_metrics(cell, place):
            named = {**_key(cell), **_with_labels(row, cell, place)}
            if row["model"] == RANDOM:
                value = tuple(str(row[n]) for n in METRICS.names[1:7])
                key = (cell.study, *value)
                said.add(key)
                if key in with_random:
                    continue
            yield named
        with_random |= said


def _own_metrics(cell: Cell, place: Place) -> Iterator[dict[str, Any]]:
    """Rows of the metrics tables that belong to a cell."""
    folder = place.uri(cell.run)
    if cell.job == "train":
        yield from _rows(storage.join(folder, MEASURED, "metrics"))
        # of the training itself: what chose the epoch
        for row in _rows(storage.join(folder, "metrics")):
            if row["split"] == "dev" and not row["group"]:
                yield row
        return
    for row in _rows(storage.join(folder, "metrics")):
        if row["group"] != "epoch":
            yield row


def _with_labels(row: dict[str, Any], cell: Cell, place: Place) -> dict[str, Any]:
    """The row, calling models as the reader knows them; a fusion's contestants stay."""
    called = {place.uri(run): label for run, label in cell.labels.items()}
    if cell.job == "train" and row["model"] != RANDOM:
        called[row["model"]] = cell.labels[cell.run]
    changed = {"model": called.get(row["model"], row["model"])}
    if row["group"] == "model":
        changed["group_value"] = called.get(row["group_value"], row["group_value"])
    return {**row, **changed}


def _curve_rows(
    grid: Grid, place: Place, records: Mapping[str, TrialRecord | None]
) -> Iterator[dict[str, Any]]:
    for cell in grid.cells:
        if cell.job != "train" or status_of(records[cell.run]) != "done":
            continue
        for epoch in _history(place.uri(cell.run)):
            values = {**(epoch["dev_ccc"] or {}), "mean": epoch["dev_ccc_mean"]}
            for dimension in (*DIMENSIONS, "mean"):
                yield {
                    **_key(cell),
                    "model": cell.model,
                    "epoch": epoch["epoch"],
                    "dimension": dimension,
                    "ccc": values.get(dimension),
                }


def _key(cell: Cell) -> dict[str, Any]:
    names = ("study", "cell", "factor", "factor_value", "seed")
    return {name: getattr(cell, name) for name in names}


def _history(folder: str) -> list[Mapping[str, Any]]:
    document = json.loads(storage.read_bytes(storage.join(folder, "training.json")))
    history: list[Mapping[str, Any]] = document["history"]
    return history


def _rows(folder: str) -> Rows:
    try:
        table = output.read_part(storage.join(folder, "part-00000.parquet"))
    except ObjectMissing:
        return []
    return [] if table is None else table.to_pylist()
