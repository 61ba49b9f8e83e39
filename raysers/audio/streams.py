"""How long streams of frames really are: MP3, Ogg and FLAC.

libsndfile believes an MP3's Xing/Info header, or guesses from the first frame's bit rate when there
is none, and never reads past that count: a variable-rate stream without header or two joined files
would lose their second half without a word. So those are counted frame by frame here, and opened
with a new Info frame in front. Of Ogg and FLAC it reads the first stream alone.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

from raysers.audio.source import Bytes, Lengths, SplicedBytes

#: MPEG frames an encoder's count may be off by without anything missing: padding and delay.
MPEG_SLACK_FRAMES = 3 * 1152

#: Decoded and dropped after a seek: a frame uses bits of those before it (up to 511 bytes, six of
#: the smallest frames), and libsndfile's decoder goes back only four, giving silence instead.
PREROLL_FRAMES = 12 * 1152

#: The last page of an Ogg stream and the one before start within so many bytes of the end.
_OGG_TAIL_BYTES = 2 * 65_307
#: Flags of the first and the last page of a stream.
_OGG_BEGIN, _OGG_END = 2, 4

#: The last frame of a FLAC file mostly starts within so many bytes of the end.
_FLAC_TAIL_BYTES = 1 << 15
#: libFLAC reads so much at once.
_FLAC_AHEAD_BYTES = 1 << 13
#: A stream begins with its mark and a STREAMINFO block; the mark alone occurs in compressed audio.
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")

#: More tags or pages at the start of a stream than any real file has.
_MOST = 1000
_SEARCH_BYTES = 1 << 16
_PROBE_BYTES = 1 << 13
_SCAN_BYTES = 1 << 18

#: kbit/s by (MPEG-1, layer); index 0 is the free format, which is not handled, as in the decoder.
_BITRATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_BITRATES[False, 3] = _BITRATES[False, 2]
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


class Frame(NamedTuple):
    """One MPEG audio frame by its four header bytes."""

    version: int  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    layer: int
    bitrate: int  # bit/s
    rate_hz: int
    mono: bool
    samples: int
    size: int  # bytes, header included

    @property
    def kind(self) -> tuple[int, int, int, bool]:
        """What cannot change within a stream."""
        return self.version, self.layer, self.rate_hz, self.mono


def parse_frame(head: bytes, at: int = 0) -> Frame | None:
    """The frame whose header is the four bytes at `at`; None if they are none."""
    if len(head) < at + 4 or head[at] != 0xFF or head[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = head[at + 1] >> 3 & 3, 4 - (head[at + 1] >> 1 & 3)
    rate_index, bitrate_index = head[at + 2] >> 2 & 3, head[at + 2] >> 4
    if version == 1 or layer == 4 or rate_index == 3 or bitrate_index in (0, 15):
        return None
    rate_hz = _RATES_HZ[version][rate_index]
    bitrate = 1000 * _BITRATES[version == 3, layer][bitrate_index]
    samples = {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]
    padding = head[at + 2] >> 1 & 1
    # layer I counts in slots of four bytes
    slot = 4 if layer == 1 else 1
    size = (samples // 8 // slot * bitrate // rate_hz + padding) * slot
    return Frame(version, layer, bitrate, rate_hz, head[at + 3] >> 6 == 3, samples, size)


def id3_bytes(source: Bytes) -> int:
    """Length of the ID3v2 tags at the start of a file, 0 when there is none."""
    offset = 0
    for _ in range(_MOST):
        tag = source.at(offset, 10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        offset += 10 + _id3_size(tag[6:])
    return offset


def _id3_size(data: bytes) -> int:
    """Four bytes of seven bits each as a number."""
    return sum((b & 0x7F) << shift for b, shift in zip(data, (21, 14, 7, 0), strict=True))


def mpeg_lengths(source: Bytes, frames: int) -> Lengths:
    """Judge the `frames` per channel that libsndfile believes an MP3 to have.

    Files of up to 256 KiB are counted frame by frame. Longer ones are read whole only when the
    header is missing and the bit rate varies, or when it does not fit the size of the file.
    """
    found = _first_frame(source, id3_bytes(source), _SEARCH_BYTES, following=1)
    if found is None:
        return Lengths(frames, frames, source)
    start, frame = found
    end = source.size - _tag_bytes(source)
    header = _header(source, start, frame)
    header_frames, header_bytes, is_vbri = header or (0, 0, False)
    slack_bytes = 4 * frame.size + header_bytes // 50
    excess_bytes = end - start - header_bytes
    is_counted = bool(header_frames and header_bytes)
    if is_counted and excess_bytes < -slack_bytes:
        promised = header_frames * frame.samples if is_vbri else frames
        held = min(promised, promised * (end - start) // header_bytes)
        return Lengths(held, promised, source)
    # the header's own frame holds no audio
    first = start if header is None else start + frame.size
    changed, rest, is_estimate = None, 0, False
    if end - start > _SCAN_BYTES and is_counted and excess_bytes <= slack_bytes:
        if not is_vbri:
            return Lengths(frames, frames, source)
        count = header_frames
    elif end - start > _SCAN_BYTES and header is None and _is_uniform(source, start, end):
        count = (end - start) * 8 * frame.rate_hz // frame.bitrate // frame.samples
        is_estimate = True
    else:
        count, changed, rest = _count(source, first, end)
    total, note = count * frame.samples, ""
    if changed is not None:
        sort = f"{changed.rate_hz} Hz {'mono' if changed.mono else 'stereo'}"
        note = f"the stream changes to {sort}: only the first {{:.3f}} s of {{:.3f}} s can be read"
    elif abs(total - frames) <= MPEG_SLACK_FRAMES and not is_estimate:
        return Lengths(frames, frames, source)
    elif is_counted and excess_bytes < -2 * frame.size and total < frames:
        return Lengths(total, frames, source)
    opened = source if total <= frames else _with_header(source, first, frame, count)
    return Lengths(total, total + rest, opened, is_estimate, note)


def counted_frames(source: Bytes) -> int:
    """Frames per channel by the headers of all MPEG frames of a file."""
    found = _first_frame(source, id3_bytes(source), _SEARCH_BYTES, following=1)
    return _count(source, found[0], source.size)[0] * found[1].samples if found else 0


def audio_start(source: Bytes) -> int:
    """Offset of the first of four frames in a row, behind tags and up to 64 KiB of anything else.

    0 when there are none, or nothing is in front of them.
    """
    base = id3_bytes(source)
    tag = source.at(base, 32)
    if tag.startswith(b"APETAGEX"):
        base += 32 + int.from_bytes(tag[12:16], "little")
    found = _first_frame(source, base, _SEARCH_BYTES, following=3)
    return 0 if found is None else found[0]


def _tag_bytes(source: Bytes) -> int:
    """Length of the tags behind the last frame: ID3v1, APE, Lyrics3, ID3v2, in any order."""
    end = source.size
    for _ in range(8):
        tail = source.at(max(0, end - 128), min(end, 128)).rjust(128, b"\0")
        if tail.startswith(b"TAG"):
            end -= 128
        elif tail[-32:-24] == b"APETAGEX":
            size, flags = struct.unpack("<I4xI", tail[-20:-8])
            end -= size + (32 if flags >> 31 else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            end -= int(tail[-15:-9]) + 15
        elif tail[-10:-7] == b"3DI":
            end -= _id3_size(tail[-4:]) + 20
        else:
            break
    return source.size - max(end, 0)


def _first_frame(
    source: Bytes, base: int, search_bytes: int, *, following: int
) -> tuple[int, Frame] | None:
    """Offset and header of the first frame from `base` on that others of its kind follow."""
    head = source.at(base, search_bytes)
    at = head.find(b"\xff")
    while at >= 0:
        frame = parse_frame(head, at)
        if frame is not None and _is_followed(source, base + at, frame, following):
            return base + at, frame
        at = head.find(b"\xff", at + 1)
    return None


def _is_followed(source: Bytes, offset: int, frame: Frame, following: int) -> bool:
    """Whether so many frames of the same kind follow `frame` at `offset`."""
    for _ in range(following):
        offset += frame.size
        found = parse_frame(source.at(offset, 4))
        if found is None or found.kind != frame.kind:
            return False
        frame = found
    return True


def _side_bytes(frame: Frame) -> int:
    """Length of layer III's side information, which precedes the Xing header."""
    return (17 if frame.mono else 32) if frame.version == 3 else (9 if frame.mono else 17)


