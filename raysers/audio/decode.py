"""Decode any span of any file that libsndfile or PyAV reads to what models take: mono at 16 kHz.

A span is judged on its own: a cut or NaN elsewhere in the file does not spoil it. It is a slice of
the converted whole file, not a conversion of a slice, so cutting a recording leaves no click at the
borders. Memory is the 16 kHz output and about one block, whatever the file's length, rate or number
of channels. soxr (HQ) converts the mean of all channels, or one; 16 kHz passes bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from raysers.audio import containers, streams
from raysers.audio.libav import DEMUXERS
from raysers.audio.samples import (
    channel_fault,
    context,
    converted,
    converted_length,
    frames_for,
    mono,
    regrouped,
    to_sample,
    usable,
)
from raysers.audio.sound import AudioInfo, Sound, cut_message, open_sound
from raysers.audio.source import AudioSource, Bytes, open_bytes
from raysers.errors import ClipError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

__all__ = ["AudioInfo", "AudioReader", "AudioSource", "cut_message", "decode", "probe"]

Floats = npt.NDArray[np.float32]

#: Rates outside are damaged headers: no audio is recorded at them.
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000

#: Samples of all channels read at once (1 MiB), and of a span that is read as a whole (4 MiB).
_BLOCK_SAMPLES, _SHORT_SAMPLES = 1 << 18, 1 << 20

#: More frames a byte than any encoder makes of silence: FLAC packs 65,535 into 11 bytes, Opus about
#: 2,000 into one, but leaves gaps out; of all others MPEG layer II does best, with 48.
_MOST_FRAMES_PER_BYTE = {"FLAC": 8192, "OGG": 8192, **dict.fromkeys(DEMUXERS, 8192)}
_MOST_OF_OTHERS = 64

#: Thirty years; twenty times as much would be too many nanoseconds for 64 bits.
_LONGEST_S = 1_000_000_000


def probe(source: AudioSource, *, name: str, stream: str | int = 0) -> AudioInfo:
    """What a file holds by its header, also where it is cut; ClipError where there is no audio."""
    with AudioReader(source, name=name, stream=stream) as reader:
        info = reader.info
    if info.frames == 0:
        raise _cut(info) if info.promised_frames else _no_audio()
    return info


def decode(
    source: AudioSource,
    *,
    name: str,
    start_ns: int = 0,
    end_ns: int | None = None,
    max_s: float = 600.0,
) -> Floats:
    """Decode one span of one file, see `AudioReader.read`."""
    with AudioReader(source, name=name) as reader:
        return reader.read(start_ns, end_ns, max_s=max_s)


class AudioReader:
    """An open audio file from which spans are read; not to be shared by threads.

    Reads go block by block with their counts checked: where a header promises too much, libsndfile
    gives short or stale data. A file object given as `source` stays open. `name` is for messages
    and identifies headerless audio; `stream` is the number from 0, language or title of a stream.
    Raises ClipError: the file cannot be opened, or has no such stream (`unsupported`).
    """

    def __init__(self, source: AudioSource, *, name: str, stream: str | int = 0) -> None:
        self._name, self._stream = name, stream
        self._bytes = opened = open_bytes(source)
        self._is_estimate = False  # `info.promised_frames` is no count
        self._energies, self._mix_energy, self._start = np.zeros(0), 0.0, 0
        self._channel: int | None = None
        self._end = 0  # frame after the last one read
        self._position: int | None = 0  # None: unknown, after a failed read
        self._is_lenient = True
        try:
            self._sound, self._bytes = open_sound(containers.untagged(opened), name, stream)
            self.info = self._survey()
        except BaseException:
            opened.close()
            raise
        subtype = self._sound.kind[1]
        self._may_be_unusable = not subtype.startswith("PCM")
        # of codecs in blocks libsndfile makes frames from data that are not there
        self._is_lenient = not subtype.startswith(("PCM", "FLOAT", "DOUBLE"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a file object given stays open."""
        self._sound.close()
        self._bytes.close()

    def read(
        self,
        start_ns: int = 0,
        end_ns: int | None = None,
        *,
        max_s: float,
        channel: int | None = None,
    ) -> Floats:
        """Decode `[start_ns, end_ns)`: that slice of the whole at 16 kHz, in any order of spans.

        An end that is None or too late is that of the file. `channel` counts from 1; None is the
        mean of all. Returns float32 [samples], at least one. Raises ClipError: `empty` (no samples
        in the span), `too_long` (over `max_s`), `truncated` (the header promises audio of the span
        that the file does not hold), `not_finite`, `unreadable` (the decoder gave up),
        `unsupported` (no such channel), `out_of_memory`.
        """
        self._choose(channel)
        info, slack = self.info, self.info.slack_frames
        total = converted_length(info.promised_frames, info.sample_rate_hz)
        first = to_sample(start_ns)
        last = total if end_ns is None else min(to_sample(end_ns), total)
        if end_ns is not None and end_ns > start_ns:
            # shorter than half a sample at 16 kHz is still a sample of audio, not none
            last = min(max(last, first + 1), total)
        if total == 0:
            raise _no_audio()
        if first < 0 or last <= first:
            # a cut file may promise more than we can tell, such as Ogg
            raise _cut(info) if info.is_cut else _no_samples(start_ns, end_ns, info)
        if last - first > max_s * SAMPLE_RATE_HZ:
            seconds = (last - first) / SAMPLE_RATE_HZ
            message = f"{seconds:.1f} s, longer than the limit of {max_s:g} s: cut it into windows"
            raise ClipError(Status.TOO_LONG, message)
        needed = info.promised_frames
        if last < total:
            needed = min(frames_for(last, info.sample_rate_hz), needed)
        if needed > info.frames + slack:
            raise _cut(info)
        try:
            signal = self._samples(first, last)
        except MemoryError as error:
            raise ClipError(Status.OUT_OF_MEMORY, "no memory is left to decode it") from error
        self._check_decoded(needed)
        if signal.size:
            return signal
        raise _no_samples(start_ns, end_ns, info)

    def blocks(
        self, block_s: float = 30.0, *, zero_nonfinite: bool = False, channel: int | None = None
    ) -> Iterator[Floats]:
        """The whole file at 16 kHz, in blocks [samples] of `block_s` and a last, shorter one.

        With `zero_nonfinite`, NaN and infinity become zeros. Raises ClipError as `read` does, after
        the part that is there (of FLAC up to a block of the codec less).
        """
        self._choose(channel)
        info, size = self.info, max(1, round(block_s * SAMPLE_RATE_HZ))
        if info.promised_frames == 0:
            raise _no_audio()
        held, failure = 0, None
        span = (0, 0) if zero_nonfinite else (0, info.frames)

        def native() -> Iterator[Floats]:
            nonlocal held, failure
            try:
                for block in self._native(0, info.frames, span):
                    held += block.size
                    yield block
            except ClipError as error:
                failure = error  # what came before it is still on its way

        yield from regrouped(converted(native(), info.sample_rate_hz, info.frames), size)
        if failure is not None:
            raise failure
        self._end = held
        self._check_decoded(info.promised_frames)

    def channel_fault(self) -> str:
        """What is wrong between the channels of the last span, see `samples.channel_fault`."""
        frames = max(1, self._end - self._start)
        return channel_fault((self._energies / frames).tolist(), self._mix_energy / frames)

    def _choose(self, channel: int | None) -> None:
        if channel is not None and not 1 <= channel <= self.info.channels:
            held = f"{self.info.channels} channel{'s' * (self.info.channels > 1)}"
            raise ClipError(Status.UNSUPPORTED, f"no channel {channel}: the file has {held}")
        self._channel = channel

    def _samples(self, first: int, last: int) -> Floats:
        """The 16 kHz samples `[first, last)`, or as many of them as the file holds."""
        info, signal, filled = self.info, np.empty(last - first, np.float32), 0
        rate_hz = info.sample_rate_hz
        if rate_hz == SAMPLE_RATE_HZ and info.channels == 1:
            return self._usable(signal[: self._fill(signal, first)], first, (first, last))
        start, end, at = context(first, last, rate_hz)
        span = first * rate_hz // SAMPLE_RATE_HZ, frames_for(last, rate_hz)
        end = min(end, info.frames)
        is_short = (end - start) * info.channels <= _SHORT_SAMPLES
        blocks = self._native(start, end, span, _SHORT_SAMPLES if is_short else _BLOCK_SAMPLES)
        skip = first - at
        for piece in converted(blocks, rate_hz, info.frames):
            kept = piece[skip : skip + signal.size - filled]
            signal[filled : filled + kept.size] = kept
            filled += kept.size
            skip = max(0, skip - piece.size)
        return signal[:filled]

    def _native(
        self, start: int, end: int, span: tuple[int, int], most_samples: int = _BLOCK_SAMPLES
    ) -> Iterator[Floats]:
        """Frames `[start, end)`, or as many as there are, as mono blocks at the file's own rate."""
        channels, self._start, self._end = self.info.channels, start, start
        self._energies, self._mix_energy = np.zeros(channels), 0.0
        most = max(1, most_samples // channels)
        while start < end:
            wanted = min(most, end - start)
            block = np.empty((wanted, channels), np.float32)
            got = self._fill(block, start)
            if got:
                block = self._usable(block[:got], start, span)
                mix = mono(block, self._channel)
                if channels > 1 and self._channel is None:
                    self._energies += np.einsum("fc,fc->c", block, block)
                    self._mix_energy += float(np.einsum("f,f->", mix, mix))
                yield mix
            if got < wanted:
                return
            start += got

    def _check_decoded(self, needed: int) -> None:
        """Raise what is missing of the first `needed` frames, of which all there are were read."""
        info, source = self.info, self._bytes
        if needed - self._end > info.slack_frames:
            counted = streams.counted_frames(source) if self._is_estimate else needed
            if counted - self._end <= info.slack_frames:
                return
            if info.note or self._sound.has_read_all(source):
                raise _cut(info, held=self._end)
            message = (
                f"the audio data are damaged: decoding stopped at "
                f"{self._end / info.sample_rate_hz:.3f} s of {info.length_s:.3f} s"
            )
            reason = self._sound.failure
            raise ClipError(Status.UNREADABLE, f"{message} ({reason})" if reason else message)
        at_end = needed == info.promised_frames and self._position == info.frames
        if at_end and self._sound.goes_on(source, info.frames):
            message = f"more audio follows the {info.duration_s:.3f} s that the file counts"
            raise ClipError(Status.TRUNCATED, f"{message}, and cannot be read: convert the file")

    def _reopen(self, source: Bytes) -> None:
        """Start again at the first frame of `source`."""
        self._bytes.check()
        self._sound.close()
        source.rewind()
        self._position = 0
        self._sound, self._bytes = open_sound(source, self._name, self._stream)

    def _survey(self) -> AudioInfo:
        opened = self._sound
        rate_hz, channels = opened.sample_rate_hz, opened.channels
        if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
            limits = f"{LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz"
            message = f"the header declares {rate_hz} Hz, outside {limits}: probably damaged"
            raise ClipError(Status.UNSUPPORTED if rate_hz > 0 else Status.UNREADABLE, message)
        container, subtype = opened.kind
        frames, promised, source, self._is_estimate, note = opened.lengths(self._bytes)
        if source is not self._bytes:
            self._reopen(source)
            if container != "MP3" and isinstance(self._sound, Sound):
                frames = promised = self._sound.frames
        elif isinstance(opened, Sound) and opened.has_moved:
            self._reopen(source)
        most = self._bytes.size * _MOST_FRAMES_PER_BYTE.get(container, _MOST_OF_OTHERS)
        if frames > min(most, _LONGEST_S * rate_hz):
            raise ClipError(
                Status.TRUNCATED,
                f"the header claims {frames / rate_hz:.0f} s of audio in {self._bytes.size} bytes: "
                "copy or download it again",
            )
        return AudioInfo(
            sample_rate_hz=rate_hz,
            channels=channels,
            codec=f"{container}/{subtype}",
            frames=frames,
            # a header may promise more than there are numbers for
            promised_frames=min(max(promised, frames), _LONGEST_S * rate_hz),
            duration_s=frames / rate_hz,
            slack_frames=opened.slack_frames,
            note=note,
            stream=opened.stream,
        )

    def _usable(self, block: Floats, start: int, span: tuple[int, int]) -> Floats:
        if not self._may_be_unusable:
            return block
        return usable(block, start, span, self.info.sample_rate_hz)

    def _fill(self, block: Floats, start: int) -> int:
        """Read frames from `start` on into `block`; returns how many there were."""
        restart, filled = self._sound.restart_frames, 0
        while filled < len(block):
            at, most = start + filled, len(block) - filled
            most = min(most, restart - at % restart) if restart else most
            if at != self._position or (restart and at and at % restart == 0):
                self._seek(at)
            got = self._read(block[filled : filled + most], at)
            filled += got
            if got < most:
                break
        return filled

    def _read(self, block: Floats, start: int) -> int:
        got = self._sound.read_into(block)
        self._position, self._end = None, start + got
        if got < len(block) or self._is_lenient:
            self._bytes.check()
        if not self._sound.is_damaged:
            self._position = self._end
        return got

    def _seek(self, frame: int) -> None:
        restart = self._sound.restart_frames
        least = frame // restart * restart if restart else 0
        target = max(0, (least if restart else frame) - self._sound.preroll)
        # on the way already, when the next span begins just behind the last one
        if self._position is None or not max(least, target) <= self._position < frame:
            if restart and target:  # the noise of a decoder outlives a seek
                self._reopen(self._bytes)
            if not target or not self._sound.seek(target):
                self._reopen(self._bytes)  # such streams are decoded from their start
                target = 0
            self._position = target
        position, channels = self._position, self.info.channels
        while position < frame:
            wanted = min(max(1, _BLOCK_SAMPLES // channels), frame - position)
            got = self._read(np.empty((wanted, channels), np.float32), position)
            position += got
            if got < wanted:
                break
        self._position = frame  # past the end, a read gives nothing


def _no_audio() -> ClipError:
    return ClipError(Status.EMPTY, "a header without any audio")


def _no_samples(start_ns: int, end_ns: int | None, info: AudioInfo) -> ClipError:
    end = "the end" if end_ns is None else f"{end_ns / NS_PER_S:.3f} s"
    span = f"from {start_ns / NS_PER_S:.3f} s to {end}"
    return ClipError(Status.EMPTY, f"no samples {span}: the file has {info.duration_s:.3f} s")


def _cut(info: AudioInfo, held: int | None = None) -> ClipError:
    return ClipError(Status.TRUNCATED, cut_message(info, held))
