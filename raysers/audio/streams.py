"""Where Ogg and FLAC really end: behind what libsndfile counts, or before it."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

from raysers.audio.source import Bytes, SplicedBytes

#: More pages at the start of a stream than any real file has.
_MAX_PAGES = 1000

#: The last page of an Ogg stream and the one before start within so many bytes of the end.
_OGG_TAIL_BYTES = 2 * 65_307
#: The last frame of a FLAC file mostly starts within so many bytes of the end.
_FLAC_TAIL_BYTES = 1 << 15
#: libFLAC reads so much at once.
_FLAC_AHEAD_BYTES = 1 << 13
#: A stream begins with its mark and a STREAMINFO block; the mark alone occurs in compressed audio.
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)

#: Flags of the first and the last page of a stream.
_OGG_BEGIN, _OGG_END = 2, 4


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


def ogg_lengths(source: Bytes, frames: int, rate_hz: int) -> Lengths:
    """`lengths` of Ogg, of which libsndfile reads the first stream alone, by its last pages."""
    serials, offset = set(), 0
    for _ in range(_MAX_PAGES):
        page = source.at(offset, 27 + 255)
        # streams that run side by side all begin here
        if len(page) < 27 or page[:4] != b"OggS" or not page[5] & _OGG_BEGIN:
            break
        serials.add(page[14:18])
        offset += 27 + page[26] + sum(page[27 : 27 + page[26]])
    start = max(offset, source.size - _OGG_TAIL_BYTES)
    tail, granules, at, last = source.at(start, max(0, source.size - start)), [0], 0, -1
    while (at := _next_page(tail, at)) >= 0:
        serial, granule = (
            tail[at + 14 : at + 18],
            int.from_bytes(tail[at + 6 : at + 14], "little", signed=True),
        )
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
    change = _crc((_OGG_END, *bytes(page_bytes - 6)), 32, 0x04C1_1DB7)
    crc = struct.pack("<I", int.from_bytes(head[22:26], "little") ^ change)
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
    # what the decoder read before, it needed for the frames it gave
    tail_bytes = _FLAC_TAIL_BYTES if source.tell() < source.size else _FLAC_AHEAD_BYTES
    tail = source.at(max(1, source.size - tail_bytes), tail_bytes)
    if b"fLaC" in tail and _FLAC_START.search(tail):
        return True
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9") and (head := _flac_frame(tail, at)):
            first, is_sample = head
            first *= 1 if is_sample else int.from_bytes(source.at(10, 2), "big")
            if first < frames or not frames:
                return source.size - source.tell() > _FLAC_TAIL_BYTES // 2
            # compressed audio looks like a header now and then, but not like a whole frame
            if _crc(tail[at:], 16, 0x8005) == 0:
                return True
    return False


@functools.cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    """The checksums of single bytes."""
    table = []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> bits - 1 else 0)
            crc &= (1 << bits) - 1
        table.append(crc)
    return tuple(table)


def _crc(data: Iterable[int], bits: int, polynomial: int) -> int:
    """The checksum of FLAC and Ogg; 0 over data that end with their own."""
    crc, table, mask = 0, _crc_table(bits, polynomial), (1 << bits) - 1
    for byte in data:
        crc = crc << 8 & mask ^ table[crc >> bits - 8 ^ byte]
    return crc


def _flac_frame(data: bytes, at: int) -> tuple[int, bool] | None:
    """(number, whether it is a sample's and not a frame's) of the FLAC frame at `at`, if any."""
    head = data[at : at + 17]
    if len(head) < 17:
        return None
    ones = f"{head[4]:08b}".index("0") if head[4] != 0xFF else 8
    extra = max(0, ones - 1)
    size = {6: 1, 7: 2}.get(head[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    end = 5 + extra + size
    if ones in (1, 8) or any(byte >> 6 != 2 for byte in head[5 : 5 + extra]):
        return None
    if _crc(head[: end + 1], 8, 7):
        return None
    number = head[4] & 0x7F >> ones
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    return number, head[1] == 0xF9
