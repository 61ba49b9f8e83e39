"""How loud a clip is and how much of it is clipped.

Both numbers describe the decoded 16 kHz signal, so a clipped 44.1 kHz recording can show less
clipping here than in its file: resampling moves the samples off full scale.
"""

from __future__ import annotations

import math

import numpy as np

#: Level given to digital silence, the floor auglib uses as well.
FLOOR_DB = -120.0

#: Largest positive 16-bit sample less a rounding error of float32: what counts as full scale.
FULL_SCALE = 32767 / 32768 - 1e-6


def rms_db(signal: np.ndarray) -> float:
    """Root mean square level: `10 log10(mean(x^2))`, at least -120.

    Args:
        signal: samples, full scale is 1.0, any shape.

    Returns:
        dB re full scale; NaN for a signal without samples.

    >>> rms_db(np.ones(4, np.float32))
    0.0
    """
    if signal.size == 0:
        return math.nan
    x = signal.ravel()
    power = float(np.einsum("i,i->", x, x, dtype=np.float64)) / x.size
    return max(10.0 * math.log10(power), FLOOR_DB) if power > 0.0 else FLOOR_DB


def clipped_ratio(signal: np.ndarray) -> float:
    """Share of samples at full scale, where 16-bit audio clips: `|x| >= 32767/32768`.

    Args:
        signal: samples, full scale is 1.0, any shape.

    Returns:
        0..1; NaN for a signal without samples.

    >>> clipped_ratio(np.array([0.0, 0.5, -1.0, 32767 / 32768], np.float32))
    0.5
    """
    if signal.size == 0:
        return math.nan
    return int(np.count_nonzero(np.abs(signal) >= FULL_SCALE)) / signal.size
