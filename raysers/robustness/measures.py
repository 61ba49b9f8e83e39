"""How much scores change with a perturbation: share unchanged, size of the change, change of CCC.

The robustness score is the share of clips whose score changed by less than the threshold (Wagner et
al. 2022, section 3.4; strictly less). It says nothing about being right: a model that ignores its
input is perfectly robust, so it is read beside the CCC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.baseline import random_scores
from raysers.evaluation.bootstrap import (
    Bootstrap,
    draw_metrics,
    interval,
    pairs,
    resample,
    share_interval,
    units_of,
)
from raysers.evaluation.metrics import Floats, ccc, per_dimension
from raysers.evaluation.rows import NAN, Row
from raysers.evaluation.scores import Scores, Subset, subsets
from raysers.robustness import numbers as published
from raysers.robustness.changes import CLEAN, Change, Comparison, change_sums
from raysers.seeding import generator
from raysers.types import DIMENSIONS

#: Dimension of a row that is the mean of the three, and metric that is the mean of perturbations.
MEAN = "mean"
OVERALL = "robustness"


def robustness_rows(
    model: str, scores: Scores, changes: Sequence[Change], how: Comparison
) -> list[Row]:
    """Rows of the metrics table, for the model and for a random one.

    Metrics: `robustness_<perturbation>`, and `robustness` for the mean over small perturbations;
    `mean_change_...`, `p95_change_...` of the absolute change; `ccc_change_...` where there are
    labels. The dimension `mean` is over the three.

    Args:
        model: named in the rows.
        scores: labels (NaN: none) and, by version, predictions of all clips.
        changes: the perturbations among the versions.
        how: threshold and intervals.
    """
    random = random_predictions(scores, how.seed)
    rows: list[Row] = []
    for name, by_version in ((model, scores.predictions), (RANDOM, random)):
        compared = _as_truth(scores, by_version)
        for cell in subsets(compared, how.by):
            rows += _change_rows(name, compared, cell, changes, how)
    labelled = replace(scores, predictions={CLEAN: scores.predictions[CLEAN]})
    for cell in subsets(labelled, how.by):
        for change in changes:
            rows += _ccc_rows(model, scores, cell, change, how)
    small = {change.name for change in changes if change.small}
    found = {(row.dataset, row.split, row.metric) for row in rows if row.model == model}
    return [replace(row, paper=_paper(row, _names_in(row, found, small), how)) for row in rows]


def random_predictions(scores: Scores, seed: int) -> dict[str, Floats]:
    """Random scores: every version of a clip gets independent ones."""
    return {
        version: np.where(
            np.isfinite(predicted),
            random_scores([f"{clip}\0{version}" for clip in scores.clip_id], seed),
            np.nan,
        )
        for version, predicted in scores.predictions.items()
    }


def _as_truth(scores: Scores, predictions: Mapping[str, Floats]) -> Scores:
    """Scores whose labels are the clean predictions, so that unlabelled clips count as well."""
    truth = np.asarray(predictions[CLEAN], np.float64)
    return replace(scores, truth=truth, predictions=predictions)


def _change_rows(
    model: str, scores: Scores, cell: Subset, changes: Sequence[Change], how: Comparison
) -> Iterator[Row]:
    unit, units = units_of(scores, cell)
    sums = change_sums(scores, cell, changes, how, unit, units)
    total = sums.by_unit.sum(axis=0)
    drawn = resample(sums.by_unit, how.draws, generator(how.seed, *cell.key))
    counts = sums.clips
    there = sums.by_unit[:, 0] > 0
    small = np.array([c.small and c.against == CLEAN for c in changes])

    share, draws = _ratio(total[1], total[0]), _ratio(drawn[:, 1], drawn[:, 0])
    low, high = share_interval(share, draws, there.sum(axis=0), counts[:, None])
    for i, change in enumerate(changes):
        metric = f"{OVERALL}_{change.name}"
        yield from _rows(model, cell, metric, (share[i], low[i], high[i]), counts[i])
    if small.any():
        overall, over = _mean(share[small], 0), _mean(draws[:, small], 1)
        n = int(counts[small].max())
        units_there = there[:, small].any(axis=1).sum(axis=0)
        low, high = share_interval(overall, over, units_there, np.array(n))
        yield from _rows(model, cell, OVERALL, (overall, low, high), n)
    if model == RANDOM:
        return
    mean, draws = _ratio(total[2], total[0]), _ratio(drawn[:, 2], drawn[:, 0])
    low, high = interval(draws, there.sum(axis=0))
    none = np.full(len(DIMENSIONS) + 1, NAN)
    for i, change in enumerate(changes):
        values = mean[i], low[i], high[i]
        yield from _rows(model, cell, f"mean_change_{change.name}", values, counts[i])
        values = sums.p95[i], none, none
        yield from _rows(model, cell, f"p95_change_{change.name}", values, counts[i])


def _ccc_rows(
    model: str, scores: Scores, cell: Subset, change: Change, how: Comparison
) -> Iterator[Row]:
    """CCC of the perturbed clips less that of the same clips as they are."""
    before = scores.predictions[change.against]
    after = [scores.predictions[version] for version in change.versions]
    there = [np.isfinite(before) & np.isfinite(p) for p in after]
    both = [np.where(t, before, np.nan) for t in there]
    after = [np.where(t, p, np.nan) for t, p in zip(there, after, strict=True)]
    bootstrap = Bootstrap(draws=how.draws, seed=how.seed)
    drawn = draw_metrics(scores, cell, [*both, *after], bootstrap)["ccc"]
    truth = scores.truth[cell.rows]
    values = np.stack([per_dimension(ccc, truth, p[cell.rows]) for p in (*both, *after)])
    half = len(after)
    change_of = _mean(values[half:] - values[:half], 0)
    draws = _mean(drawn.values[:, half:] - drawn.values[:, :half], 1)
    low, high = interval(draws, drawn.units.max(axis=0))
    n = pairs(truth, after[0][cell.rows])
    for d, dimension in enumerate(DIMENSIONS):
        if n[d]:
            yield Row(
                model=model,
                dataset=cell.dataset,
                split=cell.split,
                group=cell.group,
                group_value=cell.group_value,
                dimension=dimension,
                metric=f"ccc_change_{change.name}",
                value=float(change_of[d]),
                ci_low=float(low[d]),
                ci_high=float(high[d]),
                n=int(n[d]),
            )


def _rows(
    model: str, cell: Subset, metric: str, values: tuple[Floats, Floats, Floats], n: int
) -> Iterator[Row]:
    for d, dimension in enumerate((*DIMENSIONS, MEAN)):
        if n:
            yield Row(
                model=model,
                dataset=cell.dataset,
                split=cell.split,
                group=cell.group,
                group_value=cell.group_value,
                dimension=dimension,
                metric=metric,
                value=float(values[0][d]),
                ci_low=float(values[1][d]),
                ci_high=float(values[2][d]),
                n=int(n),
            )


def _paper(row: Row, names: Collection[str], how: Comparison) -> float:
    """The paper's figure, where ours was made in the same way.

    Args:
        row: ours.
        names: the perturbations it is over.
        how: threshold and tone.
    """
    if row.model == RANDOM or row.group or not row.metric.startswith(OVERALL):
        return NAN
    if how.threshold != published.THRESHOLD:
        return NAN
    if how.tone_snr != "peak" and published.TONE in names:
        return NAN
    if row.metric == OVERALL and set(names) != published.of_the_paper():
        return NAN
    return published.paper(row.metric, row.dimension, row.model)


def _names_in(
    row: Row, found: Collection[tuple[str, str, str]], small: Collection[str]
) -> set[str]:
    """Perturbations a row is over: its own, or the small ones with a clip to compare."""
    if row.metric != OVERALL:
        return {row.metric.removeprefix(f"{OVERALL}_")}
    return {name for name in small if (row.dataset, row.split, f"{OVERALL}_{name}") in found}


def _ratio(upper: Floats, lower: Floats) -> Floats:
    out: Floats = np.full(np.shape(upper), np.nan)
    np.divide(upper, lower, out=out, where=lower > 0)
    return out


def _mean(values: Floats, axis: int) -> Floats:
    """Mean of what is defined; NaN where nothing is."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis))
