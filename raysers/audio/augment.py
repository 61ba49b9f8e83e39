"""Random changes to training clips: crop, speed, equaliser, noise.

What a clip becomes follows from seed, epoch and its identity alone (`clip_rng`), so it is the same
on whatever worker and in whatever order clips are decoded.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft
import soxr

from raysers.types import SAMPLE_RATE_HZ, seed_of

Floats = npt.NDArray[np.float32]

#: Bands of the equaliser, and the range of their centres; beyond, the outermost gain holds.
_BANDS = 8
_LOW_HZ, _HIGH_HZ = 60.0, 7_600.0

#: Points at which the equaliser's curve is computed, 4 Hz apart; straight lines in between.
_POINTS = 2_001

#: Zeros behind the signal, so that the equaliser's ringing at one end does not reach the other.
_RINGING_SAMPLES = 1_024

#: Pink noise falls off above this frequency; below it is flat, as a microphone's high-pass has it.
_PINK_FROM_HZ = 20.0

_CLIP_STREAM = 0xA06


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What may happen to a clip; the defaults leave it as it is.

    `crop_s` are the shortest and the longest part to keep, drawn evenly (shorter clips stay whole),
    `equaliser_db` is the largest gain or loss in any of eight mel-spaced bands. Noise is added to
    `noise_share` of the clips, half of it white, half pink, at a signal-to-noise ratio within
    `noise_db`. `speed` are factors of which one is drawn (1.1: shorter and higher).
    """

    crop_s: tuple[float, float] | None = None
    equaliser_db: float = 0.0
    noise_db: tuple[float, float] | None = None
    noise_share: float = 0.5
    speed: tuple[float, ...] = ()

    @property
    def changes_anything(self) -> bool:
        """Whether any clip comes out other than it went in."""
        noisy = self.noise_db is not None and self.noise_share > 0
        return bool(self.crop_s or self.equaliser_db or noisy or set(self.speed) - {1.0})

    def longest_s(self, length_s: float) -> float:
        """The longest that a clip of `length_s` can become."""
        slow_s = length_s / min(self.speed, default=1.0)
        return min(slow_s, self.crop_s[1]) if self.crop_s else slow_s


def clip_rng(seed: int, epoch: int, identity: str) -> np.random.Generator:
    """Random numbers for one clip in one epoch, independent of every other clip's."""
    sequence = np.random.SeedSequence((seed, epoch, _CLIP_STREAM, seed_of(identity)))
    return np.random.Generator(np.random.PCG64(sequence))


def augment(
    signal: Floats,
    settings: Augmentation,
    rng: np.random.Generator,
    *,
    min_samples: int = 1,
    max_samples: int | None = None,
) -> Floats:
    """A changed copy of a 16 kHz signal, float32 [samples], with random numbers of `clip_rng`.

    Neither crop nor speed makes it shorter than `min_samples`; speed not longer than `max_samples`.
    """
    changed = _cut_and_play(signal, settings, rng, min_samples, max_samples or sys.maxsize)
    if settings.equaliser_db:
        changed = equalise(changed, draw_gains_db(settings.equaliser_db, rng))
    if settings.noise_db is not None and rng.random() < settings.noise_share:
        snr_db = rng.uniform(*settings.noise_db)
        changed = add_noise(changed, snr_db, rng, pink=bool(rng.random() < 0.5))
    return changed if changed is not signal else signal.copy()


def draw_gains_db(most_db: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64 [8]: gains of the bands from low to high, drawn evenly from +-`most_db`."""
    return rng.uniform(-most_db, most_db, _BANDS)


def equalise(signal: Floats, gains_db: npt.NDArray[np.float64]) -> Floats:
    """Multiply the spectrum by a smooth curve through `gains_db` at mel-spaced frequencies.

    Between two centres the gain moves along half a cosine, so no frequency gets more than the
    larger of its neighbours. The phase stays.
    """
    size = scipy.fft.next_fast_len(len(signal) + _RINGING_SAMPLES, real=True)
    spectrum = scipy.fft.rfft(signal, size)
    spectrum *= _curve(gains_db, size)
    return np.asarray(scipy.fft.irfft(spectrum, size)[: len(signal)], np.float32)


def add_noise(signal: Floats, snr_db: float, rng: np.random.Generator, *, pink: bool) -> Floats:
    """Add white or `pink` (1/f) noise `snr_db` below the mean power; silence stays silent."""
    power = _mean_square(signal)
    noise = rng.standard_normal(len(signal), np.float32)
    if pink:
        noise = _coloured(noise)
    noise_power = _mean_square(noise)
    if power == 0.0 or noise_power == 0.0:
        return signal.copy()
    gain = math.sqrt(power / noise_power) * 10 ** (-snr_db / 20)
    return signal + noise * np.float32(gain)


def _cut_and_play(
    signal: Floats,
    settings: Augmentation,
    rng: np.random.Generator,
    min_samples: int,
    max_samples: int,
) -> Floats:
    """Speed and crop in one: only what is kept is resampled."""
    speed = settings.speed[rng.integers(len(settings.speed))] if settings.speed else 1.0
    if len(signal) / speed < min_samples:
        speed = 1.0
    wanted = math.inf
    if settings.crop_s is not None:
        wanted = max(rng.uniform(*settings.crop_s) * SAMPLE_RATE_HZ, min_samples, 1)
    samples = min(len(signal), math.ceil(wanted * speed) if wanted < math.inf else len(signal))
    if samples < len(signal):
        start = int(rng.integers(len(signal) - samples + 1))
        signal = signal[start : start + samples].copy()
    if speed == 1.0:
        return signal
    played = soxr.resample(signal, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ)
    fits = min_samples <= len(played) <= max_samples
    return np.asarray(played, np.float32) if fits else signal


def _curve(gains_db: npt.NDArray[np.float64], size: int) -> Floats:
    """float32 [size // 2 + 1]: factor of each frequency of a real spectrum."""
    points = np.linspace(0.0, 1.0, _POINTS)
    ends = _mel(np.array([_LOW_HZ, _HIGH_HZ]))
    place = (_mel(points * (SAMPLE_RATE_HZ / 2)) - ends[0]) / (ends[1] - ends[0]) * (_BANDS - 1)
    place = np.clip(place, 0, _BANDS - 1)
    left = np.minimum(place.astype(np.int64), _BANDS - 2)
    weight = 0.5 - 0.5 * np.cos(np.pi * (place - left))
    factors = 10 ** ((gains_db[left] * (1 - weight) + gains_db[left + 1] * weight) / 20)
    curve = np.interp(np.linspace(0.0, 1.0, size // 2 + 1), points, factors)
    return np.asarray(curve, np.float32)


def _mel(hz: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Mels of O'Shaughnessy's scale."""
    return np.asarray(2595 * np.log10(1 + hz / 700), np.float64)


def _coloured(white: Floats) -> Floats:
    """Pink noise of white noise: power falls with 1/f."""
    size = scipy.fft.next_fast_len(len(white), real=True)
    spectrum = scipy.fft.rfft(white, size)
    hz = np.arange(len(spectrum), dtype=np.float32) * (SAMPLE_RATE_HZ / size)
    spectrum *= 1 / np.sqrt(np.maximum(hz, np.float32(_PINK_FROM_HZ)))
    return np.asarray(scipy.fft.irfft(spectrum, size)[: len(white)], np.float32)


def _mean_square(signal: Floats) -> float:
    return float(np.mean(np.square(signal, dtype=np.float64)))
