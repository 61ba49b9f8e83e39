"""Differences between models on the same clips, by the same bootstrap draws.

Only the clips both models predicted count, and both see the same speakers in every draw: most of
what makes a draw easy or hard cancels, so a difference can be clear although intervals overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from raysers.evaluation.draws import Bootstrap, drawn_sums, pairs
from raysers.evaluation.intervals import interval
from raysers.evaluation.metrics import METRICS, Floats, per_dimension
from raysers.evaluation.moments import OF_SUMS
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import Scores, Subset, base_subsets


def comparison_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """First minus second for every two models, cell, metric and dimension.

    Metrics: `ccc_difference`, `pearson_difference`, `mae_difference` with their intervals, and
    `..._difference_above_0`: the share of draws in which the difference is above 0 (for `mae` less
    is better, so there a small share speaks for the first). `group` is "model" and `group_value`
    the second model.
    """
    return [
        row
        for cell in base_subsets(scores)
        for one, other in combinations(scores.predictions, 2)
        for row in _difference(scores, cell, one, other, bootstrap)
    ]


def _difference(
    scores: Scores, cell: Subset, one: str, other: str, bootstrap: Bootstrap
) -> Iterator[Row]:
    both = _on_common_clips(scores.predictions[one], scores.predictions[other])
    sums = drawn_sums(scores, cell, both, bootstrap)
    truth = scores.truth[cell.rows]
    n = pairs(truth, both[0][cell.rows])
    named = Subset(
        dataset=cell.dataset,
        split=cell.split,
        group="model",
        group_value=other,
        rows=cell.rows,
    )
    for name, metric in METRICS.items():
        first, second = (per_dimension(metric, truth, p[cell.rows]) for p in both)
        of_draws = OF_SUMS[name](sums)
        drawn = of_draws[:, 0] - of_draws[:, 1]
        what = f"{name}_difference"
        yield from dimension_rows(named, one, what, first - second, n, interval(drawn))
        yield from dimension_rows(named, one, f"{what}_above_0", _share_above_0(drawn), n)


def _on_common_clips(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    common = np.isfinite(one) & np.isfinite(other)
    return np.where(common, one, np.nan), np.where(common, other, np.nan)


def _share_above_0(drawn: Floats) -> Floats:
    """Of the defined draws, [draws, 3] -> [3]; NaN where there is none."""
    defined = np.isfinite(drawn).sum(axis=0)
    share: Floats = np.full(defined.shape, np.nan)
    np.divide((drawn > 0).sum(axis=0), defined, out=share, where=defined > 0)
    return share
