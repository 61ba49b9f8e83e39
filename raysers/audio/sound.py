"""Reading with libsndfile, whole FLAC files with dr_flac, and what the header of a file says."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from raysers.audio import containers, libav, streams
from raysers.audio.containers import KNOWN, named, refusal
from raysers.audio.libav import AvSound
from raysers.audio.source import HEAD_BYTES, Bytes, Lengths, SplicedBytes
from raysers.errors import ClipError
from raysers.types import Status

try:
    import miniaudio
except ImportError:  # not built for every platform, and only faster
    miniaudio = None

Floats = npt.NDArray[np.float32]

#: Frames decoded and dropped before a span, which depends on them. Vorbis is decoded from the
#: start: after about one seek in a hundred libsndfile is off by a block.
_PREROLL = {"MPEG": streams.PREROLL_FRAMES, "VORBIS": 1 << 62}

#: libsndfile's count for streams whose header does not tell their length.
_UNKNOWN_FRAMES = 1 << 60

#: MPEG in a WAV file, by its number; most have the format chunk in front.
_MPEG_TAGS = (b"P\0", b"U\0")

#: libsndfile reads so much at once: this close to the end, a decoder has seen all data.
_READ_AHEAD_BYTES = 1 << 14

#: A FLAC file up to this size is decoded with dr_flac.
_MOST_FLAC_BYTES = 1 << 24
_FLAC_STARTS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")

#: Frames of the blocks in which a stream of unknown length is counted.
_COUNTED_FRAMES = 1 << 12

_snd, _ffi = soundfile._snd, soundfile._ffi

_KINDS: dict[int, tuple[str, str]] = {}


class Sound:
    """A file that libsndfile reads in order; frames come back even where a read fails.

    `soundfile.SoundFile` seeks around every read: it loses the frames before damage, and takes a
    fifth more time for a clip of 3 s. `kind` is container and encoding as libsndfile names them.
    Before a span `preroll` frames are decoded and dropped; decoding starts anew at multiples of
    `restart_frames` (0: never). `slack_frames` is what a healthy file of the codec may lack.
    """

    stream, has_moved = 0, False  # the second by `lengths`
    _file: Any

    def __init__(self, source: Bytes) -> None:
        """Raises `soundfile.SoundFileError`, without a reason: it may be another thread's."""
        info, handle = _ffi.new("SF_INFO*"), source.handle
        if isinstance(handle, int):
            file = _snd.sf_open_fd(handle, _snd.SFM_READ, info, False)
        else:
            self._io = soundfile.SoundFile._init_virtual_io(self, handle)
            file = _snd.sf_open_virtual(self._io, _snd.SFM_READ, info, _ffi.NULL)
        if file == _ffi.NULL:
            raise soundfile.SoundFileError("libsndfile cannot open it")
        self._file = _ffi.gc(file, _snd.sf_close)
        self.sample_rate_hz = int(info.samplerate)
        self.channels, self.frames = int(info.channels), int(info.frames)
        if info.format not in _KINDS:  # the names are looked up in a long table
            masks = _snd.SF_FORMAT_TYPEMASK, _snd.SF_FORMAT_SUBMASK
            container, subtype = (soundfile._format_str(info.format & mask) for mask in masks)
            _KINDS[info.format] = container, subtype
        self.kind = _KINDS[info.format]
        subtype = self.kind[1]
        self.preroll = next((n for key, n in _PREROLL.items() if subtype.startswith(key)), 0)
        self.restart_frames = libav.RESTART_S * self.sample_rate_hz if subtype == "OPUS" else 0
        self.slack_frames = streams.MPEG_SLACK_FRAMES if subtype.startswith("MPEG") else 0

    def close(self) -> None:
        """Close the file, not the bytes it is read from."""
        _ffi.release(self._file)

    @property
    def is_damaged(self) -> bool:
        """Whether the last read met an error."""
        return bool(_snd.sf_error(self._file))

    @property
    def failure(self) -> str:
        """Why the last read ended early, in libsndfile's words; empty for the end of data."""
        code = _snd.sf_error(self._file)
        reason = soundfile.LibsndfileError(code).error_string if code else ""
        return str(reason).removeprefix("Error : ").strip().rstrip(".")

    def has_read_all(self, source: Bytes) -> bool:
        """Whether a read that ended early ended with the data of the file."""
        return source.tell() >= source.size - _READ_AHEAD_BYTES

    def goes_on(self, source: Bytes, frames: int) -> bool:
        """Whether audio follows the `frames` that the file counts, once all were decoded."""
        return streams.goes_on(source, self.kind[0], frames)

    def lengths(self, source: Bytes) -> Lengths:
        """Frames that can be read and that the header promises, judged by the file's bytes.

        Moves the position where the header does not tell the length.
        """
        if not 0 <= self.frames < _UNKNOWN_FRAMES:
            self.has_moved = True
            self.frames, block = 0, np.empty((_COUNTED_FRAMES, self.channels), np.float32)
            while got := self.read_into(block):
                self.frames += got
            source.check()
        if self.kind[0] == "MP3":
            return streams.mpeg_lengths(source, self.frames)
        return containers.lengths(source, self.frames, self.sample_rate_hz)

    def seek(self, frame: int) -> bool:
        """Go to a frame; False when libsndfile cannot."""
        return bool(_snd.sf_seek(self._file, frame, os.SEEK_SET) == frame)

    def read_into(self, block: Floats) -> int:
        """Fill `block` [frames] or [frames, channels]; returns how many frames there were."""
        with _quiet() if self.kind[1].startswith("MPEG") else nullcontext():
            data = _ffi.from_buffer("float[]", block)
            return int(_snd.sf_readf_float(self._file, data, len(block)))


