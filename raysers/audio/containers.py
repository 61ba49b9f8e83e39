"""What the header of a container promises, compared with the bytes that are really there.

libsndfile hides truncation: a WAV cut in the middle opens as a shorter, healthy WAV. It also trusts
sizes that writers never came to fill in. So the header is read once more here; where only its
sizes are wrong, the samples are opened behind a header that tells the true ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from raysers.audio.source import Bytes, SplicedBytes

#: More chunks than any real file has; a hostile one could hold millions of empty chunks.
_MAX_CHUNKS = 1000

#: Bytes that may be missing or left over without any loss: headers and padding counted wrongly.
_SLACK_BYTES = 64

#: The last page of an Ogg stream and the one before start within so many bytes of the end.
_OGG_TAIL_BYTES = 2 * 65_307
#: The last frame of a FLAC file mostly starts within so many bytes of the end.
_FLAC_TAIL_BYTES = 1 << 15

#: Flags of the first and the last page of a stream.
_OGG_BEGIN, _OGG_END = 2, 4

#: First bytes of tags that are written behind the samples without a chunk around them.
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")


class Lengths(NamedTuple):
    """What a file holds, and what it should hold, in frames.

    Attributes:
        frames: frames that can be read.
        promised_frames: frames by the header, or by a count that is better than the header.
        source: what to open to read them: the file, or the file behind a corrected header.
        is_estimate: `promised_frames` is computed from the size of the file.
        note: why the frames beyond `frames` cannot be read, when they are not just missing.
    """

    frames: int
    promised_frames: int
    source: Bytes
    is_estimate: bool = False
    note: str = ""


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
_AIFF = Layout(data=b"SSND", preamble=8)
_SVX = Layout(data=b"BODY")
_W64 = Layout(
    first=40, id_bytes=16, size="<q", outer=16, counts_header=True, align=8, data=_W64_DATA
)
_CAF = Layout(first=8, size=">q", outer=0, align=1, preamble=4)
_LAYOUTS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"RIFX": Layout(),
    b"FORM": _AIFF,
    b"riff": _W64,
    b"caff": _CAF,
}

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


def untagged(source: Bytes) -> Bytes:
    """`source` without ID3 tags in front of anything but MP3.

    libsndfile skips the tags, but takes their length off the end of the samples as well.
    """
    start = id3_bytes(source)
    if start and source.at(start, 4) in (*_LAYOUTS, b"fLaC", b"OggS", b".snd"):
        return SplicedBytes(b"", source, start)
    return source


def lengths(source: Bytes, frames: int, rate_hz: int = 0) -> Lengths:
    """Frames that the header promises, where libsndfile finds `frames`.

    Covers WAV (RIFF, RIFX, RF64), Wave64, AIFF, 8SVX, CAF, AU and Ogg. FLAC needs nothing:
    libsndfile reports its header's count. For MP3 see `mpeg`.

    Args:
        source: the file without tags in front.
        frames: what libsndfile believes.
        rate_hz: sample rate, which the positions in Ogg Opus are converted to.
    """
    head = source.at(0, 44)
    size_bytes = int.from_bytes(head[40:44], "little")
    if head[:4] == b"RIFF" and head[12:20] == b"fmt \x10\0\0\0" and head[36:40] == b"data":
        if frames and source.size - 44 - 1 <= size_bytes <= source.size - 44:
            return Lengths(frames, frames, source)  # nearly every WAV
    elif head[:4] == b"OggS":
        return _ogg_lengths(source, frames, rate_hz)
    elif head[:4] in (b".snd", b"dns."):
        order = ">I" if head[:4] == b".snd" else "<I"
        offset, size = _number(order, head[4:8]), _number(order, head[8:12])
        held = source.size - offset
        if size < held and size and _is_audio(source, offset + size):
            source = SplicedBytes(head[:8] + b"\xff\xff\xff\xff", source, 12)
        if size in (0, 0xFFFF_FFFF) or size - held <= _SLACK_BYTES:
            return Lengths(frames, frames, source)
        return Lengths(frames, max(frames * size // max(held, 1), frames + 1), source)
    layout = _SVX if head[8:12] in (b"8SVX", b"16SV") else _LAYOUTS.get(head[:4])
    return Lengths(frames, frames, source) if layout is None else _sized(source, frames, layout)


def _sized(source: Bytes, frames: int, layout: Layout) -> Lengths:
    """`lengths` of a file in chunks, by the size of the one with the samples."""
    order, fmt, counted, long_size = layout.size[0], b"", 0, 0
    outer = _number(layout.size, source.at(layout.outer, struct.calcsize(layout.size)))
    for name, offset, size in chunks(source, layout):
        if name == b"ds64":
            outer, long_size = struct.unpack("<QQ", source.at(offset, 16).ljust(16, b"\0"))
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
    if _is_placeholder(size, offset):
        if frame_bytes and held > frames * frame_bytes + _SLACK_BYTES and order == "<":
            return _resized(source, fmt, order, offset, frames, frame_bytes)
        return same
    outer += 0 if layout.counts_header else 8
    is_whole = bool(layout.outer) and abs(outer - source.size) <= _SLACK_BYTES
    if is_whole or size - held <= _SLACK_BYTES or size == source.size:
        return same
    promised = counted
    if frame_bytes:
        promised = (size - layout.preamble) // frame_bytes
    elif not promised and held > layout.preamble:
        # about as many frames a byte as in the part that is there
        promised = frames * (size - layout.preamble) // (held - layout.preamble)
    return Lengths(frames, max(promised, frames + 1), source)


def _is_placeholder(size: int, offset: int) -> bool:
    """Whether a size is what writers to a pipe leave in the header, such as 2 GiB less a header."""
    nearest = min(abs(size - limit) for limit in (1 << 31, 1 << 32))
    return size <= 0 or nearest <= max(1 << 16, offset) or (size >= 10**9 and size % 10**6 == 0)


def _is_audio(source: Bytes, end: int) -> bool:
    """Whether what follows the counted samples from `end` on is more of them.

    Else it is another chunk, a tag, padding, or nothing.
    """
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
    return Lengths(promised, promised, SplicedBytes(head, source, offset))


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
            return f"no complete {name.decode().strip()!r} chunk, which tells rate and channels"
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


def _ogg_lengths(source: Bytes, frames: int, rate_hz: int) -> Lengths:
    """`lengths` of Ogg, of which libsndfile reads the first stream alone, by its last pages."""
    serials, offset = set(), 0
    for _ in range(_MAX_CHUNKS):
        page = source.at(offset, 27 + 255)
        # streams that run side by side all begin here
        if len(page) < 27 or page[:4] != b"OggS" or not page[5] & _OGG_BEGIN:
            break
        serials.add(page[14:18])
        offset += 27 + page[26] + sum(page[27 : 27 + page[26]])
    start = max(offset, source.size - _OGG_TAIL_BYTES)
    tail, granules, at, last = source.at(start, max(0, source.size - start)), [0], 0, -1
    while (at := _next_page(tail, at)) >= 0:
        serial, granule = tail[at + 14 : at + 18], _number("<q", tail[at + 6 : at + 14])
        laces = tail[at + 27 : at + 27 + (tail[at + 26] if len(tail) > at + 26 else 0)]
        end = at + 27 + len(laces) + sum(laces)
        if len(tail) < at + 27 or len(laces) < tail[at + 26] or end > len(tail):
            # the file ends in this page, which may have told how far it goes
            lost = granule - granules[-1]
            if b"OpusHead" in source.at(0, 64):
                lost = lost * rate_hz // 48_000
            note = "" if lost > 0 else "the file is cut within a page, at {:.3f} s: copy it again"
            return Lengths(frames, frames + max(lost, 1), source, note=note)
        if serial not in serials or tail[at + 5] & _OGG_BEGIN:
            note = "several streams are joined; only the first {:.3f} s can be read"
            return Lengths(frames, frames + 1, source, note=note)
        granules.append(max(granule, granules[-1]))
        last, at = at, end
    if last >= 0 and not tail[last + 5] & _OGG_END:
        source = _ended(source, start + last, tail[last : last + 27], end - last)
    return Lengths(frames, frames, source)


def _ended(source: Bytes, offset: int, head: bytes, page_bytes: int) -> Bytes:
    """`source` with the flag of a stream's end on its last page, without which that is not read."""
    # the checksum is linear: what the flag changes in it does not depend on the rest of the page
    change = 0
    for byte in (_OGG_END, *bytes(page_bytes - 6)):
        change ^= byte << 24
        for _ in range(8):
            change = (change << 1 ^ 0x04C1_1DB7 if change >> 31 else change << 1) & 0xFFFF_FFFF
    crc = struct.pack("<I", _number("<I", head[22:26]) ^ change)
    flags = bytes([head[5] | _OGG_END])
    return _PatchedBytes(source, offset, head[:5] + flags + head[6:22] + crc + head[26:])


