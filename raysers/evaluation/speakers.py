"""CCC per speaker and whether models agree on who is hard (Wagner et al. 2022, section 4.7).

The paper's bootstrap, not the one of the intervals: equally many clips are drawn for every speaker,
so speakers with more clips are not measured more exactly. The paper takes the speakers with more
than 200 samples and draws 200 with replacement, 1000 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from raysers.evaluation.clips import Cell, Scores, base_cells, group_cells
from raysers.evaluation.intervals import generator, interval
from raysers.evaluation.metrics import Floats, pearson
from raysers.evaluation.moments import OF_SUMS, unit_sums
from raysers.evaluation.rows import Row
from raysers.types import DIMENSIONS

#: Clips drawn per speaker, and what a speaker must have more of; and how often they are drawn.
SAMPLES, REPEATS = 200, 1000
_FEWEST_RANKED = 3


def speaker_rows(scores: Scores, *, samples: int = SAMPLES, seed: int = 0) -> list[Row]:
    """Mean and standard deviation of CCC per model, speaker and dimension, and rank agreement.

    Metrics: `speaker_ccc` (mean over the draws, with their middle 95 %), `speaker_ccc_sd`, and for
    two models `speaker_spearman`: Spearman's rank correlation of the speakers' means, `n` speakers.

    Args:
        scores: labels and predictions; `speaker` known.
        samples: clips to draw per speaker, who must have more than that.
        seed: of the draws.
    """
    rows: list[Row] = []
    for cell in base_cells(scores):
        means = [
            row
            for part in group_cells(scores, cell, "speaker")
            for row in _one_speaker(scores, part, samples, seed)
        ]
        rows += [*means, *_agreement(scores, means)]
    return rows


def _one_speaker(scores: Scores, part: Cell, samples: int, seed: int) -> Iterator[Row]:
    by_id = np.array(sorted(part.rows.tolist(), key=lambda i: scores.clip_id[i]))
    for model, prediction in scores.predictions.items():
        for d, dimension in enumerate(DIMENSIONS):
            y, x = scores.truth[by_id, d], prediction[by_id, d]
            there = np.isfinite(y) & np.isfinite(x)
            n = int(there.sum())
            if n <= samples:
                continue
            drawn = _drawn_ccc(y[there], x[there], samples, generator(seed, *part.key))
            low, high = interval(drawn)  # undefined when many draws are
            kept = drawn[np.isfinite(drawn)] if np.isfinite(low) else np.full(1, np.nan)
            row = Row(
                model=model,
                dataset=part.dataset,
                split=part.split,
                group="speaker",
                group_value=part.group_value,
                dimension=dimension,
                metric="speaker_ccc",
                value=float(kept.mean()),
                ci_low=float(low),
                ci_high=float(high),
                n=n,
            )
            yield row
            nan = float("nan")
            sd = float(kept.std())
            yield replace(row, metric="speaker_ccc_sd", value=sd, ci_low=nan, ci_high=nan)


def _drawn_ccc(truth: Floats, prediction: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """CCC of every draw of `samples` clips, [n] and [n] -> [REPEATS]."""
    n = len(truth)
    each = unit_sums(truth[:, None], prediction[:, None], np.arange(n), n, truth[:1])
    picked = rng.integers(0, n, size=(REPEATS, samples))
    return OF_SUMS["ccc"](each[picked, 0].sum(axis=1))


def _agreement(scores: Scores, rows: list[Row]) -> Iterator[Row]:
    for one, other in combinations(scores.predictions, 2):
        for dimension in DIMENSIONS:
            mine, theirs = (_means(rows, model, dimension) for model in (one, other))
            both = sorted(set(mine) & set(theirs))
            if len(both) < _FEWEST_RANKED:
                continue
            ranks = [rankdata([of[name] for name in both]) for of in (mine, theirs)]
            yield Row(
                model=one,
                dataset=rows[0].dataset,
                split=rows[0].split,
                group="model",
                group_value=other,
                dimension=dimension,
                metric="speaker_spearman",
                value=pearson(*ranks),
                n=len(both),
            )


def _means(rows: list[Row], model: str, dimension: str) -> dict[str, float]:
    return {
        row.group_value: row.value
        for row in rows
        if (row.metric, row.model, row.dimension) == ("speaker_ccc", model, dimension)
        and np.isfinite(row.value)
    }
