"""Speech for the demo: sentences spoken by espeak-ng in several emotions, and broken files.

The samples are the same on every machine; the bytes of a compressed file may not be.
"""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import soundfile
import soxr

from raysers.errors import ConfigError, WriteError
from raysers.io import storage
from raysers.models.tts import Engine, Line
from raysers.types import DIMENSIONS

#: By emotion: rates in words per minute, pitches and gain of espeak-ng.
DELIVERIES = {
    "happy": ((185, 200, 215), (62, 72, 80), 0.9),
    "angry": ((190, 210, 230), (40, 50, 58), 1.4),
    "sad": ((110, 120, 130), (20, 28, 36), 0.4),
    "neutral": ((155, 165), (45, 50), 0.7),
}
#: Each emotion is spoken by all of them.
SPEAKERS = (
    "en-us", "en-us+f3", "en-gb+m3", "en-gb-scotland+f2", "en-us+m7", "en-029+f5", "en-gb+klatt2",
)  # fmt: skip
#: Suffix, sampling rate and channels of the files; WAV is 16-bit.
FORMATS = (
    ("wav", 16_000, 1), ("flac", 22_050, 1), ("wav", 44_100, 2), ("ogg", 16_000, 1),
    ("wav", 22_050, 1), ("mp3", 44_100, 2),
)  # fmt: skip
_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 84012
"""


def make_audio(folder: Path) -> tuple[int, int]:
    """Write the spoken clips and the broken files that `folder` lacks; how many there are of each.

    Raises ConfigError: espeak-ng is not installed, or `folder` cannot be written.
    """
    table = resources.files("raysers").joinpath("assets", "demo_sentences.txt").read_text("utf-8")
    lines = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    broken = _broken_files()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (emotion, words) in enumerate(lines):
            voice = SPEAKERS[number % len(SPEAKERS)]
            suffix = FORMATS[number % len(FORMATS)][0]
            path = folder / f"{emotion}-{number:02d}-{voice}.{suffix}".replace("+", "-")
            if not path.exists():
                storage.write_atomic(str(path), _spoken(number, emotion, words, voice))
        for name, content in broken.items():
            path = folder / f"broken-{name}.wav"
            if not path.exists():
                storage.write_atomic(str(path), content)
    except (OSError, WriteError) as error:
        message = f"cannot write the demo's clips ({error}): choose another --output"
        raise ConfigError(message) from None
    return len(lines), len(broken)


def _spoken(number: int, emotion: str, words: str, voice: str) -> bytes:
    """A sound file; delivery, speaker and format cycle independently."""
    rates_wpm, pitches, gain = DELIVERIES[emotion]
    suffix, rate_hz, channels = FORMATS[number % len(FORMATS)]
    rate_wpm, pitch = rates_wpm[number % len(rates_wpm)], pitches[number // 2 % len(pitches)]
    line = Line(text=words, voice=voice, rate_wpm=rate_wpm, pitch=pitch)
    samples, spoken_hz = Engine().speak(line)
    mono = np.clip(gain * soxr.resample(samples, spoken_hz, rate_hz), -1, 1)
    # the right channel is softer: a mean of channels must not hide behind equal ones
    stereo = np.stack([mono, 0.5 * mono][:channels], axis=1)
    return _encoded(stereo, rate_hz, suffix, "PCM_16" if suffix == "wav" else None)


def _encoded(
    samples: npt.NDArray[np.float32], rate_hz: int, suffix: str = "wav", subtype: str | None = None
) -> bytes:
    """A sound file of samples, shape (frames, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=suffix.upper(), subtype=subtype)
    return file.getvalue()


def _broken_files() -> dict[str, bytes]:
    """By name, the bytes of files that cannot be scored."""
    second = np.float32(0.1) * np.sin(np.arange(16_000, dtype=np.float32) / 20)[:, np.newaxis]
    with_nan = second.copy()
    with_nan[8_000] = np.nan
    return {
        "zero-bytes": b"",
        "only-text": b"These are words about sound, not sound.\n" * 20,
        "cut-in-the-middle": _encoded(second, 16_000, subtype="PCM_16")[:20_001],
        "ten-milliseconds": _encoded(second[:160], 16_000, subtype="PCM_16"),
        "not-a-number": _encoded(with_nan, 16_000, subtype="FLOAT"),
        "git-lfs-pointer": _POINTER,
    }


def print_emotions(table: Path) -> None:
    """Print the mean scores of the synthetic clips by emotion."""
    rows = pd.read_parquet(table, columns=["file", *DIMENSIONS])
    emotion = rows["file"].str.extract(r"([a-z]+)-[^/]*$")[0]
    means = rows.groupby(emotion)[list(DIMENSIONS)].mean().sort_values("arousal", ascending=False)
    print("demo: mean scores by the emotion espeak-ng speaks in")
    print("  emotion  " + "".join(f"{name:>11}" for name in DIMENSIONS))
    for name, scores in means[means.index.isin(list(DELIVERIES))].iterrows():
        print(f"  {name:<9}" + "".join(f"{scores[d]:11.2f}" for d in DIMENSIONS))
