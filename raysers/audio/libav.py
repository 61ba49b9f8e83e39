"""Reading what libsndfile cannot, through PyAV (FFmpeg): MP4, AAC, Matroska, Windows Media, AMR.

One audio stream of a file counts, from its first sample on. The container is chosen by the
first bytes and never guessed, since FFmpeg would follow playlists to other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from raysers.audio.source import Bytes, Cursor, Lengths
from raysers.errors import ClipError
from raysers.types import Status

Floats = npt.NDArray[np.float32]

#: FFmpeg's name of the container, by how containers are named in messages.
DEMUXERS = {
    "MP4": "mov",
    "Matroska": "matroska",
    "Windows Media": "asf",
    "AMR": "amr",
    "AAC": "aac",
    "Monkey's Audio": "ape",
    "WavPack": "wv",
    "True Audio": "tta",
    "Flash video": "flv",
    "AVI": "avi",
    "AC-3": "ac3",
    "Ogg": "ogg",
    "FLAC": "flac",
}
#: Containers with an index of where each stretch of audio lies, and those that count its frames.
_INDEXED = ("mov", "matroska")
_COUNTED = ("mov", "wv", "tta", "ape")
#: Codecs of frames of equal length that need no more than a second before them.
_SEEKABLE = ("aac", "alac", "opus", "mp3", "ac3", "eac3", "flac")
#: Codecs with noise that the decoder makes, and that depends on where decoding began. Each sample
#: is decoded from the last multiple of so many seconds, whatever span it belongs to.
_NOISY, RESTART_S = ("aac", "opus"), 60
#: Codecs by the names of their decoders.
_NAMES = {"amrnb": "amr_nb", "amrwb": "amr_wb", "libopencore_amrnb": "amr_nb", "libopus": "opus"}
#: More boxes than any real file has on its top level.
_MAX_BOXES = 10_000
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
#: A longer gap between two packets is damage, not silence.
_MAX_GAP_S = 3600


def library() -> ModuleType | None:
    """PyAV; None where the extra is not installed."""
    try:
        import av
    except ImportError:
        return None
    av.logging.set_level(None)
    return av  # type: ignore[no-any-return]


class AvSound:
    """A file that FFmpeg reads in order, with the interface of `sound.Sound`.

    Gaps between packets, which codecs leave in silence, become zeros, so that a frame has the same
    number wherever reading began.
    """

    def __init__(self, av: ModuleType, source: Bytes, label: str, stream: str | int = 0) -> None:
        """Opens the container and decodes the first packet of a stream; errors as `AudioReader`."""
        self._av, self._source, self._demuxer = av, source, DEMUXERS[label]
        self._failure = ""
        self._is_cut = is_cut(source, self._demuxer)
        cursor = Cursor(source)
        try:
            self._container = av.open(cursor, format=self._demuxer)
        except (av.error.FFmpegError, ValueError) as error:
            source.check()
            if self._is_cut:
                message = f"{label} file cut after {source.size} bytes: copy or download it again"
                raise ClipError(Status.TRUNCATED, message) from error
            message = f"damaged {label} file of {source.size} bytes: {_reason(error)}"
            raise ClipError(Status.UNREADABLE, message) from error
        try:
            self._open_stream(label, str(stream))
        except BaseException:
            self.close()
            raise

    def _open_stream(self, label: str, wanted: str) -> None:
        sounds = self._container.streams.audio
        if not sounds:
            raise ClipError(Status.EMPTY, f"{label} without an audio stream")
        known, told = {str(number): number for number in range(len(sounds))}, []
        for number, sound in enumerate(sounds):
            tags = [*filter(None, map(sound.metadata.get, ("language", "title")))]
            known = {tag.casefold(): number for tag in tags} | known
            told.append(f"{number} ({', '.join(tags)})" if tags else str(number))
        if wanted.casefold() not in known:
            message = f"no audio stream {wanted!r}: the file has {', '.join(told)}"
            raise ClipError(Status.UNSUPPORTED, message)
        self.stream = known[wanted.casefold()]
        self._stream = sounds[self.stream]
        for other in self._container.streams:
            if other.index != self._stream.index:
                other.discard = self._av.stream.Discard["all"]
        context = self._stream.codec_context
        if context is None or not context.sample_rate:
            raise ClipError(Status.UNSUPPORTED, f"{label} with a codec that cannot be decoded")
        context.thread_count = 1
        codec = _NAMES.get(context.name, context.name)
        self._start: Fraction | None = None  # time of the first sample, seconds
        self.sample_rate_hz = self.channels = 0
        self._first_tick, self._ticks_to_frames = 0, Fraction(0)
        self._held, self._next, self._blocks = np.zeros((0, 1), np.float32), 0, self._decoded()
        first = next(self._blocks, None)
        self._source.check()
        if first is None:
            if self._failure:
                raise ClipError(Status.UNREADABLE, f"damaged {label} audio: {self._failure}")
            status = Status.TRUNCATED if self._is_cut else Status.EMPTY
            raise ClipError(status, f"{label} without any audio in it")
        self._held, self._first_samples = first, len(first)
        self._is_seekable = self._demuxer in _INDEXED and codec in _SEEKABLE
        #: Frames decoded and dropped before a span; all of them where the file has no index.
        self.preroll = self.sample_rate_hz if self._is_seekable else 1 << 62
        noisy = self._is_seekable and codec in _NOISY
        self.restart_frames = RESTART_S * self.sample_rate_hz if noisy else 0
        self.slack_frames = self.sample_rate_hz // 10
        self.kind = label, codec.upper()

    def close(self) -> None:
        """Close the file, not the bytes it is read from."""
        self._container.close()

    @property
    def is_damaged(self) -> bool:
        """Whether the last read met an error."""
        return bool(self._failure)

    @property
    def failure(self) -> str:
        """Why decoding ended early, in FFmpeg's words; empty for the end of data."""
        return self._failure

    def has_read_all(self, source: Bytes) -> bool:
        """Whether decoding ended because there was nothing more."""
        return not self._failure

    def goes_on(self, source: Bytes, frames: int) -> bool:
        """Never: what a container counts is all that it has."""
        return False

    def lengths(self, source: Bytes) -> Lengths:
        """Frames that can be read and that the header promises."""
        promised = self._told_frames()
        if promised >= 0 and not self._is_cut:
            return Lengths(promised, promised, source)
        held = self._count()
        lost = self.slack_frames + 1 if self._is_cut else 0
        return Lengths(held, max(promised, held + lost), source)

    def seek(self, frame: int) -> bool:
        """Go to a frame; False where the file has to be read from its start."""
        if not self._is_seekable or self._start is None:
            return False
        time = (self._start + Fraction(frame, self.sample_rate_hz)) / self._stream.time_base
        try:
            self._container.seek(int(time), stream=self._stream, backward=True)
            self._stream.codec_context.flush_buffers()
            self._blocks, self._next, self._held = self._decoded(), -1, self._held[:0]
            block = next(self._blocks, None)
        except self._av.error.FFmpegError:
            return False
        if block is None:
            return False
        self._held = block
        while self._next < frame:
            dropped = min(len(self._held), frame - self._next)
            self._held, self._next = self._held[dropped:], self._next + dropped
            if self._next < frame and (block := next(self._blocks, None)) is None:
                return False
            if not len(self._held) and block is not None:
                self._held, block = block, None
        return self._next == frame

    def read_into(self, block: Floats) -> int:
        """Fill `block` [frames] or [frames, channels]; returns how many frames there were."""
        target, filled = block.reshape(len(block), -1), 0
        while filled < len(target):
            if not len(self._held):
                following = next(self._blocks, None)
                if following is None:
                    break
                self._held = following
            taken = self._held[: len(target) - filled]
            target[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._held, self._next = self._held[len(taken) :], self._next + len(taken)
        return filled

    def _decoded(self) -> Iterator[Floats]:
        """Blocks [frames, channels] from where the container stands, gaps filled with zeros.

        The first one sets `_next` after a seek.
        """
        expected = -1 if self._start is not None else 0
        resampler = self._av.AudioResampler(format="fltp")
        try:
            for frame in self._frames():
                for part in resampler.resample(frame):
                    # what PyAV's `to_ndarray` does takes as long as decoding
                    planes = [np.frombuffer(p, np.float32, part.samples) for p in part.planes]
                    data = np.stack(planes, axis=1)
                    if not self.channels:
                        self.channels, self.sample_rate_hz = data.shape[1], part.sample_rate
                        self._first_tick = frame.pts or 0
                        self._start = self._first_tick * Fraction(frame.time_base)
                        self._ticks_to_frames = Fraction(frame.time_base) * self.sample_rate_hz
                    if (data.shape[1], part.sample_rate) != (self.channels, self.sample_rate_hz):
                        self._failure = (
                            f"the stream changes to {part.sample_rate} Hz and "
                            f"{data.shape[1]} channels"
                        )
                        return
                    first = self._number(frame, expected)
                    if expected < 0:
                        self._next = first
                    elif first > expected:
                        yield from self._silence(first - expected)
                    expected = first + len(data)
                    if len(data):
                        yield data
        except (self._av.error.FFmpegError, ValueError) as error:
            self._failure = _reason(error)

    def _frames(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:  # cut within a packet
                self._is_cut = True
                return
            yield from packet.decode()

    def _silence(self, frames: int) -> Iterator[Floats]:
        size = self.sample_rate_hz
        for start in range(0, frames, size):
            yield np.zeros((min(size, frames - start), self.channels), np.float32)

    def _number(self, frame: Any, expected: int) -> int:
        """Number of a decoded frame's first sample; `expected` -1 after a seek."""
        if frame.pts is None or self._start is None:
            return max(expected, 0)
        step = self._ticks_to_frames  # its integers: fractions take half the time of decoding
        ticks = 2 * (frame.pts - self._first_tick) * step.numerator + step.denominator
        number: int = ticks // (2 * step.denominator)
        size = self._stream.codec_context.frame_size or frame.samples
        if expected >= 0:
            is_gap = number - expected > max(size // 2, step)
            is_gap &= number - expected < _MAX_GAP_S * self.sample_rate_hz
            return number if is_gap else expected
        offset = self._first_samples % size  # the first frame may be cut by the codec's delay
        return number if step <= 1 else round((number - offset) / size) * size + offset

    def _told_frames(self) -> int:
        """Frames by the header of the container; -1 where it does not say."""
        if self._demuxer not in _INDEXED + _COUNTED:
            return -1
        length_s: Fraction | None = None
        if self._demuxer in _COUNTED and self._stream.duration:
            length_s = self._stream.duration * Fraction(self._stream.time_base)
        elif tag := self._stream.metadata.get("DURATION", ""):
            hours, minutes, seconds = tag.split(":")
            length_s = 60 * (60 * Fraction(hours) + Fraction(minutes)) + Fraction(seconds)
            length_s -= max(self._start or Fraction(0), Fraction(0))
        elif len(self._container.streams) == 1 and self._container.duration:
            length_s = Fraction(self._container.duration, self._av.time_base)
        return -1 if length_s is None or length_s <= 0 else round(length_s * self.sample_rate_hz)

    def _count(self) -> int:
        """Frames by the packets of the file, which is read once without decoding."""
        with self._av.open(Cursor(self._source), format=self._demuxer) as container:
            stream = container.streams[self._stream.index]
            last, first = Fraction(0), None
            base = Fraction(stream.time_base)
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    self._is_cut = True
                    break
                if packet.size and packet.pts is not None:
                    first = packet.pts if first is None else first
                    last = max(last, (packet.pts + (packet.duration or 0) - first) * base)
        self._source.check()
        return round(last * self.sample_rate_hz)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error).strip().rstrip(".")


def is_cut(source: Bytes, demuxer: str) -> bool:
    """Whether the file ends before its container says it does."""
    if demuxer == "mov":
        offset = 0
        for _ in range(_MAX_BOXES):
            head = source.at(offset, 16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if len(head) < 8 or size < 8:
                break
            offset += size
        return offset > source.size
    head = source.at(0, 1 << 16)
    if demuxer == "matroska" and (at := head.find(_MATROSKA_SEGMENT)) >= 0:
        size_bytes = 9 - (head[at + 4] or 1).bit_length() if len(head) > at + 4 else 0
        size = int.from_bytes(head[at + 4 : at + 4 + size_bytes], "big")
        size &= (1 << 7 * size_bytes) - 1
        is_known = size_bytes and size != (1 << 7 * size_bytes) - 1
        return bool(is_known) and at + 4 + size_bytes + size > source.size
    if demuxer == "asf" and (at := head.find(_ASF_FILE_PROPERTIES)) >= 0:
        is_broadcast = int.from_bytes(head[at + 88 : at + 92], "little") & 1
        size = int.from_bytes(head[at + 40 : at + 48], "little")
        return not is_broadcast and size > source.size
    if demuxer == "avi":
        return int.from_bytes(head[4:8], "little") + 8 > source.size + 1
    return False
