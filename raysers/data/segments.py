"""From listed objects to clips: the header of each file is read, and the file cut.

A clip is a whole file, a table's segment, a window or a stretch of speech. The part of a file that
cannot be read is a row too, so that a loss is counted and never silent. A fault of a file becomes
rows with a status; a fault of the store (after retries) or of the credentials is raised.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.audio import decode
from raysers.audio.decode import AudioInfo, AudioReader, AudioSource, cut_message
from raysers.data.manifest import plain_rows
from raysers.errors import ClipError, ConfigError, StorageError
from raysers.io import storage
from raysers.io.objects import RangedFile
from raysers.schemas import AUDIO_STREAM, CHANNEL, LABEL_FIELDS, MANIFEST, OBJECTS, PARTS_OF_FILE
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status, clip_id

#: Speech in consecutive blocks of 16 kHz audio, as (start_ns, end_ns) in order.
FindSpeech = Callable[[Iterator[NDArray[np.float32]]], Sequence[tuple[int, int]]]
Row = Mapping[str, Any]

#: A column of listed rows that their clips take over, like the labels.
CARRIED = pa.field("listed_as", pa.string())
#: Tells an outage of the store from files that cannot be read, for all batches of this process.
_BREAKER = storage.Breaker()

#: A segment may end this much after the file, because tables round; further ends, up to the second
#: limit, are set to the end of the file.
_ROUNDING_NS = 1_000_000
CLAMPED_NS = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenting:
    """How a recording without given segments becomes clips.

    The whole file, windows of `window_s` every `hop_s` (a last one shorter than `min_s` is
    dropped), or stretches of speech; of the mean of all channels, of one (from 1), or of each; of
    the audio stream of that number, language or title.
    """

    kind: Literal["whole", "window", "vad"] = "whole"
    window_s: float = 10.0
    hop_s: float = 10.0
    min_s: float = 0.5
    channel: Literal["mean", "each"] | int = "mean"
    audio_stream: str = "0"

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "window", "vad"):
            raise ConfigError(f"--segment {self.kind}: choose whole, window or vad")
        if not (self.window_s > 0 and self.hop_s > 0 and self.min_s >= 0):
            raise ConfigError("--window-s and --hop-s must be more than 0 s, --min-s at least 0 s")


class _Cut(NamedTuple):
    """One clip of a file."""

    start_ns: int
    end_ns: int | None
    duration_s: float | None
    status: Status = Status.OK
    error: str = ""


class _Speech(NamedTuple):
    """What was decoded of a recording: (start_ns, end_ns) of speech, and where decoding failed."""

    spans: Sequence[tuple[int, int]]
    decoded_ns: int
    failure: ClipError | None


class _File(NamedTuple):
    """What one file's header says, or why it cannot be read; speech by channel."""

    info: AudioInfo | None
    num_bytes: int | None
    etag: str
    speech: Mapping[int | None, _Speech] | None = None
    failure: ClipError | None = None


def probe_batch(
    batch: pa.RecordBatch | pa.Table,
    segmenting: Segmenting,
    *,
    threads: int = 16,
    find_speech: FindSpeech | None = None,
) -> pa.Table:
    """The clips of rows of `list_inputs`, with the schema `MANIFEST` and the labels the batch has.

    Rows with a start or an end are clips as they are; every other row is a file that `segmenting`
    cuts. Each row gives at least one clip, and each file is opened once, `threads` at a time; one
    with `vad`, which decodes whole files and needs `find_speech`. Its blocks have zeros for NaN and
    end where a recording is damaged. Raises TransientStorageError, CredentialsError: not the clips'
    fault. ConfigError: raised by `find_speech`.
    """
    if segmenting.kind == "vad" and find_speech is None:
        raise ValueError("segmenting by voice activity needs find_speech")
    names = [*OBJECTS.names, "status", "error", *(field.name for field in PARTS_OF_FILE)]
    given = batch.select([name for name in names if name in batch.schema.names])
    listed = [dict.fromkeys(names) | row for row in plain_rows(given)]
    keys = [(row["file"], row["byte_offset"], row[AUDIO_STREAM.name]) for row in listed]
    rows_of: dict[tuple[Any, ...], list[Row]] = {key: [] for key in keys}
    for key, row in zip(keys, listed, strict=True):
        rows_of[key].append(row)
    speech = find_speech if segmenting.kind == "vad" else None
    with ThreadPoolExecutor(1 if speech else threads) as pool:
        found = pool.map(lambda rows: _inspect(rows, segmenting, speech), rows_of.values())
        files = dict(zip(rows_of, found, strict=True))
    rows, taken, whole = [], [], []
    for index, (key, row) in enumerate(zip(keys, listed, strict=True)):
        for channel in _channels(row, files[key].info, segmenting):
            cuts = _cuts(row, files[key], segmenting, channel)
            rows += [_row(row, files[key], cut, channel) for cut in cuts]
            taken += [index] * len(cuts)
            whole += [len(cuts) == 1] * len(cuts)
    chosen = {CHANNEL: segmenting.channel != "mean", AUDIO_STREAM: segmenting.audio_stream != "0"}
    parts = [field for field in chosen if chosen[field] or field.name in batch.schema.names]
    table = pa.Table.from_pylist(rows, pa.schema([*MANIFEST, *parts]))
    for field in (*LABEL_FIELDS, CARRIED):
        if field.name in batch.schema.names:
            column = batch.column(field.name).take(pa.array(taken, pa.int64()))
            if field.name == "transcript":  # which words are in which part is not known
                column = pc.if_else(pa.array(whole, pa.bool_()), column, None)
            table = table.append_column(field, column)
    return table


