"""Speech for the demo: sentences spoken by espeak-ng in several emotions, and broken files.

The samples are the same on every machine; the bytes of a compressed file may not be.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from raysers.errors import ConfigError
from raysers.models.tts import Engine, Line
from raysers.types import DIMENSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How espeak-ng speaks an emotion."""

    rates_wpm: tuple[int, ...]
    pitches: tuple[int, ...]
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """How a clip is stored."""

    suffix: str
    sample_rate_hz: int
    channels: int = 1
    subtype: str | None = None


DELIVERIES = {
    "happy": Delivery(rates_wpm=(185, 200, 215), pitches=(62, 72, 80), gain=0.9),
    "angry": Delivery(rates_wpm=(190, 210, 230), pitches=(40, 50, 58), gain=1.4),
    "sad": Delivery(rates_wpm=(110, 120, 130), pitches=(20, 28, 36), gain=0.4),
    "neutral": Delivery(rates_wpm=(155, 165), pitches=(45, 50), gain=0.7),
}

#: Each emotion is spoken by all of them.
SPEAKERS = (
    "en-us", "en-us+f3", "en-gb+m3", "en-gb-scotland+f2", "en-us+m7", "en-029+f5", "en-gb+klatt2",
)  # fmt: skip

FORMATS = (
    FileFormat(suffix=".wav", sample_rate_hz=16_000, subtype="PCM_16"),
    FileFormat(suffix=".flac", sample_rate_hz=22_050),
    FileFormat(suffix=".wav", sample_rate_hz=44_100, channels=2, subtype="PCM_16"),
    FileFormat(suffix=".ogg", sample_rate_hz=16_000),
    FileFormat(suffix=".wav", sample_rate_hz=22_050, subtype="PCM_16"),
    FileFormat(suffix=".mp3", sample_rate_hz=44_100, channels=2),
)


def make_audio(folder: Path) -> tuple[int, int]:
    """Write the spoken clips and the broken files that `folder` does not have yet.

    Returns:
        How many files of each there are.

    Raises:
        ConfigError: espeak-ng is not installed, or `folder` cannot be written.
    """
    clips, broken = _clips(_sentences()), _broken_files()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in (clips | broken).items():
            if not (folder / name).exists():
                _write_atomic(folder / name, make())
    except OSError as error:
        message = f"cannot write the demo's clips ({error}): choose another --output"
        raise ConfigError(message) from None
    return len(clips), len(broken)


def _write_atomic(path: Path, content: bytes) -> None:
    # a hidden name and a rename, so that an interrupted demo leaves no half clip behind
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _sentences() -> Iterator[tuple[str, str]]:
    """(emotion, words) of the built-in table."""
    table = resources.files("raysers").joinpath("assets", "demo_sentences.txt")
    for line in table.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            emotion, words = line.split("\t")
            yield emotion, words


def _clips(sentences: Iterable[tuple[str, str]]) -> dict[str, Callable[[], bytes]]:
    """By file name, what makes its bytes; delivery, speaker and format cycle independently."""
    clips: dict[str, Callable[[], bytes]] = {}
    for i, (emotion, words) in enumerate(sentences):
        delivery = DELIVERIES[emotion]
        line = Line(
            text=words,
            voice=SPEAKERS[i % len(SPEAKERS)],
            rate_wpm=delivery.rates_wpm[i % len(delivery.rates_wpm)],
            pitch=delivery.pitches[i // 2 % len(delivery.pitches)],
        )
        stored = FORMATS[i % len(FORMATS)]
        name = f"{emotion}-{i:02d}-{line.voice}{stored.suffix}".replace("+", "-")
        clips[name] = partial(_say, line, gain=delivery.gain, stored=stored)
    return clips


def _say(line: Line, *, gain: float, stored: FileFormat) -> bytes:
    spoken, sample_rate_hz = Engine().speak(line)
    mono = np.clip(gain * soxr.resample(spoken, sample_rate_hz, stored.sample_rate_hz), -1, 1)
    # the right channel is softer: a mean of channels must not hide behind equal ones
    channels = np.stack([mono, 0.5 * mono][: stored.channels], axis=1)
    return _encode(channels, stored)


def _encode(samples: npt.NDArray[np.float32], stored: FileFormat) -> bytes:
    """A sound file of `samples`, shape (frames, channels)."""
    file = io.BytesIO()
    kind = stored.suffix.removeprefix(".").upper()
    soundfile.write(file, samples, stored.sample_rate_hz, format=kind, subtype=stored.subtype)
    return file.getvalue()


def _broken_files() -> dict[str, Callable[[], bytes]]:
    """By file name, what makes the bytes of a file that cannot be scored."""
    pcm16 = FORMATS[0]
    float32 = FileFormat(suffix=".wav", sample_rate_hz=16_000, subtype="FLOAT")
    second = np.float32(0.1) * np.sin(np.arange(16_000, dtype=np.float32) / 20)[:, np.newaxis]
    with_nan = second.copy()
    with_nan[8_000] = np.nan
    pointer = (
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 84012\n"
    )
    return {
        "broken-zero-bytes.wav": lambda: b"",
        "broken-only-text.wav": lambda: b"These are words about sound, not sound.\n" * 20,
        "broken-cut-in-the-middle.wav": lambda: _encode(second, pcm16)[:20_001],
        "broken-ten-milliseconds.wav": lambda: _encode(second[:160], pcm16),
        "broken-not-a-number.wav": lambda: _encode(with_nan, float32),
        "broken-git-lfs-pointer.wav": pointer.encode,
    }


def print_emotions(table: Path) -> None:
    """Print the mean scores of the synthetic clips by emotion."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(table, columns=["file", *DIMENSIONS])
    emotion = (
        pc.extract_regex(rows["file"], r"(?P<emotion>[a-z]+)-[^/]*$")
        .combine_chunks()
        .field("emotion")
    )
    means = rows.append_column("emotion", emotion).group_by("emotion", use_threads=False)
    columns = [(name, "mean") for name in DIMENSIONS]
    print("demo: mean scores by the emotion espeak-ng speaks in")
    print("  emotion  " + "".join(f"{name:>11}" for name in DIMENSIONS))
    for row in means.aggregate(columns).sort_by([("arousal_mean", "descending")]).to_pylist():
        if row["emotion"] in DELIVERIES:
            scores = "".join(f"{row[f'{name}_mean']:11.2f}" for name in DIMENSIONS)
            print(f"  {row['emotion']:<9}{scores}")
