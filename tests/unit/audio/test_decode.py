"""Decoding against soundfile and soxr, for whole files, spans and streams."""

import io
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import soundfile as sf
import soxr

from raysers.audio.decode import AudioReader, decode, probe
from raysers.errors import ClipError
from raysers.types import Status
from tests.unit.audio.sounds import FORMATS, encode, noise

RATES_HZ = (1000, 8000, 11025, 15999, 16000, 22050, 32000, 44100, 48000, 96000, 192000)
S = 1_000_000_000


def reference(data: bytes) -> np.ndarray:
    signal, rate_hz = sf.read(io.BytesIO(data), dtype="float64", always_2d=True)
    return soxr.resample(signal.mean(axis=1).astype(np.float32), rate_hz, 16000)


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_file_is_soundfile_then_mean_then_one_shot_soxr(fmt, subtype, rate_hz, channels):
    data = encode(noise(2.3, rate_hz, channels), rate_hz, fmt, subtype)
    np.testing.assert_allclose(decode(io.BytesIO(data), name="x"), reference(data), atol=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_flac_has_the_samples_that_libsndfile_reads(subtype, channels):
    for frames in (16, 4095, 60_001):
        data = encode(noise(frames / 16000, 16000, channels), 16000, "FLAC", subtype)
        expected = sf.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
        with AudioReader(io.BytesIO(data), name="x") as reader:
            for channel in range(channels):
                got = reader.read(max_s=10, channel=channel + 1)
                np.testing.assert_array_equal(got, expected[:, channel])


def test_damaged_flac_is_whole_or_an_error():
    whole = encode(noise(1.5, 16000, 2), 16000, "FLAC", "PCM_16")
    expected, header, rng = decode(io.BytesIO(whole), name="x"), whole.index(b"\xff\xf8"), Random(1)
    errors = 0
    for _ in range(300):
        data, at = bytearray(whole), rng.randrange(header, len(whole))
        kind = rng.choice(["flip", "cut", "insert"])
        if kind == "flip":
            data[at] ^= rng.randrange(1, 256)
        elif kind == "cut":
            del data[at:]
        else:
            data[at:at] = rng.randbytes(rng.choice([1, 100, 5000]))
        try:
            got = decode(io.BytesIO(data), name="x")
        except ClipError:
            errors += 1
        else:
            np.testing.assert_array_equal(got, expected)
    assert errors > 200


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_path_and_file_object_give_the_same_samples(fmt, subtype, rate_hz, tmp_path):
    data = encode(noise(1.1, rate_hz), rate_hz, fmt, subtype)
    path = tmp_path / "a file"
    path.write_bytes(data)
    assert np.array_equal(decode(str(path), name="x"), decode(io.BytesIO(data), name="x"))
    assert probe(str(path), name="x") == probe(io.BytesIO(data), name="x")

    class Ranged(io.BytesIO):
        whole_bytes = len(data)
        reads = 0

        def read(self, count=-1):
            self.reads += 1
            return super().read(count)

    ranged = Ranged(data)
    assert np.array_equal(decode(str(path), name="x"), decode(ranged, name="x"))
    assert ranged.reads == 1
    ranged.whole_bytes -= 1
    assert np.array_equal(decode(str(path), name="x"), decode(ranged, name="x"))
    assert ranged.reads > 3


@pytest.mark.parametrize(("fmt", "subtype", "rate_hz"), FORMATS)
def test_spans_are_slices_of_the_whole(fmt, subtype, rate_hz):
    data = encode(noise(6.5, rate_hz), rate_hz, fmt, subtype)
    whole = decode(io.BytesIO(data), name="x")
    spans = [(0, 1), (0.5, 1.5), (1.5, 2.5), (2.00003, 2.9), (6, 7.5), (3, 4), (0, 6.5), (5, None)]
    with AudioReader(io.BytesIO(data), name="x") as reader:
        for start_s, end_s in spans:
            end_ns = None if end_s is None else round(end_s * S)
            got = reader.read(round(start_s * S), end_ns, max_s=10)
            first = round(start_s * 16000)
            expected = whole[first : None if end_s is None else round(end_s * 16000)]
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_blocks_join_to_the_whole(rate_hz):
    data = encode(noise(7.7, rate_hz, 2), rate_hz, "WAV", "FLOAT")
    with AudioReader(io.BytesIO(data), name="x") as reader:
        blocks = list(reader.blocks(0.75))
        whole = reader.read(max_s=10)
    assert {b.size for b in blocks[:-1]} == {12000}
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


def test_blocks_may_be_interleaved_with_reads():
    data = encode(noise(8, 44100), 44100, "FLAC", "PCM_16")
    whole = decode(io.BytesIO(data), name="x")
    with AudioReader(io.BytesIO(data), name="x") as reader:
        blocks = []
        for block in reader.blocks(1.0):
            blocks.append(block)
            reader.read(6 * S, 7 * S, max_s=10)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [1000, 8000, 16000, 32000, 44100, 192000, 768000])
