"""The manifest: clip rows with headers read and segments decided, sorted, in parts of 100,000 rows.

Its bytes depend on the input alone, so the same input gives the same files. Part 0 is written last;
a folder without it was left half-written. Jobs read a manifest part by part, so that their memory
does not grow with it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.data.columnar import PARQUET_SUFFIXES, READ_FAILURES
from raysers.data.readers import format_of
from raysers.data.sorting import in_parts, in_runs, merged, shaped, sort_manifest, write_run
from raysers.data.tables import table_columns
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing, WriteError
from raysers.io import storage
from raysers.io.uris import suffix_of
from raysers.schemas import MANIFEST
from raysers.types import Clip, Status

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Rows of a part: what is sorted, planned and read at a time.
PART_ROWS = 100_000

_FIRST_PART = "/part-00000.parquet"
_OUR_PART = re.compile(r"/part-\d{5}\.parquet$")
_READ_THREADS = 8
#: Parts read ahead of the one in use.
_PARTS_AHEAD = 2
#: Columns of a manifest; labels come besides.
_NEEDED = frozenset(MANIFEST.names)
#: What decides the scores of a clip; labels may be corrected without making another manifest.
_AUDIO_COLUMNS = ("clip_id", "etag", "num_bytes", "byte_offset", "duration_s", "status")


class Manifest:
    """Sorted clips in parts, in memory or in Parquet files of which few are read at a time.

    Args:
        parts: tables of at most `PART_ROWS` sorted rows, or places of Parquet files with them.
        rows: rows of each part.
        folder: a folder that holds the files, to be removed with this object; empty: none.
    """

    def __init__(
        self,
        parts: Sequence[pa.Table | str],
        rows: Sequence[int],
        folder: str = "",
    ) -> None:
        self._parts = parts
        self._rows = rows
        if folder:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    def of(cls, table: pa.Table) -> Manifest:
        """The clips of a table in any order, each once."""
        table = sort_manifest(table)
        parts = [table.slice(at, PART_ROWS) for at in range(0, len(table) or 1, PART_ROWS)]
        return cls(parts, [len(part) for part in parts])

    @classmethod
    def stored(cls, uri: str) -> Manifest:
        """The manifest that `write` left at `uri`.

        Raises:
            ConfigError: there is none, it was left half-written, or another program wrote it.
        """
        places = whole_parts(uri)
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            rows = list(pool.map(_count_rows, places))
        return cls(places, rows)

    @property
    def num_rows(self) -> int:
        """Clips."""
        return sum(self._rows)

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part, of those of the `columns` that are there; None: all.

        Raises:
            ConfigError: a damaged file.
        """
        found = self._parts[number]
        if isinstance(found, str):
            return read_part(found, columns)
        return found if columns is None else shaped(found, columns)

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All parts in their order; see `part`."""
        return _ahead(partial(self.part, columns=columns), range(len(self)))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory."""
        return pa.concat_tables(self.parts(columns), promote_options="default")

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any clip's identity, version, length or status."""
        marks = [_mark(part) for part in self.parts(_AUDIO_COLUMNS)]
        if len(marks) == 1:
            return marks[0]
        return hashlib.blake2b(" ".join(marks).encode(), digest_size=8).hexdigest()

    @cached_property
    def audio_s(self) -> float:
        """Seconds of all clips of known length."""
        return sum(float(np.nansum(part["duration_s"])) for part in self.parts(["duration_s"]))

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the clips' files, each file once."""
        total, last = 0, None
        for part in self.parts(["file", "num_bytes"]):
            sizes = part.group_by("file", use_threads=False).aggregate([("num_bytes", "max")])
            total += pc.sum(sizes["num_bytes_max"]).as_py() or 0
            if len(part) and part["file"][0].as_py() == last:  # it began in the part before
                total -= sizes["num_bytes_max"][0].as_py() or 0
            last = part["file"][-1].as_py() if len(part) else last
        return total

    @property
    def last_part(self) -> pa.Table:
        """The last rows; where some lie in an object store, these do: local paths sort first."""
        return self.part(len(self) - 1)

    def write(self, uri: str) -> None:
        """Write `part-*.parquet` in place of the manifest that is there.

        Raises:
            WriteError, StorageError: as `storage.write_atomic`.
        """
        names = [f"part-{number:05d}.parquet" for number in range(len(self))]
        stale = [storage.join(uri, names[0])]
        stale += [p.uri for p in storage.list_parts(uri) if p.uri.rpartition("/")[2] not in names]
        for old in stale:
            storage.delete(old)
        for number in reversed(range(len(self))):
            part = self._parts[number]
            data = storage.read_bytes(part) if isinstance(part, str) else _to_parquet(part)
            storage.write_atomic(storage.join(uri, names[number]), data)


