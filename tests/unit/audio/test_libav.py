"""What PyAV decodes: spans on one grid, truncation, one error whatever happens. Inputs by PyAV."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from raysers.audio.decode import AudioReader, decode, probe
from raysers.data.files import AUDIO_SUFFIXES
from raysers.errors import ClipError
from raysers.types import Status
from tests.places import REPO, SHARED_DATA, needs_shared
from tests.unit.audio.sounds import encode, noise

#: File suffix, FFmpeg's container, encoder, sample rate: what people have.
FORMATS = [
    ("m4a", "ipod", "aac", 44_100),
    ("mp4", "mp4", "aac", 48_000),
    ("mov", "mov", "alac", 16_000),
    ("3gp", "3gp", "libopencore_amrnb", 8_000),
    ("amr", "amr", "libopencore_amrnb", 8_000),
    ("aac", "adts", "aac", 16_000),
    ("webm", "webm", "libopus", 48_000),
    ("mkv", "matroska", "aac", 44_100),
    ("mka", "matroska", "flac", 22_050),
    ("wma", "asf", "wmav2", 44_100),
    ("avi", "avi", "ac3", 48_000),
    ("wv", "wv", "wavpack", 16_000),
    ("tta", "tta", "tta", 16_000),
    ("flv", "flv", "aac", 44_100),
    ("ac3", "ac3", "ac3", 48_000),
]  # fmt: skip
SECONDS = 6.0


def tones(rate_hz: int, seconds: float = SECONDS) -> np.ndarray:
    """A tone that goes from 200 to 1000 Hz: every stretch of it is another."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (200 + 400 * t / seconds) * t)).astype(np.float32)


def encoded(
    container: str, codec: str, rate_hz: int, seconds: float = SECONDS, *, video: bool = False,
    options: dict[str, str] | None = None, path: Path | None = None, bit_rate: int = 96_000,
    signal: np.ndarray | None = None,
) -> bytes:  # fmt: skip
    sink = io.BytesIO() if path is None else str(path)
    with av.open(sink, "w", format=container, options=options or {}) as output:
        pictures = output.add_stream("mpeg4", rate=5) if video else None
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        stream.codec_context.bit_rate = 12_200 if "amr" in codec else bit_rate
        stream.codec_context.open()
        if pictures is not None:
            pictures.width = pictures.height = 32
            for number in range(int(seconds * 5) + 20):
                picture = av.VideoFrame(32, 32, "yuv420p")
                picture.pts = number
                output.mux(pictures.encode(picture))
            output.mux(pictures.encode(None))
        kind = stream.codec_context.format.name
        samples = tones(rate_hz, seconds) if signal is None else signal
        packed = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        packed.sample_rate, packed.pts = rate_hz, 0
        packed.time_base = Fraction(1, rate_hz)
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(kind, "mono", rate_hz, frame_size=size)
        for frame in [*resampler.resample(packed), *resampler.resample(None)]:
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path.read_bytes() if isinstance(sink, str) and path else sink.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {suffix: encoded(*rest) for suffix, *rest in FORMATS}


def outcome(data: bytes) -> tuple[str, float]:
    try:
        return "ok", len(decode(io.BytesIO(data), name="x")) / 16_000
    except ClipError as error:
        return str(error.status), 0.0


@pytest.mark.parametrize("suffix", [row[0] for row in FORMATS])
def test_spans_are_slices_of_the_whole_in_any_order(files: dict[str, bytes], suffix: str) -> None:
    data = files[suffix]
    whole = decode(io.BytesIO(data), name="x")
    assert len(whole) / 16_000 == pytest.approx(SECONDS, abs=0.15)
    with AudioReader(io.BytesIO(data), name="x") as reader:
        assert reader.info.duration_s == pytest.approx(SECONDS, abs=0.15)
        spans = [(4.0, 5.0), (1.0, 2.0), (2.0, 3.5), (0.0, 0.5), (5.25, 5.5), (3.999, 4.001)]
        for start, end in spans:
            part = reader.read(int(start * 1e9), int(end * 1e9), max_s=60)
            truth = whole[round(start * 16_000) : round(end * 16_000)]
            assert len(part) == len(truth)
            np.testing.assert_allclose(part, truth, atol=2e-3)


@pytest.mark.parametrize("kind", [pytest.param("ogg", marks=needs_shared), "m4a"])
def test_spans_are_slices_of_the_whole_where_the_decoder_makes_noise(kind: str) -> None:
    """Low rates of Opus and AAC are filled up with noise that depends on where decoding began."""
    if kind == "ogg":
        clips = sorted((SHARED_DATA / "emodb").rglob("*.wav"))[:40]
        voice = np.concatenate([soundfile.read(path)[0] for path in clips])[: 70 * 16_000]
        data = encode(voice, 16_000, "OGG", "OPUS", compression_level=0.9)
    else:
        data = encoded("ipod", "aac", 44_100, bit_rate=24_000, signal=noise(70, 44_100))
    whole = decode(io.BytesIO(data), name="x")
    with AudioReader(io.BytesIO(data), name="x") as reader:
        np.testing.assert_allclose(np.concatenate([*reader.blocks(7.0)]), whole, atol=1e-6)
    for start_s in (3.2, 17, 30.1, 45.5, 59.5, 60, 63.1):
        span = int(start_s * 1e9), int((start_s + 1) * 1e9)
        part = decode(io.BytesIO(data), name="x", start_ns=span[0], end_ns=span[1])
        first = round(start_s * 16_000)
        np.testing.assert_allclose(part, whole[first : first + 16_000], atol=1e-6)


