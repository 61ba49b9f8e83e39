"""The output objects of a run: one Parquet part per shard, whole or absent.

A part's name is a function of the plan alone, so writing it twice leaves one object, and resuming
is listing what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.data.shards import shard_name
from raysers.errors import ObjectMissing, RaysersError
from raysers.io import storage
from raysers.types import Clip, Status

_READERS = 16

#: Column that tells several rows of a clip apart, in the tables that have them.
VERSION = "perturbation"


def part_uri(output: str, table: str, shard: int) -> str:
    """Where the rows of `shard` go."""
    return storage.join(output, table, shard_name(shard))


def unprobed(clip: Clip) -> Clip:
    """The clip as if its file had never been looked at: whatever was wrong may be mended."""
    if clip.byte_offset is None:
        clip = replace(clip, num_bytes=None, etag="")
    return replace(clip, status=Status.OK, error="")


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`; columns a row does not have are null."""
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
    return pa.table(columns, schema=schema)


def replace_rows(earlier: pa.Table, again: pa.Table) -> pa.Table:
    """`earlier` with the rows of `again` in the places of the same clips and versions."""
    position = {key: i for i, key in enumerate(_keys(again))}
    both = pa.concat_tables([earlier, again.cast(earlier.schema)])
    take = [
        earlier.num_rows + position[key] if key in position else i
        for i, key in enumerate(_keys(earlier))
    ]
    return both.take(take)


def _keys(table: pa.Table) -> list[tuple[str, ...]]:
    """What names each row: its clip, and its version where the table has versions."""
    columns = [name for name in ("clip_id", VERSION) if name in table.column_names]
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def write_part(uri: str, table: pa.Table) -> None:
    """Write one part atomically.

    Raises:
        WriteError: disk full, no permission.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_atomic(uri, sink.getvalue().to_pybytes())


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """A part's rows (of `columns`, reading no others), or None when it is not there.

    Raises:
        RaysersError: the object is not a whole Parquet file.
    """
    try:
        storage.stat(uri)
        # ParquetFile, not read_table: a folder named `a=b` must not become a column
        with pq.ParquetFile(storage.open_source(uri)) as file:
            return file.read(columns=None if columns is None else [*columns])
    except ObjectMissing:
        return None
    except (pa.ArrowInvalid, OSError) as error:
        # parts are written whole or not at all, so this one was damaged by something else
        raise RaysersError(
            f"{uri} is damaged ({error}): delete it and run the same command"
        ) from error


def read_parts(output: str, table: str, shards: int, columns: Sequence[str]) -> dict[int, pa.Table]:
    """Columns of all parts that are there, by shard, read in parallel."""
    uris = [part_uri(output, table, i) for i in range(shards)]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda uri: read_part(uri, columns), uris)
        return {i: part for i, part in enumerate(found) if part is not None}


def read_all(output: str, table: str, shards: int, columns: Sequence[str]) -> pa.Table:
    """Columns of all parts that are there, as one table.

    Raises:
        RaysersError: none is there.
    """
    found = read_parts(output, table, shards, columns)
    if not found:
        raise RaysersError(f"no part of {table} is in {output}: was it removed?")
    return pa.concat_tables(found.values())


def parts_done(output: str, table: str) -> set[str]:
    """Names of the parts that are there."""
    found = storage.list_parts(storage.join(output, table))
    return {part.uri.rpartition("/")[2] for part in found}


def check_versions(
    expected: pa.ChunkedArray, rows: pa.Table, names: Sequence[str], output: str
) -> None:
    """Raises RaysersError unless every clip is exactly one row under each name, and no other."""
    for name in names:
        found = rows.filter(pc.equal(rows[VERSION], name))
        check_complete(expected, found["clip_id"], output)
    if rows.num_rows != len(expected) * len(names):
        raise RaysersError(
            f"{output} holds rows that its run did not ask for: delete the table's folder and run "
            "the same command"
        )


def check_complete(expected: pa.ChunkedArray, found: pa.ChunkedArray, output: str) -> None:
    """Raises RaysersError unless every clip id of the manifest is exactly one row of the output."""
    want = np.sort(expected.combine_chunks().to_numpy(zero_copy_only=False).astype("S32"))
    have = np.sort(found.combine_chunks().to_numpy(zero_copy_only=False).astype("S32"))
    if np.array_equal(want, have):
        return
    lost, extra = np.setdiff1d(want, have).size, have.size - np.intersect1d(want, have).size
    raise RaysersError(
        f"{output} does not match its manifest: {want.size} clips but {have.size} rows "
        f"({lost} clips without a row, {extra} rows too many). Its parts were changed from "
        "outside: delete the table's folder and run the same command"
    )
