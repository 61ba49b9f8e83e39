"""Reads headers and decides segments: listed objects in, manifest rows out.

What is wrong with a file becomes rows with a status; what is wrong with the store (after retries)
or with the credentials is raised, because no clip is to blame for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.audio import decode
from raysers.audio.decode import AudioInfo, AudioReader, AudioSource
from raysers.audio.timeline import to_ns
from raysers.data import segments
from raysers.data.segments import Segment, Segmenting, Speech
from raysers.errors import (
    ClipError,
    ObjectChanged,
    ObjectForbidden,
    ObjectMissing,
    RaysersError,
    StorageError,
)
from raysers.io import storage
from raysers.io.ranged import RangedFile
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status, clip_id

__all__ = ["FindSpeech", "Segmenting", "probe_batch"]

#: Speech in consecutive blocks of 16 kHz audio, as (start_ns, end_ns) in order.
FindSpeech = Callable[[Iterator[NDArray[np.float32]]], Sequence[tuple[int, int]]]

_FATES: dict[type[StorageError], Status] = {
    ObjectMissing: Status.MISSING,
    ObjectForbidden: Status.FORBIDDEN,
    ObjectChanged: Status.UNREADABLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """One listed row, as Python values."""

    file: str
    start: int | None
    end: int | None
    num_bytes: int | None
    etag: str | None
    byte_offset: int | None
    byte_size: int | None
    status: str | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What one file's header told, or why it told nothing."""

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
        threads: files opened at a time; one with `vad`, which decodes them whole.
        find_speech: needed for `vad`; may raise ClipError. It hears NaN as silence, and of a
            broken recording what comes before the break.

    Raises:
        TransientStorageError, CredentialsError: not the clips' fault.
        ConfigError: what `find_speech` misses.
    """
    if segmenting.kind == "vad" and find_speech is None:
        raise ValueError("segmenting by voice activity needs find_speech")
    listed = _listed(batch)
    first_of: dict[tuple[str, int | None], int] = {}
    for index, row in enumerate(listed):
        first_of.setdefault((row.file, row.byte_offset), index)
    firsts = [listed[index] for index in first_of.values()]
    cut = {(r.file, r.byte_offset) for r in listed if not (r.start or r.end)}
    speech = find_speech if segmenting.kind == "vad" else None

    def look(row: _Listed) -> _File:
        return _look(row, speech if (row.file, row.byte_offset) in cut else None)

    with ThreadPoolExecutor(1 if speech else threads) as pool:
        files = dict(zip(first_of, pool.map(look, firsts), strict=True))
    return _table(batch, listed, files, segmenting)


def _listed(batch: pa.RecordBatch | pa.Table) -> list[_Listed]:
    def values(name: str) -> list[Any]:
        if name not in batch.schema.names:
            return [None] * batch.num_rows
        column = batch.column(name)
        return list((column.cast(pa.int64()) if name in ("start", "end") else column).to_pylist())

    names = list(_Listed.__dataclass_fields__)
    rows = zip(*(values(name) for name in names), strict=True)
    return [_Listed(**dict(zip(names, row, strict=True))) for row in rows]


def _look(row: _Listed, find_speech: FindSpeech | None) -> _File:
    """Opens one file; the row boundary, where the fate of a file becomes data."""
    if row.status and row.status != Status.OK:
        failure = ClipError(Status(row.status), row.error or "")
        return _File(info=None, num_bytes=row.num_bytes, etag=row.etag or "", failure=failure)
    info, speech, failed, source = None, None, None, None
    try:
        source = _open(row, headers_only=find_speech is None)
        info = decode.probe(source, name=row.file)
        speech = None if find_speech is None else _hear(source, row.file, find_speech)
    except ClipError as error:
        failed = error
    except (ObjectMissing, ObjectForbidden, ObjectChanged) as error:
        failed, source = ClipError(_FATES[type(error)], str(error)), None
    except RaysersError:
        raise
    except MemoryError:
        failed = ClipError(Status.OUT_OF_MEMORY, "no memory left to read the file")
    except Exception as error:  # one file nobody thought of must not stop a million others
        failed = ClipError(Status.UNREADABLE, f"{type(error).__name__}: {error}")
    num_bytes, etag = _version(row, source)
    return _File(info=info, num_bytes=num_bytes, etag=etag, speech=speech, failure=failed)


def _hear(source: AudioSource, name: str, find_speech: FindSpeech) -> Speech:
    samples, failure = 0, None

    def heard(reader: AudioReader) -> Iterator[NDArray[np.float32]]:
        nonlocal samples, failure
        try:
            for block in reader.blocks(zero_nonfinite=True):
                samples += len(block)
                yield block
        except ClipError as error:
            failure = error

    with AudioReader(source, name=name) as reader:
        spans = find_speech(heard(reader))
    return Speech(spans=spans, heard_ns=samples * NS_PER_S // SAMPLE_RATE_HZ, failure=failure)


def _open(row: _Listed, *, headers_only: bool) -> AudioSource:
    return storage.open_source(
        row.file,
        num_bytes=row.num_bytes,
        byte_offset=row.byte_offset,
        byte_size=row.byte_size,
        etag=row.etag or "",
        headers_only=headers_only,
    )


def _version(row: _Listed, source: AudioSource | None) -> tuple[int | None, str]:
    """Size and etag: as listed, else as learned while reading (tables do not know them)."""
    num_bytes, etag = row.num_bytes, row.etag or ""
    if isinstance(source, RangedFile):
        return num_bytes or source.num_bytes, etag or source.etag
    if isinstance(source, str) and not etag:
        with suppress(StorageError):
            about = storage.stat(source)
            return about.num_bytes, about.etag
    return num_bytes, etag


def _clips(row: _Listed, file: _File, segmenting: Segmenting) -> list[Segment]:
    """The clips of one listed row; at least one."""
    start_ns, given = row.start or 0, bool(row.start or row.end)
    if file.failure is not None:
        length_s = None if file.info is None or given else file.info.duration_s
        return [
            Segment(
                start_ns=start_ns,
                end_ns=row.end if length_s is None else to_ns(length_s),
                duration_s=length_s,
                status=file.failure.status,
                error=file.failure.message,
            )
        ]
    assert file.info is not None
    if given:
        return [segments.given(start_ns, row.end, file.info)]
    return segments.of_recording(file.info, segmenting, file.speech)


def _table(
    batch: pa.RecordBatch | pa.Table,
    listed: Sequence[_Listed],
    files: dict[tuple[str, int | None], _File],
    segmenting: Segmenting,
) -> pa.Table:
    owners: list[int] = []
    clips: list[Segment] = []
    for index, row in enumerate(listed):
        rows = _clips(row, files[row.file, row.byte_offset], segmenting)
        owners += [index] * len(rows)
        clips += rows
    names = [listed[i].file for i in owners]
    of = [files[listed[i].file, listed[i].byte_offset] for i in owners]
    infos = [file.info for file in of]
    columns: dict[str, list[Any]] = {
        "file": names,
        "start": [clip.start_ns for clip in clips],
        "end": [clip.end_ns for clip in clips],
        "clip_id": [clip_id(n, c.start_ns, c.end_ns) for n, c in zip(names, clips, strict=True)],
        "duration_s": [clip.duration_s for clip in clips],
        "sample_rate_hz": [info and info.sample_rate_hz for info in infos],
        "channels": [info and info.channels for info in infos],
        "codec": [info and info.codec for info in infos],
        "num_bytes": [file.num_bytes for file in of],
        "etag": [file.etag for file in of],
        "status": [str(clip.status) for clip in clips],
        "error": [clip.error for clip in clips],
        "byte_offset": [listed[i].byte_offset for i in owners],
        "byte_size": [listed[i].byte_size for i in owners],
    }
    table = pa.table([pa.array(columns[f.name], f.type) for f in MANIFEST], schema=MANIFEST)
    taken = pa.array(owners, pa.int64())
    for label in LABEL_FIELDS:
        if label.name in batch.schema.names:
            table = table.append_column(label, batch.column(label.name).take(taken))
    return table
