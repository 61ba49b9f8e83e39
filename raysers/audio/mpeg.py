"""How long an MP3 really is, and a truthful header for those whose own is not.

libsndfile believes the Xing/Info header, or guesses from the first frame's bit rate when there is
none, and never reads past that count. A variable-rate stream without header or two joined files
would lose their second half without a word; so those are counted frame by frame here, and opened
with a new Info frame in front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raysers.audio.containers import MPEG_SLACK_FRAMES, id3_bytes
from raysers.audio.source import Bytes, SplicedBytes
from raysers.audio.streams import Lengths

#: Decoded and dropped after a seek: a frame uses bits of those before it (up to 511 bytes, six of
#: the smallest frames), and libsndfile's decoder goes back only four, giving silence instead.
PREROLL_FRAMES = 12 * 1152

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
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
    mono = head[at + 3] >> 6 == 3
    return Frame(
        version=version, layer=layer, bitrate=bitrate, rate_hz=rate_hz, mono=mono,
        samples=samples, size=size,
    )  # fmt: skip


def survey(source: Bytes, frames: int) -> Lengths:
    """Judge the `frames` per channel that libsndfile believes an MP3 to have.

    Files of up to 256 KiB are counted frame by frame. Of longer ones the first 64 KiB are read, and
    the whole only when the header is missing and the bit rate varies, or when the header does not
    fit the size of the file.
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
    is_told = bool(header_frames and header_bytes)
    if is_told and excess_bytes < -slack_bytes:
        promised = header_frames * frame.samples if is_vbri else frames
        held = min(promised, promised * (end - start) // header_bytes)
        return Lengths(held, promised, source)
    # the header's own frame holds no audio
    first = start if header is None else start + frame.size
    changed, rest, is_estimate = None, 0, False
    if end - start > _SCAN_BYTES and is_told and excess_bytes <= slack_bytes:
        if not is_vbri:
            return Lengths(frames, frames, source)
        count = header_frames
    elif end - start > _SCAN_BYTES and header is None and _is_uniform(source, start, end):
        count, is_estimate = (
            (end - start) * 8 * frame.rate_hz // frame.bitrate // frame.samples,
            True,
        )
    else:
        count, changed, rest = _count(source, first, end)
    total, note = count * frame.samples, ""
    if changed is not None:
        sort = f"{changed.rate_hz} Hz {'mono' if changed.mono else 'stereo'}"
        note = f"the stream changes to {sort}: only the first {{:.3f}} s of {{:.3f}} s can be read"
    elif abs(total - frames) <= MPEG_SLACK_FRAMES and not is_estimate:
        return Lengths(frames, frames, source)
    elif is_told and excess_bytes < -2 * frame.size and total < frames:
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
            size = sum((b & 0x7F) << k for b, k in zip(tail[-4:], (21, 14, 7, 0), strict=True))
            end -= size + 20
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
    """Whether so many frames of the same kind stand behind `frame` at `offset`."""
    last: Frame | None = frame
    for _ in range(following):
        offset += last.size if last else 0
        last = parse_frame(source.at(offset, 4))
        if last is None or last.kind != frame.kind:
            return False
    return True


def _side_bytes(frame: Frame) -> int:
    """Length of layer III's side information, behind which the Xing header stands."""
    return (17 if frame.mono else 32) if frame.version == 3 else (9 if frame.mono else 17)


def _header(source: Bytes, start: int, frame: Frame) -> tuple[int, int, bool] | None:
    """(frames, bytes, whether it is VBRI) by the Xing, Info or VBRI header, 0 for what it omits."""
    data = source.at(start, min(frame.size, 512))
    at = 4 + _side_bytes(frame)
    if data[at : at + 4] in (b"Xing", b"Info") and len(data) >= at + 16:
        flags, *fields = struct.unpack_from(">III", data, at + 4)
        frames = fields.pop(0) if flags & 1 else 0
        return frames, fields.pop(0) if flags & 2 else 0, False
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
    """Frames from `start` to `end` by their headers; what lies between frames is skipped.

    Returns:
        (frames of the first kind, the first frame of another kind, samples from there on at the
        first kind's rate).
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
    """`source` from `start` on behind an Info frame that tells of `count` frames."""
    head = bytearray(source.at(start, 4))
    # the same kind of frame, long enough for the header at every bit rate, without a checksum
    head[1] |= 1
    head[2] = (head[2] & 0x0D) | (9 << 4)
    size = (parse_frame(bytes(head)) or frame).size
    info = struct.pack(">4sIII", b"Info", 3, count, source.size - start + size)
    prefix = bytes(head) + bytes(_side_bytes(frame)) + info
    return SplicedBytes(prefix.ljust(size, b"\0"), source, start)
