"""Lengths that a file's header claims, against what the file can hold or really holds."""

import errno
import io
import os
import struct

import numpy as np
import pytest
import soundfile

from raysers.audio.decode import AudioReader, decode, probe
from raysers.errors import ClipError, TransientStorageError
from raysers.types import Status
from tests.unit.audio.sounds import encode, noise
from tests.unit.audio.test_truncation import chunk, flac_with_total

S = 10**9


def refused(data: bytes) -> ClipError:
    with pytest.raises(ClipError) as caught:
        probe(io.BytesIO(data), name="x")
    return caught.value


def _crc_table() -> list[int]:
    table = []
    for i in range(256):
        crc = i << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


CRC_TABLE = _crc_table()


def resealed(data: bytes, serial: int) -> bytes:
    """Ogg pages as another logical stream, their checksums made anew (RFC 3533, section 6)."""
    out = b""
    for body in data.split(b"OggS")[1:]:
        page = b"OggS" + body[:10] + struct.pack("<I", serial) + body[14:18] + bytes(4) + body[22:]
        crc = 0
        for byte in page:
            crc = ((crc << 8) & 0xFFFFFFFF) ^ CRC_TABLE[(crc >> 24) ^ byte]
        out += page[:22] + struct.pack("<I", crc) + page[26:]
    return out


def with_granule(data: bytes, granule: int) -> bytes:
    """`data` with another end position on its last page."""
    at = data.rindex(b"OggS") + 6
    return resealed(data[:at] + struct.pack("<q", granule) + data[at + 8 :], 7)


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
@pytest.mark.parametrize("granule", [2**40, 2**58])
def test_ogg_cannot_claim_more_than_its_bytes_hold(subtype, granule):
    error = refused(with_granule(encode(noise(1, 48000), 48000, "OGG", subtype), granule))
    assert (error.status, "the header claims" in error.message) == (Status.TRUNCATED, True)


def test_flac_cannot_claim_more_than_its_bytes_hold():
    error = refused(flac_with_total(encode(noise(1, 16000), 16000, "FLAC", "PCM_16"), 2**36 - 1))
    assert error.status is Status.TRUNCATED
    assert "the header claims 4294967 s" in error.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fmt", "subtype"), [("FLAC", "PCM_16"), ("OGG", "OPUS"), ("OGG", "VORBIS")]
)
def test_minutes_of_silence_are_no_false_claim(fmt, subtype):
    silence = encode(np.zeros(600 * 48000, np.float32), 48000, fmt, subtype)
    assert probe(io.BytesIO(silence), name="x").frames == 600 * 48000


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_joined_ogg_files_are_not_taken_for_the_first_alone(subtype):
    first = encode(noise(1, 48000), 48000, "OGG", subtype)
    second = encode(noise(2, 48000, seed=1), 48000, "OGG", subtype)
    for data in (first, resealed(first, 77)):
        assert probe(io.BytesIO(data), name="x").promised_frames == 48000
    joined = resealed(first, 77) + resealed(second, 78)
    with AudioReader(io.BytesIO(joined), name="x") as reader:
        assert reader.read(0, S // 2, max_s=9).size == 8000
        with pytest.raises(ClipError, match="several streams are joined") as caught:
            reader.read(max_s=9)
    assert caught.value.status is Status.TRUNCATED


def test_a_long_preamble_is_not_read_to_close_a_file():
    """The recording is of size 0 behind a chunk that no writer left open would have."""

    class Counting(io.BytesIO):
        largest = 0

        def read(self, count=-1):
            self.largest = max(self.largest, count)
            return super().read(count)

    plain = encode(noise(1, 16000), 16000, "WAV", "PCM_16")
    fmt, samples = plain[12 : plain.index(b"data")], plain[plain.index(b"data") + 8 :]
    head = b"WAVE" + fmt + chunk(b"junk", bytes(20_000_000))
    file = Counting(b"RIFF" + bytes(4) + head + b"data" + bytes(4) + samples)
    assert np.array_equal(decode(file, name="x"), decode(io.BytesIO(plain), name="x"))
    assert file.largest < 2_000_000


def test_blocks_give_all_before_damage_and_zeros_for_nan(tmp_path):
    signal = noise(40, 16000)
    signal[35 * 16000] = np.nan
    data = encode(signal, 16000, "WAV", "FLOAT")
    with AudioReader(io.BytesIO(data), name="x") as reader:
        blocks = list(reader.blocks(zero_nonfinite=True))
        assert np.array_equal(np.concatenate(blocks), np.nan_to_num(signal))
        got = []
        with pytest.raises(ClipError) as caught:
            got.extend(reader.blocks())
        assert caught.value.status is Status.NOT_FINITE
        assert 30 * 16000 < sum(map(len, got)) <= 35 * 16000


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_no_verdict_on_the_audio(tmp_path, monkeypatch, number):
    """A stale network handle cannot be made here, so `os.pread` and `os.open` play it."""
    path = str(tmp_path / "x.wav")
    soundfile.write(path, noise(1, 16000), 16000)
    for name in ("pread", "open"):
        real, failures = getattr(os, name), [number]

        def flaky(*args, real=real, failures=failures, **options):
            if failures and (args[0] == os.fsencode(path) or isinstance(args[0], int)):
                raise OSError(failures.pop(), "trouble")
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, flaky)
            assert decode(path, name="x").size == 16000
            failures[:] = [number] * 99
            with pytest.raises(TransientStorageError, match=r"x\.wav"):
                decode(path, name="x")
