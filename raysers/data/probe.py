"""Reads headers and decides segments: listed objects in, manifest rows out.

What is wrong with a file becomes rows with a status; what is wrong with the store (after retries)
or with the credentials is raised, because no clip is to blame for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from raysers.audio import decode, mpeg
from raysers.audio.decode import AudioInfo, AudioSource
from raysers.audio.windows import to_ns, windows
from raysers.data import storage
from raysers.data.ranged import RangedFile
from raysers.errors import ClipError, ConfigError, ObjectForbidden, ObjectMissing, StorageError
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import NS_PER_S, Status, clip_id

#: Speech segments of an opened source as (start_ns, end_ns), in order.
FindSpeech = Callable[[AudioSource], Sequence[tuple[int, int]]]

#: A table's segment may end this much after the file: tables round, and rates do not divide.
_END_TOLERANCE_NS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenting:
    """How a recording without given segments becomes clips.

    Attributes:
        kind: the whole file, fixed windows, or the stretches of speech.
        window_s: length of a window, seconds.
        hop_s: from one window's start to the next one's, seconds.
        min_s: a last window shorter than this is dropped, seconds.
    """

    kind: Literal["whole", "window", "vad"] = "whole"
    window_s: float = 10.0
    hop_s: float = 10.0
    min_s: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "window", "vad"):
            raise ConfigError(f"--segment {self.kind}: choose whole, window or vad")
        if not (self.window_s > 0 and self.hop_s > 0 and self.min_s >= 0):
            raise ConfigError("--window-s and --hop-s must be more than 0 s, --min-s at least 0 s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One clip of a file."""

    start_ns: int
    end_ns: int | None
    duration_s: float | None
    status: Status = Status.OK
    error: str = ""


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
    speech: Sequence[tuple[int, int]] | None = None
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
        threads: files opened at a time.
        find_speech: needed for `vad`; may raise ClipError.

    Raises:
        TransientStorageError, CredentialsError: not the clips' fault.
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

    with ThreadPoolExecutor(threads) as pool:
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
        source = _open(row)
        info = decode.probe(source, name=row.file)
        speech = None if find_speech is None else find_speech(source)
    except ClipError as error:
        failed = error
    except ObjectMissing as error:
        failed = ClipError(Status.MISSING, str(error))
    except ObjectForbidden as error:
        failed = ClipError(Status.FORBIDDEN, str(error))
    num_bytes, etag = _version(row, source)
    return _File(info=info, num_bytes=num_bytes, etag=etag, speech=speech, failure=failed)


def _open(row: _Listed) -> AudioSource:
    return storage.open_source(
        row.file, num_bytes=row.num_bytes, byte_offset=row.byte_offset, byte_size=row.byte_size
    )


def _version(row: _Listed, source: AudioSource | None) -> tuple[int | None, str]:
    """Size and etag: as listed, else as learned while reading (tables do not know them)."""
    num_bytes, etag = row.num_bytes, row.etag or ""
    if isinstance(source, RangedFile) and source.failure is None:
        return num_bytes or source.num_bytes, etag or source.etag
    if isinstance(source, str) and not etag:
        with suppress(StorageError):
            about = storage.stat(source)
            return about.num_bytes, about.etag
    return num_bytes, etag


def _clips(row: _Listed, file: _File, segmenting: Segmenting) -> list[_Row]:
    """The clips of one listed row; at least one."""
    start_ns, given = row.start or 0, bool(row.start or row.end)
    if file.failure is not None:
        length_s = None if file.info is None or given else file.info.duration_s
        end_ns = row.end if length_s is None else to_ns(length_s)
        failed = _Row(start_ns=start_ns, end_ns=end_ns, duration_s=length_s)
        return [_replaced(failed, file.failure.status, file.failure.message)]
    assert file.info is not None
    if given:
        return [_given(start_ns, row.end, file.info)]
    if segmenting.kind == "whole":
        return [_whole(file.info)]
    if segmenting.kind == "window":
        spans: Sequence[tuple[int, int]] = windows(
            file.info.duration_s,
            window_s=segmenting.window_s,
            hop_s=segmenting.hop_s,
            min_s=segmenting.min_s,
        )
    else:
        spans = file.speech or ()
    rows = [_Row(start_ns=a, end_ns=b, duration_s=(b - a) / NS_PER_S) for a, b in spans]
    if not rows:
        rows = [_replaced(_span(0, to_ns(file.info.duration_s)), Status.EMPTY, "no speech found")]
    return rows + _lost_tail(file.info)


def _given(start_ns: int, end_ns: int | None, info: AudioInfo) -> _Row:
    """A table's own segment, judged by what the file holds."""
    held_ns = to_ns(info.duration_s)
    last_ns = held_ns if end_ns is None else min(end_ns, held_ns)
    row = _Row(start_ns=start_ns, end_ns=end_ns, duration_s=max(0, last_ns - start_ns) / NS_PER_S)
    if end_ns is None:
        row = dataclasses.replace(row, end_ns=max(held_ns, start_ns))
    if start_ns >= held_ns:
        return _replaced(row, Status.EMPTY, f"starts after the file's end at {info.duration_s:g} s")
    if end_ns is not None and end_ns > held_ns + _END_TOLERANCE_NS:
        return _replaced(row, Status.TRUNCATED, f"the file ends at {info.duration_s:g} s")
    if end_ns is None and _is_cut(info):
        return _replaced(row, Status.TRUNCATED, _cut_message(info))
    return row


def _whole(info: AudioInfo) -> _Row:
    row = _Row(start_ns=0, end_ns=to_ns(info.duration_s), duration_s=info.duration_s)
    return _replaced(row, Status.TRUNCATED, _cut_message(info)) if _is_cut(info) else row


def _lost_tail(info: AudioInfo) -> list[_Row]:
    """The part of a cut file that is not there: a row of its own, so the loss is counted."""
    if not _is_cut(info):
        return []
    tail = _span(to_ns(info.duration_s), to_ns(info.promised_frames / info.sample_rate_hz))
    return [_replaced(tail, Status.TRUNCATED, _cut_message(info))]


def _span(start_ns: int, end_ns: int) -> _Row:
    return _Row(start_ns=start_ns, end_ns=end_ns, duration_s=(end_ns - start_ns) / NS_PER_S)


def _replaced(row: _Row, status: Status, error: str) -> _Row:
    return dataclasses.replace(row, status=status, error=error)


def _is_cut(info: AudioInfo) -> bool:
    slack = mpeg.SLACK_FRAMES if "MPEG" in info.codec else 0
    return info.promised_frames > info.frames + slack


def _cut_message(info: AudioInfo) -> str:
    promised_s = info.promised_frames / info.sample_rate_hz
    return f"the header promises {promised_s:.3f} s, the file holds {info.duration_s:.3f} s"


def _table(
    batch: pa.RecordBatch | pa.Table,
    listed: Sequence[_Listed],
    files: dict[tuple[str, int | None], _File],
    segmenting: Segmenting,
) -> pa.Table:
    owners: list[int] = []
    clips: list[_Row] = []
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
