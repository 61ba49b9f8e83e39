"""Levels, clipping and mains hum of a clip, and faults between its channels.

All values describe the decoded 16 kHz signal, so a clipped 44.1 kHz recording can show less
clipping here than in its file: resampling moves the samples off full scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]

#: Faults of a recording that is scored all the same, and what to do about each.
FAULTS = {
    "opposite_phase": "the channels have opposite phase and cancel in the mix: score one "
    "of them, with --channel left",
    "silent_channel": "a silent channel lowers the level of the mix: score "
    "another alone, with --channel left, right or its number",
    "hum": "mains hum of 50 or 60 Hz is louder than all else: remove it, "
    "for example with ffmpeg -af highpass=f=120",
}

#: Level given to digital silence, the floor auglib uses as well.
FLOOR_DB = -120.0

#: Largest positive 16-bit sample less a rounding error of float32: what counts as full scale.
FULL_SCALE = 32767 / 32768 - 1e-6

#: No sample above this (-80 dB re full scale): digital silence and its rounding noise.
_SILENT = 1e-4

#: Power of the mix, of that of uncorrelated channels, below which channels cancel.
_CANCELLED = 0.2
#: Power of a channel, of that of the loudest, below which it is silent (-40 dB).
_SILENT_CHANNEL = 1e-4
#: Mean power of the channels below which nothing is said about them (-60 dB re full scale).
_AUDIBLE = 1e-6

#: Five periods of 50 Hz and six of 60 Hz, after which hum repeats with all its harmonics.
_HUM_LAG = SAMPLE_RATE_HZ // 10
#: Samples of a clip, in its middle, that are searched for hum.
_HUM_LONGEST = 10 * SAMPLE_RATE_HZ
#: Harmonics of hum, half the width of their lines, and least shares of the clip's power.
_HUM_LINES, _HUM_WIDTH_HZ, _HUM_SHARE, _HUM_FIRST_SHARE = 6, 2.0, 0.5, 0.1

#: Squares are summed in float32 over so many samples.
_BLOCK = 1 << 13


class Levels(NamedTuple):
    """Level of a signal; NaN for a signal without samples.

    `rms_db`: root mean square level, dB re full scale, at least -120; `peak`: largest absolute
    sample, full scale is 1.0; `clipped_ratio`: share of samples at full scale of 16-bit audio,
    0..1.
    """

    rms_db: float
    peak: float
    clipped_ratio: float


def levels(signal: Floats) -> Levels:
    """RMS level, peak and clipping of a clip, without a copy of it.

    `signal`: samples, full scale is 1.0, shape (n,).

    >>> levels(np.array([0.5, -0.5], np.float32))
    Levels(rms_db=-6.020599913279624, peak=0.5, clipped_ratio=0.0)
    >>> levels(np.array([0.0, 0.5, -1.0, 32767 / 32768], np.float32)).clipped_ratio
    0.5
    """
    if not signal.size:
        return Levels(math.nan, math.nan, math.nan)
    highest, lowest = float(np.maximum.reduce(signal)), float(np.minimum.reduce(signal))
    clipped = int(np.count_nonzero(signal >= FULL_SCALE)) if highest >= FULL_SCALE else 0
    clipped += int(np.count_nonzero(signal <= -FULL_SCALE)) if lowest <= -FULL_SCALE else 0
    return Levels(rms_db(signal), max(highest, -lowest), clipped / signal.size)


def channel_fault(channels: Sequence[float], mix: float) -> str:
    """What is wrong between channels of which the mean is taken, by their mean squares.

    - `opposite_phase`: the mix is 7 dB below the mix of as many uncorrelated channels, which is
      10 dB below the channels where there are two (correlation -0.8 at equal levels);
    - `silent_channel`: a channel is 40 dB below the loudest.

    Spaced microphones and speakers on channels of their own do neither. `channels`: mean square of
    each channel, full scale is 1.0; `mix`: mean square of their mean. Returns A key of `FAULTS`, or
    nothing; nothing for channels below -60 dB re full scale.

    >>> channel_fault([0.01, 0.01], 0.0)
    'opposite_phase'
    """
    total = sum(channels)
    if len(channels) < 2 or total < _AUDIBLE * len(channels):
        return ""
    if mix < _CANCELLED * total / len(channels) ** 2:
        return "opposite_phase"
    return "silent_channel" if min(channels) < _SILENT_CHANNEL * max(channels) else ""


def has_hum(signal: Floats) -> bool:
    """Whether mains hum is louder than all else.

    Lines at 50 or 60 Hz and their first harmonics hold at least half of the power, the lowest of
    them alone a tenth. Speech has next to nothing there, whatever its pitch. `signal`: 16 kHz mono
    [samples]; less than a second has none.
    """
    # whole periods of hum, which are also lengths of a fast transform
    samples = min(len(signal), _HUM_LONGEST) // _HUM_LAG * _HUM_LAG
    if samples < SAMPLE_RATE_HZ:
        return False
    start = (len(signal) - samples) // 2
    middle = (len(signal) - _BLOCK - _HUM_LAG) // 2
    now, later = (signal[at : at + _BLOCK] for at in (middle, middle + _HUM_LAG))
    if np.dot(now, later) < 0.8 * _HUM_SHARE * np.dot(now, now):
        return False  # nearly every clip: its middle is not as it was 100 ms before
    part = signal[start : start + samples]
    # the mean of 16 samples keeps what is below 500 Hz, where the lines are
    spectrum = np.fft.rfft(part.reshape(-1, 16).mean(axis=1))
    power = 2 * np.square(np.abs(spectrum) * (16 / samples))

    def within(low_hz: float, high_hz: float) -> float:
        first, last = (round(hz * samples / SAMPLE_RATE_HZ) for hz in (low_hz, high_hz))
        return float(power[first : last + 1].sum())

    total = float(np.var(part))
    for mains_hz in (50, 60):
        around = (mains_hz * number for number in range(1, _HUM_LINES + 1))
        lines = [within(hz - _HUM_WIDTH_HZ, hz + _HUM_WIDTH_HZ) for hz in around]
        if sum(lines) >= _HUM_SHARE * total and lines[0] >= _HUM_FIRST_SHARE * total > 0:
            return True
    return False


def rms_db(signal: Floats) -> float:
    """Root mean square level: `10 log10(mean(x^2))`, at least -120.

    `signal`: samples, full scale is 1.0, shape (n,). Returns dB re full scale; NaN for a signal
    without samples.

    >>> rms_db(np.ones(4, np.float32))
    0.0
    """
    if not signal.size:
        return math.nan
    # float32 within a block, float64 between them: exact enough, and 10 times as fast as float64;
    # from 10,000 samples on, BLAS would start threads
    whole = signal.size // _BLOCK * _BLOCK
    blocks, rest = signal[:whole].reshape(-1, _BLOCK), signal[whole:]
    power = sum(map(float, (*np.vecdot(blocks, blocks), np.dot(rest, rest)))) / signal.size
    return max(10.0 * math.log10(power), FLOOR_DB) if power > 0.0 else FLOOR_DB


def is_silent(signal: Floats) -> bool:
    """Whether [samples] are digital silence, or empty."""
    return not len(signal) or float(max(signal.max(), -signal.min())) <= _SILENT
