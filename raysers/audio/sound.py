"""Open a file with libsndfile, or name what it holds instead, for a message that says what to do.

The content decides, never the extension; only headerless audio, which nothing in the bytes
betrays, is told apart by its name.
"""

from __future__ import annotations

import codecs
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from raysers.audio import mpeg
from raysers.audio.containers import UNKNOWN_HEADER, header_fault, id3_bytes, lengths
from raysers.audio.source import Bytes, SplicedBytes, printable
from raysers.errors import ClipError
from raysers.types import Status

_CONVERT = "convert it first, for example to FLAC or WAV with ffmpeg"

#: (offset, bytes, what it is) of media libsndfile does not decode; the first match names it.
_UNDECODABLE: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypM4A", "MP4/AAC audio (m4a)"),
    (4, b"ftypM4B", "MP4/AAC audio (m4b)"),
    (4, b"ftypqt", "QuickTime video"),
    (4, b"ftyp3g", "3GPP audio or video"),
    (4, b"ftyp", "MP4"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska/WebM"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (wma, wmv, asf)"),
    (0, b"#!AMR", "AMR"),
    (0, b"#!SILK", "SILK"),
    (1, b"#!SILK", "SILK"),
    (0, b"ADIF", "AAC (ADIF)"),
    (0, b"\xff\xf1", "AAC (ADTS)"),
    (0, b"\xff\xf9", "AAC (ADTS)"),
    (0, b"MAC ", "Monkey's Audio (ape)"),
    (0, b"wvpk", "WavPack"),
    (0, b"TTA1", "True Audio (tta)"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"DSD ", "DSD (dsf)"),
    (0, b"FRM8", "DSD (dff)"),
    (0, b".RMF", "RealMedia"),
    (0, b".ra\xfd", "RealAudio"),
    (0, b"BW64", "Broadcast Wave 64 (bw64)"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (0, b"\x00\x00\x01\xb3", "MPEG video"),
    (8, b"AVI ", "AVI video"),
    (8, b"8SVX", "IFF 8SVX audio"),
    (28, b"Speex   ", "Ogg/Speex"),
    (28, b"\x7fFLAC", "Ogg/FLAC"),
    (28, b"\x80theora", "Ogg/Theora video"),
)

#: The same of what is no audio at all.
_NO_AUDIO: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyphei", "a HEIF image"),
    (8, b"WEBP", "a WebP image"),
    (8, b"ILBM", "an IFF image (ILBM)"),
    (0, b"MThd", "a MIDI file"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"BM", "a BMP image"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (0, b"PAR1", "a Parquet table"),
    (257, b"ustar", "a tar archive"),
)

#: Extensions of audio without a header: neither rate nor sample format is in the file.
_HEADERLESS = frozenset({".raw", ".pcm", ".vox", ".gsm", ".sln", ".ulaw", ".alaw", ".ul", ".al"})

#: Containers that libsndfile knows: it failed on what is inside.
_KNOWN = {
    b"RIFF": "WAV",
    b"RIFX": "WAV",
    b"RF64": "RF64",
    b"FORM": "AIFF",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"caff": "CAF",
    b"riff": "Wave64",
    b".snd": "AU",
}


_snd, _ffi = soundfile._snd, soundfile._ffi

_KINDS: dict[int, tuple[str, str]] = {}


class Sound:
    """A file that libsndfile reads in order; frames come back even where a read fails.

    `soundfile.SoundFile` seeks around every read: it loses the frames before damage, and takes a
    fifth more time for a clip of 3 s.

    Attributes:
        sample_rate_hz, channels, frames: by the header.
        kind: container and encoding as libsndfile names them.
    """

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

    def seek(self, frame: int) -> bool:
        """Go to a frame; False when libsndfile cannot."""
        return bool(_snd.sf_seek(self._file, frame, os.SEEK_SET) == frame)

    def read_into(self, block: npt.NDArray[np.float32]) -> int:
        """Fill `block` [frames] or [frames, channels]; returns how many frames there were."""
        with _quiet() if self.kind[0] == "MP3" else nullcontext():
            data = _ffi.from_buffer("float[]", block)
            return int(_snd.sf_readf_float(self._file, data, len(block)))