class FlacSound(Sound):
    """A FLAC file that dr_flac decodes whole, in half of libsndfile's time, to the same samples.

    Parts of it are read with libsndfile, and so are damaged files: dr_flac leaves damage out.
    """

    preroll = restart_frames = slack_frames = 0

    def __init__(self, source: Bytes) -> None:
        about = int.from_bytes(source.at(18, 8), "big")
        self.sample_rate_hz, self.channels = about >> 44, (about >> 41 & 7) + 1
        self.kind, self.frames = ("FLAC", f"PCM_{(about >> 36 & 31) + 1}"), about & (1 << 36) - 1
        self._source, self._is_read = source, False  # whether dr_flac has read all of it

    @classmethod
    def of(cls, source: Bytes) -> FlacSound | None:
        """The file; None if it is long, or its header is not as that of most."""
        if miniaudio is None or source.size > _MOST_FLAC_BYTES:
            return None
        if source.at(0, 8) not in _FLAC_STARTS or not isinstance(source.handle, int):
            return None
        sound, at, kind = cls(source), 4, 0
        while kind < 0x80 and at < HEAD_BYTES:  # the last block of the header has this bit
            head = source.at(at, 4).ljust(4, b"\xff")
            kind, at = head[0], at + 4 + int.from_bytes(head[1:], "big")
        is_whole = kind >= 0x80 and source.at(at, 2) in (b"\xff\xf8", b"\xff\xf9")
        is_usual = sound.sample_rate_hz and sound.frames and sound.kind[1] in ("PCM_16", "PCM_24")
        return sound if is_whole and is_usual else None

    @functools.cached_property
    def _file(self) -> Any:
        try:
            return Sound(self._source)._file
        except soundfile.SoundFileError as error:
            raise refusal(self._source, "") from error

    def close(self) -> None:
        """See `Sound`."""
        if "_file" in vars(self):
            super().close()

    @property
    def is_damaged(self) -> bool:
        """See `Sound`."""
        return not self._is_read and super().is_damaged

    def goes_on(self, source: Bytes, frames: int) -> bool:
        """See `Sound`."""
        return not self._is_read and super().goes_on(source, frames)

    def seek(self, frame: int) -> bool:
        """See `Sound`."""
        self._is_read = False
        return super().seek(frame)

    def read_into(self, block: Floats) -> int:
        """See `Sound`."""
        if self._is_read:
            return 0
        self._is_read = len(block) == self.frames and self._read_whole(block)
        return len(block) if self._is_read else super().read_into(block)

    def _read_whole(self, block: Floats) -> bool:
        """Whether dr_flac decodes all frames, and no other."""
        data, lib, ffi = self._source.at(0, self._source.size), miniaudio.lib, miniaudio.ffi
        # it writes as many channels as these bytes say, whatever the file said when it was opened,
        # and passes over a second file behind this one
        if data[:26] != self._source.at(0, 26) or data.rfind(b"fLaC") > 0:
            return False
        flac = lib.ma_dr_flac_open_memory(ffi.from_buffer(data), len(data), ffi.NULL)
        if flac == ffi.NULL:
            return False
        try:
            read, frame = lib.ma_dr_flac_read_pcm_frames_f32, ffi.new("float[]", self.channels)
            got = read(flac, len(block), ffi.from_buffer("float[]", block))
            return bool(got == len(block) and not read(flac, 1, frame))
        finally:
            lib.ma_dr_flac_close(flac)


