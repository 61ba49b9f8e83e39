"""Tables of other jobs for the report: whole when they are small, part by part when they are not.

Several parts are fetched ahead, so that a distant store is not waited for part by part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysers.engine.output import read_part
from raysers.io import storage

_AHEAD = 8


def table_of(folder: str, name: str) -> pa.Table | None:
    """A small table whole, or None when the run has none.

    Raises:
        RaysersError: a part is damaged.
    """
    found = [part for part in stream(folder, name) if len(part) or part.num_columns]
    return pa.concat_tables(found, promote_options="default") if found else None


def rows_of(folder: str, name: str) -> list[Mapping[str, Any]]:
    """The rows of a small table; none when the run has no such table."""
    table = table_of(folder, name)
    return [] if table is None else table.to_pylist()


def stream(folder: str, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The parts of a table in the order of their names, with those of `columns` that are there.

    Raises:
        RaysersError: a part is damaged.
    """
    uris = [part.uri for part in storage.list_parts(storage.join(folder, name))]
    if not uris:
        return
    known = columns_of(uris[0])
    wanted = None if columns is None else [c for c in columns if c in known]
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for uri in uris:
            waiting.append(pool.submit(read_part, uri, wanted))
            if len(waiting) == _AHEAD:
                yield from _there(waiting.popleft().result())
        while waiting:
            yield from _there(waiting.popleft().result())


def columns_of(uri: str) -> list[str]:
    """Names of the columns of one part."""
    with pq.ParquetFile(storage.open_source(uri)) as file:
        return list(file.schema_arrow.names)


def first_columns(folder: str, name: str) -> list[str]:
    """Names of the columns of a table; none when the run has no such table."""
    parts = storage.list_parts(storage.join(folder, name))
    return columns_of(parts[0].uri) if parts else []


def _there(part: pa.Table | None) -> Iterator[pa.Table]:
    if part is not None:
        yield part