def open_sound(source: Bytes, name: str) -> tuple[Sound, Bytes]:
    """Open `source` at its start, or at the first frame of an MP3 behind something else.

    Returns:
        The open file, and the bytes it reads.

    Raises:
        ClipError: why it cannot be opened.
    """
    head = source.at(0, 4)
    try:
        with nullcontext() if head in _KNOWN else _quiet():
            return Sound(source), source
    except soundfile.SoundFileError as error:
        source.check()
        is_other = head in _KNOWN or _named(source) is not None
        start = 0 if is_other else mpeg.audio_start(source)
        if not start:
            raise refusal(source, name) from error
    return open_sound(SplicedBytes(b"", source, start), name)


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


def refusal(source: Bytes, name: str) -> ClipError:
    """The error for a file that libsndfile would not open.

    libsndfile's own reason is not used: it is kept in a variable all threads share.

    Args:
        source: the bytes of the file.
        name: its name, for headerless audio.

    Returns:
        `empty`, `unsupported`, `truncated` or `unreadable`.
    """
    if source.size == 0:
        return ClipError(Status.EMPTY, "the file has 0 bytes")
    if (named := _named(source)) is not None:
        return named
    head = source.at(id3_bytes(source), 512) or source.at(0, 512)
    if known := _KNOWN.get(head[:4]):
        return _refuse_known(source, known)
    if text := _text(head, source.size):
        return ClipError(Status.UNREADABLE, text)
    if os.path.splitext(name)[1].lower() in _HEADERLESS:
        message = f"headerless audio: the file does not say its sample rate: {_CONVERT}"
        return ClipError(Status.UNSUPPORTED, message)
    return ClipError(Status.UNREADABLE, f"not audio of a known format ({source.size} bytes)")


def _named(source: Bytes) -> ClipError | None:
    """The error for a file of a kind that is known and not decoded."""
    head = source.at(id3_bytes(source), 512)
    for table, advice in ((_NO_AUDIO, "not audio"), (_UNDECODABLE, _CONVERT)):
        for offset, magic, what in table:
            if head.startswith(magic, offset):
                return ClipError(Status.UNSUPPORTED, f"this is {what}: {advice}")
    return None


def _refuse_known(source: Bytes, known: str) -> ClipError:
    """The error for a container libsndfile knows but would not open."""
    if known == "FLAC" and (bits := source.at(20, 2)) and source.size > 42:
        bits_per_sample = ((bits[0] & 1) << 4 | bits[1] >> 4) + 1
        if bits_per_sample not in (8, 16, 24):
            message = f"FLAC with {bits_per_sample} bits a sample: {_CONVERT}"
            return ClipError(Status.UNSUPPORTED, message)
    fault = header_fault(source)
    is_chunked = fault != UNKNOWN_HEADER
    if lengths(source, 0).promised_frames > 0 and (fault is None or not is_chunked):
        message = f"{known} file cut after {source.size} bytes: copy or download it again"
        return ClipError(Status.TRUNCATED, message)
    if fault is None:
        message = f"{known} with a codec that cannot be decoded: {_CONVERT}"
        return ClipError(Status.UNSUPPORTED, message)
    return ClipError(Status.UNREADABLE, f"damaged {known} file of {source.size} bytes: {fault}")


def _text(head: bytes, size: int) -> str:
    """What a text file in the place of audio is; empty when the head is not text."""
    try:
        # incremental: the head may end inside a character
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ""
    if not text.strip() or any(ord(c) < 32 and c not in "\t\r\n\f" for c in text):
        return ""
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer in place of the audio: run `git lfs pull` where it came from"
    if size <= len(head) and "\n" not in text.strip() and "/" in text:
        target = printable(text.strip())
        return f"the text of a symbolic link to {target!r}, not audio: copy the link's target"
    if text.lstrip().startswith(("<", "{")):
        return "a web page or an error document in place of the audio: download the file again"
    return "a text file, not audio"
