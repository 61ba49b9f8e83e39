"""What is left of a model's scores when a neutral voice says the same words (5.3, Figures 10c, 11).

A model that only listens to how things are said gives all re-spoken clips about the same score, so
its CCC with the labels is 0; what stays above 0 comes from the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.comparison import comparison_rows
from raysers.evaluation.draws import Bootstrap, drawn_sums, pairs
from raysers.evaluation.intervals import interval, resample, resampling_units
from raysers.evaluation.metrics import METRICS, Floats, mean_error, per_dimension
from raysers.evaluation.moments import OF_SUMS
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import Subset, base_subsets
from raysers.seeding import generator
from raysers.words.sentence_pairs import Pairs

GROUP = "speech"
ORIGINAL, RESPOKEN, LABELS = "original", "respoken", "labels"
DIFFERENCE, AGREEMENT = "respoken - original", "respoken, original"
#: Bins of the distributions: ten over the scale, the outer ones open.
_EDGES = np.arange(0.1, 0.95, 0.1)
_BINS = len(_EDGES) + 1


def respoken_rows(found: Pairs, bootstrap: Bootstrap | None = None) -> list[Row]:
    """Figures of every model, cell and dimension with 95 % intervals, by `group` "speech".

    `group_value` says of what: "original" and "respoken" have `ccc`, `pearson`, `mae` with the
    labels, `mean` and `sd` ("labels" has the last two as well); "respoken - original" has
    `ccc_difference` and `mean_shift`; "respoken, original" compares the two scores of a clip by
    `ccc` and their distributions by `js_distance` (Jensen-Shannon, base 2, 0..1, ten bins). Two
    models' re-spoken scores are compared by `group` "model": `respoken_ccc_difference` and so on.

    Args:
        found: labels and scores.
        bootstrap: draws and seed; speakers of the originals are drawn.
    """
    how = bootstrap or Bootstrap()
    rows: list[Row] = []
    for cell in base_subsets(found.scores(found.respoken, _anything(found))):
        for model in found.original:
            rows += _against_labels(found, cell, model, how)
            rows += _against_original(found, cell, model, how)
            rows += _distributions(found, cell, model, how)
    compared = comparison_rows(found.scores(found.respoken), how) if len(found.respoken) > 1 else []
    return rows + [replace(row, metric=f"respoken_{row.metric}") for row in compared]


def jensen_shannon(one: Floats, other: Floats) -> Floats:
    """Jensen-Shannon distance of counts over the last axis, base 2: [..., k] twice -> [...].

    0: the same distribution; 1: nothing in common; NaN where one side counts nothing.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p = one / one.sum(axis=-1, keepdims=True)
        q = other / other.sum(axis=-1, keepdims=True)
        middle = (p + q) / 2
        halves = [np.where(x > 0, x * np.log2(x / middle), 0.0).sum(axis=-1) for x in (p, q)]
        divergence = (halves[0] + halves[1]) / 2
    empty = (one.sum(axis=-1) == 0) | (other.sum(axis=-1) == 0)
    return np.asarray(np.where(empty, np.nan, np.sqrt(np.clip(divergence, 0, 1))), np.float64)


def histogram(values: Floats) -> Floats:
    """One-hot bins of every value, [n, 3] -> [n, 3, 10]; nothing for NaN."""
    place = np.searchsorted(_EDGES, values, side="right")
    bins = (place[..., None] == np.arange(_BINS)) & np.isfinite(values)[..., None]
    return np.asarray(bins, np.float64)


def _anything(found: Pairs) -> Floats:
    """Zeros where any model has scores: a clip need not have a label to be compared."""
    return np.zeros(found.truth.shape)


def _part(cell: Subset, value: str) -> Subset:
    return replace(cell, group=GROUP, group_value=value)


