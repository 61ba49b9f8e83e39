"""What the header of a container promises, compared with the bytes that are really there.

libsndfile hides truncation: a WAV cut in the middle opens as a shorter, healthy WAV. It also trusts
sizes that writers never came to fill in. So the header is read once more here; where only its
sizes are wrong, the samples are opened behind a header with the true ones.
"""

from __future__ import annotations

import codecs
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from raysers.audio.libav import DEMUXERS
from raysers.audio.source import Bytes, Lengths, SplicedBytes, printable
from raysers.audio.streams import id3_bytes, ogg_lengths
from raysers.errors import ClipError
from raysers.types import Status

#: More chunks than any real file has; a hostile one could hold millions of empty chunks.
_MAX_CHUNKS = 1000

#: Bytes that may be missing or left over without any loss: headers and padding counted wrongly.
_SLACK_BYTES = 64

#: First bytes of tags that are written behind the samples without a chunk around them.
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")


_INSTALL = "pip install 'raysers[av]' to decode it"
_CONVERT = "convert it first, for example to FLAC or WAV with ffmpeg"

_NO = "not audio"
#: (offset, bytes, what it is, its name in `libav.DEMUXERS` or what to do) of files that libsndfile
#: does not decode; the first match names it.
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (4, b"ftypavif", "an AVIF image", _NO),
    (8, b"WEBP", "a WebP image", _NO),
    (0, b"\x89PNG", "a PNG image", _NO),
    (0, b"\xff\xd8\xff", "a JPEG image", _NO),
    (0, b"%PDF-", "a PDF document", _NO),
    (0, b"PK\x03\x04", "a ZIP archive", _NO),
    (0, b"\x1f\x8b", "gzip data", _NO),
    (8, b"ILBM", "an IFF image (ILBM)", _NO),
    (0, b"PAR1", "a Parquet table", _NO),
    (257, b"ustar", "a tar archive", _NO),
    (4, b"ftypM4A", "MP4/AAC audio (m4a)", "MP4"),
    (4, b"ftypM4B", "MP4/AAC audio (m4b)", "MP4"),
    (4, b"ftyp3g", "3GPP audio or video", "MP4"),
    (4, b"ftyp", "MP4", "MP4"),
    (4, b"moov", "QuickTime video", "MP4"),
    (4, b"mdat", "QuickTime video", "MP4"),
    (4, b"wide", "QuickTime video", "MP4"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska/WebM", "Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf", "Windows Media (wma, wmv, asf)", "Windows Media"),
    (0, b"#!AMR", "AMR", "AMR"),
    (0, b"\xff\xf1", "AAC (ADTS)", "AAC"),
    (0, b"\xff\xf9", "AAC (ADTS)", "AAC"),
    (0, b"\x0b\x77", "Dolby Digital (ac3)", "AC-3"),
    (0, b"MAC ", "Monkey's Audio (ape)", "Monkey's Audio"),
    (0, b"wvpk", "WavPack", "WavPack"),
    (0, b"TTA1", "True Audio (tta)", "True Audio"),
    (0, b"BW64", "Broadcast Wave 64 (bw64)", _CONVERT),
    (0, b"FLV\x01", "Flash video", "Flash video"),
    (0, b"\x00\x00\x01\xba", "MPEG video", _CONVERT),
    (8, b"AVI ", "AVI video", "AVI"),
    (28, b"Speex   ", "Ogg/Speex", "Ogg"),
    (28, b"\x7fFLAC", "Ogg/FLAC", "Ogg"),
)

#: Extensions of audio without a header: neither rate nor sample format is in the file.
_HEADERLESS = frozenset({".raw", ".pcm", ".vox", ".gsm", ".sln", ".ulaw", ".alaw", ".ul", ".al"})

