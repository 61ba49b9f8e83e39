"""Rows of the metrics table: one value of one metric, with its interval.

The table is long, so that a report can pivot it as it likes; an undefined value is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from raysers.evaluation.metrics import Floats
from raysers.evaluation.scores import Subset
from raysers.schemas import METRICS
from raysers.types import DIMENSIONS

NAN = math.nan


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
    n: NDArray[np.int64],
    bounds: tuple[Floats, Floats] | None = None,
    *,
    speakers: NDArray[np.int64] | None = None,
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


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a data frame with the columns of the metrics table; NaN: undefined."""
    names = [field.name for field in fields(Row)]
    return pd.DataFrame({name: [getattr(row, name) for row in rows] for name in names})


def to_table(rows: Sequence[Row], run_id: str) -> pa.Table:
    """The rows as a table of `schemas.METRICS`, in the order they are in."""
    columns = {
        field.name: pa.array([getattr(row, field.name) for row in rows], field.type)
        for field in METRICS
        if field.name != "run_id"
    }
    columns = {name: _nulls_for_nan(column) for name, column in columns.items()}
    columns["run_id"] = pa.array([run_id] * len(rows), pa.string())
    return pa.table(columns, schema=METRICS)


def _nulls_for_nan(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    values = column.to_numpy(zero_copy_only=False)
    return pa.array(values, column.type, mask=np.isnan(values))
