"""Decode any span of any file libsndfile reads to what every model here takes: mono at 16 kHz.

A span is judged on its own: a cut or NaN elsewhere in the file does not spoil it. Memory is the
16 kHz output and about one block, whatever the file's length, rate or number of channels.

The mean of all channels is taken first, then soxr's HQ conversion; audio that is at 16 kHz already
passes unchanged, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np

from raysers.audio import resample
from raysers.audio.source import AudioSource
from raysers.audio.stream import AudioInfo, FrameStream
from raysers.errors import ClipError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

__all__ = ["AudioInfo", "AudioReader", "AudioSource", "cut_message", "decode", "probe"]


def probe(source: AudioSource, *, name: str) -> AudioInfo:
    """Read a file's header.

    Args:
        source: local path or seekable binary file object.
        name: file name for messages; its extension only tells headerless audio from garbage.

    Returns:
        What the file holds. A cut file is returned as well, with `promised_frames > frames`.

    Raises:
        ClipError: `missing`, `forbidden`, `unreadable`, `unsupported`, `empty`, or `truncated`
            when nothing is left of the audio.
        StorageError: a local file could not be opened for another reason; whatever the file
            object raised passes through.
    """
    with AudioReader(source, name=name) as reader:
        info = reader.info
    if info.frames == 0:
        raise _cut(info) if info.promised_frames else _no_frames()
    return info


def decode(
    source: AudioSource,
    *,
    name: str,
    start_ns: int = 0,
    end_ns: int | None = None,
    max_s: float = 600.0,
) -> np.ndarray:
    """Decode one span of one file; for many spans of a file keep an `AudioReader` open.

    See `AudioReader.read`.
    """
    with AudioReader(source, name=name) as reader:
        return reader.read(start_ns, end_ns, max_s=max_s)


class AudioReader:
    """An open audio file from which spans are read; not to be shared by threads.

    Args:
        source: local path or seekable binary file object, which stays open.
        name: file name for messages.

    Raises:
        ClipError: the file cannot be opened (see `probe`).
    """

    def __init__(self, source: AudioSource, *, name: str) -> None:
        self._stream = FrameStream(source, name=name)
        self.info = self._stream.info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a file object given stays open."""
        self._stream.close()

    def read(self, start_ns: int = 0, end_ns: int | None = None, *, max_s: float) -> np.ndarray:
        """Decode `[start_ns, end_ns)`: that slice of the whole file at 16 kHz.

        Spans may come in any order and overlap; the file is not read from its start for each.

        Args:
            start_ns: start of the span.
            end_ns: end of the span; None or beyond the file's end: the end of the file.
            max_s: longest span accepted, seconds at 16 kHz.

        Returns:
            float32 samples, shape (n,), n >= 1.

        Raises:
            ClipError: `empty` (no samples in the span), `too_long`, `truncated` (the header
                promises audio of the span that the file does not hold), `not_finite`,
                `unreadable` (the decoder gave up), `out_of_memory`.
        """
        info = self.info
        total = resample.converted_length(info.promised_frames, info.sample_rate_hz)
        first = resample.to_sample(start_ns)
        last = total if end_ns is None else min(resample.to_sample(end_ns), total)
        if end_ns is not None and end_ns > start_ns:
            # shorter than half a sample at 16 kHz is still a sample of audio, not none
            last = min(max(last, first + 1), total)
        if total == 0:
            raise _no_frames()
        is_cut = info.promised_frames > info.frames + self._stream.slack_frames
        if first < 0 or last <= first:
            # a cut file may promise more than we can tell, such as Ogg
            raise _cut(info) if is_cut else _no_samples(start_ns, end_ns, info)
        if last - first > max_s * SAMPLE_RATE_HZ:
            seconds = (last - first) / SAMPLE_RATE_HZ
            raise ClipError(
                Status.TOO_LONG,
                f"{seconds:.1f} s, longer than the limit of {max_s:g} s: cut it into windows",
            )
        needed = info.promised_frames
        if last < total:
            needed = min(resample.frames_for(last, info.sample_rate_hz), needed)
        if needed > info.frames + self._stream.slack_frames:
            raise _cut(info)
        try:
            signal = self._samples(first, last)
        except MemoryError as error:
            raise ClipError(Status.OUT_OF_MEMORY, "no memory left to decode the clip") from error
        if self._stream.is_promise and needed - self._stream.end > self._stream.slack_frames:
            raise _cut(info, held=self._stream.end)
        if signal.size == 0:
            raise _no_samples(start_ns, end_ns, info)
        return signal

    def blocks(
        self, block_s: float = 30.0, *, zero_nonfinite: bool = False
    ) -> Iterator[np.ndarray]:
        """The whole file as consecutive pieces of one continuous 16 kHz signal.

        Args:
            block_s: length of every block but the last, seconds.
            zero_nonfinite: NaN and infinity become zeros in place of an error.

        Yields:
            float32 samples, shape (n,), n >= 1.

        Raises:
            ClipError: as `read` does, after the part that is there (of FLAC up to a block of
                the codec less).
        """
        info, size = self.info, max(1, round(block_s * SAMPLE_RATE_HZ))
        if info.promised_frames == 0:
            raise _no_frames()
        held, failure = 0, None
        span = (0, 0) if zero_nonfinite else (0, info.frames)

        def native() -> Iterator[np.ndarray]:
            nonlocal held, failure
            try:
                for block in self._stream.blocks(0, info.frames, span):
                    held += block.size
                    yield block
            except ClipError as error:
                failure = error  # what came before it is still on its way

        yield from _regroup(self._converted(native()), size)
        if failure is not None:
            raise failure
        if self._stream.is_promise and info.promised_frames - held > self._stream.slack_frames:
            raise _cut(info, held=held)

    def _samples(self, first: int, last: int) -> np.ndarray:
        """The 16 kHz samples `[first, last)`, or as many of them as the file holds."""
        info = self.info
        if info.sample_rate_hz == SAMPLE_RATE_HZ:
            return self._stream.mono(first, last)
        start, end, at = resample.context(first, last, info.sample_rate_hz)
        span = (
            first * info.sample_rate_hz // SAMPLE_RATE_HZ,
            resample.frames_for(last, info.sample_rate_hz),
        )
        signal = np.empty(last - first, np.float32)
        skip, filled = first - at, 0
        blocks = self._stream.blocks(start, min(end, info.frames), span)
        for piece in self._converted(blocks):
            kept = piece[skip : skip + signal.size - filled]
            signal[filled : filled + kept.size] = kept
            filled += kept.size
            skip = max(0, skip - piece.size)
        if not np.isfinite(signal[:filled]).all():
            raise ClipError(Status.NOT_FINITE, "samples too large for float32")
        return signal[:filled]

    def _converted(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Consecutive blocks of the file as consecutive pieces at 16 kHz."""
        rate_hz = self.info.sample_rate_hz
        if rate_hz == SAMPLE_RATE_HZ:
            yield from blocks
        elif resample.rounds_to_nothing(self.info.frames, rate_hz):
            # a file of a few frames at a high rate: soxr would give no sample at all
            yield from (block.mean(keepdims=True) for block in blocks)
        else:
            yield from resample.converted(blocks, rate_hz)


def _regroup(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in arrays of `size`, the last one shorter."""
    block, filled = np.empty(size, np.float32), 0
    for piece in pieces:
        while piece.size:
            taken = piece[: size - filled]
            block[filled : filled + taken.size] = taken
            filled += taken.size
            piece = piece[taken.size :]  # noqa: PLW2901
            if filled == size:
                yield block
                block, filled = np.empty(size, np.float32), 0
    if filled:
        yield block[:filled]


def _no_frames() -> ClipError:
    return ClipError(Status.EMPTY, "a header without any audio")


def _no_samples(start_ns: int, end_ns: int | None, info: AudioInfo) -> ClipError:
    end = "the end" if end_ns is None else f"{end_ns / NS_PER_S:.3f} s"
    span = f"from {start_ns / NS_PER_S:.3f} s to {end}"
    return ClipError(Status.EMPTY, f"no samples {span}: the file has {info.duration_s:.3f} s")


def _cut(info: AudioInfo, held: int | None = None) -> ClipError:
    return ClipError(Status.TRUNCATED, cut_message(info, held))


def cut_message(info: AudioInfo, held: int | None = None) -> str:
    """What is missing of a cut file that holds `held` frames, those of `info` if None."""
    rate_hz, held = info.sample_rate_hz, info.frames if held is None else held
    if info.is_joined and held == info.frames:
        return f"several streams are joined; only the first {info.duration_s:.3f} s can be read"
    return (
        f"the header promises {info.promised_frames / rate_hz:.3f} s, "
        f"the file holds {held / rate_hz:.3f} s: copy or download it again"
    )
