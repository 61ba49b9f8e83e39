"""The manifest: clip rows with headers read and segments decided, and the shards it is cut into.

Its bytes depend on the input alone: rows are sorted, so the same input gives the same files. Part 0
is written last; a folder without it was left half-written. A shard plan depends on the manifest and
on `shard_s` alone, never on the cluster: shard 12 is the same list of clips on every machine and in
every run, which is what makes resume safe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysers.data.columnar import PARQUET_SUFFIXES, READ_FAILURES
from raysers.data.readers import format_of
from raysers.data.tables import table_columns
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage
from raysers.io.uris import ROW_PATTERN, suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import SAMPLE_RATE_HZ, Clip, Status

Indices = NDArray[np.int64]
Seconds = NDArray[np.float64]

#: Most clips of one shard, however short: bounds a result table and the loss of one retry.
MAX_CLIPS = 20_000
#: Clips of unknown length per shard; each may be long.
MAX_UNKNOWN_CLIPS = 256
#: Lengths this close count as equal, so that clips of one recording stay neighbours.
_BUCKET_RATIO = 1.08
#: A small archive is cut into at least about this many shards, unless they fell below a minute.
_MIN_SHARDS = 32
_MIN_SHARD_S = 60.0

_ROWS_PER_PART = 100_000
_FIRST_PART = "/part-00000.parquet"
_OUR_PART = re.compile(r"/part-\d{5}\.parquet$")
_READ_THREADS = 8
#: What decides the scores of a clip; labels may be corrected without making another manifest.
_AUDIO_COLUMNS = ("clip_id", "etag", "num_bytes", "byte_offset", "duration_s", "status")


def sort_manifest(table: pa.Table) -> pa.Table:
    """Rows by file, start and end, an open end last; a clip that appears twice is kept once.

    A table's open end and its explicit one, or a window, may be the same clip. The row with labels
    stays, and among several of those the content decides.
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
    if format_of(uri) and not storage.is_folder(uri):
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
        return False  # reported where it is listed


