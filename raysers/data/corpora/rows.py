"""What every corpus reader gives back: labelled rows, and what the user should know about them.

Every value has already been turned into this project's words and scales: `female` and `male`,
`train`, `dev` and `test`, labels on 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysers.io.uris import ObjectInfo
from raysers.schemas import LABEL_FIELDS, OBJECTS

#: Columns of every reader's table.
SCHEMA = pa.schema([*OBJECTS, *LABEL_FIELDS])

#: One row before it becomes Arrow: `SCHEMA` names to values, absent ones null, times in ns.
Row = dict[str, Any]

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRows:
    """What a reader found: rows with the columns `SCHEMA`, and notes for the user."""

    table: pa.Table
    notes: tuple[str, ...] = ()


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table with the schema `SCHEMA`."""
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


def of_file(info: ObjectInfo) -> Row:
    """The columns that name a listed file."""
    return {"file": info.uri, "num_bytes": info.num_bytes, "etag": info.etag}


def some(names: Iterable[str]) -> str:
    """How many there are and the first few of them by name, for a note.

    >>> some(["d", "b", "a", "c"])
    '4 (a, b, c, ...)'
    """
    found = sorted(names)
    more = ", ..." if len(found) > _NAMED else ""
    return f"{len(found):,} ({', '.join(found[:_NAMED])}{more})"
