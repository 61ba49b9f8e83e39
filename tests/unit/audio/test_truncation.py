"""A file cut anywhere is `truncated` or `unreadable`, never a shorter healthy one."""

import io
import os

import numpy as np
import pytest

from raysers.audio.decode import AudioReader, decode, probe
from raysers.audio.source import open_bytes
from raysers.audio.streams import goes_on
from raysers.errors import ClipError
from raysers.types import Status
from tests.unit.audio.sounds import FORMATS, encode, noise

SECONDS = 5.0
S = 1_000_000_000


def fate(data: bytes, **span) -> Status:
    try:
        decode(io.BytesIO(data), name="x", **span)
    except ClipError as error:
        return error.status
    return Status.OK


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_no_cut_goes_unseen(fmt, subtype, rate_hz):
    data = encode(noise(SECONDS, rate_hz, seed=1), rate_hz, fmt, subtype)
    assert fate(data) is Status.OK
    rng = np.random.default_rng(2)
    # an MP3 may lack its last frames and a header count itself, as writers are off by as much
    last = len(data) - {"MP3": 2000, "FLAC": 0, "OGG": 0}.get(fmt, 65)
    cuts = [
        *range(1, 120, 7),
        *rng.integers(120, last, 25),
        last - 2,
        last // 2,
    ]  # the last byte may be padding
    fates = {cut: fate(data[:cut]) for cut in cuts}
    assert set(fates.values()) <= {Status.TRUNCATED, Status.UNREADABLE}
    header = 6000 if fmt in ("OGG", "MP3") else 300
    assert {fates[c] for c in cuts if c > header} == {Status.TRUNCATED}


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_spans_before_the_cut_are_untouched(fmt, subtype, rate_hz):
    data = encode(noise(SECONDS, rate_hz, seed=1), rate_hz, fmt, subtype)
    cut = data[: len(data) * 7 // 10]
    if subtype == "PCM_16" and fmt == "CAF":
        pytest.skip("libsndfile does not open a cut CAF at all")
    with AudioReader(io.BytesIO(data), name="x") as whole:
        expected = whole.read(S, 2 * S, max_s=9)
    with AudioReader(io.BytesIO(cut), name="x") as reader:
        np.testing.assert_allclose(reader.read(S, 2 * S, max_s=9), expected, atol=1e-6)
        for span in ((3 * S, 4 * S), (45 * 10**8, None), (S, None)):
            with pytest.raises(ClipError) as caught:
                reader.read(*span, max_s=9)
            assert caught.value.status is Status.TRUNCATED
        # a failed span leaves the reader usable
        np.testing.assert_allclose(reader.read(S, 2 * S, max_s=9), expected, atol=1e-6)


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_blocks_give_what_is_there_and_then_say_so(fmt, subtype, rate_hz):
    data = encode(noise(SECONDS, rate_hz, seed=1), rate_hz, fmt, subtype)
    got = []
    with (
        pytest.raises(ClipError) as caught,
        AudioReader(io.BytesIO(data[: len(data) // 2]), name="x") as reader,
    ):
        got.extend(reader.blocks(0.5))
    assert caught.value.status is Status.TRUNCATED
    # libsndfile opens no cut CAF, and its FLAC reader drops the block in which the data end
    if fmt not in ("CAF", "FLAC"):
        held = sum(b.size for b in got) / 16000
        assert 0 < held < 0.75 * SECONDS


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_streaming_sizes_promise_nothing(size):
    data = bytearray(encode(noise(1, 16000), 16000, "WAV", "PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    info = probe(io.BytesIO(data), name="x")
    assert info.frames == info.promised_frames == 16000
    assert fate(bytes(data)) is Status.OK


# sizes by the RIFF header: none at all, of nothing, of a header
@pytest.mark.parametrize("outer", [0, 8, 36])
def test_a_recording_its_writer_never_closed_is_read(outer):
    whole = encode(noise(1, 16000), 16000, "WAV", "PCM_16")
    data = bytearray(whole)
    data[4:8] = outer.to_bytes(4, "little")
    data[40:44] = bytes(4)
    assert np.array_equal(decode_plain(bytes(data)), decode_plain(whole))


def test_an_empty_recording_with_notes_after_it_is_empty():
    empty = bytearray(encode(np.zeros(0, np.float32), 16000, "WAV", "PCM_16"))
    notes = chunk(b"LIST", b"INFO" + bytes(300))
    empty[4:8] = (len(empty) - 8 + len(notes)).to_bytes(4, "little")
    assert fate(bytes(empty)) is Status.EMPTY
    assert fate(bytes(empty + notes)) is Status.EMPTY


def test_a_large_size_that_is_no_placeholder_is_a_promise():
    data = bytearray(encode(noise(1, 16000), 16000, "WAV", "PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = (1_000_000_002).to_bytes(4, "little")
    data[4:8] = (1_000_000_038).to_bytes(4, "little")
    assert probe(io.BytesIO(data), name="x").promised_frames == 500_000_001
    assert fate(bytes(data)) is Status.TOO_LONG
    assert fate(bytes(data), end_ns=2 * S) is Status.TRUNCATED
    assert fate(bytes(data), end_ns=1 * S) is Status.OK


def chunk(name: bytes, body: bytes) -> bytes:
    return name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)


def test_chunks_and_tags_before_the_data_are_walked_over():
    plain = encode(noise(1, 16000), 16000, "WAV", "PCM_16")
    fmt, samples = plain[12 : plain.index(b"data")], plain[plain.index(b"data") :]
    inside = b"WAVE" + chunk(b"junk", b"odd") + fmt + chunk(b"LIST", b"INFO" + bytes(9001))
    wav = b"RIFF" + (len(inside) + len(samples)).to_bytes(4, "little") + inside + samples
    tagged = b"ID3\x04\0\0\0\0\x03\x05" + bytes(3 * 128 + 5) + wav
    for data in (wav, tagged, wav + chunk(b"LIST", b"INFOafter"), wav + b"junk"):
        assert np.array_equal(decode_plain(data), decode_plain(plain))
        assert fate(data[: data.index(b"data") + 1000]) is Status.TRUNCATED


def decode_plain(data: bytes) -> np.ndarray:
    return decode(io.BytesIO(data), name="x")


def flac_with_total(data: bytes, total: int) -> bytes:
    # STREAMINFO: the low 36 bits of the eight bytes at 18 count the samples
    word = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    return data[:18] + word.to_bytes(8, "big") + data[26:]


def test_flac_that_does_not_tell_its_length():
    data = encode(noise(3, 48000), 48000, "FLAC", "PCM_16")
    streamed = flac_with_total(data, 0)
    assert probe(io.BytesIO(streamed), name="x").frames == 3 * 48000
    np.testing.assert_array_equal(decode_plain(streamed), decode_plain(data))
    got = decode(io.BytesIO(streamed), name="x", start_ns=S, end_ns=2 * S)
    np.testing.assert_allclose(got, decode_plain(data)[16000:32000], atol=1e-6)


def test_flac_that_claims_too_much_is_bounded():
    flac = encode(noise(3, 48000), 48000, "FLAC", "PCM_16")
    data = flac_with_total(flac, 48000 * 3600)
    assert fate(data) is Status.TOO_LONG
    assert fate(data, start_ns=2 * S, end_ns=4 * S) is Status.TRUNCATED
    assert fate(data, start_ns=1 * S, end_ns=2 * S) is Status.OK


def test_damage_in_the_middle_is_not_truncation():
    data = bytearray(encode(noise(10, 48000), 48000, "FLAC", "PCM_16"))
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    assert fate(bytes(data)) is Status.UNREADABLE
    assert fate(bytes(data), start_ns=8 * S) is Status.OK


def _frame_header(number: int) -> bytes:
    """A FLAC frame header with a right checksum, and bytes behind it that are no frame."""
    head = b"\xff\xf8\xc5\x08" + chr(number).encode()
    crc = 0
    for byte in head:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 0x80 else crc << 1) & 0xFF
    return head + bytes([crc]) + bytes(range(40))


@pytest.mark.parametrize(
    ("behind", "counted", "expected"),
    [
        (b"", 48_000, False),
        (b"", 30_000, True),  # the header counts less than the frames hold
        (encode(noise(0.2, 16000), 16000, "FLAC", "PCM_16"), 48_000, True),  # two files joined
        (b"fLaC\x08r\x94" + bytes(40), 48_000, False),
        (_frame_header(100), 48_000, False),
        (_frame_header(5000), 48_000, False),
        (b"\xff\xf8" + bytes(range(255)), 48_000, False),
    ],
)
def test_marks_that_compressed_audio_holds_by_chance_are_no_more_audio(behind, counted, expected):
    """Such bytes are in 1 of 250 healthy files."""
    whole = encode(noise(3, 16000), 16000, "FLAC", "PCM_16")
    source = open_bytes(io.BytesIO(whole + behind))
    os.lseek(source.handle, 0, os.SEEK_END)  # where the decoder stops
    assert goes_on(source, "FLAC", counted) is expected
