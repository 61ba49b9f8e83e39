"""Every second that a file holds is read, or a status says why not; nothing else is refused."""

import io
import os
import struct

import numpy as np
import pytest

from raysers.audio.decode import AudioReader, decode, probe
from raysers.errors import ClipError
from raysers.types import Status
from tests.unit.audio.sounds import encode, noise
from tests.unit.audio.test_claims import resealed, with_granule
from tests.unit.audio.test_truncation import chunk, flac_with_total

SIGNAL = noise(2, 16000)
PCM = (SIGNAL * 32767).astype("<i2").tobytes()
N = len(PCM)
NOTES = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"made")


def wav(
    riff: int, data: int, body: bytes = PCM, *, extra: bytes = b"", order: str = "<", bits: int = 16
) -> bytes:
    """A 16 kHz mono WAV that claims `riff` and `data` bytes, whatever it holds."""
    size = struct.Struct(order + "I")
    fmt = struct.pack(order + "HHIIHH", 1, 1, 16000, 2000 * bits, bits // 8, bits)
    head = (b"RIFF" if order == "<" else b"RIFX") + size.pack(riff) + b"WAVEfmt " + size.pack(16)
    return head + fmt + extra + b"data" + size.pack(data) + body


def outcome(data: bytes) -> tuple[Status, str, int]:
    try:
        return Status.OK, "", decode(io.BytesIO(data), name="x").size
    except ClipError as error:
        return error.status, error.message, 0


#: (RIFF size, data size) of a file of 44 + N bytes, none of which is missing.
HARMLESS = {
    "right": (36 + N, N),
    **{f"plus {n}": (36 + N + n, N + n) for n in (1, 2, 4, 8, 16, 36, 44, 60)},
    "the file's size": (44 + N, 44 + N),
    "double": (36 + N, 2 * N),
    "tenfold": (36 + N, 10 * N),
    "stale": (36 + N, N // 2),
    "both stale": (36 + N // 2, N // 2),
    "four bytes": (36 + N, 4),
    "zero": (36 + N, 0),
    "never closed": (36, 0),
    "all zero": (0, 0),
    "one short": (35 + N, N - 1),
    **{
        f"placeholder {size:#x}": ((size + 36) & 0xFFFFFFFF, size)
        for size in (
            *(10**9, 2 * 10**9, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x80000000, 0x80000000 - 36),
            *(0x7FFFFF00, 0x7FFFFFFE, 0x7FFF0000, 0x7FFFF000, 0xFFFFFFFF, 0xFFFFFF00),
        )
    },
    "all ones in the data": (35, 0xFFFFFFFF),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("sizes", HARMLESS.values(), ids=HARMLESS)
def test_a_wrong_size_costs_nothing(sizes, order):
    body = PCM if order == "<" else np.frombuffer(PCM, "<i2").astype(">i2").tobytes()
    data = wav(*sizes, body, order=order)
    info = probe(io.BytesIO(data), name="x")
    whole = decode(io.BytesIO(data), name="x")
    assert abs(info.promised_frames - N // 2) <= 1
    assert abs(whole.size - N // 2) <= 1
    np.testing.assert_allclose(whole, SIGNAL[: whole.size], atol=1e-4)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.998])
def test_a_size_that_all_of_the_header_agrees_on_is_a_promise(kept):
    status, message, _ = outcome(wav(36 + N, N)[: 44 + int(N * kept)])
    assert status is Status.TRUNCATED
    promised, held = (float(word) for word in message.split() if word.replace(".", "").isdigit())
    assert promised == 2.0
    assert held == pytest.approx(2 * kept, abs=0.001)


@pytest.mark.parametrize("rest", [NOTES, NOTES + NOTES, b"TAG" + bytes(125), bytes(9000), b"\r\n"])
@pytest.mark.parametrize("odd", [0, 1])
def test_what_is_no_audio_behind_the_samples_stays_out(rest, odd):
    samples = b"".join(v.to_bytes(3, "little", signed=True) for v in range(-5000, 5000 + 1 - odd))
    for padding in (b"", b"\0" * (len(samples) % 2)):
        tail = padding + rest
        data = wav(36 + len(samples) + len(tail), len(samples), samples + tail, bits=24)
        assert outcome(data) == (Status.OK, "", len(samples) // 3)


def test_a_header_of_a_page_before_the_samples():
    filler = chunk(b"FLLR", bytes(4044))
    assert outcome(wav(4088 + N, N, extra=filler))[2] == N // 2
    assert outcome(wav(4088, 0, extra=filler))[2] == N // 2


@pytest.mark.parametrize("size", ["wrapped", "ones"])
def test_more_than_4_gib(tmp_path, size):
    total = (1 << 32) + 64_000_000
    claimed = total % (1 << 32) if size == "wrapped" else 0xFFFFFFFF
    path = str(tmp_path / "long.wav")
    with open(path, "wb") as file:
        file.write(wav((claimed + 36) & 0xFFFFFFFF, claimed))
        file.seek(44 + total - N)
        file.write(PCM)
    assert os.path.getsize(path) == 44 + total
    with AudioReader(path, name=path) as reader:
        assert reader.info.frames == reader.info.promised_frames == total // 2
        end_ns = total // 2 * 62_500
        np.testing.assert_allclose(reader.read(0, 2 * 10**9, max_s=9), SIGNAL, atol=1e-4)
        got = reader.read(end_ns - 2 * 10**9, end_ns, max_s=9)
        np.testing.assert_allclose(got, SIGNAL, atol=1e-4)


OGG = {
    (subtype, rate): encode(noise(3, rate, seed=5), rate, "OGG", subtype)
    for subtype, rate in (("OPUS", 48000), ("OPUS", 16000), ("VORBIS", 44100), ("VORBIS", 16000))
}


def pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


@pytest.mark.parametrize("key", OGG)
def test_ogg_without_the_flag_of_its_end_is_whole(key):
    data = OGG[key]
    at = data.rindex(b"OggS") + 5
    open_ended = resealed(data[:at] + bytes([data[at] & ~4]) + data[at + 1 :], 7)
    whole = decode(io.BytesIO(data), name="x")
    assert outcome(open_ended)[:2] == (Status.OK, "")
    np.testing.assert_allclose(decode(io.BytesIO(open_ended), name="x"), whole, atol=1e-5)


@pytest.mark.parametrize("key", OGG)
def test_ogg_that_goes_on_says_so(key):
    data = resealed(OGG[key], 7)
    other = resealed(encode(noise(1, key[1]), key[1], "OGG", key[0]), 7)
    for second in (data, other):
        for serial in (7, 8):
            status, message, _ = outcome(data + resealed(second, serial))
            assert (status, "several streams are joined" in message) == (Status.TRUNCATED, True)


@pytest.mark.parametrize("key", OGG)
@pytest.mark.parametrize("tail", [bytes(5000), b"TAG" + bytes(125)])
def test_what_is_no_page_behind_ogg_is_no_loss(key, tail):
    assert outcome(OGG[key] + tail)[:2] == (Status.OK, "")


@pytest.mark.parametrize("key", OGG)
def test_ogg_cut_within_its_last_page_never_names_the_same_length_twice(key):
    data = OGG[key]
    last = data.rindex(b"OggS")
    for cut in (last + 1, last + 4, last + 13, last + 20, last + 28, len(data) - 1):
        status, message, _ = outcome(data[:cut])
        lengths = [word for word in message.split() if word.replace(".", "").isdigit()]
        assert status is Status.TRUNCATED
        assert lengths
        assert len(set(lengths)) == len(lengths)


@pytest.mark.parametrize("key", OGG)
def test_spans_of_ogg_in_any_order_are_slices(key):
    signal = noise(12, key[1]) * (np.sin(np.arange(12 * key[1]) / key[1] * 7) > 0)
    data = encode(signal.astype(np.float32), key[1], "OGG", key[0])
    whole = decode(io.BytesIO(data), name="x")
    dice = np.random.default_rng(3)
    with AudioReader(io.BytesIO(data), name="x") as reader:
        for first in dice.integers(0, 11 * 16000, 60):
            got = reader.read(int(first) * 62_500, int(first + 8000) * 62_500, max_s=9)
            np.testing.assert_allclose(got, whole[first : first + 8000], atol=1e-5)


def test_ogg_may_not_end_later_than_its_bytes_allow():
    status, message, _ = outcome(with_granule(OGG["OPUS", 48000], 2**40))
    assert (status, "the header claims" in message) == (Status.TRUNCATED, True)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_flac_that_counts_less_than_it_holds_says_so(share):
    data = encode(noise(5, 16000), 16000, "FLAC", "PCM_16")
    status, message, _ = outcome(flac_with_total(data, round(share * 80_000)))
    assert (status, "more audio follows" in message) == (Status.TRUNCATED, True)
    assert outcome(data)[0] is Status.OK


@pytest.mark.parametrize("bits", [4, 12, 15, 20, 32])
def test_flac_of_other_bit_depths_is_named(bits, monkeypatch):
    monkeypatch.setattr("raysers.audio.libav.library", lambda: None)
    data = bytearray(encode(noise(1, 16000), 16000, "FLAC", "PCM_16"))
    word = int.from_bytes(data[20:22], "big") & ~0x01F0 | (bits - 1) << 4
    data[20:22] = word.to_bytes(2, "big")
    status, message, size = outcome(bytes(data))
    assert size or (status, f"FLAC with {bits} bits" in message) == (Status.UNSUPPORTED, True)
