"""Correctness (Wagner et al. 2022, sections 3.4, 4.1, 4.2): CCC, Pearson, MAE and relative drop.

Every value is computed from the clips themselves; only its interval comes from the bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from raysers.evaluation.draws import Bootstrap, drawn_counts, drawn_sums, pairs
from raysers.evaluation.intervals import interval
from raysers.evaluation.metrics import METRICS, Floats, ccc, per_dimension, ratio
from raysers.evaluation.moments import OF_SUMS
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import ALL, Scores, Subset, base_subsets, subsets

#: Metric of the intervals that a model states, and how many deviations one reaches to each side.
COVERAGE, _Z_90 = "coverage_90", 1.645
#: Splits a dataset is known by in comparisons of datasets, the first that is there.
_MAIN_SPLITS = ("test1", "test", ALL)


def correctness_rows(
    scores: Scores, *, by: Sequence[str] = (), draws: int = 1000, seed: int = 0
) -> list[Row]:
    """CCC, Pearson and MAE of every model, cell and dimension, with 95 % intervals.

    Of models that state how far their scores spread also `coverage_90`: the share of labels within
    1.645 standard deviations of the score, .9 where these are right.

    Args:
        scores: labels and predictions.
        by: columns whose values get rows of their own, beside those over all clips.
        draws: bootstrap draws; 0 leaves the intervals undefined.
        seed: of the draws.
    """
    bootstrap = Bootstrap(draws=draws, seed=seed)
    return [row for cell in subsets(scores, by) for row in _cell_rows(scores, cell, bootstrap)]


def _cell_rows(scores: Scores, cell: Subset, bootstrap: Bootstrap) -> Iterator[Row]:
    sums = drawn_sums(scores, cell, list(scores.predictions.values()), bootstrap)
    truth = scores.truth[cell.rows]
    bounds = {name: interval(OF_SUMS[name](sums)) for name in METRICS}
    for m, (model, prediction) in enumerate(scores.predictions.items()):
        mine = prediction[cell.rows]
        for name, metric in METRICS.items():
            low, high = bounds[name]
            value = per_dimension(metric, truth, mine)
            n = pairs(truth, mine)
            yield from dimension_rows(cell, model, name, value, n, (low[m], high[m]))
        if model in scores.deviations:
            yield from _coverage_rows(scores, cell, model, bootstrap)


def _coverage_rows(scores: Scores, cell: Subset, model: str, bootstrap: Bootstrap) -> Iterator[Row]:
    """Share of labels within the 90 % interval that the model states for its scores."""
    reach = _Z_90 * scores.deviations[model][cell.rows]
    error = np.abs(scores.predictions[model] - scores.truth)[cell.rows]
    there = np.isfinite(error) & np.isfinite(reach)
    each = np.hstack([there & (error <= reach), there]).astype(np.float64)

    def share(sums: Floats) -> Floats:
        within, n = np.split(sums, 2, axis=-1)
        return ratio(within, n, n > 0)

    bounds = interval(share(drawn_counts(scores, cell, each, bootstrap)))
    n = there.sum(axis=0)
    yield from dimension_rows(cell, model, COVERAGE, share(each.sum(axis=0)), n, bounds)


def main_subset(cells: Sequence[Subset], dataset: str) -> Subset:
    """The cell a dataset is compared by: its (first) test split, else all of it, else the first."""
    own = {cell.split: cell for cell in cells if cell.dataset == dataset}
    return next((own[split] for split in _MAIN_SPLITS if split in own), next(iter(own.values())))


def drop_rows(scores: Scores, in_domain: str, bootstrap: Bootstrap) -> list[Row]:
    """Relative loss of CCC from the dataset `in_domain` to each other one (section 4.2).

    (CCC in domain - CCC elsewhere) / CCC in domain, per model and dimension; 0.2 is a fifth lost.
    Undefined where the CCC in domain is not above 0. The datasets are drawn independently.
    """
    cells = base_subsets(scores)
    home = main_subset(cells, in_domain)
    predictions = list(scores.predictions.values())
    others = [main_subset(cells, name) for name in dict.fromkeys(cell.dataset for cell in cells)]
    drawn = {
        cell.dataset: OF_SUMS["ccc"](drawn_sums(scores, cell, predictions, bootstrap))
        for cell in others
    }
    rows: list[Row] = []
    for cell in others:
        if cell.dataset == in_domain:
            continue
        named = Subset(
            dataset=cell.dataset,
            split=cell.split,
            group="dataset",
            group_value=f"{home.dataset} {home.split}",
            rows=cell.rows,
        )
        low, high = interval(_drop(drawn[in_domain], drawn[cell.dataset]))
        for m, (model, prediction) in enumerate(scores.predictions.items()):
            inside, outside = _ccc(scores, home, prediction), _ccc(scores, cell, prediction)
            n = pairs(scores.truth[cell.rows], prediction[cell.rows])
            n = np.where(np.isfinite(inside), n, 0)
            bounds = low[m], high[m]
            rows += dimension_rows(named, model, "ccc_drop", _drop(inside, outside), n, bounds)
    return rows


def _ccc(scores: Scores, cell: Subset, prediction: Floats) -> Floats:
    return per_dimension(ccc, scores.truth[cell.rows], prediction[cell.rows])


def _drop(inside: Floats, outside: Floats) -> Floats:
    drop: Floats = np.full(inside.shape, np.nan)
    np.divide(inside - outside, inside, out=drop, where=inside > 0)
    return drop
