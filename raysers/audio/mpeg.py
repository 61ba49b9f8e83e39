"""How long an MP3 really is, and a truthful header for those whose own is not.

libsndfile believes the Xing/Info header, or guesses from the first frame's bit rate when there is
none, and never reads past that count. A variable-rate stream without header or two joined files
would lose their second half without a word; so those are counted frame by frame here, and opened
with a new Info frame in front.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raysers.audio.containers import id3_bytes
from raysers.audio.source import Bytes, SplicedBytes

#: Frames an encoder's count may be off by without anything missing: padding and delay.
SLACK_FRAMES = 3 * 1152

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
    def kind(self) -> tuple[int, int, int]:
        """What cannot change within a stream."""
        return self.version, self.layer, self.rate_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the header of an MP3 promises and what the file holds, in frames per channel."""

    frames: int
    promised_frames: int
    is_promise: bool  # False: an estimate or a count, so a shortfall is no truncation
    bytes_to_open: Bytes  # the file, or the file behind a truthful header


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


def survey(source: Bytes, frames: int) -> Survey:
    """Judge the `frames` libsndfile believes an MP3 to have.

    Reads the first 64 KiB; the whole file only when the header is missing and the bit rate varies,
    or when the header tells of less than the file holds.
    """
    believed = Survey(
        frames=frames, promised_frames=frames, is_promise=True, bytes_to_open=source
    )  # fmt: skip
    found = _first_frame(source, id3_bytes(source), _SEARCH_BYTES)
    if found is None:
        return believed
    start, frame = found
    held_bytes = source.size - start - (128 if source.at(source.size - 128, 3) == b"TAG" else 0)
    header = _xing(source, start, frame)
    if header is not None:
        header_frames, header_bytes = header
        slack_bytes = 4 * frame.size + header_bytes // 50
        if not header_bytes or abs(held_bytes - header_bytes) <= slack_bytes:
            return believed
        if held_bytes < header_bytes and header_frames:
            held = min(frames, frames * held_bytes // header_bytes)
            return Survey(
                frames=held, promised_frames=frames, is_promise=True, bytes_to_open=source
            )  # fmt: skip
        counted = _count(source, start)
        # frames the header knows of, at the rate libsndfile counts them (less delay and padding)
        if counted * frame.samples <= frames + SLACK_FRAMES:
            return believed
        start += frame.size  # the false header's own frame
    elif _is_uniform(source, start):
        counted = held_bytes * 8 * frame.rate_hz // (frame.bitrate * frame.samples)
    else:
        counted = _count(source, start)
    total = counted * frame.samples
    opened = source if total <= frames else _with_header(source, start, frame, counted)
    total = min(total, frames) if opened is source else total
    return Survey(frames=total, promised_frames=total, is_promise=False, bytes_to_open=opened)


def _first_frame(source: Bytes, base: int, search_bytes: int) -> tuple[int, Frame] | None:
    """Offset and header of the first frame from `base` on that another of its kind follows."""
    head = source.at(base, search_bytes)
    at = head.find(b"\xff")
    while at >= 0:
        frame = parse_frame(head, at)
        if frame is not None:
            following = parse_frame(source.at(base + at + frame.size, 4))
            if following is not None and following.kind == frame.kind:
                return base + at, frame
        at = head.find(b"\xff", at + 1)
    return None


def _side_bytes(frame: Frame) -> int:
    """Length of layer III's side information, behind which the Xing header stands."""
    return (17 if frame.mono else 32) if frame.version == 3 else (9 if frame.mono else 17)


def _xing(source: Bytes, start: int, frame: Frame) -> tuple[int, int] | None:
    """(frames, bytes) of the Xing, Info or VBRI header, 0 where it does not say; None if none."""
    data = source.at(start, min(frame.size, 512))
    at = 4 + _side_bytes(frame)
    if data[at : at + 4] in (b"Xing", b"Info") and len(data) >= at + 16:
        flags, *fields = struct.unpack_from(">III", data, at + 4)
        frames = fields.pop(0) if flags & 1 else 0
        return frames, fields.pop(0) if flags & 2 else 0
    if data[36:40] == b"VBRI" and len(data) >= 54:
        size, frames = struct.unpack_from(">II", data, 46)
        return frames, size
    return None


def _is_uniform(source: Bytes, start: int) -> bool:
    """Whether the frames of the first 64 KiB, and some further on, share one bit rate."""
    data = source.at(start, _SEARCH_BYTES)
    rates, at = set(), 0
    while (frame := parse_frame(data, at)) is not None:
        rates.add(frame.bitrate)
        at += frame.size
    for eighth in range(1, 8):
        # a variable rate may begin with minutes of silence
        offset = start + (source.size - start) * eighth // 8
        if offset > start + len(data) and (found := _first_frame(source, offset, _PROBE_BYTES)):
            rates.add(found[1].bitrate)
    return len(rates) == 1


def _count(source: Bytes, start: int) -> int:
    """Frames from `start` to the end by their headers; what lies between frames is skipped."""
    count, offset, data, base = 0, start, b"", start
    while offset < source.size:
        if offset + 4 > base + len(data):
            base, data = offset, source.at(offset, _SCAN_BYTES)
            if len(data) < 4:
                break
        frame = parse_frame(data, offset - base)
        if frame is not None:
            count += 1
            offset += frame.size
            continue
        following = data.find(b"\xff", offset - base + 1)
        offset = base + (following if following >= 0 else len(data))
    return count


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
