"""Bootstrap draws of a cell for all models at once.

The generator is named by the cell, so every model, metric and comparison of a cell sees the same
draws, and two cells (women, men) independent ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.intervals import resample, resampling_units
from raysers.evaluation.metrics import Floats
from raysers.evaluation.moments import unit_sums
from raysers.evaluation.scores import Scores, Subset
from raysers.seeding import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How often to draw (0: no intervals), and the seed of the draws."""

    draws: int = 1000
    seed: int = 0


def drawn_sums(
    scores: Scores, cell: Subset, predictions: Sequence[Floats], bootstrap: Bootstrap
) -> Floats:
    """Sums of every draw, [draws, len(predictions), 3, len(moments.COLUMNS)].

    Args:
        scores: the clips the cell is of.
        cell: which of them.
        predictions: arrays [n, 3] of all clips; NaN leaves a clip out.
        bootstrap: number of draws, and seed.
    """
    unit, units = _drawn_units(scores, cell)
    truth = scores.truth[cell.rows]
    offset = mean_label(truth)
    sums = [unit_sums(truth, p[cell.rows], unit, units, offset) for p in predictions]
    rng = generator(bootstrap.seed, *cell.key)
    return resample(np.stack(sums, axis=1), bootstrap.draws, rng)


def drawn_counts(scores: Scores, cell: Subset, each: Floats, bootstrap: Bootstrap) -> Floats:
    """Sums of every draw over what each clip of the cell counts, [clips, k] -> [draws, k]."""
    unit, units = _drawn_units(scores, cell)
    sums = np.zeros((units, each.shape[1]))
    np.add.at(sums, unit, each)
    return resample(sums, bootstrap.draws, generator(bootstrap.seed, *cell.key))


def _drawn_units(scores: Scores, cell: Subset) -> tuple[NDArray[np.intp], int]:
    rows, speakers = cell.rows.tolist(), scores.column("speaker")
    return resampling_units([speakers[i] for i in rows], [scores.clip_id[i] for i in rows])


def mean_label(truth: Floats) -> Floats:
    """Mean of the labels that are there, [n, 3] -> [3]; 0 where there is none."""
    there = np.isfinite(truth)
    total: Floats = np.where(there, truth, 0.0).sum(axis=0)
    return np.asarray(total / np.maximum(there.sum(axis=0), 1), np.float64)


def known_speakers(scores: Scores, cell: Subset) -> int:
    """How many speakers of the cell are known; with fewer than two, clips are drawn."""
    speakers = scores.column("speaker")
    return len({speakers[i] for i in cell.rows.tolist()} - {""})


def pairs(truth: Floats, prediction: Floats) -> NDArray[np.int64]:
    """How many clips have both label and prediction, [n, 3] and [n, 3] -> [3]."""
    both = np.isfinite(truth) & np.isfinite(prediction)
    return np.asarray(both.sum(axis=0), np.int64)
