"""MP3 files whose headers are absent or lie keep all their audio."""

import io
import struct

import numpy as np
import pytest
import soundfile as sf

from raysers.audio.decode import AudioReader, decode, probe
from raysers.audio.streams import parse_frame
from raysers.errors import ClipError
from raysers.types import Status
from tests.unit.audio.sounds import encode, noise


def mp3(signal: np.ndarray, rate_hz: int, mode: str) -> bytes:
    return encode(
        signal, rate_hz, "MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.5
    )


def without_header(data: bytes) -> bytes:
    """Less the first frame, which holds the Xing or Info header and no audio."""
    return data[parse_frame(data).size :]


def uneven(rate_hz: int, loud_first: bool) -> np.ndarray:
    """8 s of which a variable rate spends few bits on one half and many on the other."""
    tone = 0.2 * np.sin(np.arange(4 * rate_hz) * 0.05).astype(np.float32)
    halves = [tone, noise(4, rate_hz)]
    return np.concatenate(halves[::-1] if loud_first else halves)


@pytest.mark.parametrize("rate_hz", [44100, 16000, 8000])
@pytest.mark.parametrize("loud_first", [True, False])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_nothing_is_lost_without_a_header(rate_hz, loud_first, mode):
    data = mp3(uneven(rate_hz, loud_first), rate_hz, mode)
    bare = without_header(data)
    frame_s = parse_frame(bare).samples / rate_hz
    signal = decode(io.BytesIO(bare), name="x")
    assert signal.size / 16000 == pytest.approx(8.0, abs=3 * frame_s)
    assert probe(io.BytesIO(bare), name="x").duration_s == pytest.approx(8.0, abs=4 * frame_s)
    # and it is the same audio, later by the encoder's delay that nothing tells any more
    good = decode(io.BytesIO(data), name="x")
    middle = good[16000:48000]
    shifts = [np.corrcoef(middle, signal[16000 + k : 48000 + k])[0, 1] for k in range(2400)]
    assert max(shifts) > 0.95


def test_a_long_quiet_beginning_does_not_pass_for_a_constant_rate():
    quiet = np.zeros(20 * 44100, np.float32)
    bare = without_header(mp3(np.concatenate([quiet, noise(20, 44100)]), 44100, "VARIABLE"))
    # by the first frames' rate it would last minutes
    assert probe(io.BytesIO(bare), name="x").duration_s == pytest.approx(40.0, abs=0.1)
    assert decode(io.BytesIO(bare), name="x").size / 16000 == pytest.approx(40.0, abs=0.1)


def test_the_lie_is_real():
    # libsndfile alone would drop more than half of it
    bare = without_header(mp3(uneven(44100, loud_first=False), 44100, "VARIABLE"))
    assert sf.info(io.BytesIO(bare)).duration < 4.0


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_joined_files_are_read_to_the_end(mode):
    first, second = mp3(noise(4, 44100), 44100, mode), mp3(uneven(44100, True), 44100, mode)
    joined = first + second
    signal = decode(io.BytesIO(joined), name="x")
    assert signal.size / 16000 == pytest.approx(12.0, abs=0.15)
    tail = decode(io.BytesIO(joined), name="x", start_ns=11 * 10**9)
    np.testing.assert_allclose(tail, signal[11 * 16000 :], atol=1e-5)


def test_spans_and_paths_of_a_headerless_file(tmp_path):
    bare = without_header(mp3(uneven(44100, loud_first=True), 44100, "VARIABLE"))
    path = tmp_path / "bare.mp3"
    path.write_bytes(b"ID3\x04\0\0\0\0\x01\0" + bytes(128) + bare + b"TAG" + bytes(125))
    whole = decode(str(path), name="x")
    np.testing.assert_allclose(whole, decode(io.BytesIO(bare), name="x"), atol=1e-6)
    span = decode(str(path), name="x", start_ns=5 * 10**9, end_ns=6 * 10**9)
    np.testing.assert_allclose(span, whole[80000:96000], atol=1e-5)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
