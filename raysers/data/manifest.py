"""The manifest: clip rows with headers read and segments decided, once, for every later job.

Its bytes depend on the input alone: rows are sorted, so the same input gives the same files. Part 0
is written last; a folder without it was left half-written.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.data.inspect import Segmenting, probe_batch
from raysers.data.tables import PARQUET_SUFFIXES, READ_FAILURES, TABLE_SUFFIXES, table_columns
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage
from raysers.io.uris import suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import Clip, Status

__all__ = [
    "Segmenting",
    "clips_of",
    "fingerprint",
    "is_manifest",
    "manifest_parts",
    "probe_batch",
    "read_manifest",
    "sort_manifest",
    "write_manifest",
]

_ROWS_PER_PART = 100_000
_FIRST_PART = "/part-00000.parquet"
_OUR_PART = re.compile(r"/part-\d{5}\.parquet$")
_READ_THREADS = 8
#: What decides the scores of a clip; labels may be corrected without making another manifest.
_AUDIO_COLUMNS = ("clip_id", "etag", "num_bytes", "byte_offset", "duration_s", "status")


def sort_manifest(table: pa.Table) -> pa.Table:
    """Rows by file, start and end, an open end last; a clip that appears twice is kept once.

    Twice, because a table's open end and its explicit one, or a window, may be the same clip. Then
    the row with labels stays, and among several of those the content decides.
    """
    names = ["file", "start", "end", *(f.name for f in LABEL_FIELDS), *MANIFEST.names]
    present = (name for name in dict.fromkeys(names) if name in table.column_names)
    keys = [(name, "ascending") for name in present]
    table = table.take(pc.sort_indices(table, keys))
    if len(table) < 2:
        return table
    repeated = pc.equal(table["clip_id"].slice(1), table["clip_id"].slice(0, len(table) - 1))
    fresh = np.append(True, ~repeated.to_numpy())
    return table if fresh.all() else table.filter(pa.array(fresh))


def write_manifest(uri: str, table: pa.Table) -> None:
    """Writes `part-*.parquet` of 100,000 rows, sorted, in place of whatever manifest is there.

    Raises:
        WriteError, StorageError: as `storage.write_atomic`.
    """
    table = sort_manifest(_shaped(table, None))
    starts = range(0, max(len(table), 1), _ROWS_PER_PART)
    names = [f"part-{number:05d}.parquet" for number in range(len(starts))]
    stale = [storage.join(uri, names[0])]
    stale += [p.uri for p in storage.list_parts(uri) if p.uri.rpartition("/")[2] not in names]
    for old in stale:
        storage.delete(old)
    for name, start in reversed(list(zip(names, starts, strict=True))):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(start, _ROWS_PER_PART), sink, compression="zstd")
        storage.write_atomic(storage.join(uri, name), sink.getvalue().to_pybytes())


def manifest_parts(uri: str) -> list[str]:
    """Tables that `uri` stands for: itself, or the parts in it or in its `manifest` folder."""
    uri = storage.absolute(uri)
    if suffix_of(uri) in TABLE_SUFFIXES and not storage.is_folder(uri):
        return [uri]
    parts = storage.list_parts(storage.join(uri, "manifest")) or storage.list_parts(uri)
    return [part.uri for part in parts]


def is_whole(parts: Sequence[str]) -> bool:
    """Whether parts of ours (as of `manifest_parts`) are all there: the first is written last."""
    return bool(parts) and (not _OUR_PART.search(parts[0]) or parts[0].endswith(_FIRST_PART))


def is_manifest(uri: str) -> bool:
    """Whether `uri` is a manifest, to be used as it is, rather than audio or a bare table."""
    try:
        parts = [part for part in manifest_parts(uri) if suffix_of(part) in PARQUET_SUFFIXES]
        return bool(parts) and set(MANIFEST.names) <= set(table_columns(parts[0]))
    except (ObjectMissing, ObjectForbidden):
        # for whoever lists it to report
        return False


def read_manifest(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The manifest at `uri` (see `manifest_parts`) in the order it was written.

    Args:
        uri: table, folder of parts, or run folder with `manifest/` in it.
        columns: names to read; None: all the manifest and label columns that are there.

    Raises:
        ConfigError: no manifest, or one that was left half-written.
    """
    parts = manifest_parts(uri)
    if not parts:
        raise ConfigError(f"{uri} has no manifest (part-*.parquet)")
    if not is_whole(parts):
        raise ConfigError(f"the manifest in {uri} is incomplete: delete it and index again")
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        tables = list(pool.map(lambda part: _read_part(part, columns), parts))
    table = pa.concat_tables(tables, promote_options="default")
    _check_rows(uri, table)
    return table


def _check_rows(uri: str, table: pa.Table) -> None:
    """Refuses what another program wrote and no job could use."""
    columns = {name: table[name] for name in table.column_names}
    known = pa.array(list(map(str, Status)))
    faults = [
        f"{name} is empty"
        for name in ("file", "start", "clip_id", "status")
        if name in columns and columns[name].null_count
    ]
    if "status" in columns and not _every(pc.is_in(columns["status"], known)):
        faults.append("a status is unknown")
    for name in ("start", "end", "num_bytes", "byte_offset", "byte_size"):
        if name in columns and not _every(pc.greater_equal(columns[name].cast(pa.int64()), 0)):
            faults.append(f"{name} is negative")
    if "clip_id" in columns and pc.count_distinct(columns["clip_id"]).as_py() != len(table):
        faults.append("two rows have the same clip_id")
    if faults:
        raise ConfigError(f"{uri} is a damaged manifest ({faults[0]}): index again")


def _every(column: pa.ChunkedArray) -> bool:
    return pc.all(column).as_py() is not False


def _read_part(uri: str, columns: Sequence[str] | None) -> pa.Table:
    source = pa.BufferReader(storage.read_bytes(uri)) if storage.is_remote(uri) else uri
    try:
        file = pq.ParquetFile(source)
        present = file.schema_arrow.names
        if missing := [name for name in columns or MANIFEST.names if name not in present]:
            raise ConfigError(f"{uri} is no manifest: it has no column {', '.join(missing)}")
        return _shaped(file.read(columns=[n for n in columns or present if n in present]), columns)
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} is not a manifest in Parquet: {error}") from error


def _shaped(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Our columns in our order and types, foreign ones dropped."""
    fields = [f for f in (*MANIFEST, *LABEL_FIELDS) if f.name in (columns or table.column_names)]
    return table.select([field.name for field in fields]).cast(pa.schema(fields))


def fingerprint(table: pa.Table) -> str:
    """16 hex digits that change with any clip's identity, version, length or status.

    Labels do not count, nor does the order of the rows.
    """
    digest = hashlib.blake2b(digest_size=8)
    order = pc.sort_indices(table["clip_id"])
    for name in _AUDIO_COLUMNS:
        digest.update(f"{name} {len(table)}\0".encode())
        for piece in _canonical_bytes(table[name].take(order)):
            digest.update(piece)
    return digest.hexdigest()


def _canonical_bytes(column: pa.ChunkedArray) -> Iterator[Any]:
    """Bytes of the values, the same however the column is cut into chunks."""
    if pa.types.is_string(column.type):
        lengths = pc.fill_null(pc.binary_length(column), -1)
        yield np.ascontiguousarray(lengths.to_numpy())
        for chunk in pc.fill_null(column, "").chunks:
            _, offsets, data = chunk.buffers()
            if data is not None and len(chunk):
                ends = np.frombuffer(offsets, np.int32)[
                    chunk.offset : chunk.offset + len(chunk) + 1
                ]
                yield memoryview(data)[ends[0] : ends[-1]]
        return
    valid = pc.is_valid(column).to_numpy()
    yield np.ascontiguousarray(valid)
    yield np.ascontiguousarray(pc.fill_null(column, 0).to_numpy())


def clips_of(table: pa.Table) -> list[Clip]:
    """The rows as the references that workers read; columns a clip does not need may be absent."""
    length = len(table)

    def values(name: str, default: Any = None) -> list[Any]:
        if name not in table.column_names:
            return [default] * length
        column = table[name]
        plain = column.cast(pa.int64()) if pa.types.is_duration(column.type) else column
        return [default if value is None else value for value in plain.to_pylist()]

    columns = {
        "clip_id": values("clip_id"),
        "file": values("file"),
        "start_ns": values("start", 0),
        "end_ns": values("end"),
        "duration_s": values("duration_s", math.nan),
        "num_bytes": values("num_bytes"),
        "byte_offset": values("byte_offset"),
        "byte_size": values("byte_size"),
        "etag": values("etag", ""),
        "status": [Status(status) for status in values("status", "ok")],
        "error": values("error", ""),
        "transcript": values("transcript"),
    }
    rows = zip(*columns.values(), strict=True)
    return [Clip(**dict(zip(columns, row, strict=True))) for row in rows]
