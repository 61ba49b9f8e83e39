"""Files bent at random: no `ok` clip lacks audio that an independent decoder finds.

The reference is FFmpeg (PyAV). What it and libsndfile both decode in full is never refused.
"""

import io
import os
import random

import pytest
import soundfile

from raysers.audio.decode import decode
from raysers.errors import ClipError
from tests.unit.audio.sounds import encode, noise

av = pytest.importorskip("av", reason="PyAV is the reference decoder")

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
PLAIN = {kind: encode(noise(2, RATE_HZ), RATE_HZ, *kind) for kind in KINDS}
BENDS = int(os.environ.get("BENDS", "300"))


def bent(kind: tuple[str, str], dice: random.Random) -> bytes:
    """A file with its end cut, a size changed, something added in front or behind, or joined."""
    data = bytearray(PLAIN[kind])
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
            data += PLAIN[kind]
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


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_bent_files_are_whole_or_have_a_status(kind, capfd):
    dice = random.Random(f"bend {kind}")
    slack_s, wrong = KINDS[kind], []
    for number in range(BENDS // len(KINDS) + 1):
        data = bent(kind, dice)
        found_s, plain_s = by_ffmpeg(data), by_soundfile(data)
        capfd.readouterr()
        try:
            got_s, said = decode(io.BytesIO(data), name="x").size / 16000, "ok"
        except ClipError as error:
            got_s, said = None, f"{error.status}: {error.message}"
        assert capfd.readouterr() == ("", "")
        if got_s is not None and found_s is not None and got_s < found_s - slack_s:
            wrong.append((number, "cut", got_s, found_s, plain_s))
        both = found_s is not None and plain_s is not None and abs(found_s - plain_s) <= slack_s
        is_refused = got_s is None and not said.startswith("not_finite")
        if is_refused and both and found_s >= 1.997:
            wrong.append((number, said, got_s, found_s, plain_s))
    assert not wrong
