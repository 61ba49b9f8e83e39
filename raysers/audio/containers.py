"""What a container's header promises, and what a file is when it is not audio we can decode.

libsndfile hides truncation: a WAV cut in the middle opens as a shorter, healthy WAV. So the promise
is read from the header bytes here, and compared with the bytes that are really there.
"""

from __future__ import annotations

import codecs
import os
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import soundfile

from raysers.audio.source import Bytes, SplicedBytes, printable
from raysers.errors import ClipError
from raysers.types import Status

#: More chunks than any real file has; a hostile one could hold millions of empty chunks.
_MAX_CHUNKS = 1000

#: Behind this no header of a recording that was never closed is looked for.
_MAX_HEADER_BYTES = 1 << 20

#: An Ogg page is at most this long, so the last page starts within it.
_OGG_TAIL_BYTES = 65_307
#: Flag of the first page of a stream.
_OGG_BEGIN = 2

#: Sizes that writers to a pipe leave in the header, besides 0: ffmpeg, sox and espeak, arecord.
_STREAMING_SIZES = (range(0xFFFF_FF00, 0x1_0000_0000), range(0x7FFF_F000, 0x8000_0001))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a chunked container writes its chunks: id, size, data, padding."""

    first: int  # offset of the first chunk
    id_bytes: int
    size: str  # struct format of the size field
    counts_header: bool  # the size includes id and size fields
    align: int  # chunks start at multiples of this
    data: bytes  # id of the chunk with the samples
    preamble: int = 0  # bytes of the data chunk before the samples


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promise:
    """What a header says of the samples, and what the file holds of them."""

    size_bytes: int
    held_bytes: int
    frame_bytes: int  # 0: several frames are coded together
    frames: int  # 0: the header does not say


_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_RIFF = Layout(first=12, id_bytes=4, size="<I", counts_header=False, align=2, data=b"data")
_RIFX = Layout(first=12, id_bytes=4, size=">I", counts_header=False, align=2, data=b"data")
_AIFF = Layout(
    first=12, id_bytes=4, size=">I", counts_header=False, align=2, data=b"SSND", preamble=8
)
_SVX = Layout(first=12, id_bytes=4, size=">I", counts_header=False, align=2, data=b"BODY")
_W64 = Layout(first=40, id_bytes=16, size="<q", counts_header=True, align=8, data=_W64_DATA)
_CAF = Layout(
    first=8, id_bytes=4, size=">q", counts_header=False, align=1, data=b"data", preamble=4
)

_LAYOUTS = {b"RIFF": _RIFF, b"RF64": _RIFF, b"RIFX": _RIFX, b"FORM": _AIFF, b"riff": _W64}
_LAYOUTS[b"caff"] = _CAF

#: Chunk that describes the samples, the fields of it that cannot be zero, and its least length.
_WAV_FORMAT = (b"fmt ", ((2, 4), (4, 8), (12, 14)), 16)
_FORMAT_CHUNKS = {b"RIFF": _WAV_FORMAT, b"RF64": _WAV_FORMAT, b"RIFX": _WAV_FORMAT}
_FORMAT_CHUNKS[b"FORM"] = (b"COMM", ((0, 2), (6, 8), (8, 16)), 18)


def id3_bytes(source: Bytes) -> int:
    """Length of the ID3v2 tags at the start of a file, 0 when there is none."""
    offset = 0
    for _ in range(_MAX_CHUNKS):
        tag = source.at(offset, 10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        # four bytes of seven bits each
        offset += 10 + sum(
            (b & 0x7F) << shift for b, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)
        )
    return offset


def promised_frames(source: Bytes, frames: int) -> int:
    """Frames the container's header promises; `frames`, what libsndfile finds, if no more.

    Covers WAV (RIFF, RIFX, RF64), Wave64, AIFF, CAF, AU and Ogg, for Ogg only as "one more" since
    a page does not tell how many follow. FLAC needs nothing: libsndfile reports its header's
    count, and so it does for MP3 (see `mpeg`).
    """
    start = id3_bytes(source)
    magic = source.at(start, 4)
    if magic == b"OggS":
        return frames + _ogg_is_cut(source)
    if magic in (b".snd", b"dns."):
        promise = _au_promise(source, start, ">I" if magic == b".snd" else "<I")
    elif magic in _LAYOUTS:
        is_svx = magic == b"FORM" and source.at(start + 8, 4) in (b"8SVX", b"16SV")
        promise = _data_promise(source, start, _SVX if is_svx else _LAYOUTS[magic])
    else:
        return frames
    if promise is None or promise.size_bytes <= promise.held_bytes:
        return frames
    promised = promise.frames
    if promise.frame_bytes:
        promised = promise.size_bytes // promise.frame_bytes
    elif not promised and promise.held_bytes > 0:
        # about as many frames a byte as in the part that is there
        promised = frames * promise.size_bytes // promise.held_bytes
    return max(promised, frames + 1)


def untagged(source: Bytes) -> Bytes:
    """`source` without ID3 tags in front of anything but MP3.

    libsndfile skips the tags, but takes their length off the end of the samples as well.
    """
    start = id3_bytes(source)
    if start and source.at(start, 4) in (*_LAYOUTS, b"fLaC", b"OggS", b".snd"):
        return SplicedBytes(b"", source, start)
    return source


def closed(source: Bytes) -> Bytes:
    """`source`, with the size its writer never came to fill in if it is a WAV left open.

    Such a file says in all sizes that nothing follows its header, and yet something does.
    """
    if source.at(0, 4) != b"RIFF":
        return source
    outer = _number("<I", source.at(4, 4))
    for name, offset, size in chunks(source, 0, _RIFF):
        if name == b"data":
            held = source.size - offset
            is_open = size == 0 and outer + 8 <= offset <= _MAX_HEADER_BYTES
            if is_open and 0 < held < 0xFFFF_FF00:
                sizeless = source.at(0, offset - 4)
                return SplicedBytes(sizeless + struct.pack("<I", held), source, offset)
            break
    return source


#: `header_fault` of containers that have no chunks to look for.
UNKNOWN_HEADER = "the header cannot be parsed"


def header_fault(source: Bytes) -> str | None:
    """What is wrong with the header of a chunked file (WAV, AIFF, CAF, Wave64); None when sound.

    Only of use for a file libsndfile refuses: a sound header then means an unknown codec.
    """
    start = id3_bytes(source)
    magic = source.at(start, 4)
    if magic not in _LAYOUTS:
        return UNKNOWN_HEADER
    layout = _LAYOUTS[magic]
    found = {chunk: source.at(offset, 40) for chunk, offset, _ in chunks(source, start, layout)}
    if magic in _FORMAT_CHUNKS:
        name, fields, least = _FORMAT_CHUNKS[magic]
        about = found.get(name, b"")
        if len(about) < least:
            return f"no complete {name.decode().strip()!r} chunk, which tells rate and channels"
        if not all(any(about[a:b]) for a, b in fields):
            return "it declares no channels, no sample rate or samples of 0 bytes"
    if layout.data not in found:
        return f"no {layout.data[:4].decode()!r} chunk, which holds the samples"
    return None


def chunks(source: Bytes, start: int, layout: Layout) -> Iterator[tuple[bytes, int, int]]:
    """(id, offset of the data, size by the header) of each chunk of a container at `start`."""
    offset = start + layout.first
    size_bytes = struct.calcsize(layout.size)
    for _ in range(_MAX_CHUNKS):
        head = source.at(offset, layout.id_bytes + size_bytes)
        if len(head) < layout.id_bytes + size_bytes:
            return
        (size,) = struct.unpack_from(layout.size, head, layout.id_bytes)
        if layout.counts_header:
            size -= len(head)
        offset += len(head)
        yield head[: layout.id_bytes], offset, size
        if size < 0:
            return
        offset += size + (-size) % layout.align


def _data_promise(source: Bytes, start: int, layout: Layout) -> _Promise | None:
    """What the chunk with the samples promises; None when it does not say."""
    long_size = frame_bytes = frames = 0
    for name, offset, size in chunks(source, start, layout):
        if name == b"ds64":
            long_size = _number("<Q", source.at(offset + 8, 8))
        elif name.startswith(b"fmt "):
            frame_bytes = _plain_frame_bytes(source.at(offset, 40), layout.size[0])
        elif name.startswith(b"fact"):
            frames = _number(layout.size[0] + "I", source.at(offset, 4))
        elif name == b"COMM":
            frames = _number(">I", source.at(offset + 2, 4))
        elif name == layout.data:
            promised = long_size if size == 0xFFFF_FFFF and long_size else size
            if promised <= 0 or any(promised in sizes for sizes in _STREAMING_SIZES):
                return None
            return _Promise(
                size_bytes=promised - layout.preamble,
                held_bytes=source.size - offset - layout.preamble,
                frame_bytes=frame_bytes,
                frames=frames,
            )
    # libsndfile opens a file that ends just before the samples as an empty one
    return _Promise(size_bytes=1, held_bytes=0, frame_bytes=0, frames=0)


def _number(kind: str, data: bytes) -> int:
    """`data` as a number of struct format `kind`; 0 when the file ends before it."""
    return int(struct.unpack(kind, data)[0]) if len(data) == struct.calcsize(kind) else 0


def _plain_frame_bytes(fmt: bytes, order: str) -> int:
    """Bytes of a frame by a WAV `fmt ` chunk; 0 for codecs that pack several frames."""
    if len(fmt) < 16:
        return 0
    tag, _, _, _, block_bytes = struct.unpack_from(order + "HHIIH", fmt)
    if tag == 0xFFFE and len(fmt) >= 26:  # WAVE_FORMAT_EXTENSIBLE names the codec further on
        (tag,) = struct.unpack_from(order + "H", fmt, 24)
    return block_bytes if tag in (1, 3, 6, 7) else 0  # integer, float, A-law, mu-law


def _au_promise(source: Bytes, start: int, order: str) -> _Promise | None:
    """As `_data_promise`, for Sun AU."""
    offset = _number(order, source.at(start + 4, 4))
    size = _number(order, source.at(start + 8, 4))
    if size in (0, 0xFFFF_FFFF):
        return None
    held = source.size - start - offset
    return _Promise(size_bytes=size, held_bytes=held, frame_bytes=0, frames=0)


def is_joined(source: Bytes) -> bool:
    """Whether an Ogg file goes on with another stream, as files do that were joined.

    libsndfile reads the first stream alone.
    """
    serials, offset = set(), id3_bytes(source)
    for _ in range(_MAX_CHUNKS):
        page = source.at(offset, 27 + 255)
        # streams that run side by side all begin here
        if len(page) < 27 or page[:4] != b"OggS" or not page[5] & _OGG_BEGIN:
            break
        serials.add(page[14:18])
        offset += 27 + page[26] + sum(page[27 : 27 + page[26]])
    tail = _ogg_tail(source)
    last = tail.rfind(b"OggS\0")
    return bool(serials) and 0 <= last <= len(tail) - 18 and tail[last + 14 :][:4] not in serials


def _ogg_tail(source: Bytes) -> bytes:
    start = max(0, source.size - 2 * _OGG_TAIL_BYTES)
    return source.at(start, source.size - start)


def _ogg_is_cut(source: Bytes) -> bool:
    """Whether the last page of an Ogg file is incomplete."""
    tail = _ogg_tail(source)
    at = tail.find(b"OggS")
    while at >= 0:
        table = tail[at + 26 : at + 27]
        laces = tail[at + 27 : at + 27 + table[0]] if table else b""
        end = at + 27 + len(laces) + sum(laces)
        if not table or len(laces) < table[0] or end > len(tail):
            # cut, unless the letters OggS only happened to stand in the audio
            return tail[at + 4 : at + 5] in (b"", b"\0")
        following = tail.find(b"OggS", end)
        if following < 0:
            # up to three bytes of the next page's OggS
            rest = tail[end : end + 4]
            return bool(rest) and len(rest) < 4 and b"OggS".startswith(rest)
        at = following
    return False


class _Sound(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile for reading in order from several threads."""

    # Opening a file of an object store waits for the network: not one after the other. The lock
    # only guards the reason of a failure, which `refusal` finds by itself.
    _sf_error_lock = nullcontext()

    def seekable(self) -> bool:
        """No: keeps every read from seeking to where it is already."""
        return False