@pytest.mark.parametrize("frames", [1, 2, 3, 23, 24, 25, 100])
def test_a_few_frames_give_at_least_one_sample(rate_hz, frames):
    data = encode(np.full(frames, 0.25, np.float32), rate_hz, "WAV", "FLOAT")
    signal = decode(io.BytesIO(data), name="x")
    assert signal.size == max(1, soxr.resample(np.ones(frames, "f4"), rate_hz, 16000).size)
    assert np.isfinite(signal).all()
    if frames == 1 and rate_hz in (16000, 44100, 192000, 768000):
        assert signal[0] == pytest.approx(0.25, abs=0.05)


def test_a_tone_stays_where_it_is_in_time_and_pitch():
    # a click at 1.25 s and a 440 Hz tone: independent of any resampler's own idea of position
    rate_hz, click_s = 44100, 1.25
    t = np.arange(3 * rate_hz) / rate_hz
    signal = 0.1 * np.sin(2 * np.pi * 440 * t)
    signal[round(click_s * rate_hz)] += 0.9
    data = encode(signal.astype(np.float32), rate_hz, "WAV", "FLOAT")
    span = decode(io.BytesIO(data), name="x", start_ns=1 * S, end_ns=2 * S)
    assert span.size == 16000
    tone = 0.1 * np.sin(2 * np.pi * 440 * (1 + np.arange(16000) / 16000))
    assert int(np.argmax(span - tone)) == 4000
    np.testing.assert_allclose(span[:3000], tone[:3000], atol=1e-4)


def test_mean_of_many_channels():
    signal = noise(0.5, 16000, channels=64)
    data = encode(signal, 16000, "WAV", "FLOAT")
    np.testing.assert_allclose(
        decode(io.BytesIO(data), name="x"), signal.mean(axis=1, dtype=np.float64), atol=1e-7
    )


