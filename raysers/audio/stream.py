"""Mono frames of an open file at its own rate, from libsndfile with its silent failures made loud.

`soundfile` returns short or stale data where a header promises too much, and moves the position
after every read; so reads here go block by block into our own buffers with their counts checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import soundfile

from raysers.audio import mpeg
from raysers.audio.containers import closed, is_joined, promised_frames, untagged
from raysers.audio.identify import refusal
from raysers.audio.source import AudioSource, Bytes, open_bytes
from raysers.errors import ClipError
from raysers.types import Status

#: Rates outside are damaged headers: no audio is recorded at them.
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000

#: Samples of all channels read at once (1 MiB).
_BLOCK_SAMPLES = 1 << 18

#: libsndfile's count for streams whose header does not tell their length.
_UNKNOWN_FRAMES = 1 << 60

#: More frames a byte than any encoder makes of silence: FLAC packs 65,535 into 11 bytes, Opus and
#: Vorbis about 2,000 into one, but leave gaps out; of all others MPEG layer II does best, with 48.
_MOST_FRAMES_PER_BYTE = {"FLAC": 8192, "OGG": 8192}
_MOST_OF_OTHERS = 64

#: Thirty years; twenty times as much would be too many nanoseconds for 64 bits.
_LONGEST_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What a file's header tells.

    Attributes:
        sample_rate_hz: frames a second.
        channels: samples a frame.
        codec: container/encoding as libsndfile names them, such as `WAV/PCM_16`.
        frames: frames the file holds (for FLAC: claims to hold, which only decoding can prove).
        promised_frames: frames the header promises; more than `frames` when the file is cut.
        duration_s: length of `frames`, seconds.
        is_joined: further streams follow, which cannot be read; they are promised as one frame.
    """

    sample_rate_hz: int
    channels: int
    codec: str
    frames: int
    promised_frames: int
    duration_s: float
    is_joined: bool = False