def _channels(row: Row, info: AudioInfo | None, segmenting: Segmenting) -> Sequence[int | None]:
    """The channels of a file that become clips; None: the mean of all."""
    if row[CHANNEL.name] is not None:
        return [row[CHANNEL.name]]
    if segmenting.channel == "each":
        return [None] if info is None else range(1, info.channels + 1)
    return [None if segmenting.channel == "mean" else segmenting.channel]


def _inspect(rows: Sequence[Row], segmenting: Segmenting, find_speech: FindSpeech | None) -> _File:
    """Reads the header of the file of `rows`, and its speech; its errors become data here."""
    row, cut = rows[0], [row for row in rows if not (row["start"] or row["end"])]
    num_bytes, etag = row["num_bytes"], row["etag"] or ""
    if row["status"] and row["status"] != Status.OK:
        failure = ClipError(Status(row["status"]), row["error"] or "")
        return _File(None, num_bytes, etag, failure=failure)
    info, speech, failed, source = None, None, None, None
    try:
        source = storage.open_source(
            row["file"],
            num_bytes=num_bytes,
            byte_offset=row["byte_offset"],
            byte_size=row["byte_size"],
            etag=etag,
            headers_only=not (find_speech and cut),
        )
        given = row[AUDIO_STREAM.name]
        stream = segmenting.audio_stream if given is None else given
        info = decode.probe(source, name=row["file"], stream=stream)
        if find_speech is not None and cut:
            channels = {channel for one in cut for channel in _channels(one, info, segmenting)}
            speech = {c: _speech(source, row["file"], stream, find_speech, c) for c in channels}
        _BREAKER.succeeded(row["file"])
    except Exception as error:  # one unforeseen file must not stop a million others
        failed = _BREAKER.failed(row["file"], error)
        if isinstance(error, StorageError):
            source = None
    # tables have no size and etag
    if isinstance(source, RangedFile):
        num_bytes, etag = num_bytes or source.num_bytes, etag or source.etag
    elif source is not None and not isinstance(source, str):
        num_bytes = num_bytes or source.seek(0, io.SEEK_END)
    elif isinstance(source, str) and not etag:
        with suppress(StorageError):
            found = storage.stat(source)
            num_bytes, etag = found.num_bytes, found.etag
    return _File(info, num_bytes, etag, speech, failed)


