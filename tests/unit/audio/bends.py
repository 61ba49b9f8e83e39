"""Audio files bent at random, and what independent decoders find in them."""

from __future__ import annotations

import functools
import io
import math
import random
from collections.abc import Iterator

import av
import soundfile

from raysers.audio.decode import decode
from raysers.errors import ClipError
from tests.unit.audio.sounds import encode, noise

RATE_HZ = 16000
#: Kinds of files, with what FFmpeg and libsndfile may count differently of a healthy one, seconds.
KINDS = {
    ("WAV", "PCM_16"): 0.005,
    ("WAV", "PCM_24"): 0.005,
    ("WAV", "IMA_ADPCM"): 0.07,
    ("RF64", "PCM_16"): 0.005,
    ("W64", "PCM_16"): 0.005,
    ("AIFF", "PCM_16"): 0.005,
    ("AU", "PCM_16"): 0.1,
    ("FLAC", "PCM_16"): 0.3,
    ("OGG", "OPUS"): 0.05,
    ("OGG", "VORBIS"): 0.05,
    ("MP3", "MPEG_LAYER_III"): 0.25,
}
_PLAIN = {kind: encode(noise(2.0, RATE_HZ), RATE_HZ, *kind) for kind in KINDS}


def bends(kind: tuple[str, str], seed: int, count: int) -> Iterator[bytes]:
    """`count` bent files of a kind, the same for the same seed."""
    dice = random.Random(f"bend {kind} {seed}")
    for _ in range(count):
        yield bent(kind, dice)


def bent(kind: tuple[str, str], dice: random.Random) -> bytes:
    """A file with its end cut, a size changed, something added in front or behind, or joined."""
    data = bytearray(_PLAIN[kind])
    match dice.randrange(6):
        case 0:
            del data[dice.randrange(200, len(data)) :]
        case 1:
            at = data.find(b"data") + 4 if kind[0] == "WAV" else dice.randrange(4, 64)
            order = "little" if kind[0] in ("WAV", "RF64", "W64") else "big"
            size = dice.choice((len(data), len(data) // 2, 2 * len(data), 0, 2**31 - 1, 2**32 - 1))
            data[at : at + 4] = size.to_bytes(4, order)
        case 2:
            data += dice.choice((b"TAG" + bytes(125), b"LIST\x04\0\0\0INFO", bytes(3000), b"\r\n"))
        case 3:
            data[:0] = b"ID3\3\0\0\0\0\x02\0" + bytes(256)
        case 4:
            data += _PLAIN[kind]
        case _:
            at = dice.randrange(len(data) // 2, len(data))
            data[at : at + 40] = dice.randbytes(40)
    return bytes(data)


def by_ffmpeg(data: bytes) -> float | None:
    """Seconds that FFmpeg decodes; None if it fails anywhere."""
    try:
        with av.open(io.BytesIO(data)) as container:
            return sum(f.samples / f.sample_rate for f in container.decode(audio=0))
    except (av.error.FFmpegError, IndexError, ValueError):
        return None


def by_soundfile(data: bytes) -> float | None:
    try:
        signal, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
    except (soundfile.SoundFileError, ValueError, MemoryError):
        return None
    return len(signal) / rate_hz


@functools.cache
def _whole_s(kind: tuple[str, str]) -> float:
    return by_ffmpeg(_PLAIN[kind]) or math.inf


def mistake(
    data: bytes, kind: tuple[str, str], by_ffmpeg_s: float | None, plain_s: float | None
) -> str:
    """What is wrong with how a file is decoded; nothing if it is whole or refused with reason."""
    slack_s = KINDS[kind]
    try:
        got_s = decode(io.BytesIO(data), name="x").size / 16000
    except ClipError as error:
        both = None not in (by_ffmpeg_s, plain_s) and abs(by_ffmpeg_s - plain_s) <= slack_s
        if both and by_ffmpeg_s >= _whole_s(kind) - 0.003 and error.status != "not_finite":
            return f"{error.status}: {error.message}, though {by_ffmpeg_s:.3f} s are decoded"
        return ""
    is_cut = by_ffmpeg_s is not None and got_s < by_ffmpeg_s - slack_s
    return f"ok with {got_s:.3f} s of {by_ffmpeg_s:.3f} s" if is_cut else ""