def _header(source: Bytes, start: int, frame: Frame) -> tuple[int, int, bool] | None:
    """(frames, bytes, whether it is VBRI) by the Xing, Info or VBRI header, 0 for what it omits."""
    data = source.at(start, min(frame.size, 512))
    at = 4 + _side_bytes(frame)
    if data[at : at + 4] in (b"Xing", b"Info") and len(data) >= at + 16:
        flags, *fields = struct.unpack_from(">III", data, at + 4)
        frames = fields.pop(0) if flags & 1 else 0
        size = fields.pop(0) if flags & 2 else 0
        return frames, size if size < 2048 * frames else 0, False  # no frame is so long
    if data[36:40] == b"VBRI" and len(data) >= 54:
        size, frames = struct.unpack_from(">II", data, 46)
        return frames, size, True
    return None


def _is_uniform(source: Bytes, start: int, end: int) -> bool:
    """Whether the frames of the first 64 KiB, and some further on, share kind and bit rate."""
    data = source.at(start, _SEARCH_BYTES)
    sorts, at = set(), 0
    while (frame := parse_frame(data, at)) is not None:
        sorts.add((frame.kind, frame.bitrate))
        at += frame.size
    for eighth in range(1, 9):
        # a variable rate may begin with minutes of silence
        offset = min(start + (end - start) * eighth // 8, end - _PROBE_BYTES)
        if offset > start + len(data):
            found = _first_frame(source, offset, _PROBE_BYTES, following=1)
            sorts.update([(found[1].kind, found[1].bitrate)] if found else [])
    return len(sorts) == 1


def _count(source: Bytes, start: int, end: int) -> tuple[int, Frame | None, int]:
    """(frames of the first kind, first frame of another kind, samples from there on) by headers.

    What lies between frames is skipped; the samples are at the first kind's rate.
    """
    count, offset, data, base, rest_s = 0, start, b"", start, 0.0
    first = changed = None
    while offset + 4 <= end:
        if offset + 4 > base + len(data):
            base, data = offset, source.at(offset, _SCAN_BYTES)
        frame = parse_frame(data, offset - base)
        first = first or frame
        if frame is None or first is None:
            following = data.find(b"\xff", offset - base + 1)
            offset = base + (following if following >= 0 else max(len(data) - 3, offset - base + 1))
        elif changed is None and frame.kind == first.kind:
            count += 1
            offset += frame.size
        elif changed is None and not _is_followed(source, offset, frame, 3):
            offset += 1  # bytes that only look like a frame
        else:
            changed = changed or frame
            rest_s += frame.samples / frame.rate_hz
            offset += frame.size
    return count, changed, round(rest_s * first.rate_hz) if first else 0


def _with_header(source: Bytes, start: int, frame: Frame, count: int) -> Bytes:
    """`source` from `start` on behind an Info frame that counts `count` frames."""
    head = bytearray(source.at(start, 4))
    # the same kind of frame, long enough for the header at every bit rate, without a checksum
    head[1] |= 1
    head[2] = (head[2] & 0x0D) | (9 << 4)
    size = (parse_frame(bytes(head)) or frame).size
    info = struct.pack(">4sIII", b"Info", 3, count, source.size - start + size)
    prefix = bytes(head) + bytes(_side_bytes(frame)) + info
    return SplicedBytes(source, prefix.ljust(size, b"\0"), start)


def ogg_lengths(source: Bytes, frames: int, rate_hz: int) -> Lengths:
    """`lengths` of Ogg, of which libsndfile reads the first stream alone, by its last pages."""
    serials, offset = set(), 0
    for _ in range(_MOST):
        page = source.at(offset, 27 + 255)
        # streams that run side by side all begin here
        if len(page) < 27 or page[:4] != b"OggS" or not page[5] & _OGG_BEGIN:
            break
        serials.add(page[14:18])
        offset += 27 + page[26] + sum(page[27 : 27 + page[26]])
    start = max(offset, source.size - _OGG_TAIL_BYTES)
    tail, granules, at, last = source.at(start, max(0, source.size - start)), [0], 0, -1
    while (at := _next_page(tail, at)) >= 0:
        granule = int.from_bytes(tail[at + 6 : at + 14], "little", signed=True)
        laces = tail[at + 27 : at + 27 + (tail[at + 26] if len(tail) > at + 26 else 0)]
        end = at + 27 + len(laces) + sum(laces)
        if len(tail) < at + 27 or len(laces) < tail[at + 26] or end > len(tail):
            # the file ends in this page, whose head may say how far it goes
            lost = granule - granules[-1]
            if b"OpusHead" in source.at(0, 64):
                lost = lost * rate_hz // 48_000
            note = "" if lost > 0 else "the file is cut within a page, at {:.3f} s: copy it again"
            return Lengths(frames, frames + max(lost, 1), source, note=note)
        if tail[at + 14 : at + 18] not in serials or tail[at + 5] & _OGG_BEGIN:
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
    new = head[:5] + flags + head[6:22] + crc + head[26:]
    return SplicedBytes(source, new, offset + len(new), start=offset)


def _next_page(tail: bytes, at: int) -> int:
    """Position of the next Ogg page, maybe cut, from `at` on; -1 if there is none."""
    if b"OggS".startswith(tail[at:] or b"-"):
        return at
    while (at := tail.find(b"OggS", at)) >= 0 and tail[at + 4 : at + 5] not in (b"", b"\0"):
        at += 1  # compressed audio may hold these letters
    return at


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
    for at in reversed([found.start() for found in _FLAC_SYNC.finditer(tail)]):
        if head := _flac_frame(tail, at):
            first, is_sample = head
            least, most = source.at(8, 2), source.at(10, 2)  # frames are alike, or it is damage
            first *= 1 if is_sample else (least == most) * int.from_bytes(most, "big")
            if first < frames or not frames:
                return source.size - source.tell() > _FLAC_TAIL_BYTES // 2
            # compressed audio looks like a header now and then, but not like a whole frame
            if _crc(tail[at:], 16, 0x8005) == 0:
                return True
    return False


@functools.cache
def _crc_of_byte(byte: int, bits: int, polynomial: int) -> int:
    crc = byte << bits - 8
    for _ in range(8):
        crc = crc << 1 ^ (polynomial if crc >> bits - 1 else 0)
        crc &= (1 << bits) - 1
    return crc


def _crc(data: Iterable[int], bits: int, polynomial: int) -> int:
    """The checksum of FLAC and Ogg; 0 over data that end with their own."""
    crc = 0
    for byte in data:
        crc = crc << 8 & (1 << bits) - 1 ^ _crc_of_byte(crc >> bits - 8 ^ byte, bits, polynomial)
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
