"""Correctness (Wagner et al. 2022, sections 3.4, 4.1, 4.2): CCC, Pearson, MAE and relative drop.

Every value is computed from the clips themselves; only its interval comes from the bootstrap.
Differences between models are on the clips both predicted, and both see the same speakers in every
draw: most of what makes a draw easy or hard cancels, so a difference can be clear although the
models' intervals overlap.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from raysers.evaluation.bootstrap import (
    MOST_NAMED,
    Bootstrap,
    Draws,
    draw,
    draw_metrics,
    pairs,
    share_interval,
    speakers_of,
    sum_by_unit,
    units_of,
)
from raysers.evaluation.metrics import METRICS, Floats, per_dimension, ratio
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import ALL, Scores, Subset, base_subsets, subsets
from raysers.types import DIMENSIONS

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
    drawn = draw_metrics(scores, cell, list(scores.predictions.values()), bootstrap)
    truth = scores.truth[cell.rows]
    bounds = {name: drawn[name].interval() for name in METRICS}
    for m, (model, prediction) in enumerate(scores.predictions.items()):
        mine = prediction[cell.rows]
        n, speakers = pairs(truth, mine), speakers_of(scores, cell, np.isfinite(truth + mine))
        for name in METRICS:
            low, high = bounds[name][0][m], bounds[name][1][m]
            value = agreement(name, truth, mine)
            low, high = (np.where(np.isfinite(value), bound, np.nan) for bound in (low, high))
            yield from dimension_rows(cell, model, name, value, n, (low, high), speakers=speakers)
        if model in scores.deviations:
            yield from _coverage_rows(scores, cell, model, bootstrap)


def agreement(metric: str, truth: Floats, prediction: Floats) -> Floats:
    """A metric of `METRICS` of every dimension, [n, 3] and [n, 3] -> [3].

    No CCC of constant labels, which would be 0 whatever the model predicts.
    """
    value = per_dimension(METRICS[metric], truth, prediction)
    if metric != "ccc":
        return value
    labels = np.where(np.isfinite(truth + prediction), truth, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no label at all
        varies = np.nanmax(labels, axis=0) > np.nanmin(labels, axis=0)
    return np.where(varies, value, np.nan)


def constant_notes(scores: Scores, cells: Sequence[Subset]) -> Iterator[str]:
    """Cells whose labels of a dimension are all the same."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for d, dimension in enumerate(DIMENSIONS):
            labels = scores.truth[cell.rows, d]
            labels = labels[np.isfinite(labels)]
            if len(labels) > 1 and np.ptp(labels) == 0:
                name = f"{cell.dataset} {cell.split}" + f", {cell.group_value}" * bool(cell.group)
                found.setdefault(dimension, []).append(name)
    for dimension, names in found.items():
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        named = ", ".join(names[:MOST_NAMED])
        yield f"{named}{more}: no CCC of {dimension}, all its labels are the same"


def _coverage_rows(scores: Scores, cell: Subset, model: str, bootstrap: Bootstrap) -> Iterator[Row]:
    """Share of labels within the 90 % interval that the model states for its scores."""
    reach = _Z_90 * scores.deviations[model][cell.rows]
    error = np.abs(scores.predictions[model] - scores.truth)[cell.rows]
    there = np.isfinite(error) & np.isfinite(reach)
    sums = sum_by_unit(
        np.hstack([there & (error <= reach), there]).astype(np.float64), *units_of(scores, cell)
    )

    def share(sums: Floats) -> Floats:
        within, n = np.split(sums, 2, axis=-1)
        return ratio(within, n, n > 0)

    drawn = draw(share, sums, sums[:, 3:] > 0, bootstrap, *cell.key)
    value, n = share(sums.sum(axis=0)), there.sum(axis=0)
    bounds = share_interval(value, drawn.values, drawn.units, n)
    speakers = speakers_of(scores, cell, there)
    yield from dimension_rows(cell, model, COVERAGE, value, n, bounds, speakers=speakers)


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
    first, second = scores.predictions[one], scores.predictions[other]
    common = np.isfinite(first) & np.isfinite(second)
    both = [np.where(common, p, np.nan) for p in (first, second)]
    truth = scores.truth[cell.rows]
    n = pairs(truth, both[0][cell.rows])
    speakers = speakers_of(scores, cell, np.isfinite(truth + both[0][cell.rows]))
    named = replace(cell, group="model", group_value=other)
    drawn = draw_metrics(scores, cell, both, bootstrap)
    for name in METRICS:
        value = np.subtract(*(agreement(name, truth, p[cell.rows]) for p in both))
        values, units = drawn[name].values, drawn[name].units
        change = Draws(values[:, 0] - values[:, 1], units[0])
        defined = np.isfinite(change.values).sum(axis=0)
        above = ratio((change.values > 0).sum(axis=0).astype(float), defined, defined > 0)
        what = f"{name}_difference"
        yield from dimension_rows(named, one, what, value, n, change.interval(), speakers=speakers)
        yield from dimension_rows(named, one, f"{what}_above_0", above, n, speakers=speakers)


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
    at_home = draw_metrics(scores, home, predictions, bootstrap)["ccc"]
    rows: list[Row] = []
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        if dataset == in_domain:
            continue
        cell = main_subset(cells, dataset)
        named = replace(cell, group="dataset", group_value=f"{home.dataset} {home.split}")
        away = draw_metrics(scores, cell, predictions, bootstrap)["ccc"]
        units = np.minimum(at_home.units, away.units)
        low, high = Draws(_drop(at_home.values, away.values), units).interval()
        for m, (model, prediction) in enumerate(scores.predictions.items()):
            inside, outside = (
                agreement("ccc", scores.truth[c.rows], prediction[c.rows]) for c in (home, cell)
            )
            truth, mine = scores.truth[cell.rows], prediction[cell.rows]
            n = np.where(np.isfinite(inside), pairs(truth, mine), 0)
            speakers = speakers_of(scores, cell, np.isfinite(truth + mine))
            rows += dimension_rows(
                named,
                model,
                "ccc_drop",
                _drop(inside, outside),
                n,
                (low[m], high[m]),
                speakers=speakers,
            )
    return rows


def _drop(inside: Floats, outside: Floats) -> Floats:
    return ratio(inside - outside, inside, inside > 0)