def test_windows_of_a_low_bit_rate_do_not_begin_in_silence(rate_hz):
    # small frames lean on many before them
    signal = np.concatenate([noise(3, rate_hz), uneven(rate_hz, loud_first=True)])
    data = encode(
        signal, rate_hz, "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.99
    )
    whole = decode(io.BytesIO(data), name="x")
    for hop_ns in (10**9, 370_000_000):
        with AudioReader(io.BytesIO(data), name="x") as reader:
            for start_ns in range(0, 9 * 10**9, hop_ns):
                first = (start_ns * 16 + 500_000) // 1_000_000
                span = reader.read(start_ns, start_ns + 10**9, max_s=2)
                np.testing.assert_allclose(span, whole[first : first + 16000], atol=1e-5)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_a_few_missing_frames_are_no_truncation_but_more_are(mode):
    data = mp3(noise(8, 44100), 44100, mode)
    assert decode(io.BytesIO(data[:-400]), name="x").size == pytest.approx(128000, abs=1300)
    cut = data[: len(data) * 8 // 10]
    info = probe(io.BytesIO(cut), name="x")
    assert info.promised_frames == 8 * 44100
    assert info.frames / info.promised_frames == pytest.approx(0.8, abs=0.03)
    with pytest.raises(ClipError) as caught:
        decode(io.BytesIO(cut), name="x")
    assert caught.value.status is Status.TRUNCATED


def test_opening_does_not_read_the_file():
    class Counting(io.BytesIO):
        total = 0

        def read(self, count=-1):
            data = super().read(count)
            self.total += len(data)
            return data

    data = mp3(noise(60, 44100), 44100, "VARIABLE")
    file = Counting(data)
    assert probe(file, name="x").duration_s == 60.0
    assert file.total < 140_000 < len(data) / 3


def tag(size: int) -> bytes:
    """An ID3v2 tag of `size` bytes behind its header."""
    return b"ID3\3\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)


def ape(size: int, *, front: bool) -> bytes:
    flags = 0xA000_0000 if front else 0x8000_0000
    return b"APETAGEX" + struct.pack("<IIII", 2000, size, 0, flags) + bytes(8)


GARBAGE = np.random.default_rng(7).integers(0, 255, 184, np.uint8).tobytes()
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"la la \xff\xfb " * 700
LYRICS += b"%06dLYRICS200" % len(LYRICS)

FRONTS = {
    "garbage": GARBAGE,
    "garbage behind a tag": tag(4000) + GARBAGE,
    "zeros behind a tag": tag(4000) + bytes(3000),
    "APE": ape(2000, front=True) + bytes(2000),
    "HTTP": b"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n",
    "two tags": tag(129_000) + tag(300),
}
TAILS = {
    "ID3v1": b"TAG" + bytes(125),
    "APE": ape(32, front=False) + b"TAG" + bytes(125),
    "ID3v2": tag(500),
    "lyrics": LYRICS,
    "lyrics and ID3v1": LYRICS + b"TAG" + bytes(125),
    "zeros": bytes(4000),
}


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_what_stands_before_the_first_frame_is_skipped(front, headed, capfd):
    data = mp3(noise(4, 44100), 44100, "CONSTANT")
    data = data if headed else without_header(data)
    expected = decode(io.BytesIO(data), name="x")
    np.testing.assert_allclose(decode(io.BytesIO(front + data), name="x"), expected, atol=1e-5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_what_stands_behind_the_last_frame_is_no_audio(tail, headed, capfd):
    data = mp3(noise(4, 44100), 44100, "CONSTANT")
    data = data if headed else without_header(data)
    got = decode(io.BytesIO(data + tail), name="x")
    assert got.size == pytest.approx(4 * 16000, abs=2000)
    assert probe(io.BytesIO(data + tail), name="x").duration_s == pytest.approx(4, abs=0.11)
    assert capfd.readouterr() == ("", "")


def test_a_cut_first_frame_is_skipped():
    bare = without_header(mp3(noise(4, 44100), 44100, "CONSTANT"))
    assert decode(io.BytesIO(bare[37:]), name="x").size == pytest.approx(4 * 16000, abs=2000)


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("other", [(16000, 2), (24000, 1), (32000, 1)])
def test_a_change_of_format_is_named(other, headed):
    first = mp3(noise(4, 16000), 16000, "CONSTANT")
    second = mp3(noise(3, *other), other[0], "CONSTANT")
    data = first + second if headed else without_header(first) + without_header(second)
    with pytest.raises(
        ClipError, match=rf"changes to {other[0]} Hz .* first 4\..* of 7\."
    ) as caught:
        decode(io.BytesIO(data), name="x")
    assert caught.value.status is Status.TRUNCATED
    assert decode(io.BytesIO(data), name="x", end_ns=3 * 10**9).size == 48000


def with_vbri(data: bytes) -> bytes:
    """`data` with a Fraunhofer header in place of its Xing header, for the same frames."""
    head = parse_frame(data)
    assert head is not None
    count, at = 0, head.size
    while (frame := parse_frame(data, at)) is not None:
        count, at = count + 1, at + frame.size
    vbri = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), count) + bytes(8)
    return data[:4] + (bytes(32) + vbri).ljust(head.size - 4, b"\0") + data[head.size :]


@pytest.mark.parametrize("seconds", [2, 30])
@pytest.mark.parametrize("loud_first", [True, False])
def test_a_vbri_count_is_as_good_as_xing(seconds, loud_first):
    signal = np.tile(uneven(44100, loud_first), 4)[: seconds * 44100]
    data = with_vbri(mp3(signal, 44100, "VARIABLE"))
    assert probe(io.BytesIO(data), name="x").duration_s == pytest.approx(seconds, abs=0.11)
    assert decode(io.BytesIO(data), name="x").size / 16000 == pytest.approx(seconds, abs=0.11)
    with pytest.raises(ClipError) as caught:
        decode(io.BytesIO(data[: len(data) * 6 // 10]), name="x")
    assert caught.value.status is Status.TRUNCATED


@pytest.mark.parametrize("factor", [0.5, 1.7])
def test_a_header_whose_count_is_wrong_and_whose_size_is_right_costs_nothing(factor):
    data = bytearray(mp3(noise(5, 44100), 44100, "CONSTANT"))
    at = data.index(b"Info") + 8
    count = int.from_bytes(data[at : at + 4], "big")
    data[at : at + 4] = round(count * factor).to_bytes(4, "big")
    assert decode(io.BytesIO(data), name="x").size / 16000 == pytest.approx(5, abs=0.11)
    assert probe(io.BytesIO(data), name="x").duration_s == pytest.approx(5, abs=0.11)


def test_a_decoder_that_stops_in_the_middle_says_both_lengths(capfd):
    data = without_header(mp3(noise(12, 16000), 16000, "CONSTANT"))
    other = without_header(mp3(noise(1, 24000), 24000, "CONSTANT"))
    at, fake = 100 * parse_frame(data).size, 2 * parse_frame(other).size
    # two frames of another format in the middle are damage and no other stream
    data = data[:at] + other[:fake] + data[at:]
    with pytest.raises(ClipError, match="decoding stopped at") as caught:
        decode(io.BytesIO(data), name="x")
    assert caught.value.status is Status.UNREADABLE
    assert capfd.readouterr() == ("", "")
