"""The manifest: clip rows with headers read and segments decided, sorted, in parts of 100,000 rows.

Its bytes depend on the input alone, so the same input gives the same files. The first part is
written last; a folder without it was left half-written. An extension, of files that were added
later, follows as further parts, written in the same way, and changes none of those before it. Jobs
read a manifest part by part, so that their memory does not grow with it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.data.columnar import PARQUET_SUFFIXES, READ_FAILURES
from raysers.data.readers import format_of
from raysers.data.sorting import ahead, shaped, sort_manifest, sorted_parts, to_parquet
from raysers.data.tables import table_columns
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage
from raysers.io.objects import suffix_of
from raysers.schemas import MANIFEST
from raysers.types import Clip, Status

#: Rows of a part: what is sorted, planned and read at a time.
PART_ROWS = 100_000

_OUR_PART = re.compile(r"/part-(\d{5})\.parquet$")
_READ_THREADS = 8
#: What decides the scores of a clip; labels may be corrected without making another manifest.
_AUDIO_COLUMNS = ("clip_id", "etag", "num_bytes", "byte_offset", "duration_s", "status")
#: Metadata of the parts of an extension: the fingerprint of all parts before it.
_EXTENDS = b"extends"


class Manifest:
    """Sorted clips in parts, in memory or in Parquet files of which few are read at a time.

    Attributes:
        firsts: number of the first part of the original list and of each extension.
    """

    def __init__(
        self,
        parts: Sequence[pa.Table | str],
        rows: Sequence[int],
        *,
        firsts: Sequence[int] = (0,),
        folder: str = "",
    ) -> None:
        """From tables or places of Parquet files; `folder` of the files goes with this object."""
        self._parts = parts
        self._rows = rows
        self.firsts = firsts
        self._added: Manifest | None = None
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

        Raises ConfigError: there is none, it was left half-written, or another program wrote it.
        """
        places = whole_parts(uri)
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            footers = list(pool.map(_footer, places))
        before = [(footer.metadata or {}).get(_EXTENDS) for footer in footers]
        firsts = [n for n, mark in enumerate(before) if not n or mark != before[n - 1]]
        return cls(places, [footer.num_rows for footer in footers], firsts=firsts)

    def extended(self, added: Manifest) -> Manifest:
        """These parts, and those of clips that were added."""
        rows = [*self._rows, *added._rows]
        made = Manifest([*self._parts, *added._parts], rows, firsts=[*self.firsts, len(self)])
        made._added = added  # keeps its folder
        return made

    @property
    def num_rows(self) -> int:
        """Clips."""
        return sum(self._rows)

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part, of those of the `columns` that are there; None: all."""
        found = self._parts[number]
        if isinstance(found, str):
            return read_part(found, columns)
        return found if columns is None else shaped(found, columns)

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All parts in their order; see `part`."""
        return ahead(partial(self.part, columns=columns), range(len(self)))

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory."""
        return pa.concat_tables(self.parts(columns), promote_options="default")

    @cached_property
    def fingerprints(self) -> list[str]:
        """That of the original list, and that after each extension."""
        marks = [_mark(part) for part in self.parts(_AUDIO_COLUMNS)]
        found = []
        for end in [*self.firsts[1:], len(marks)]:
            together = hashlib.blake2b(" ".join(marks[:end]).encode(), digest_size=8).hexdigest()
            found.append(marks[0] if end == 1 else together)
        return found

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any clip's identity, version, length or status."""
        return self.fingerprints[-1]

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
        """Write the parts that are not there as `part-*.parquet`, in place of any others."""
        names = [f"part-{number:05d}.parquet" for number in range(len(self))]
        places = [storage.join(uri, name) for name in names]
        new = [
            number
            for number, part in enumerate(self._parts)
            if not isinstance(part, str) or part != places[number]
        ]
        stale = [places[n] for n in new[:1]]
        stale += [p.uri for p in storage.list_parts(uri) if p.uri not in places]
        for old in stale:
            storage.delete(old)
        mark = {_EXTENDS: self.fingerprints[-2].encode()} if len(self.firsts) > 1 else None
        for number in reversed(new):
            part = self._parts[number]
            if isinstance(part, str) and mark is None:
                data = storage.read_bytes(part)
            else:
                data = to_parquet(self.part(number).replace_schema_metadata(mark))
            storage.write_atomic(places[number], data)


