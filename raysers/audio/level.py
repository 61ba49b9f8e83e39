"""How loud a clip is, how much of it is clipped, and where it is quiet.

All values describe the decoded 16 kHz signal, so a clipped 44.1 kHz recording can show less
clipping here than in its file: resampling moves the samples off full scale.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]

#: Level given to digital silence, the floor auglib uses as well.
FLOOR_DB = -120.0

#: Largest positive 16-bit sample less a rounding error of float32: what counts as full scale.
FULL_SCALE = 32767 / 32768 - 1e-6

#: No sample above this (-80 dB re full scale): digital silence and its rounding noise.
_SILENT = 1e-4

#: Length of the quiet stretch a long clip is cut in, and the step of the search for it, seconds.
_PAUSE_S = 0.2
_STEP_S = 0.02

#: Squares are summed in float32 over so many samples.
_BLOCK = 1 << 13


class Levels(NamedTuple):
    """Level of a signal; NaN for a signal without samples.

    Attributes:
        rms_db: root mean square level, dB re full scale, at least -120.
        peak: largest absolute sample, full scale is 1.0.
        clipped_ratio: share of samples at full scale of 16-bit audio, 0..1.
    """

    rms_db: float
    peak: float
    clipped_ratio: float


def levels(signal: Floats) -> Levels:
    """RMS level, peak and clipping of a clip, without a copy of it.

    Args:
        signal: samples, full scale is 1.0, shape (n,).

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


def rms_db(signal: Floats) -> float:
    """Root mean square level: `10 log10(mean(x^2))`, at least -120.

    Args:
        signal: samples, full scale is 1.0, shape (n,).

    Returns:
        dB re full scale; NaN for a signal without samples.

    >>> rms_db(np.ones(4, np.float32))
    0.0
    """
    if not signal.size:
        return math.nan
    # float32 within a block, float64 between them: exact enough, and 10 times as fast as float64;
    # from 10,000 samples on, BLAS would start threads
    blocks = (signal[at : at + _BLOCK] for at in range(0, signal.size, _BLOCK))
    power = sum(float(np.dot(block, block)) for block in blocks) / signal.size
    return max(10.0 * math.log10(power), FLOOR_DB) if power > 0.0 else FLOOR_DB


def is_silent(signal: Floats) -> bool:
    """Whether [samples] are digital silence, or empty."""
    return not len(signal) or float(max(signal.max(), -signal.min())) <= _SILENT


def quiet_pieces(signal: Floats, *, longest_s: float, search_s: float) -> list[Floats]:
    """A clip in consecutive pieces of at most `longest_s`, each but the last cut in a pause.

    The cut depends on the clip alone. Pieces neither overlap nor leave anything out, so that the
    texts of the pieces are the text of the clip.

    Args:
        signal: 16 kHz mono [samples].
        longest_s: longest piece, seconds.
        search_s: the cut is within the last so many seconds of a piece that would be too long.

    Returns:
        Views of the signal, in order; the signal itself when it is short enough.
    """
    longest, search = round(longest_s * SAMPLE_RATE_HZ), round(search_s * SAMPLE_RATE_HZ)
    pieces = []
    while len(signal) > longest:
        cut = longest - search + _quietest(signal[longest - search : longest])
        pieces.append(signal[:cut])
        signal = signal[cut:]
    return [*pieces, signal]


def _quietest(stretch: Floats) -> int:
    """Middle of the stretch's quietest fifth of a second, in samples; of equal ones the last."""
    step, width = round(_STEP_S * SAMPLE_RATE_HZ), round(_PAUSE_S / _STEP_S)
    steps = len(stretch) // step
    energy = np.square(stretch[: steps * step].astype(np.float64)).reshape(steps, step).sum(1)
    sums = np.convolve(energy, np.ones(width), mode="valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return (2 * last + width) * step // 2
