"""A clip as through a poor telephone line, as in ser-tests.

The AMR codec between compression and noise is optional, because no codec comes with the package.
A run uses it on all its workers or on none, and says so in every row.
"""

from __future__ import annotations

import math

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from raysers.robustness.amr import amr as coded
from raysers.robustness.perturbation import Perturbation, Signal
from raysers.robustness.perturbations import highpass
from raysers.types import SAMPLE_RATE_HZ

_PHONE_HZ = 8000
_ATTACK_S, _RELEASE_S = 0.01, 0.02
_THRESHOLD_DB, _KNEE_DB, _SLOPE = -20.0, 4.0, 0.8
_PINK_DB, _PINK_FROM_HZ = -25.0, 3000.0
_EPS = float(np.finfo(np.float32).eps)
#: A peak below the smallest normal number is silence.
_LEAST = float(np.finfo(np.float32).tiny)


def phone(signal: ArrayLike, noise: ArrayLike, *, amr: bool = False) -> Signal:
    """The clip at 8 kHz, compressed, and back at 16 kHz with high-passed pink noise.

    Args:
        signal: the clip, shape (samples,).
        noise: standard normal samples, one more than the clip has.
        amr: also through the AMR codec at 7,400 bit/s.

    Returns:
        As many samples, with the RMS of the clip unless a sample would exceed full scale.

    Raises:
        ModuleNotFoundError: `amr` without the package `av`.
    """
    x = np.asarray(signal, np.float32)
    narrow = soxr.resample(x, SAMPLE_RATE_HZ, _PHONE_HZ, quality="HQ") if x.size else x
    peak = float(np.abs(narrow).max(initial=0.0))
    if peak < _LEAST:
        return x.copy()
    sent = compressed(narrow / np.float32(peak), _PHONE_HZ)
    wide = np.zeros(x.size)
    back = soxr.resample(coded(sent) if amr else sent, _PHONE_HZ, SAMPLE_RATE_HZ, quality="HQ")
    kept = min(x.size, back.size)
    wide[:kept] = back[:kept]
    wide /= max(float(wide.max()), 0.0) + _EPS
    pink = pink_noise(noise)
    pink *= 10 ** (_PINK_DB / 20) / (float(np.abs(pink).max()) + _EPS)
    received = (wide + highpass(pink, _PINK_FROM_HZ, order=2)) / 2
    received *= math.sqrt(float(np.mean(np.square(x, dtype=np.float64)) / np.mean(received**2)))
    most = float(received.max())
    return (received / (most + _EPS) if most > 1 else received).astype(np.float32)


def compressed(signal: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Less dynamic range: above -20 dB a dB in is .8 dB out, below it everything is 4 dB louder.

    As `sox compand .01,.02 4:-20,-16` describes it: the level follows the magnitude within 10 ms
    upwards and 20 ms downwards and starts at full scale; the corner is rounded over +-4 dB.
    """
    level = _followed(np.abs(signal).tolist(), rate_hz)
    level_db = 20 * np.log10(np.maximum(level, 1e-9))
    over_db = level_db - _THRESHOLD_DB
    bend = np.clip((over_db + _KNEE_DB) / (2 * _KNEE_DB), 0.0, 1.0)
    rounded_db = np.where(over_db > _KNEE_DB, over_db, _KNEE_DB * bend**2)
    gain_db = (_SLOPE - 1) * (_THRESHOLD_DB + rounded_db)
    return (signal * 10 ** (gain_db / 20)).clip(-1, 1).astype(np.float32)


def pink_noise(noise: ArrayLike) -> NDArray[np.float64]:
    """White noise shaped to a power that falls with frequency; one sample shorter."""
    white = np.asarray(noise, np.float64)
    spectrum = np.fft.rfft(white)
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, white.size)[: white.size - 1]


def _followed(magnitudes: list[float], rate_hz: int) -> NDArray[np.float64]:
    rise = 1 - math.exp(-1 / (rate_hz * _ATTACK_S))
    fall = 1 - math.exp(-1 / (rate_hz * _RELEASE_S))
    level, levels = 1.0, []
    for magnitude in magnitudes:
        step = magnitude - level
        level += step * (rise if step > 0 else fall)
        levels.append(level)
    return np.array(levels)


def _drawn(signal: Signal, rng: np.random.Generator, amr: bool) -> Signal:
    return phone(signal, rng.standard_normal(len(signal) + 1), amr=amr)


PHONE = Perturbation(
    name="phone",
    function=_drawn,
    choices={"amr": (False,)},
    source="ser-tests, robustness to a low quality phone",
    drawn=True,
)