def _speech(
    source: AudioSource, name: str, stream: str | int, find_speech: FindSpeech, channel: int | None
) -> _Speech:
    samples, failure = 0, None

    def blocks(reader: AudioReader) -> Iterator[NDArray[np.float32]]:
        nonlocal samples, failure
        try:
            for block in reader.blocks(zero_nonfinite=True, channel=channel):
                samples += len(block)
                yield block
        except ClipError as error:
            failure = error

    with AudioReader(source, name=name, stream=stream) as reader:
        spans = find_speech(blocks(reader))
    return _Speech(spans, samples * NS_PER_S // SAMPLE_RATE_HZ, failure)


def _row(row: Row, file: _File, cut: _Cut, channel: int | None) -> dict[str, Any]:
    stream = file.info.stream if file.info else row[AUDIO_STREAM.name]
    return {
        "file": row["file"],
        "start": cut.start_ns,
        "end": cut.end_ns,
        "channel": channel,
        "audio_stream": stream,
        "clip_id": clip_id(row["file"], cut.start_ns, cut.end_ns, channel, stream),
        "duration_s": cut.duration_s,
        "sample_rate_hz": file.info and file.info.sample_rate_hz,
        "channels": file.info and file.info.channels,
        "codec": file.info and file.info.codec,
        "num_bytes": file.num_bytes,
        "etag": file.etag,
        "status": str(cut.status),
        "error": cut.error,
        "byte_offset": row["byte_offset"],
        "byte_size": row["byte_size"],
    }


def _cuts(row: Row, file: _File, segmenting: Segmenting, channel: int | None) -> list[_Cut]:
    """The clips of one listed row; at least one."""
    start_ns, end_ns, info = row["start"] or 0, row["end"], file.info
    given = bool(row["start"] or row["end"])
    if file.failure is not None:
        length_s = None if info is None or given else info.duration_s
        end_ns = end_ns if length_s is None else to_ns(length_s)
        return [_Cut(start_ns, end_ns, length_s, file.failure.status, file.failure.message)]
    assert info is not None
    if given:
        return [_given(start_ns, end_ns, info)]
    held_ns = to_ns(info.duration_s)
    if segmenting.kind == "whole":
        whole = _Cut(0, held_ns, info.duration_s)
        return [whole._replace(status=Status.TRUNCATED, error=cut_message(info))
                if info.is_cut else whole]  # fmt: skip
    promised_ns = to_ns(info.promised_frames / info.sample_rate_hz)
    # the missing part of a cut file is a separate row, so that the loss is counted
    lost = ClipError(Status.TRUNCATED, cut_message(info)) if info.is_cut else None
    if file.speech is None:
        spans: Sequence[tuple[int, int]] = windows(
            info.duration_s,
            window_s=segmenting.window_s,
            hop_s=segmenting.hop_s,
            min_s=segmenting.min_s,
        )
    else:
        speech = file.speech[channel]
        spans = speech.spans
        if speech.failure is not None:
            # decoding may find less than the header and the file's size promise
            lost, held_ns = speech.failure, min(speech.decoded_ns, held_ns)
            promised_ns = max(promised_ns, held_ns + 1)
    cuts = [_Cut(start, end, (end - start) / NS_PER_S) for start, end in spans]
    if not cuts and held_ns:
        cuts = [_Cut(0, held_ns, held_ns / NS_PER_S, Status.EMPTY, "no speech found")]
    if lost is not None:
        length_s = (promised_ns - held_ns) / NS_PER_S
        cuts.append(_Cut(held_ns, promised_ns, length_s, lost.status, lost.message))
    return cuts


def _given(start_ns: int, end_ns: int | None, info: AudioInfo) -> _Cut:
    """A table's own segment, checked against what the file holds."""
    held_ns = to_ns(info.duration_s)
    over_ns = 0 if end_ns is None else end_ns - held_ns
    # what a damaged file has lost is no rounding
    if _ROUNDING_NS < over_ns <= CLAMPED_NS and not info.is_cut and start_ns < held_ns:
        end_ns, over_ns = held_ns, 0
    last_ns = held_ns if end_ns is None else min(end_ns, held_ns)
    shown_ns = max(held_ns, start_ns) if end_ns is None else end_ns
    cut = _Cut(start_ns, shown_ns, max(0, last_ns - start_ns) / NS_PER_S)
    if start_ns >= held_ns:
        why = f"starts after the file's end at {info.duration_s:g} s"
        return cut._replace(status=Status.EMPTY, error=why)
    if over_ns > _ROUNDING_NS:
        return cut._replace(
            status=Status.TRUNCATED, error=f"the file ends at {info.duration_s:g} s"
        )
    if end_ns is None and info.is_cut:
        return cut._replace(status=Status.TRUNCATED, error=cut_message(info))
    return cut


def to_ns(seconds: float) -> int:
    """Seconds as the nearest whole nanosecond."""
    return round(seconds * NS_PER_S)


def windows(
    duration_s: float, *, window_s: float, hop_s: float, min_s: float
) -> list[tuple[int, int]]:
    """(start_ns, end_ns) of windows of `window_s` every `hop_s` over `[0, duration_s)`.

    A window that would pass the end is cut there, and dropped when less than `min_s` is left of it;
    the first window always stays. The last window is the first that reaches the end: a hop shorter
    than the window does not repeat ever shorter tails of what that window already holds. Starts are
    exact multiples of the hop; a hop above `window_s` leaves gaps. Raises ConfigError: a window or
    hop that is not longer than zero. ValueError: a duration that is negative or not a number.

    >>> [(a / 1e9, b / 1e9) for a, b in windows(2.5, window_s=1, hop_s=1, min_s=0.5)]
    [(0.0, 1.0), (1.0, 2.0), (2.0, 2.5)]
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise ValueError(f"duration must be a finite number of seconds >= 0, got {duration_s}")
    end_ns, window_ns, hop_ns = to_ns(duration_s), to_ns(window_s), to_ns(hop_s)
    if window_ns <= 0 or hop_ns <= 0:
        raise ConfigError(f"window and hop must be longer than 0 s, got {window_s} and {hop_s}")
    # starts before `last * hop_ns` do not reach the end; the one at or after it does
    last = max(0, -((window_ns - end_ns) // hop_ns))
    cuts = [(k * hop_ns, min(k * hop_ns + window_ns, end_ns)) for k in range(last + 1)]
    start_ns, stop_ns = cuts[-1]
    if last > 0 and stop_ns - start_ns < max(min(to_ns(min_s), window_ns), 1):
        cuts.pop()
    return cuts
