"""The manifest: clip rows with headers read and segments decided, once, for every later job.

Its bytes depend on the input alone: rows are sorted, so the same input gives the same files. Part 0
is written last; a folder without it was left half-written. A fault of a file becomes rows with a
status; a fault of the store (after retries) or of the credentials is raised.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysers.audio import decode
from raysers.audio.decode import AudioInfo, AudioReader, AudioSource
from raysers.data import segments
from raysers.data.segments import Segment, Segmenting, Speech, to_ns
from raysers.data.tables import PARQUET_SUFFIXES, READ_FAILURES, TABLE_SUFFIXES, table_columns
from raysers.errors import (
    ClipError,
    ConfigError,
    ObjectForbidden,
    ObjectMissing,
    StorageError,
    status_of,
)
from raysers.io import storage
from raysers.io.ranged import RangedFile
from raysers.io.uris import suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST, OBJECTS
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Clip, Status, clip_id

#: Speech in consecutive blocks of 16 kHz audio, as (start_ns, end_ns) in order.
FindSpeech = Callable[[Iterator[NDArray[np.float32]]], Sequence[tuple[int, int]]]

_ROWS_PER_PART = 100_000
_FIRST_PART = "/part-00000.parquet"
_OUR_PART = re.compile(r"/part-\d{5}\.parquet$")
_READ_THREADS = 8
#: What decides the scores of a clip; labels may be corrected without making another manifest.
_AUDIO_COLUMNS = ("clip_id", "etag", "num_bytes", "byte_offset", "duration_s", "status")
#: Tells an outage of the store from files that cannot be read, for all batches of this process.
_BREAKER = storage.Breaker()


class _File(NamedTuple):
    """What one file's header says, or why it cannot be read."""

    info: AudioInfo | None
    num_bytes: int | None
    etag: str
    speech: Speech | None = None
    failure: ClipError | None = None


def probe_batch(
    batch: pa.RecordBatch | pa.Table,
    segmenting: Segmenting,
    *,
    threads: int = 16,
    find_speech: FindSpeech | None = None,
) -> pa.Table:
    """The clips of listed objects, with the schema `MANIFEST` and the labels the batch has.

    Rows with a start or an end are clips as they are; every other row is a file that `segmenting`
    cuts. Each file is opened once, and each row of the batch gives at least one clip.

    Args:
        batch: rows of `sources.list_inputs`.
        segmenting: for rows without a segment.
        threads: files opened at a time; one with `vad`, which decodes whole files.
        find_speech: needed for `vad`; may raise ClipError. Its blocks have zeros for NaN and end
            where a recording is damaged.

    Raises:
        TransientStorageError, CredentialsError: not the clips' fault.
        ConfigError: raised by `find_speech`.
    """
    if segmenting.kind == "vad" and find_speech is None:
        raise ValueError("segmenting by voice activity needs find_speech")
    names = [*OBJECTS.names, "status", "error"]
    listed = [dict.fromkeys(names) for _ in range(batch.num_rows)]
    for name in set(names) & set(batch.schema.names):
        column = batch.column(name)
        column = column.cast(pa.int64()) if pa.types.is_duration(column.type) else column
        for row, value in zip(listed, column.to_pylist(), strict=True):
            row[name] = value
    keys = [(row["file"], row["byte_offset"]) for row in listed]
    cut = {key for key, row in zip(keys, listed, strict=True) if not (row["start"] or row["end"])}
    firsts = dict(zip(reversed(keys), reversed(listed), strict=True))
    speech = find_speech if segmenting.kind == "vad" else None

    def inspect(key: tuple[str, int | None]) -> _File:
        return _inspect(firsts[key], speech if key in cut else None)

    distinct = list(dict.fromkeys(keys))
    with ThreadPoolExecutor(1 if speech else threads) as pool:
        files = dict(zip(distinct, pool.map(inspect, distinct), strict=True))
    clips = [
        (index, files[key], clip)
        for index, (key, row) in enumerate(zip(keys, listed, strict=True))
        for clip in _clips(row, files[key], segmenting)
    ]
    table = pa.Table.from_pylist([_row(listed[i], file, clip) for i, file, clip in clips], MANIFEST)
    taken = pa.array([index for index, _, _ in clips], pa.int64())
    for label in LABEL_FIELDS:
        if label.name in batch.schema.names:
            table = table.append_column(label, batch.column(label.name).take(taken))
    return table


