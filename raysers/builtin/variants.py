"""A recording as it might have been: in silence, by telephone, in noise, in another room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal
import soxr

from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[Any]
#: From a signal [samples] and a generator to another signal.
Change = Callable[[Floats, np.random.Generator], Floats]

_BAND = scipy.signal.butter(4, [300, 3400], "band", fs=SAMPLE_RATE_HZ, output="sos")


def _pink(samples: int, rng: np.random.Generator) -> Floats:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / noise.std())


def _rms(signal: Floats) -> float:
    return float(np.sqrt(np.mean(signal**2) + 1e-12))


def _speed(signal: Floats, rng: np.random.Generator, most: float = 0.08) -> Floats:
    rate = SAMPLE_RATE_HZ * rng.uniform(1 - most, 1 + most)
    return np.asarray(soxr.resample(signal, rate, SAMPLE_RATE_HZ))


def in_silence(signal: Floats, rng: np.random.Generator) -> Floats:
    """Up to 2 s of pause before and after, over a noise floor 25 to 60 dB below the speech."""
    before, after = (int(SAMPLE_RATE_HZ * rng.uniform(0, 2)) for _ in range(2))
    longer = np.pad(signal, (before, after))
    return longer + _pink(len(longer), rng) * _rms(signal) * 10 ** (rng.uniform(-60, -25) / 20)


def by_telephone(signal: Floats, rng: np.random.Generator) -> Floats:
    """300 to 3,400 Hz at 8 kHz, 8 % slower to faster."""
    narrow = scipy.signal.sosfilt(_BAND, _speed(signal, rng))
    narrow = soxr.resample(narrow, SAMPLE_RATE_HZ, 8_000)
    return np.asarray(soxr.resample(narrow, 8_000, SAMPLE_RATE_HZ))


def in_noise(signal: Floats, rng: np.random.Generator) -> Floats:
    """White or pink noise 8 to 35 dB below the speech, 8 % slower to faster."""
    played = _speed(signal, rng)
    noise = _pink(len(played), rng) if rng.random() < 0.5 else rng.standard_normal(len(played))
    return played + noise * _rms(played) * 10 ** (-rng.uniform(8, 35) / 20)


def equalised(signal: Floats, rng: np.random.Generator, most: float = 0.08) -> Floats:
    """A tilt of 3 dB per octave, three peaks of 8 dB, often low or high cut; another speed."""
    played = _speed(signal, rng, most)
    spectrum = np.fft.rfft(played)
    hz = np.maximum(np.fft.rfftfreq(len(played), 1 / SAMPLE_RATE_HZ), 20)
    octave = np.log2(hz / 1000)
    gain_db = rng.uniform(-3, 3) * octave
    for _ in range(3):
        height_db, center, width = rng.uniform(-8, 8), rng.uniform(-3, 3), rng.uniform(0.4, 1.2)
        gain_db = gain_db + height_db * np.exp(-(((octave - center) / width) ** 2))
    if rng.random() < 0.4:
        gain_db = gain_db - 12 * np.maximum(np.log2(rng.uniform(80, 250) / hz), 0)
    if rng.random() < 0.4:
        gain_db = gain_db - 24 * np.maximum(np.log2(hz / rng.uniform(4000, 7500)), 0)
    return np.asarray(np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(played)))


def in_a_room(signal: Floats, rng: np.random.Generator) -> Floats:
    """Equalised, with reverberation of .1 to .5 s and pink noise 12 to 45 dB below."""
    played = equalised(signal, rng, 0.15)
    samples = int(rng.uniform(0.1, 0.5) * SAMPLE_RATE_HZ)
    decay = np.exp(-6.9 * np.arange(samples) / samples)
    response = rng.standard_normal(samples) * decay
    response[:40] = 0
    response /= np.sqrt((response**2).sum())
    late = scipy.signal.fftconvolve(played, response)[: len(played)]
    played = played + 10 ** (rng.uniform(-16, -4) / 20) * late
    noise = _pink(len(played), rng) * _rms(played) * 10 ** (-rng.uniform(12, 45) / 20)
    return np.asarray(played + noise)


VARIANTS: dict[str, Change] = {
    "plain": lambda signal, _rng: signal,
    "silence": in_silence,
    "telephone": by_telephone,
    "noise": in_noise,
    "equaliser": equalised,
    "room": in_a_room,
}