def read_manifest(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The manifest at `uri` (see `manifest_parts`) in the order it was written.

    `columns` names those to read; None reads all manifest and label columns that are there.

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
    ours = [f for f in (*MANIFEST, *LABEL_FIELDS) if f.name in (columns or table.column_names)]
    return table.select([field.name for field in ours]).cast(pa.schema(ours))


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
    columns: dict[str, list[Any]] = {}
    for field in fields(Clip):
        if (name := field.name.removesuffix("_ns")) in table.column_names:
            values = _plain(table[name]).to_pylist()
            columns[field.name] = [field.default if v is None else v for v in values]
    if "status" in columns:
        columns["status"] = [Status(status) for status in columns["status"]]
    rows = zip(*columns.values(), strict=True)
    return [Clip(**dict(zip(columns, row, strict=True))) for row in rows]


def plain_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows, with times as whole nanoseconds."""
    values = (_plain(column).to_pylist() for column in table.columns)
    return [dict(zip(table.schema.names, row, strict=True)) for row in zip(*values, strict=True)]


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return column.cast(pa.int64()) if pa.types.is_duration(column.type) else column


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardPlan:
    """Which manifest rows each shard holds.

    Attributes:
        order: row indices of the manifest, shard after shard.
        starts: where each shard begins in `order`; one more entry than shards.
        seconds: audio seconds of each shard, 0 where lengths are unknown.
    """

    order: Indices
    starts: Indices
    seconds: Seconds

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, shard: int) -> Indices:
        """Manifest rows of a shard, longest bucket first."""
        if not 0 <= shard < len(self):
            raise IndexError(f"shard {shard} of {len(self)}")
        return self.order[self.starts[shard] : self.starts[shard + 1]]


def shard_name(shard: int) -> str:
    """Object name of a shard's result.

    >>> shard_name(12)
    'part-000012.parquet'
    """
    return f"part-{shard:06d}.parquet"


def plan_shards(table: pa.Table, *, shard_s: float) -> ShardPlan:
    """Cuts a manifest into shards of similar lengths.

    Longest clips first, within a length bucket of 8 % by file and start. A shard is full when
    clips x longest would pass `shard_s` (padded seconds), or a 32nd of the archive but not less
    than a minute, so that a small archive still spreads over workers; a clip longer than that is
    alone. Clips of unknown length, then those that are not `ok`, come last in shards of their own.

    Args:
        table: manifest; needs `file`, `start`, `duration_s` and `status`.
        shard_s: padded audio seconds of a shard, > 0.

    Raises:
        ConfigError: `shard_s` is not positive.
    """
    if not shard_s > 0:
        raise ConfigError(f"--shard-s must be more than 0 seconds, got {shard_s}")
    lengths_s = _lengths_s(table)
    scored, ok = np.isfinite(lengths_s), _is_ok(table)
    shard_s = min(shard_s, max(_MIN_SHARD_S, float(lengths_s[scored].sum()) / _MIN_SHARDS))
    by_file = _order_by_file(table)
    in_tables = pc.match_substring_regex(table["file"].cast(pa.string()), ROW_PATTERN).to_numpy()
    longest_first, cuts = _by_length(by_file[scored[by_file]], lengths_s, shard_s, in_tables)
    unknown = by_file[(ok & ~scored)[by_file]]
    failed = by_file[~ok[by_file]]
    sizes = np.concatenate(
        [cuts, _even_sizes(len(unknown), MAX_UNKNOWN_CLIPS), _even_sizes(len(failed), MAX_CLIPS)]
    )
    order = np.concatenate([longest_first, unknown, failed])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    heard_s = np.append(0.0, np.cumsum(np.nan_to_num(lengths_s[order])))
    return ShardPlan(order=order, starts=starts, seconds=np.diff(heard_s[starts]))


def _is_ok(table: pa.Table) -> NDArray[np.bool_]:
    ok = pc.fill_null(pc.equal(table["status"], str(Status.OK)), False)
    return np.asarray(ok.to_numpy(zero_copy_only=False), dtype=bool)


def _lengths_s(table: pa.Table) -> Seconds:
    """Length of each clip that will be scored; NaN where it is unknown or the clip is not ok."""
    lengths_s = pc.fill_null(table["duration_s"].cast(pa.float64()), np.nan).to_numpy()
    return np.where(_is_ok(table), lengths_s, np.nan)


def _order_by_file(table: pa.Table) -> Indices:
    """Rows by file and start; rows of one file and start by end."""
    columns = {name: table[name] for name in ("file", "start", "end") if name in table.column_names}
    keys = [(name, "ascending") for name in columns]
    return np.asarray(pc.sort_indices(pa.table(columns), keys).to_numpy(), dtype=np.int64)


def _by_length(
    rows: Indices, lengths_s: Seconds, shard_s: float, in_tables: NDArray[np.bool_]
) -> tuple[Indices, Indices]:
    """`rows` by falling length bucket, stable within, and the size of each shard of them.

    Rows of Parquet tables are one bucket: apart, each would cost the reading of its row group.
    """
    if not len(rows):
        return rows, np.empty(0, np.int64)
    mine_s = np.maximum(lengths_s[rows], 1 / SAMPLE_RATE_HZ)
    buckets = np.floor(np.log(mine_s) / np.log(_BUCKET_RATIO)).astype(np.int64)
    buckets[in_tables[rows].astype(bool)] = np.iinfo(np.int64).min + 1
    # stable, so that rows of a bucket stay by file
    sequence = np.argsort(-buckets, kind="stable")
    buckets, mine_s = buckets[sequence], mine_s[sequence]
    firsts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] + 1))
    # whatever follows in the shard is not longer than the longest of the first row's bucket
    widths = np.diff(np.append(firsts, len(rows)))
    longest_s = np.repeat(np.maximum.reduceat(mine_s, firsts), widths)
    most = np.clip((shard_s / longest_s).astype(np.int64), 1, MAX_CLIPS)
    sizes, start = [], 0
    while start < len(rows):
        sizes.append(min(int(most[start]), len(rows) - start))
        start += sizes[-1]
    return rows[sequence], np.asarray(sizes, dtype=np.int64)


def _even_sizes(rows: int, most: int) -> Indices:
    """Sizes of the fewest shards of at most `most` rows."""
    starts = np.arange(0, rows, most)
    return np.diff(np.append(starts, rows)).astype(np.int64)
