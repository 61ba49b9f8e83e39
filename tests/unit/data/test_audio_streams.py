"""`--audio-stream`: which stream of a container is decoded; containers by PyAV, two tones each."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

import raysers
from raysers.audio.decode import AudioReader, probe
from raysers.data.manifest import clips_of, read_manifest, write_manifest
from raysers.engine.feed import decode_run
from raysers.engine.listing import ClipJobFlags, index, segmenting
from raysers.errors import ClipError, ConfigError, RefusedError

#: Tone, seconds, language and title of each stream.
STREAMS = [(440, 4.0, "eng", "Original"), (1000, 3.0, "fra", "Interpreter")]
KINDS = [("mp4", "aac"), ("mov", "alac"), ("mkv", "flac"), ("webm", "libopus")]
RATE_HZ = 48_000


def write(path: Path, codec: str) -> str:
    with av.open(str(path), "w") as output:
        streams = [output.add_stream(codec, rate=RATE_HZ, layout="mono") for _ in STREAMS]
        frames: list[tuple[float, Any, Any]] = []
        for stream, (tone_hz, seconds, language, title) in zip(streams, STREAMS, strict=True):
            stream.metadata.update(language=language, title=title)
            stream.codec_context.open()
            t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
            samples = (0.3 * np.sin(2 * np.pi * tone_hz * t)).astype(np.float32)
            packed = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            packed.sample_rate, packed.pts, packed.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
            size = stream.codec_context.frame_size or 1024
            kind = stream.codec_context.format.name
            cut = av.AudioResampler(kind, "mono", RATE_HZ, frame_size=size)
            made = [*cut.resample(packed), *cut.resample(None)]
            frames += [(frame.pts / RATE_HZ, stream, frame) for frame in made]
        for _, stream, frame in sorted(frames, key=lambda one: one[0]):
            output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("streams")
    for suffix, codec in KINDS:
        write(place / f"film.{suffix}", codec)
    soundfile.write(place / "alone.wav", np.zeros(16_000), 16_000)
    return place


def tone_hz(signal: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return float(np.argmax(spectrum) * 16_000 / len(signal))


@pytest.mark.parametrize("suffix", [kind[0] for kind in KINDS])
def test_the_stream_of_a_number_language_or_title(folder: Path, suffix: str) -> None:
    path = str(folder / f"film.{suffix}")
    for number, (hz, seconds, language, title) in enumerate(STREAMS):
        # a title of MP4 is its handler, which this muxer does not write
        for name in (number, str(number), language.upper(), *([title] * (suffix == "mkv"))):
            signal, _ = raysers.decode(path, audio_stream=name)
            assert len(signal) / 16_000 == pytest.approx(seconds, abs=0.05)
            assert tone_hz(signal) == pytest.approx(hz, abs=1)
        with AudioReader(path, name=path, stream=language) as reader:
            assert reader.info.stream == number
            for start_s in (1.5, 0.0, 2.25):  # spans of the whole, in any order
                part = reader.read(int(start_s * 1e9), int((start_s + 0.5) * 1e9), max_s=60)
                first = round(start_s * 16_000)
                np.testing.assert_allclose(part, signal[first : first + 8000], atol=2e-3)
    with pytest.raises(ClipError, match=r"no audio stream 'ita': the file has 0 \(eng.*1 \(fra"):
        raysers.decode(path, audio_stream="ita")


@pytest.mark.parametrize("suffix", ["mov", "mkv", "webm"])
def test_a_cut_file_is_cut_in_each_stream(folder: Path, tmp_path: Path, suffix: str) -> None:
    data = (folder / f"film.{suffix}").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    for number in range(2):
        try:
            info = probe(str(tmp_path / "cut"), name="cut", stream=number)
        except ClipError as error:
            assert error.status in ("truncated", "unreadable")  # noqa: PT017
        else:
            assert info.is_cut


def listed(place: Path, **flags: Any) -> Any:
    given = ClipJobFlags(input=(str(place),), output="x", workers="local", **flags)
    given.check()
    return index(given.input, segmenting(given), local=True).table()


def test_a_manifest_keeps_the_stream(folder: Path, tmp_path: Path) -> None:
    assert "audio_stream" not in listed(folder).column_names
    found = listed(folder, audio_stream="fra", segment="window", window_s=1.0, hop_s=1.0)
    write_manifest(str(tmp_path / "out/manifest"), found)
    found = read_manifest(str(tmp_path / "out"))
    for clip in clips_of(found):
        (decoded,) = decode_run([clip], 60)
        if clip.file.endswith("wav"):
            assert decoded.error is not None
            assert decoded.error.status == "unsupported"
            assert decoded.error.message == "no audio stream 'fra': the file has 0"
        else:
            assert clip.audio_stream == 1
            assert decoded.signal is not None
            assert tone_hz(decoded.signal) == pytest.approx(1000, abs=2)
    assert len(found) == 4 * 3 + 1
    with pytest.raises(ConfigError, match=r"--audio-stream 1: .* is a manifest"):
        listed(tmp_path / "out", audio_stream="1")
    (folder / "t.csv").write_text("file,audio_stream\nfilm.mp4,1\nfilm.mp4,0\nfilm.mkv,\n")
    found = listed(folder / "t.csv")  # a table decides for its rows
    streams = zip(found["file"].to_pylist(), found["audio_stream"].to_pylist(), strict=True)
    assert [(Path(f).name, n) for f, n in streams] == [
        ("film.mkv", 0), ("film.mp4", 1), ("film.mp4", 0),
    ]  # fmt: skip
    assert len(set(found["clip_id"].to_pylist())) == 3


def test_rows_are_of_one_stream_and_resumed_with_it_alone(folder: Path, tmp_path: Path) -> None:
    film, out = folder / "film.mp4", tmp_path / "out"
    english, french = (raysers.annotate(film, audio_stream=name) for name in ("eng", "fra"))
    (first,), (second,) = (frame.itertuples() for frame in (english, french))
    assert (first.audio_stream, second.audio_stream) == (0, 1)
    assert first.duration_s == pytest.approx(4, abs=0.05)
    assert second.duration_s == pytest.approx(3, abs=0.05)
    assert first.clip_id != second.clip_id
    assert first.arousal != second.arousal
    table = tmp_path / "clips.csv"
    table.write_text(f"file\n{film}\nlate.mp4\n")
    late = {"output": str(out), "audio_stream": "fra"}
    assert sorted(raysers.annotate(table, **late)["status"]) == ["missing", "ok"]
    shutil.copy(film, tmp_path / "late.mp4")
    again = raysers.annotate(table, **late, retry=("missing",))
    assert again["audio_stream"].tolist() == [1, 1]
    assert again["arousal"].tolist() == pytest.approx([second.arousal] * 2)
    with pytest.raises(RefusedError, match="audio_stream"):
        raysers.annotate(table, output=str(out), audio_stream="eng")