class _PatchedBytes(SplicedBytes):
    """`inner` with the bytes `new` from `place` on."""

    def __init__(self, inner: Bytes, place: int, new: bytes) -> None:
        super().__init__(b"", inner, 0)
        self._place, self._new = place, new

    def at(self, offset: int, count: int) -> bytes:
        """See `Bytes`."""
        data = super().at(offset, count)
        first = max(offset, self._place)
        last = min(offset + len(data), self._place + len(self._new))
        if first >= last:
            return data
        new = self._new[first - self._place : last - self._place]
        return data[: first - offset] + new + data[last - offset :]


def _next_page(tail: bytes, at: int) -> int:
    """Position of the next Ogg page, maybe cut, from `at` on; -1 if there is none."""
    rest = tail[at:]
    if rest and b"OggS".startswith(rest):
        return at
    while (at := tail.find(b"OggS", at)) >= 0:
        # the letters may just happen to stand in the audio
        if tail[at + 4 : at + 5] in (b"", b"\0"):
            return at
        at += 1
    return -1


def goes_on(source: Bytes, container: str, frames: int) -> bool:
    """Whether audio follows the `frames` that the file counts, once all of them were decoded."""
    if container == "OGG":
        return source.size - source.tell() > _OGG_TAIL_BYTES
    if container != "FLAC":
        return False
    tail = source.at(max(0, source.size - _FLAC_TAIL_BYTES), _FLAC_TAIL_BYTES)
    if source.size > len(tail) and b"fLaC" in tail:
        return True
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9") and (head := _flac_frame(tail, at)):
            first, is_sample = head
            first *= 1 if is_sample else _number(">H", source.at(10, 2))
            return first >= frames > 0 or source.size - source.tell() > _FLAC_TAIL_BYTES // 2
    return False


def _flac_frame(data: bytes, at: int) -> tuple[int, bool] | None:
    """(number, whether it is a sample's and not a frame's) of the FLAC frame at `at`, if any."""
    head = data[at : at + 16]
    if len(head) < 16:
        return None
    ones = f"{head[4]:08b}".index("0") if head[4] != 0xFF else 8
    extra = max(0, ones - 1)
    size = {6: 1, 7: 2}.get(head[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    end = 5 + extra + size
    crc = 0
    for byte in head[:end]:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 0x80 else crc << 1) & 0xFF
    if crc != head[end] or ones in (1, 8):
        return None
    number = head[4] & 0x7F >> ones
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    return number, head[1] == 0xF9
