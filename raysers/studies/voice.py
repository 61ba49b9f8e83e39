"""How a synthetic speaker expresses an emotion: espeak-ng's knobs and two filters.

Arousal makes speech fast, high and bright, dominance makes the voice larger and lower, valence
moves the middle of the spectrum and the words; every clip and every speaker adds something of its
own. So the labels can be learnt from the sound, but not read off one number of it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy import signal

from raysers.models.tts import Engine, Line
from raysers.seeding import generator
from raysers.types import SAMPLE_RATE_HZ

#: Centres of the synthetic emotions: arousal, dominance, valence on 0..1.
#: Invented, not rated by listeners.
EMOTIONS: Mapping[str, tuple[float, float, float]] = {
    "anger": (0.85, 0.80, 0.20),
    "fear": (0.80, 0.20, 0.25),
    "happiness": (0.75, 0.65, 0.88),
    "neutral": (0.45, 0.50, 0.50),
    "boredom": (0.20, 0.35, 0.40),
    "sadness": (0.22, 0.22, 0.15),
    "calm": (0.25, 0.60, 0.75),
}

#: Of the labels around the centre of their emotion.
_SPREAD = 0.08
#: Of a clip's own share in rate (words per minute), pitch (espeak-ng's scale) and filters (dB).
_RATE_SD_WPM, _PITCH_SD, _FILTER_SD_DB = 12.0, 4.0, 1.5
#: Share of clips whose words say nothing of their valence.
_SAYS_NOTHING = 0.25
_LEVEL = 0.1
_BANDS_HZ = (0.0, 250.0, 600.0, 1_500.0, 2_500.0, 4_500.0, 8_000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A synthetic speaker: espeak-ng's voice and variant, and personal offsets.

    `pitch` and `rate_wpm` are where its neutral speech is; `size` stretches the vocal tract
    (above 1: longer, a lower voice).
    """

    name: str
    sex: str
    language: str
    variant: str
    pitch: int
    rate_wpm: int
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A clip before it is spoken; labels on 0..1 in the order of `types.DIMENSIONS`."""

    clip: str
    voice: Voice
    emotion: str
    text: str
    labels: tuple[float, float, float]
    seed: int


def utterance(
    voice: Voice, emotion: str, take: int, texts: Mapping[str, Sequence[str]], seed: int
) -> Utterance:
    """Draw what is said and how; a function of its arguments alone.

    Args:
        voice: who speaks.
        emotion: of `EMOTIONS`.
        take: which of the clips of this voice and emotion.
        texts: sentences by the sentiment of their words.
        seed: of the corpus.
    """
    clip = f"{voice.name}-{emotion}-{take}"
    rng = generator(seed, clip, size_bytes=8)
    labels = np.clip(np.array(EMOTIONS[emotion]) + rng.normal(0, _SPREAD, 3), 0.02, 0.98)
    sentiment = "neutral"
    if rng.random() > _SAYS_NOTHING:
        sentiment = (
            "positive" if labels[2] > 0.62 else "negative" if labels[2] < 0.38 else "neutral"
        )
    said = texts[sentiment]
    text = said[int(rng.integers(len(said)))]
    values = tuple(round(float(value), 3) for value in labels)
    return Utterance(
        clip=clip,
        voice=voice,
        emotion=emotion,
        text=text,
        labels=(values[0], values[1], values[2]),
        seed=seed,
    )


def spoken(one: Utterance) -> bytes:
    """The sound file of an utterance: 16 kHz, 16 bit WAV; the same for the same arguments.

    Raises:
        ConfigError: espeak-ng is not installed.
    """
    arousal, dominance, valence = (value - 0.5 for value in one.labels)
    rng = generator(one.seed, one.clip + " sound", size_bytes=8)
    rate = one.voice.rate_wpm * (1 + 0.55 * arousal) + rng.normal(0, _RATE_SD_WPM)
    pitch = one.voice.pitch + 42 * arousal + 14 * valence - 8 * dominance + rng.normal(0, _PITCH_SD)
    size = one.voice.size * (1 + 0.16 * dominance)
    line = Line(
        text=one.text,
        voice="+".join(filter(None, (one.voice.language, one.voice.variant))),
        # stretching makes it slower again
        rate_wpm=int(np.clip(rate * size, 80, 450)),
        pitch=int(np.clip(pitch, 0, 99)),
    )
    samples, rate_hz = Engine().speak(line)
    stretched = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ * size)
    signal = _trimmed(_filtered(stretched, arousal, valence, rng))
    level = _LEVEL * 10 ** ((8 * arousal + rng.normal(0, 3)) / 20)
    signal *= level / max(float(np.sqrt(np.mean(signal**2))), 1e-6)
    noise = rng.normal(0, 1e-3, len(signal))
    file = io.BytesIO()
    soundfile.write(
        file, np.clip(signal + noise, -1, 1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16"
    )
    return file.getvalue()


def _filtered(
    samples: NDArray[np.float32], arousal: float, valence: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Brighter with arousal, more around 2 kHz with valence, and a bit of chance."""
    gains_db = np.array([0.0, -2.0, -3.0, 4.0, 6.0, 8.0, 8.0]) * 2 * arousal
    gains_db += np.array([0.0, -3.0, -2.0, 7.0, 6.0, -2.0, -2.0]) * 2 * valence
    gains_db += rng.normal(0, _FILTER_SD_DB, len(gains_db))
    taps = signal.firwin2(129, _BANDS_HZ, 10 ** (gains_db / 20), fs=SAMPLE_RATE_HZ)
    return np.asarray(signal.fftconvolve(samples, taps, mode="same"), np.float64)


def _trimmed(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples
