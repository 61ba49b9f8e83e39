"""Cuts a long clip where nobody speaks, for models that hear only so many seconds at a time.

Where it is cut depends on the clip alone. Pieces neither overlap nor leave anything out, so their
texts are joined by a blank and no word is said twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysers.types import SAMPLE_RATE_HZ

#: No sample above this (-80 dB re full scale): whatever a model would make of it, nobody speaks.
_SILENT = 1e-4

#: A pause must be quiet for so long, and may be found this often.
_PAUSE_S = 0.2
_STEP_S = 0.02


def is_silent(signal: npt.NDArray[np.float32]) -> bool:
    """Whether there is nothing to hear in [samples], digital silence and its rounding noise."""
    return not len(signal) or float(np.abs(signal).max()) <= _SILENT


def quiet_pieces(
    signal: npt.NDArray[np.float32], *, longest_s: float, search_s: float
) -> list[npt.NDArray[np.float32]]:
    """The clip in pieces of at most `longest_s`, each but the last cut at its quietest late moment.

    Args:
        signal: 16 kHz mono [samples].
        longest_s: longest piece, in seconds.
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


def _quietest(stretch: npt.NDArray[np.float32]) -> int:
    """Middle of the stretch's quietest fifth of a second, in samples; of equal ones the last."""
    step, width = round(_STEP_S * SAMPLE_RATE_HZ), round(_PAUSE_S / _STEP_S)
    steps = len(stretch) // step
    energy = np.square(stretch[: steps * step].astype(np.float64)).reshape(steps, step).sum(1)
    sums = np.convolve(energy, np.ones(width), mode="valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return (2 * last + width) * step // 2