def _inspect(row: Mapping[str, Any], find_speech: FindSpeech | None) -> _File:
    """Reads one file's header; the row boundary, where the errors of a file become data."""
    num_bytes, etag = row["num_bytes"], row["etag"] or ""
    if row["status"] and row["status"] != Status.OK:
        failure = ClipError(Status(row["status"]), row["error"] or "")
        return _File(info=None, num_bytes=num_bytes, etag=etag, failure=failure)
    info, speech, failed, source = None, None, None, None
    try:
        source = storage.open_source(
            row["file"],
            num_bytes=num_bytes,
            byte_offset=row["byte_offset"],
            byte_size=row["byte_size"],
            etag=etag,
            headers_only=find_speech is None,
        )
        info = decode.probe(source, name=row["file"])
        speech = None if find_speech is None else _speech(source, row["file"], find_speech)
        _BREAKER.succeeded(row["file"])
    except Exception as error:  # one unforeseen file must not stop a million others
        if (failed := status_of(error)) is None:
            raise
        _BREAKER.failed(row["file"], error)
        if isinstance(error, StorageError):
            source = None
    # tables do not know size and etag
    if isinstance(source, RangedFile):
        num_bytes, etag = num_bytes or source.num_bytes, etag or source.etag
    elif isinstance(source, str) and not etag:
        with suppress(StorageError):
            found = storage.stat(source)
            num_bytes, etag = found.num_bytes, found.etag
    return _File(info=info, num_bytes=num_bytes, etag=etag, speech=speech, failure=failed)


def _speech(source: AudioSource, name: str, find_speech: FindSpeech) -> Speech:
    samples, failure = 0, None

    def blocks(reader: AudioReader) -> Iterator[NDArray[np.float32]]:
        nonlocal samples, failure
        try:
            for block in reader.blocks(zero_nonfinite=True):
                samples += len(block)
                yield block
        except ClipError as error:
            failure = error

    with AudioReader(source, name=name) as reader:
        spans = find_speech(blocks(reader))
    return Speech(spans=spans, heard_ns=samples * NS_PER_S // SAMPLE_RATE_HZ, failure=failure)


def _clips(row: Mapping[str, Any], file: _File, segmenting: Segmenting) -> list[Segment]:
    """The clips of one listed row; at least one."""
    start_ns, given = row["start"] or 0, bool(row["start"] or row["end"])
    if file.failure is not None:
        length_s = None if file.info is None or given else file.info.duration_s
        return [
            Segment(
                start_ns=start_ns,
                end_ns=row["end"] if length_s is None else to_ns(length_s),
                duration_s=length_s,
                status=file.failure.status,
                error=file.failure.message,
            )
        ]
    assert file.info is not None
    if given:
        return [segments.given(start_ns, row["end"], file.info)]
    return segments.of_recording(file.info, segmenting, file.speech)


def _row(row: Mapping[str, Any], file: _File, clip: Segment) -> dict[str, Any]:
    return {
        "file": row["file"],
        "start": clip.start_ns,
        "end": clip.end_ns,
        "clip_id": clip_id(row["file"], clip.start_ns, clip.end_ns),
        "duration_s": clip.duration_s,
        "sample_rate_hz": file.info and file.info.sample_rate_hz,
        "channels": file.info and file.info.channels,
        "codec": file.info and file.info.codec,
        "num_bytes": file.num_bytes,
        "etag": file.etag,
        "status": str(clip.status),
        "error": clip.error,
        "byte_offset": row["byte_offset"],
        "byte_size": row["byte_size"],
    }


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