NAMES = [
    "with space.wav",
    "hash#tag.wav",
    "per%20cent%.wav",
    "quo'te\".wav",
    "ünïcode – 声.wav",
    "new\nline.wav",
    "-dash",
    "no extension",
    "wrong.mp3",
    "headerless.raw",
    "latin1-\udce9.wav",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(name, tmp_path):
    path = os.path.join(str(tmp_path), name)
    signal = noise(0.2, 16000)
    with open(path, "wb") as file:
        file.write(encode(signal, 16000, "WAV", "FLOAT"))
    assert np.array_equal(decode(path, name=name), signal)
    with open(path, "wb") as file:
        file.write(b"nothing like audio \xff\xfe")
    with pytest.raises(ClipError) as caught:
        decode(path, name=name)
    caught.value.message.encode("utf-8")  # goes into a table of valid text


def fate(source, **span) -> Status:
    with pytest.raises(ClipError) as caught:
        decode(source, name="x.wav", **span)
    assert caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.status


def test_spans_without_samples_are_empty():
    data = encode(noise(1.0, 44100), 44100, "WAV", "PCM_16")
    assert fate(io.BytesIO(data), start_ns=1 * S) is Status.EMPTY
    assert fate(io.BytesIO(data), start_ns=5 * S, end_ns=6 * S) is Status.EMPTY
    assert fate(io.BytesIO(data), start_ns=5 * 10**8, end_ns=5 * 10**8) is Status.EMPTY
    assert fate(io.BytesIO(data), start_ns=5 * 10**8, end_ns=4 * 10**8) is Status.EMPTY
    assert fate(io.BytesIO(data), start_ns=-1 * S, end_ns=1 * S) is Status.EMPTY


def test_an_end_beyond_the_file_means_its_end():
    data = encode(noise(1.0, 16000), 16000, "WAV", "PCM_16")
    assert decode(io.BytesIO(data), name="x", start_ns=S // 2, end_ns=9 * S).size == 8000


def test_too_long_by_the_header_and_not_for_a_short_span():
    data = encode(noise(3.0, 8000), 8000, "WAV", "PCM_16")
    assert fate(io.BytesIO(data), max_s=2.9) is Status.TOO_LONG
    assert decode(io.BytesIO(data), name="x", max_s=3.0).size == 48000
    assert decode(io.BytesIO(data), name="x", start_ns=S, end_ns=2 * S, max_s=1.0).size == 16000


@pytest.mark.parametrize("rate_hz", [16000, 44100])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_only_where_it_is(rate_hz, subtype, bad):
    signal = noise(3.0, rate_hz, channels=2)
    clean = encode(signal, rate_hz, "WAV", subtype)
    signal[round(1.5 * rate_hz), 1] = bad
    data = encode(signal, rate_hz, "WAV", subtype)
    assert fate(io.BytesIO(data)) is Status.NOT_FINITE
    assert fate(io.BytesIO(data), start_ns=S, end_ns=2 * S) is Status.NOT_FINITE
    # right up to the bad sample, which the filter of the conversion would see
    for span in ({"end_ns": 14 * 10**8}, {"end_ns": 15 * 10**8}, {"start_ns": 16 * 10**8}):
        got = decode(io.BytesIO(data), name="x", **span)
        np.testing.assert_allclose(got, decode(io.BytesIO(clean), name="x", **span), atol=0.1)


def test_infinities_that_cancel_and_values_beyond_float32_are_not_finite():
    signal = np.zeros((16000, 2))
    signal[5] = (np.inf, -np.inf)
    assert fate(io.BytesIO(encode(signal, 16000, "WAV", "DOUBLE"))) is Status.NOT_FINITE
    signal[5] = (1e300, 0.0)
    assert fate(io.BytesIO(encode(signal, 16000, "WAV", "DOUBLE"))) is Status.NOT_FINITE


@pytest.mark.parametrize("rate_hz", [16000, 44100])
@pytest.mark.parametrize("value", [8.5, -32768.0, 1e38])
def test_samples_far_beyond_full_scale_are_refused_where_they_are(rate_hz, value, capfd):
    signal = noise(3.0, rate_hz, channels=2)
    signal[round(1.5 * rate_hz)] = (value, -value)  # their mean is zero
    data = encode(signal, rate_hz, "WAV", "FLOAT")
    with pytest.raises(ClipError, match=r"full scale is 1.*first at 1\.500 s") as caught:
        decode(io.BytesIO(data), name="x")
    assert caught.value.status is Status.NOT_FINITE
    assert decode(io.BytesIO(data), name="x", end_ns=14 * 10**8).size == 22400
    signal[round(1.5 * rate_hz)] = np.sign(value) * 7.5
    assert decode(io.BytesIO(encode(signal, rate_hz, "WAV", "FLOAT")), name="x").size == 48000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("rate_hz", "status"), [(999, "unsupported"), (768001, "unsupported")])
def test_absurd_rates(rate_hz, status):
    assert fate(io.BytesIO(encode(noise(0.1, 8000), rate_hz, "WAV", "PCM_16"))) == status


def test_local_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    assert fate(str(tmp_path / "absent.wav")) is Status.MISSING
    assert fate(str(tmp_path / "pipe" / "below.wav")) is Status.MISSING
    assert fate(str(tmp_path / "loop")) is Status.MISSING
    assert fate(str(tmp_path / ("n" * 300))) is Status.MISSING
    assert fate("nul\0byte") is Status.MISSING
    assert fate(str(tmp_path)) is Status.UNREADABLE
    assert fate(str(tmp_path / "pipe")) is Status.UNREADABLE


def test_open_files_do_not_pile_up(tmp_path):
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(encode(noise(0.1, 16000), 16000, "WAV", "PCM_16"))
    bad.write_bytes(b"RIFF....WAVE")
    decode(str(good), name="x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        decode(str(good), name="x")
        fate(str(bad))
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_the_output_and_about_a_block(tmp_path):
    # 60 s of 8 channels at 96 kHz: 92 MB on disk (sparse), 184 MB as float32; 3.8 MB at 16 kHz
    path = tmp_path / "wide.wav"
    head = encode(np.zeros((0, 8), np.float32), 96000, "WAV", "PCM_16")
    size = 60 * 96000 * 8 * 2
    path.write_bytes(head[:-4] + size.to_bytes(4, "little"))
    os.truncate(path, len(head) + size)
    tracemalloc.start()
    try:
        with AudioReader(str(path), name="x") as reader:
            assert reader.read(max_s=60).size == 60 * 16000
            whole = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            assert sum(b.size for b in reader.blocks(5)) == 60 * 16000
            streamed = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole < 60 * 16000 * 4 + 6 * 2**20
    assert streamed < 6 * 2**20


def test_threads_agree_with_one_thread(tmp_path):
    kinds = [encode(noise(1, r, seed=i), r, f, s) for i, (f, s, r) in enumerate(FORMATS)]
    kinds += [b"RIFF" + bytes(40), b"text", kinds[0][:3000], b""]
    paths = []
    for i, data in enumerate(kinds):
        (path := tmp_path / str(i)).write_bytes(data)
        paths.append(str(path))

    def outcome(path: str) -> tuple[str, bytes]:
        try:
            return "ok", decode(path, name="x").tobytes()
        except ClipError as error:
            return error.message, b""

    alone = [outcome(p) for p in paths]
    assert len({message for message, _ in alone}) == 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, paths * 10)) == alone * 10