def collect(tables: Iterable[pa.Table], *, limit: int = 0) -> tuple[Manifest, int]:
    """The manifest of tables in any order, and how many rows it leaves out as repeated.

    Up to a million rows are sorted in memory; more in runs on the local disk, which are merged.

    Args:
        tables: manifest rows, some with labels.
        limit: only the first clips; 0 takes all.
    """
    runs = in_runs(tables)
    first = next(runs, MANIFEST.empty_table())
    second = next(runs, None)
    if second is None:
        table = sort_manifest(first)
        return Manifest.of(table.slice(0, limit or None)), len(first) - len(table)
    folder = tempfile.mkdtemp(prefix="raysers-")
    try:
        places: list[str] = []
        rows: list[int] = []
        given = kept = 0

        def write(part: tuple[str, pa.Table]) -> None:
            Path(part[0]).write_bytes(_to_parquet(part[1]))

        def wanted() -> Iterator[tuple[str, pa.Table]]:
            nonlocal kept
            for full in in_parts(merged(files), PART_ROWS):
                kept += len(full)
                part = full.slice(0, max(0, limit - sum(rows)) if limit else None)
                if len(part):
                    places.append(f"{folder}/part-{len(places):05d}.parquet")
                    rows.append(len(part))
                    yield places[-1], part

        files: list[str] = []
        for run in chain([first, second], runs):
            given += len(run)
            files.append(write_run(f"{folder}/run-{len(files)}.arrow", run))
        deque(_ahead(write, wanted()), maxlen=0)
        for file in files:
            Path(file).unlink()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            fix = "free some space, or set TMPDIR to another disk"
            raise WriteError(f"sorting clips in {folder}: {error.strerror}: {fix}") from error
        raise
    return Manifest(places, rows, folder), given - kept


def _ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`work` on each item, in threads that are a few items ahead of the caller."""
    with ThreadPoolExecutor(_PARTS_AHEAD) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _PARTS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _count_rows(uri: str) -> int:
    try:
        with pq.ParquetFile(storage.open_source(uri, headers_only=True)) as file:
            return int(file.metadata.num_rows)
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} is not a manifest in Parquet: {error}") from error


def write_manifest(uri: str, table: pa.Table) -> None:
    """Write the manifest of a table; see `Manifest.of` and `Manifest.write`."""
    Manifest.of(shaped(table, None)).write(uri)


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


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
    """The manifest at `uri` (see `manifest_parts`), all of it, in the order it was written.

    `columns` names those to read; None reads all manifest and label columns that are there.

    Raises:
        ConfigError: no manifest, or one that was left half-written.
    """
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        tables = list(pool.map(lambda part: _read_part(part, columns), whole_parts(uri)))
    table = pa.concat_tables(tables, promote_options="default")
    _check_rows(uri, table)
    return table


def whole_parts(uri: str) -> list[str]:
    """`manifest_parts`; ConfigError where there are none, or not all of them."""
    if not (parts := manifest_parts(uri)):
        raise ConfigError(f"{uri} has no manifest (part-*.parquet)")
    if not is_whole(parts):
        raise ConfigError(f"the manifest in {uri} is incomplete: delete it and index again")
    return parts


def _check_rows(uri: str, table: pa.Table) -> None:
    """Raises ConfigError for what another program wrote and no job could use."""
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


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of a manifest; see `read_manifest`.

    Raises:
        ConfigError: not Parquet, not a manifest, or damaged.
    """
    table = _read_part(uri, columns)
    _check_rows(uri, table)
    return table


def _read_part(uri: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(storage.open_source(uri)) as file:
            present = file.schema_arrow.names
            if missing := [n for n in columns or MANIFEST.names if n in _NEEDED - {*present}]:
                raise ConfigError(f"{uri} is no manifest: it has no column {', '.join(missing)}")
            names = [name for name in columns or present if name in present]
            return shaped(file.read(columns=names), columns)
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} is not a manifest in Parquet: {error}") from error


def fingerprint(table: pa.Table) -> str:
    """16 hex digits that change with any clip's identity, version, length or status.

    Labels do not count, nor does the order of the rows.
    """
    return Manifest.of(table).fingerprint


def _mark(part: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=8)
    order = pc.sort_indices(part["clip_id"])
    for name in _AUDIO_COLUMNS:
        digest.update(f"{name} {len(part)}\0".encode())
        for piece in _canonical_bytes(part[name].take(order)):
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