def open_sound(source: Bytes, name: str, stream: str | int = 0) -> tuple[Sound | AvSound, Bytes]:
    """Open `source` at its start, or at the first frame of an MP3 behind something else.

    What libsndfile cannot read is opened with PyAV where that is installed. Also returns the bytes
    that the sound reads. Raises ClipError: why it cannot be opened.
    """
    head, encoding = source.at(0, 4), source.at(20, 2)
    try:
        with nullcontext() if head in KNOWN and encoding not in _MPEG_TAGS else _quiet():
            opened = FlacSound.of(source) or Sound(source)
    except soundfile.SoundFileError as error:
        source.check()
        if (label := containers.av_label(source)) and (av := libav.library()):
            return AvSound(av, source, label, stream), source
        is_other = head in KNOWN or named(source) is not None
        start = 0 if is_other else streams.audio_start(source)
        if not start:
            raise refusal(source, name) from error
        return open_sound(SplicedBytes(source, b"", start), name, stream)
    if str(stream) != "0":
        opened.close()
        raise ClipError(Status.UNSUPPORTED, f"no audio stream {str(stream)!r}: the file has 0")
    return opened, source


_quiet_lock = threading.Lock()
_replaced: list[int] = []  # the C library's own stream, once for each user of `_quiet`


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that C code prints reaches stderr, which mpg123 writes its remarks to.

    Only the C library's stream is replaced, so that Python's messages are shown meanwhile.
    """
    stream, null = _c_streams()
    if not null:
        yield
        return
    with _quiet_lock:
        _replaced.append(_replaced[0] if _replaced else stream.value)
        stream.value = null
    try:
        yield
    finally:
        with _quiet_lock:
            own = _replaced.pop()
            if not _replaced:
                stream.value = own


@functools.cache
def _c_streams() -> tuple[Any, int]:
    """The C library's variable `stderr`, and an open stream that drops all; 0 if there is none."""
    try:
        library = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(library, "stderr")
    except (OSError, ValueError):
        return None, 0
    library.fopen.restype = ctypes.c_void_p
    return stream, library.fopen(b"/dev/null", b"w") or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What a file's header says.

    `codec` is container/encoding as libsndfile names them, such as `WAV/PCM_16`. The file holds
    `frames`, of `duration_s` (a FLAC file claims them, which only decoding can prove); the header
    promises `promised_frames`, more when the file is cut. A healthy file of the codec may lack
    `slack_frames`. `note` is why the others cannot be read, when they are not just missing.
    """

    sample_rate_hz: int
    channels: int
    codec: str
    frames: int
    promised_frames: int
    duration_s: float
    slack_frames: int = 0
    note: str = ""
    stream: int = 0

    @property
    def length_s(self) -> float:
        """Length of `promised_frames`, seconds."""
        return self.promised_frames / self.sample_rate_hz

    @property
    def is_cut(self) -> bool:
        """Whether the file is known to hold less than it promises."""
        return self.promised_frames > self.frames + self.slack_frames


def cut_message(info: AudioInfo, held: int | None = None) -> str:
    """What is missing of a cut file that holds `held` frames, those of `info` if None."""
    rate_hz, held = info.sample_rate_hz, info.frames if held is None else held
    if info.note and held >= info.frames - info.slack_frames:
        return info.note.format(info.duration_s, info.length_s)
    if info.promised_frames - held < rate_hz / 1000:
        return f"the last bytes of {info.length_s:.3f} s are missing: copy or download it again"
    return (
        f"the header promises {info.length_s:.3f} s, "
        f"the file holds {held / rate_hz:.3f} s: copy or download it again"
    )