@pytest.mark.parametrize("suffix", [row[0] for row in FORMATS])
def test_what_is_decoded_is_what_was_encoded(files: dict[str, bytes], suffix: str) -> None:
    """Up to the delay of the codec, found by correlation."""
    found, truth = decode(io.BytesIO(files[suffix]), name="x"), tones(16_000)
    middle = truth[40_000:48_000]
    errors = [
        float(np.abs(found[40_000 + d : 48_000 + d] - middle).mean()) for d in range(-2400, 2400)
    ]
    assert min(errors) < 0.05


@pytest.mark.parametrize("suffix", [row[0] for row in FORMATS])
@pytest.mark.parametrize("share", [0.97, 0.5, 0.05])
def test_a_cut_file_is_never_ok(files: dict[str, bytes], suffix: str, share: float) -> None:
    data = files[suffix][: int(len(files[suffix]) * share)]
    status, seconds = outcome(data)
    if suffix in ("amr", "aac", "ac3", "flv") and status == "ok":
        # without a count of frames, a file that ends between two of them is just shorter
        assert seconds <= SECONDS * share + 0.2
    else:
        assert status in ("truncated", "unreadable", "empty")


def test_an_index_in_front_says_what_is_left(tmp_path: Path) -> None:
    options = {"movflags": "faststart"}
    data = encoded("mp4", "aac", 44_100, options=options, path=tmp_path / "x.mp4")
    info = probe(io.BytesIO(data[: len(data) // 2]), name="x.mp4")
    assert info.is_cut
    assert info.promised_frames / 44_100 == pytest.approx(SECONDS, abs=0.1)
    assert 1.5 < info.duration_s < 4.5
    with AudioReader(io.BytesIO(data[: len(data) // 2]), name="x") as reader:
        assert len(reader.read(0, 10**9, max_s=60)) == 16_000
        with pytest.raises(ClipError) as raised:
            reader.read(0, None, max_s=60)
    assert raised.value.status == Status.TRUNCATED


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "aac")])
def test_the_sound_of_a_video(container: str, codec: str) -> None:
    data = encoded(container, codec, 48_000, 3.0, video=True)
    assert outcome(data) == ("ok", pytest.approx(3.0, abs=0.15))
    silent = io.BytesIO()
    with av.open(silent, "w", format=container) as output:
        pictures = output.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 32
        output.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(pictures.encode(None))
    assert outcome(silent.getvalue())[0] == "empty"


@pytest.mark.parametrize("suffix", ["m4a", "webm", "wma", "aac", "amr", "wv"])
def test_damage_is_one_error_and_never_a_crash(files: dict[str, bytes], suffix: str) -> None:
    dice = np.random.default_rng(0)
    for _ in range(25):
        data = bytearray(files[suffix])
        for place in dice.integers(0, len(data), 20):
            data[place] = dice.integers(256)
        status, seconds = outcome(bytes(data))
        assert seconds < 60
        assert status in {str(status) for status in Status}


def test_the_extra_is_named_where_it_is_missing(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("raysers.audio.libav.library", lambda: None)
    (tmp_path / "x.m4a").write_bytes(files["m4a"])
    with pytest.raises(ClipError, match=r"pip install 'raysers\[av\]'") as raised:
        decode(str(tmp_path / "x.m4a"), name="x.m4a")
    assert raised.value.status == Status.UNSUPPORTED


#: What libsndfile reads: file suffix, its names of container and encoding.
OTHERS = [
    ("wav", "WAV", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III"), ("aiff", "AIFF", "PCM_16"),
    ("au", "AU", "PCM_16"), ("caf", "CAF", "PCM_16"), ("w64", "W64", "PCM_16"),
    ("sph", "NIST", "PCM_16"), ("voc", "VOC", "PCM_16"),
]  # fmt: skip


def test_the_table_of_formats_in_the_documents_is_what_is_read(files: dict[str, bytes]) -> None:
    """UPDATE_DOCS=1 writes it."""
    found: dict[str, bytes] = {}
    for suffix, container, subtype in OTHERS:
        sink = io.BytesIO()
        soundfile.write(sink, tones(16_000), 16_000, format=container, subtype=subtype)
        found[suffix] = sink.getvalue()
    rows = ["| suffix | read as (column `codec`) | needs |", "|---|---|---|"]
    for needs, group in (("", found), ("`av`", files)):
        for suffix, data in group.items():
            assert f".{suffix}" in AUDIO_SUFFIXES
            codec = probe(io.BytesIO(data), name=f"x.{suffix}").codec
            rows.append(f"| `.{suffix}` | {codec} | {needs} |")
    page = REPO / "docs/annotate.md"
    text = page.read_text()
    head, shown, tail = text.split("<!-- formats -->\n")
    written = "\n".join([*rows, ""])
    if os.environ.get("UPDATE_DOCS"):
        shown = written
        page.write_text("<!-- formats -->\n".join([head, shown, tail]))
    assert shown == written