class _Sound(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile for reading in order from several threads."""

    # Opening a file of an object store waits for the network: not one after the other. The lock
    # only guards the reason of a failure, which `identify` finds by itself.
    _sf_error_lock = nullcontext()

    def seekable(self) -> bool:
        """No: keeps every read from seeking to where it is already."""
        return False


class FrameStream:
    """Mono float32 frames of an audio file, any part of it, at the file's rate.

    Attributes:
        info: what the header tells.
        is_promise: `info.promised_frames` comes from the file, not from an estimate.
        slack_frames: frames a healthy file of this codec may be short of its promise.
        end: frame after the last one read.
    """

    def __init__(self, source: AudioSource, *, name: str) -> None:
        self._name = name
        self._bytes = opened = open_bytes(source)
        self.is_promise = True
        self.end = 0
        self._position: int | None = 0
        self._preroll = 0
        try:
            self._bytes = untagged(opened)
            self._sound = _open(self._bytes, name)
            self.info = self._survey(self._sound)
        except BaseException:
            opened.close()
            raise
        subtype = self.info.codec.partition("/")[2]
        is_mpeg = subtype.startswith("MPEG")
        self.slack_frames = mpeg.SLACK_FRAMES if is_mpeg else 0
        self._preroll = mpeg.PREROLL_FRAMES if is_mpeg else 0
        self._may_be_nonfinite = not subtype.startswith("PCM")

    def close(self) -> None:
        """Close the file; a file object given stays open."""
        self._sound.close()
        self._bytes.close()

    def mono(self, start: int, end: int) -> np.ndarray:
        """Frames `[start, end)`, or as many as there are, in one array."""
        if self.info.channels == 1:
            signal = np.empty(end - start, np.float32)
            signal = signal[: self._fill(signal, start)]
            return self._finite(signal, start, (start, end))
        parts, filled = np.empty(end - start, np.float32), 0
        for block in self.blocks(start, end, (start, end)):
            parts[filled : filled + block.size] = block
            filled += block.size
        return parts[:filled]

    def blocks(self, start: int, end: int, span: tuple[int, int]) -> Iterator[np.ndarray]:
        """Frames `[start, end)`, or as many as there are, in consecutive blocks.

        Raises:
            ClipError: `not_finite` within the frames `span`; outside they become zeros.
        """
        channels, self.end = self.info.channels, start
        most = max(1, _BLOCK_SAMPLES // channels)
        while start < end:
            wanted = min(most, end - start)
            block = np.empty((wanted, channels), np.float32)
            got = self._fill(block, start)
            if got:
                yield self._finite(_mean(block[:got]), start, span)
            if got < wanted:
                return
            start += got

    def _reopen(self) -> None:
        """Start again at the first frame."""
        self._sound.close()
        self._bytes.rewind()
        self._sound = _open(self._bytes, self._name)
        self._position = 0

    def _survey(self, sound: _Sound) -> AudioInfo:
        rate_hz = sound.samplerate
        if rate_hz <= 0:
            raise ClipError(Status.UNREADABLE, "the header declares a sample rate of 0 Hz")
        if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
            raise ClipError(
                Status.UNSUPPORTED,
                f"the header declares {rate_hz} Hz; supported are {LOWEST_RATE_HZ} to "
                f"{HIGHEST_RATE_HZ} Hz, so the file is probably damaged",
            )
        container, channels = sound.format, sound.channels
        frames, promised = self._lengths(sound, container)
        self._check_claim(frames, rate_hz, container)
        joined = container == "OGG" and is_joined(self._bytes)
        return AudioInfo(
            sample_rate_hz=rate_hz,
            channels=channels,
            codec=f"{container}/{sound.subtype}",
            frames=frames,
            # a header may promise more than there are numbers for
            promised_frames=min(max(promised, frames + joined), _LONGEST_S * rate_hz),
            duration_s=frames / rate_hz,
            is_joined=joined,
        )

    def _check_claim(self, frames: int, rate_hz: int, container: str) -> None:
        """Refuse a length that the bytes of the file cannot hold."""
        most = self._bytes.size * _MOST_FRAMES_PER_BYTE.get(container, _MOST_OF_OTHERS)
        if frames > min(most, _LONGEST_S * rate_hz):
            raise ClipError(
                Status.TRUNCATED,
                f"the header claims {frames / rate_hz:.0f} s of audio in {self._bytes.size} bytes: "
                "copy or download it again",
            )

    def _lengths(self, sound: _Sound, container: str) -> tuple[int, int]:
        """(frames held, frames promised)."""
        frames = sound.frames
        if container == "MP3":
            found = mpeg.survey(self._bytes, frames)
            self.is_promise = found.is_promise
            self._replace(found.bytes_to_open)
            return found.frames, found.promised_frames
        if not 0 <= frames < _UNKNOWN_FRAMES:
            frames = self._count(sound.channels)
            self._reopen()
        elif frames == 0 and self._replace(closed(self._bytes)):
            frames = self._sound.frames
        return frames, promised_frames(self._bytes, frames)

    def _replace(self, source: Bytes) -> bool:
        """Open `source` instead; whether it is another one."""
        if source is self._bytes:
            return False
        self._bytes = source
        self._reopen()
        return True

    def _count(self, channels: int) -> int:
        """Frames of a stream whose header does not tell, by decoding it."""
        block = np.empty((max(1, _BLOCK_SAMPLES // channels), channels), np.float32)
        position = 0
        while got := self._fill(block, position):
            position += got
        return position

    def _fill(self, block: np.ndarray, start: int) -> int:
        """Read frames from `start` on into `block`; returns how many there were."""
        self._seek(start)
        self._position = None  # unknown, should the read fail
        try:
            got = int(self._sound.buffer_read_into(block, dtype="float32"))
        except soundfile.SoundFileError as error:
            self._bytes.check()
            raise self._broken(error) from error
        self._bytes.check()
        self._position = self.end = start + got
        return got

    def _seek(self, frame: int) -> None:
        if frame == self._position:
            return
        target = max(0, frame - self._preroll)
        # on the way already, when the next span begins just behind the last one
        if self._position is None or not target <= self._position < frame:
            try:
                found = self._sound.seek(target) == target
            except soundfile.SoundFileError:
                self._bytes.check()
                found = False
            if not found:
                # such streams are decoded from their start
                self._reopen()
                target = 0
            self._position = target
        self._drop(frame)

    def _drop(self, frame: int) -> None:
        """Decode from the position up to `frame`."""
        channels, position = self.info.channels, self._position or 0
        most = max(1, _BLOCK_SAMPLES // channels)
        while position < frame:
            wanted = min(most, frame - position)
            got = self._fill(np.empty((wanted, channels), np.float32), position)
            position += got
            if got < wanted:
                break
        self._position = frame  # past the end, a read gives nothing

    def _broken(self, error: Exception) -> ClipError:
        """The error for a decoder that gave up: the data ended early or are damaged."""
        reason = str(error).removeprefix("Error : ").strip().rstrip(".")
        if self._bytes.tell() >= self._bytes.size:
            message = f"the data end before the audio does ({reason}): copy or download it again"
            return ClipError(Status.TRUNCATED, message)
        return ClipError(Status.UNREADABLE, f"the audio data are damaged: {reason}")

    def _finite(self, block: np.ndarray, start: int, span: tuple[int, int]) -> np.ndarray:
        """`block` without NaN and infinity outside of the frames `span`."""
        if not self._may_be_nonfinite or (good := np.isfinite(block)).all():
            return block
        bad = ~good
        within = bad[max(0, span[0] - start) : max(0, span[1] - start)]
        if within.any():
            frame = max(span[0], start) + int(within.argmax())
            seconds = frame / self.info.sample_rate_hz
            raise ClipError(Status.NOT_FINITE, f"NaN or infinite samples, first at {seconds:.3f} s")
        block[bad] = 0.0
        return block


def _open(source: Bytes, name: str) -> _Sound:
    """Open `source` at its start, or say why it cannot be."""
    try:
        sound = _Sound(source.handle, "r", closefd=False)
    except soundfile.SoundFileError as error:
        source.check()
        raise refusal(source, name) from error
    source.check()
    return sound


def _mean(block: np.ndarray) -> np.ndarray:
    """Mean over channels, (frames, channels) -> (frames,)."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # found by the check that follows
        mono: np.ndarray = block[:, 0] + block[:, 1] if channels == 2 else np.einsum("fc->f", block)
        mono *= np.float32(1 / channels)
    return mono