#: Containers that libsndfile knows: it failed on what is inside.
KNOWN = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a chunked container writes its chunks: id, size, data, padding."""

    first: int = 12  # offset of the first chunk
    id_bytes: int = 4
    size: str = ">I"  # struct format of the size field
    outer: int = 4  # offset of the size of the whole file, 0: there is none
    counts_header: bool = False  # the sizes include id and size fields
    align: int = 2  # chunks start at multiples of this
    data: bytes = b"data"  # id of the chunk with the samples
    preamble: int = 0  # bytes of the data chunk before the samples


_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_RIFF = Layout(size="<I")
_W64 = Layout(
    first=40, id_bytes=16, size="<q", outer=16, counts_header=True, align=8, data=_W64_DATA
)
_LAYOUTS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"RIFX": Layout(),
    b"FORM": Layout(data=b"SSND", preamble=8),
    b"riff": _W64,
    b"caff": Layout(first=8, size=">q", outer=0, align=1, preamble=4),
}

#: Chunk that describes the samples, the fields of it that cannot be zero, and its least length.
_WAV_FORMAT = (b"fmt ", ((2, 4), (4, 8), (12, 14)), 16)
_FORMAT_CHUNKS = {b"RIFF": _WAV_FORMAT, b"RF64": _WAV_FORMAT, b"RIFX": _WAV_FORMAT}
_FORMAT_CHUNKS[b"FORM"] = (b"COMM", ((0, 2), (6, 8), (8, 16)), 18)


def untagged(source: Bytes) -> Bytes:
    """`source` without ID3 tags in front of anything but MP3.

    libsndfile skips the tags, but takes their length off the end of the samples as well.
    """
    start = id3_bytes(source)
    if start and source.at(start, 4) in (*_LAYOUTS, b"fLaC", b"OggS", b".snd"):
        return SplicedBytes(source, b"", start)
    return source


def lengths(source: Bytes, frames: int, rate_hz: int = 0) -> Lengths:
    """Frames that the header of a file without tags promises, where libsndfile finds `frames`.

    Covers WAV (RIFF, RIFX, RF64), Wave64, AIFF, CAF, AU and Ogg, of which Opus counts at 48 kHz and
    not at `rate_hz`. libsndfile reports the count of a FLAC header. For MP3 see `streams`.
    """
    head = source.at(0, 44)
    size_bytes = int.from_bytes(head[40:44], "little")
    if head[:4] == b"RIFF" and head[12:20] == b"fmt \x10\0\0\0" and head[36:40] == b"data":
        if frames and source.size - 44 - 1 <= size_bytes <= source.size - 44:
            return Lengths(frames, frames, source)  # nearly every WAV
    elif head[:4] == b"OggS":
        return ogg_lengths(source, frames, rate_hz)
    elif head[:4] in (b".snd", b"dns."):
        order = ">I" if head[:4] == b".snd" else "<I"
        offset, size = _number(order, head[4:8]), _number(order, head[8:12])
        held = source.size - offset
        if size < held and size and _is_audio(source, offset + size):
            source = SplicedBytes(source, head[:8] + b"\xff\xff\xff\xff", 12)
        if size in (0, 0xFFFF_FFFF) or size - held <= _SLACK_BYTES:
            return Lengths(frames, frames, source)
        return Lengths(frames, max(frames * size // max(held, 1), frames + 1), source)
    layout = _LAYOUTS.get(head[:4])
    return Lengths(frames, frames, source) if layout is None else _sized(source, frames, layout)


def _sized(source: Bytes, frames: int, layout: Layout) -> Lengths:
    """`lengths` of a file in chunks, by the size of the one with the samples."""
    order, fmt, counted, long_size, long_frames = layout.size[0], b"", 0, 0, -1
    outer = _number(layout.size, source.at(layout.outer, struct.calcsize(layout.size)))
    for name, offset, size in chunks(source, layout):
        if name == b"ds64":
            about = source.at(offset, 24).ljust(24, b"\0")
            outer, long_size, long_frames = struct.unpack("<QQQ", about)
        elif name.startswith(b"fmt "):
            fmt = source.at(offset, max(0, min(size, 1024)))
        elif name.startswith(b"fact"):
            counted = _number(order + "I", source.at(offset, 4))
        elif name == b"COMM":
            counted = _number(">I", source.at(offset + 2, 4))
        elif name == layout.data:
            break
    else:
        # libsndfile opens a file that ends just before the samples as an empty one
        return Lengths(frames, max(1, frames), source)
    size = long_size if long_size and size in (0, 0xFFFF_FFFF) else size
    held = source.size - offset
    same = Lengths(frames, frames, source)
    frame_bytes = _plain_frame_bytes(fmt, order)
    if size <= held:
        is_riff = bool(fmt) and layout.size[1] == "I"
        if is_riff and _is_audio(source, offset + size):
            return _resized(source, fmt, order, offset, frames, frame_bytes)
        return same
    # what writers to a pipe leave in the header, such as 2 GiB less a header
    nearest = min(abs(size - limit) for limit in (1 << 31, 1 << 32))
    is_round = size >= 10**9 and size % 10**6 == 0
    if size <= 0 or nearest <= max(1 << 16, offset) or is_round:
        if frame_bytes and held > frames * frame_bytes + _SLACK_BYTES and order == "<":
            return _resized(source, fmt, order, offset, frames, frame_bytes)
        return same
    outer += 0 if layout.counts_header else 8
    is_whole = bool(layout.outer) and abs(outer - source.size) <= _SLACK_BYTES
    is_in_last_block = size - held <= _number(order + "H", fmt[12:14])
    is_counted = not frame_bytes and not is_in_last_block and 0 < counted <= frames
    is_counted |= long_frames == frames
    if is_whole or is_counted or size - held <= _SLACK_BYTES or size == source.size:
        return same
    promised = counted
    if frame_bytes:
        promised = (size - layout.preamble) // frame_bytes
    elif not promised and held > layout.preamble:
        # about as many frames a byte as in the part that is there
        promised = frames * (size - layout.preamble) // (held - layout.preamble)
    return Lengths(frames, max(promised, frames + 1), source)


def _is_audio(source: Bytes, end: int) -> bool:
    """Whether more samples follow the counted ones from `end` on, and no chunk, tag or padding."""
    rest = source.size - end
    if rest <= _SLACK_BYTES:
        return False
    for at in (end, end + 1):
        head = source.at(at, 11)
        following = at + 8 + _number("<I", head[4:8])
        is_chunk = all(0x20 <= byte < 0x7F for byte in head[:4]) and following <= source.size + 1
        if is_chunk or head.startswith(_TAGS):
            return False
    # some samples of it tell whether it is padding; no size can count more than 4 GiB
    places = (*range(end, source.size, max(4096, rest // 16)), source.size - min(4096, rest))
    return rest >> 32 > 0 or any(source.at(at, 4096).strip(b"\0") for at in places)


def _resized(
    source: Bytes, fmt: bytes, order: str, offset: int, frames: int, frame_bytes: int
) -> Lengths:
    """`lengths` of a WAV whose samples reach from `offset` to the end, whatever its header says."""
    held = source.size - offset
    about = b"WAVE" + b"fmt " + struct.pack(order + "I", len(fmt)) + fmt + bytes(len(fmt) % 2)
    if held < 0xFFFF_0000:
        outer = struct.pack(order + "I", len(about) + 8 + held)
        head = (b"RIFF" if order == "<" else b"RIFX") + outer + about
        head += b"data" + struct.pack(order + "I", held)
    else:
        long = struct.pack("<4sIQQQI", b"ds64", 28, len(about) + 44 + held, held, 0, 0)
        head = b"RF64\xff\xff\xff\xffWAVE" + long + about[4:] + b"data\xff\xff\xff\xff"
    promised = held // frame_bytes if frame_bytes else frames
    return Lengths(promised, promised, SplicedBytes(source, head, offset))


#: `header_fault` of containers that have no chunks to look for.
UNKNOWN_HEADER = "the header cannot be parsed"


def header_fault(source: Bytes) -> str | None:
    """What is wrong with the header of a chunked file (WAV, AIFF, CAF, Wave64); None when sound.

    Only of use for a file libsndfile refuses: a sound header then means an unknown codec.
    """
    magic = source.at(0, 4)
    if magic not in _LAYOUTS:
        return UNKNOWN_HEADER
    layout = _LAYOUTS[magic]
    found = {chunk: source.at(offset, 40) for chunk, offset, _ in chunks(source, layout)}
    if magic in _FORMAT_CHUNKS:
        name, fields, least = _FORMAT_CHUNKS[magic]
        about = found.get(name, b"")
        if len(about) < least:
            return f"no complete {name.decode().strip()!r} chunk, which holds rate and channels"
        if not all(any(about[a:b]) for a, b in fields):
            return "it declares no channels, no sample rate or samples of 0 bytes"
    if layout.data not in found:
        return f"no {layout.data[:4].decode()!r} chunk, which holds the samples"
    return None


def chunks(source: Bytes, layout: Layout) -> Iterator[tuple[bytes, int, int]]:
    """(id, offset of the data, size by the header) of each chunk of a container."""
    offset = layout.first
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
        offset += size + (-size) % layout.align
        if size < 0 or offset > source.size:
            return


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
    return int(block_bytes) if tag in (1, 3, 6, 7) else 0  # integer, float, A-law, mu-law


def refusal(source: Bytes, name: str) -> ClipError:
    """The error for a file that libsndfile would not open; the name's extension may tell why.

    libsndfile's own reason is not used: it is kept in a variable that all threads share.
    """
    if source.size == 0:
        return ClipError(Status.EMPTY, "the file has 0 bytes")
    if error := named(source):
        return error
    head = source.at(id3_bytes(source), 512) or source.at(0, 512)
    if known := KNOWN.get(head[:4]):
        return _refuse_known(source, known)
    if text := _text(head, source.size):
        return ClipError(Status.UNREADABLE, text)
    if os.path.splitext(name)[1].lower() in _HEADERLESS:
        message = f"headerless audio: the file does not say its sample rate: {_CONVERT}"
        return ClipError(Status.UNSUPPORTED, message)
    return ClipError(Status.UNREADABLE, f"not audio of a known format ({source.size} bytes)")


def named(source: Bytes) -> ClipError | None:
    """The error for a file of a kind that is known and not decoded."""
    if (found := _other(source)) is None:
        return None
    advice = _INSTALL if found[1] in DEMUXERS else found[1]
    return ClipError(Status.UNSUPPORTED, f"this is {found[0]}: {advice}")


def av_label(source: Bytes) -> str:
    """Name in `libav.DEMUXERS` of what libsndfile would not open; empty for what PyAV cannot."""
    if source.at(0, 4) == b"fLaC":
        return "" if _flac_bits(source) in (8, 16, 24) else "FLAC"
    found = _other(source)
    return found[1] if found is not None and found[1] in DEMUXERS else ""


def _other(source: Bytes) -> tuple[str, str] | None:
    head = source.at(id3_bytes(source), 512)
    found = (row[2:] for row in _OTHERS if head.startswith(row[1], row[0]))
    return next(found, None)


def _flac_bits(source: Bytes) -> int:
    """Bits a sample of a FLAC file."""
    bits = source.at(20, 2).ljust(2, b"\0")
    return ((bits[0] & 1) << 4 | bits[1] >> 4) + 1


def _refuse_known(source: Bytes, known: str) -> ClipError:
    """The error for a container libsndfile knows but would not open."""
    if known == "FLAC" and source.size > 42 and (bits := _flac_bits(source)) not in (8, 16, 24):
        return ClipError(Status.UNSUPPORTED, f"FLAC with {bits} bits a sample: {_INSTALL}")
    fault = header_fault(source)
    if lengths(source, 0).promised_frames > 0 and fault in (None, UNKNOWN_HEADER):
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
