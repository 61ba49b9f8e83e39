"""95 % intervals by the bootstrap: speakers are drawn with replacement, with all their clips.

Clips of one speaker are not independent, so drawing clips would make the intervals too narrow. A
draw depends on the seed and the names of what is drawn, never on the order of the rows, so two
models see the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.metrics import Floats

#: Bounds of the intervals: the middle 95 % of the draws.
PERCENTILES = (2.5, 97.5)
#: With more undefined draws than this an interval would describe the rest only.
_MOST_UNDEFINED = 0.05
#: Counts held at a time: bounds the memory, and fixes how the generator is read.
_CHUNK_COUNTS = 2_000_000


def resampling_units(
    speakers: Sequence[str | None], clip_ids: Sequence[str]
) -> tuple[NDArray[np.intp], int]:
    """Which unit is drawn with each clip, [n], and how many units there are.

    A unit is a speaker. A clip of an unknown speaker is a unit by itself, and so is every clip
    when there are not two speakers to choose from.
    """
    known = {speaker for speaker in speakers if speaker}
    apart = len(known) < 2
    names = [
        (0, clip) if apart or not speaker else (1, speaker)
        for speaker, clip in zip(speakers, clip_ids, strict=True)
    ]
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], np.intp), len(number)


def resample(sums: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Sums of `draws` samples of the units with replacement, [units, ...] -> [draws, ...].

    Every draw takes as many units as there are.
    """
    flat = sums.reshape(len(sums), -1)
    drawn = [counts @ flat for counts in _counts(len(sums), draws, rng)]
    return np.concatenate([np.empty((0, flat.shape[1])), *drawn]).reshape(draws, *sums.shape[1:])


def _counts(units: int, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each unit is in each draw, [some draws, units], until all `draws` are done."""
    at_once = max(1, _CHUNK_COUNTS // max(units, 1))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        picked = rng.integers(0, units, size=(rows, units))
        picked += np.arange(rows)[:, None] * units
        counts = np.bincount(picked.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units).astype(np.float64)


def interval(draws: Floats) -> tuple[Floats, Floats]:
    """Lower and upper bound over the first axis, [k, ...] -> [...] twice.

    Undefined draws (NaN) are left out; the bounds are NaN with more than 5 % of them, and with
    no draws at all.
    """
    draws = np.asarray(draws, np.float64)
    if not len(draws):
        return np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    undefined = np.isnan(draws).mean(axis=0)
    usable = undefined <= _MOST_UNDEFINED
    filled = np.where(usable, draws, 0.0)
    # the same where nothing is undefined, and many times faster
    percentile = np.nanpercentile if np.isnan(filled).any() else np.percentile
    low, high = percentile(filled, PERCENTILES, axis=0)
    return np.where(usable, low, np.nan), np.where(usable, high, np.nan)