def _against_labels(found: Pairs, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    both = {ORIGINAL: found.original[model], RESPOKEN: found.respoken[model]}
    sums = drawn_sums(found.scores(both), cell, list(both.values()), how)
    truth = found.truth[cell.rows]
    n = pairs(truth, both[RESPOKEN][cell.rows])
    for metric, function in METRICS.items():
        drawn = OF_SUMS[metric](sums)
        values = [per_dimension(function, truth, side[cell.rows]) for side in both.values()]
        low, high = interval(drawn)
        for s, name in enumerate(both):
            bounds = low[s], high[s]
            yield from dimension_rows(_part(cell, name), model, metric, values[s], n, bounds)
        if metric == "ccc":
            lost, bounds = values[1] - values[0], interval(drawn[:, 1] - drawn[:, 0])
            where = _part(cell, DIFFERENCE)
            yield from dimension_rows(where, model, "ccc_difference", lost, n, bounds)


def _against_original(found: Pairs, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    """The first score of a clip takes the place of its label."""
    before, after = found.original[model], found.respoken[model]
    sums = drawn_sums(found.scores({model: after}, before), cell, [after], how)
    mine = before[cell.rows], after[cell.rows]
    n = pairs(*mine)
    for value, metric, of, function in (
        (AGREEMENT, "ccc", "ccc", METRICS["ccc"]),
        (DIFFERENCE, "mean_shift", "mean_error", mean_error),
    ):
        bounds = interval(OF_SUMS[of](sums)[:, 0])
        found_value = per_dimension(function, *mine)
        yield from dimension_rows(_part(cell, value), model, metric, found_value, n, bounds)


def _distributions(found: Pairs, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    sides = {
        LABELS: np.where(np.isfinite(found.original[model]), found.truth, np.nan)[cell.rows],
        ORIGINAL: found.original[model][cell.rows],
        RESPOKEN: found.respoken[model][cell.rows],
    }
    columns = np.stack([_columns(values) for values in sides.values()], axis=1)
    unit, units = _units(found, cell)
    sums = np.zeros((units, *columns.shape[1:]))
    np.add.at(sums, unit, columns)
    drawn = resample(sums, how.draws, generator(how.seed, *cell.key))
    whole = columns.sum(axis=0)
    for name, function in _OF_COLUMNS.items():
        low, high = interval(function(drawn))
        for s, side in enumerate(sides):
            n = whole[s, :, 0].astype(np.int64)
            value = function(whole)[s]
            bounds = low[s], high[s]
            yield from dimension_rows(_part(cell, side), model, name, value, n, bounds)
    distance = jensen_shannon(whole[1, :, 3:], whole[2, :, 3:])
    bounds = interval(jensen_shannon(drawn[:, 1, :, 3:], drawn[:, 2, :, 3:]))
    n = whole[2, :, 0].astype(np.int64)
    yield from dimension_rows(_part(cell, AGREEMENT), model, "js_distance", distance, n, bounds)


def _units(found: Pairs, cell: Subset) -> tuple[NDArray[np.intp], int]:
    rows = cell.rows.tolist()
    speakers = found.columns.get("speaker") or [None] * len(found.clip_id)
    return resampling_units([speakers[i] for i in rows], [found.clip_id[i] for i in rows])


def _columns(values: Floats) -> Floats:
    """Presence, value, square and bins, [n, 3] -> [n, 3, 3 + 10]; values about .5."""
    there = np.isfinite(values)
    near = np.where(there, values - 0.5, 0.0)
    parts = [there[..., None].astype(np.float64), near[..., None], (near**2)[..., None]]
    return np.concatenate([*parts, histogram(values)], axis=-1)


def _mean(columns: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(columns[..., 1] / columns[..., 0] + 0.5, np.float64)


def _sd(columns: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        square = columns[..., 2] / columns[..., 0] - (columns[..., 1] / columns[..., 0]) ** 2
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float64)


#: Figures of a distribution as functions of `_columns`' sums; `sd` is the population's.
_OF_COLUMNS: Mapping[str, Callable[[Floats], Floats]] = {"mean": _mean, "sd": _sd}
