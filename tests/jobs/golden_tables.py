"""Comparing a job's tables with their golden copies in `tests/golden/NAME.parquet`.

With `UPDATE_GOLDEN=1` in the environment `check` rewrites copies that differ instead of failing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.places import REPO

FOLDER = REPO / "tests" / "golden"
UPDATE = "UPDATE_GOLDEN"

#: Columns that differ from run to run, the hash of the audio, and messages, which may be reworded.
VARYING = frozenset({"run_id", "created_at", "wall_s", "etag", "error"})

#: Metrics with this suffix are shares of 100 bootstrap draws. Rounding can move a draw close to 0
#: to the other side, so they may differ by two draws.
DRAWS_SUFFIX, DRAWS_ATOL = "_above_0", 0.02


def movable(table: pa.Table, folder: str) -> pa.Table:
    """The table with files in `folder` named relative to it, and without their clip ids."""
    if not {"file", "clip_id"} <= {*table.column_names}:
        return table
    local = pc.starts_with(table["file"], folder)
    for name, instead in (
        ("file", pc.replace_substring(table["file"], folder, "")),
        ("clip_id", pa.scalar(None, pa.string())),
    ):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pc.if_else(local, instead, table[name]))
    return table


def reduced(tables: Iterable[pa.Table], dropped: Iterable[str] = ()) -> pa.Table:
    """One table without `VARYING` and `dropped` columns and metadata, sorted by all but floats."""
    table = pa.concat_tables(tables)
    table = table.drop_columns([n for n in table.column_names if n in VARYING | {*dropped}])
    table = table.replace_schema_metadata(None).cast(
        pa.schema([pa.field(f.name, f.type) for f in table.schema])
    )
    keys = [f.name for f in table.schema if not _is_float(f.type)]
    rows = list(zip(*(_sortable(table[name]) for name in keys), strict=True))
    return table.take(sorted(range(len(rows)), key=rows.__getitem__))


def check(name: str, table: pa.Table, atol: float, rtol: float = 1e-5) -> None:
    """Fail unless the golden copy is equal, floats within `atol` plus `rtol` of their size."""
    path = FOLDER / f"{name}.parquet"
    kept = pq.read_table(path) if path.exists() else None
    found = ["no such file"] if kept is None else differences(table, kept, atol, rtol)
    if found and os.environ.get(UPDATE):
        FOLDER.mkdir(exist_ok=True)
        pq.write_table(table, path, compression="zstd", write_statistics=False, store_schema=True)
    elif found:
        pytest.fail(f"{path.name} differs:\n" + "\n".join(found), pytrace=False)


def differences(table: pa.Table, kept: pa.Table, atol: float, rtol: float) -> list[str]:
    """A line per column that differs; only the columns or the row counts if these do."""
    ours, theirs = ([f"{f.name}: {f.type}" for f in t.schema] for t in (table, kept))
    if ours != theirs:
        changed = [f"+ {c}" for c in ours if c not in theirs]
        changed += [f"- {c}" for c in theirs if c not in ours]
        return changed or [f"order of columns: was {kept.column_names}, now {table.column_names}"]
    if len(table) != len(kept):
        return [f"rows: were {len(kept)}, now {len(table)}"]
    within = np.full((len(table), 1), float(atol))
    if "metric" in table.column_names:
        within[np.array(pc.ends_with(table["metric"], DRAWS_SUFFIX))] = max(DRAWS_ATOL, atol)
    lines = []
    for name in table.column_names:
        same = _same(table[name], kept[name], within, rtol)
        if not same.all():
            row = int(np.argmin(same))
            was, now = kept[name][row].as_py(), table[name][row].as_py()
            lines.append(f"{name}: {(~same).sum()} rows differ; row {row} was {was!r}, now {now!r}")
    return lines


def _same(
    ours: pa.ChunkedArray, theirs: pa.ChunkedArray, atol: np.ndarray, rtol: float
) -> np.ndarray:
    """Which rows agree; `atol` has shape (rows, 1)."""
    if not _is_float(ours.type):
        return np.array([a == b for a, b in zip(ours.to_pylist(), theirs.to_pylist(), strict=True)])
    a, b = (_floats(column) for column in (ours, theirs))
    if a.shape != b.shape:
        return np.zeros(len(a), bool)
    nulls = np.array(pc.equal(pc.is_null(ours), pc.is_null(theirs)))
    return nulls & np.isclose(a, b, atol=atol, rtol=rtol, equal_nan=True).all(axis=1)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """Shape (rows, numbers in a row); NaN for null."""
    rows = [v if isinstance(v, list) else [v] for v in column.to_pylist()]
    width = max(map(len, rows), default=0)
    filled = [v if v != [None] else [None] * width for v in rows]
    return np.array(filled, dtype=float).reshape(len(rows), width)


def _is_float(kind: pa.DataType) -> bool:
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return pa.types.is_floating(kind)


def _sortable(column: pa.ChunkedArray) -> list[tuple[bool, Any]]:
    if pa.types.is_duration(column.type):
        column = column.cast(pa.int64())
    return [(v is not None, v if isinstance(v, int | None) else str(v)) for v in column.to_pylist()]


class _Numbers(HTMLParser):
    """Collects the numbers in a report's tables with their position."""

    def __init__(self) -> None:
        super().__init__()
        self.section, self.table, self.row, self.cell = "", 0, 0, 0
        self.is_number = False
        self.found: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        match tag:
            case "section":
                self.section, self.table = known.get("id") or "", 0
            case "table":
                self.table, self.row = self.table + 1, 0
            case "tr":
                self.row, self.cell = self.row + 1, 0
            case "td" | "th":
                self.cell += 1
                self.is_number = tag == "td" and known.get("class") == "number"

    def handle_endtag(self, tag: str) -> None:
        self.is_number = self.is_number and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.is_number:
            place = {n: getattr(self, n) for n in ("section", "table", "row", "cell")}
            for nth, text in enumerate(re.findall(r"-?[\d.]*\d", data.replace("\u2212", "-"))):
                self.found.append(place | {"nth": nth, "number": float(text)})


def numbers_of_page(html: str, sections: re.Pattern[str]) -> pa.Table:
    """The numbers in all tables of a report's sections whose ids match."""
    parser = _Numbers()
    parser.feed(html)
    return pa.Table.from_pylist([n for n in parser.found if sections.match(n["section"])])
