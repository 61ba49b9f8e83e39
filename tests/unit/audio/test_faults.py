"""Storage failures pass through libsndfile, and damaged headers end in a status, not a crash."""

import io
import os
import random

import numpy as np
import pytest

from raysers.audio.decode import AudioReader, decode, probe
from raysers.errors import ClipError, ObjectChanged, ObjectMissing, TransientStorageError
from raysers.types import Status
from tests.unit.audio.sounds import FORMATS, encode, noise


class Failing(io.BytesIO):
    """Reads fail once they reach `limit` bytes into the file."""

    def __init__(self, data: bytes, limit: int, error: BaseException) -> None:
        super().__init__(data)
        self.limit, self.error = limit, error

    def read(self, count=-1):
        if self.tell() + max(count, 0) > self.limit:
            raise self.error
        return super().read(count)


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
@pytest.mark.parametrize("kind", [TransientStorageError, ObjectMissing, OSError, KeyError])
def test_what_the_file_object_raises_comes_out(fmt, subtype, rate_hz, kind, capfd):
    error = kind("503")
    data = encode(noise(8, rate_hz), rate_hz, fmt, subtype)
    limits = (0, 70_000, len(data) - 1)
    for limit in [k for k in limits if k < len(data)]:
        with pytest.raises(kind) as caught:
            decode(Failing(data, limit, error), name="x")
        assert caught.value is error
    assert "Traceback" not in capfd.readouterr().err


def test_a_failure_is_raised_again_by_every_later_read():
    data = encode(noise(20, 16000), 16000, "WAV", "PCM_16")
    error = TransientStorageError("reset")
    with AudioReader(Failing(data, 200_000, error), name="x") as reader:
        assert reader.read(0, 10**9, max_s=30).size == 16000
        for _ in range(2):
            with pytest.raises(TransientStorageError):
                reader.read(15 * 10**9, max_s=30)


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
@pytest.mark.parametrize("how", ["path", "object"])
def test_a_file_that_becomes_shorter_is_no_end_of_audio(tmp_path, fmt, subtype, rate_hz, how):
    path = tmp_path / "x"
    path.write_bytes(encode(noise(60, rate_hz), rate_hz, fmt, subtype))
    with path.open("rb") as file, AudioReader(str(path) if how == "path" else file, name="x") as r:
        assert r.read(0, 10**9, max_s=30).size == 16000
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(ObjectChanged, match="shorter while it was read"):
            r.read(40 * 10**9, max_s=30)


class Dribbling(io.RawIOBase):
    """A raw stream, which may return less than it was asked for."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, count=-1):
        return self._file.read(min(count, 1000))

    def seek(self, offset, whence=0):
        return self._file.seek(offset, whence)

    def tell(self):
        return self._file.tell()


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_short_reads_are_no_end_of_file(fmt, subtype, rate_hz):
    data = encode(noise(3, rate_hz), rate_hz, fmt, subtype)
    assert np.array_equal(decode(Dribbling(data), name="x"), decode(io.BytesIO(data), name="x"))


def test_the_file_object_stays_open():
    file = io.BytesIO(encode(noise(1, 16000), 16000, "FLAC", "PCM_16"))
    decode(file, name="x")
    assert not file.closed
    with pytest.raises(ClipError):
        decode(io.BytesIO(b"no audio"), name="x")


def mutated(data: bytes, dice: random.Random) -> bytes:
    """`data` with a few bytes of its first 128 changed, added, removed, or its end cut off."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(min(128, len(changed) - 16))
        match dice.randrange(5):
            case 0:
                changed[at] = dice.randrange(256)
            case 1:
                changed[at : at + 4] = dice.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\0\0\x80"))
            case 2:
                del changed[at : at + dice.randrange(1, 9)]
            case 3:
                changed[at:at] = dice.randbytes(dice.randrange(1, 9))
            case _:
                del changed[dice.randrange(32, len(changed) + 1) :]
    return bytes(changed)


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_damaged_headers_end_in_samples_or_a_status(fmt, subtype, rate_hz):
    dice = random.Random(f"{fmt} {subtype}")
    data = encode(noise(0.5, rate_hz), rate_hz, fmt, subtype)
    fates = set()
    for _ in range(60):
        damaged = mutated(data, dice)
        try:
            info = probe(io.BytesIO(damaged), name="x")
            assert info.frames > 0
            assert 1000 <= info.sample_rate_hz <= 768_000
            signal = decode(io.BytesIO(damaged), name="x")
        except ClipError as error:
            fates.add(error.status)
        else:
            fates.add(Status.OK)
            assert signal.dtype == np.float32
            assert 1 <= signal.size <= 600 * 16000
            assert np.isfinite(signal).all()
    assert len(fates) >= 2  # the dice did reach what is parsed


def test_more_chunks_than_any_real_file_end_the_walk():
    wav = b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * 200_000
    with pytest.raises(ClipError) as caught:
        probe(io.BytesIO(wav), name="x")
    assert caught.value.status is Status.UNREADABLE


#: First bytes of files that get into audio folders.
OTHERS = {
    b"\0\0\0\x20ftypM4A \0\0\0\0": ("unsupported", "MP4"),
    b"\x1a\x45\xdf\xa3\x93\x42\x82\x88webm": ("unsupported", "WebM"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9": ("unsupported", "wma"),
    b"#!AMR-WB\n\x04\x1c": ("unsupported", "AMR"),
    b"\xff\xf1\x50\x80\x2e\x7f\xfc\x21": ("unsupported", "AAC"),
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR": ("unsupported", "PNG"),
    b"RIFF\x10\0\0\0AVI LIST": ("unsupported", "AVI"),
    b"PK\x03\x04\x14\0\0\0": ("unsupported", "ZIP"),
    b"<?xml version='1.0'?><Error><Code>NoSuchKey": ("unreadable", "error document"),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": ("unreadable", "git lfs pull"),
    b"../../other/file.wav": ("unreadable", "symbolic link"),
    b"just some words\n": ("unreadable", "text"),
    b"\x01\x02\x03\x04\x05\x06\x07\x08": ("unreadable", "not audio"),
    b"": ("empty", "0 bytes"),
}


@pytest.mark.parametrize(("start", "expected"), OTHERS.items())
def test_other_files_are_named(start, expected, monkeypatch):
    """Without the extra `av`, which would find more of them damaged."""
    monkeypatch.setattr("raysers.audio.libav.library", lambda: None)
    padded = start if len(start) < 5 or start.isascii() else start + bytes(range(1, 200))
    with pytest.raises(ClipError) as caught:
        decode(io.BytesIO(padded), name="speech.wav")
    assert (caught.value.status, True) == (expected[0], expected[1] in caught.value.message)


def test_only_headerless_audio_is_known_by_its_name():
    content = bytes(range(1, 256)) * 4
    for name, status in (("a.raw", "unsupported"), ("a.PCM", "unsupported"), ("a.x", "unreadable")):
        with pytest.raises(ClipError) as caught:
            decode(io.BytesIO(content), name=name)
        assert caught.value.status == status
