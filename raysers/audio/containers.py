"""What a container's header promises, and what a file is when it is not audio we can decode.

libsndfile hides truncation: a WAV cut in the middle opens as a shorter, healthy WAV. So the promise
is read from the header bytes here, and compared with the bytes that are really there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from raysers.audio.source import Bytes, SplicedBytes

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