def open_sound(source: Bytes, name: str) -> soundfile.SoundFile:
    """Open `source` at its start, or raise why it cannot be."""
    try:
        sound = _Sound(source.handle, "r", closefd=False)
    except soundfile.SoundFileError as error:
        source.check()
        raise refusal(source, name) from error
    source.check()
    return sound


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
    head = source.at(id3_bytes(source), 512) or source.at(0, 512)
    for table, advice in ((_NO_AUDIO, "not audio"), (_UNDECODABLE, _CONVERT)):
        for offset, magic, what in table:
            if head.startswith(magic, offset):
                return ClipError(Status.UNSUPPORTED, f"this is {what}: {advice}")
    if known := _KNOWN.get(head[:4]):
        return _refuse_known(source, known)
    if text := _text(head, source.size):
        return ClipError(Status.UNREADABLE, text)
    if os.path.splitext(name)[1].lower() in _HEADERLESS:
        message = f"headerless audio: the file does not say its sample rate: {_CONVERT}"
        return ClipError(Status.UNSUPPORTED, message)
    return ClipError(Status.UNREADABLE, f"not audio of a known format ({source.size} bytes)")


def _refuse_known(source: Bytes, known: str) -> ClipError:
    """The error for a container libsndfile knows but would not open."""
    fault = header_fault(source)
    is_chunked = fault != UNKNOWN_HEADER
    if promised_frames(source, 0) > 0 and (fault is None or not is_chunked):
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