def collect(tables: Iterable[pa.Table], *, limit: int = 0) -> tuple[Manifest, int]:
    """The manifest of tables in any order, and how many rows it leaves out as repeated.

    Up to a million rows are sorted in memory; more in runs on the local disk, which are merged.
    Only the first `limit` clips are taken; 0: all.
    """
    parts, rows, folder, repeated = sorted_parts(tables, PART_ROWS, limit)
    return Manifest(parts, rows, folder=folder), repeated


def _footer(uri: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(storage.open_source(uri, headers_only=True))
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} is not a manifest in Parquet: {error}") from error


def write_manifest(uri: str, table: pa.Table) -> None:
    """Write the manifest of a table; see `Manifest.of` and `Manifest.write`."""
    Manifest.of(shaped(table)).write(uri)


def manifest_parts(uri: str) -> list[str]:
    """Tables that `uri` stands for: itself, or the parts in it or in its `manifest` folder."""
    uri = storage.absolute(uri)
    if format_of(uri) and not storage.is_folder(uri):
        return [uri]
    parts = storage.list_parts(storage.join(uri, "manifest")) or storage.list_parts(uri)
    return [part.uri for part in parts]


def is_whole(parts: Sequence[str]) -> bool:
    """Whether parts of ours (as of `manifest_parts`) are all there: the first is written last."""
    number = _OUR_PART.search(parts[0]) if parts else None
    return bool(parts) and (number is None or int(number[1]) == 0)


def is_manifest(uri: str) -> bool:
    """Whether `uri` is a manifest, to be used as it is, rather than audio or a bare table."""
    with suppress(ObjectMissing, ObjectForbidden):  # reported where it is listed
        parts = [part for part in manifest_parts(uri) if suffix_of(part) in PARQUET_SUFFIXES]
        return bool(parts) and set(MANIFEST.names) <= set(table_columns(parts[0]))
    return False


def whole_parts(uri: str) -> list[str]:
    """`manifest_parts` without those of an extension that was left half-written.

    Raises ConfigError: there are none, or not all of them.
    """
    if not (parts := manifest_parts(uri)):
        raise ConfigError(f"{uri} has no manifest (part-*.parquet)")
    numbers = [int(found[1]) for found in map(_OUR_PART.search, parts) if found]
    if len(numbers) < len(parts):  # of another program
        return parts
    whole = sum(number == place for place, number in enumerate(numbers))
    rest = ((_footer(part).metadata or {}).get(_EXTENDS) for part in parts[whole:])
    if not whole or not all(rest):
        raise ConfigError(f"the manifest in {uri} is incomplete: delete it and index again")
    return parts[:whole]


def read_manifest(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of the manifest at `uri`, of `columns` or of all that are there.

    Raises ConfigError: no manifest, or one that was left half-written.
    """
    return Manifest.stored(uri).table(columns)


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of a manifest; ConfigError if it is none, or damaged."""
    try:
        with pq.ParquetFile(storage.open_source(uri)) as file:
            present = file.schema_arrow.names
            needed = {*MANIFEST.names} - {*present}
            if missing := [name for name in columns or MANIFEST.names if name in needed]:
                raise ConfigError(f"{uri} is no manifest: it has no column {', '.join(missing)}")
            names = [name for name in columns or present if name in present]
            table = shaped(file.read(columns=names), columns)
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} is not a manifest in Parquet: {error}") from error
    _check_rows(uri, table)
    return table


def _check_rows(uri: str, table: pa.Table) -> None:
    """Raises ConfigError for what another program wrote and no job could use."""
    columns = {name: table[name] for name in table.column_names}
    faults = [
        f"{name} is empty"
        for name in ("file", "start", "clip_id", "status")
        if name in columns and columns[name].null_count
    ]
    known = pa.array(list(map(str, Status)))
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


def fingerprint(table: pa.Table) -> str:
    """See `Manifest.fingerprint`; neither labels nor the order of the rows count."""
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
    if not pa.types.is_string(column.type):
        yield np.ascontiguousarray(pc.is_valid(column).to_numpy())
        yield np.ascontiguousarray(pc.fill_null(column, 0).to_numpy())
        return
    lengths = pc.fill_null(pc.binary_length(column), -1)
    yield np.ascontiguousarray(lengths.to_numpy())
    for chunk in pc.fill_null(column, "").chunks:
        _, offsets, data = chunk.buffers()
        if data is not None and len(chunk):
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            yield memoryview(data)[ends[0] : ends[-1]]


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
