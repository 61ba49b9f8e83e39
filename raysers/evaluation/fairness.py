"""Fairness between the sexes, and CCC per speaker (Wagner et al. 2022, sections 3.4, 4.6, 4.7).

The paper prints Eq. 2 garbled; meant is by how much the model shifts women's values against men's:
(mean prediction - mean label of women) - (the same of men). 0 is fair for both figures.

CCC per speaker is by the paper's bootstrap, not the one of the intervals: equally many clips are
drawn for every speaker, so speakers with more clips are not measured more exactly. The paper takes
the speakers with more than 200 samples and draws 200 with replacement, 1000 times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from raysers.evaluation.bootstrap import (
    MOST_UNITS,
    OF_SUMS,
    Bootstrap,
    Draws,
    Integers,
    draw_metrics,
    interval,
    speakers_of,
    unit_sums,
)
from raysers.evaluation.correctness import agreement, main_subset
from raysers.evaluation.metrics import Floats, mean_error, pearson, per_dimension
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import Scores, Subset, base_subsets, group_subsets
from raysers.seeding import generator
from raysers.types import DIMENSIONS

GROUP_VALUE = "female - male"
#: Dataset and dimension of the mean over datasets and dimensions.
OVER_ALL, MEAN = "all", "mean"

#: Fairness figures: the difference, women minus men, of a metric (Eq. 1 and Eq. 2).
FAIRNESS: Mapping[str, tuple[str, Callable[[Floats, Floats], Floats]]] = {
    "sex_fairness_score": ("ccc", partial(agreement, "ccc")),
    "sex_fairness_bias": ("mean_error", partial(per_dimension, mean_error)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """Differences of one cell, their draws, and clips and speakers; [models, 3] each."""

    cell: Subset
    value: Mapping[str, Floats]
    drawn: Mapping[str, Draws]
    n: Integers
    speakers: Integers


def fairness_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """Score and bias of every model, dataset, split and dimension with clips of both sexes.

    Women and men are drawn independently. With several datasets there is also the mean over
    datasets (each by its main split) and dimensions, as the paper's section 4.6 reports it.
    """
    cells = base_subsets(scores)
    gaps = [gap for cell in cells if (gap := _gap(scores, cell, bootstrap)) is not None]
    rows = [row for gap in gaps for row in _gap_rows(scores, gap)]
    main = {gap.cell.dataset: main_subset(cells, gap.cell.dataset).key[:2] for gap in gaps}
    over = [gap for gap in gaps if gap.cell.key[:2] == main[gap.cell.dataset]]
    return rows + list(_mean_rows(scores, over) if len(over) > 1 else ())


def _gap(scores: Scores, cell: Subset, bootstrap: Bootstrap) -> _Gap | None:
    parts = {part.group_value: part for part in group_subsets(scores, cell, "sex")}
    if not {"female", "male"} <= set(parts):
        return None
    predictions = list(scores.predictions.values())
    sexes = [parts["female"], parts["male"]]
    women, men = (draw_metrics(scores, part, predictions, bootstrap) for part in sexes)
    there = [[np.isfinite(scores.truth + p)[s.rows] for p in predictions] for s in sexes]
    n = np.array([[one.sum(axis=0) for one in of] for of in there])
    known = np.array(
        [[speakers_of(scores, s, one) for one in of] for s, of in zip(sexes, there, strict=True)]
    )
    return _Gap(
        cell=Subset(
            dataset=cell.dataset,
            split=cell.split,
            group="sex",
            group_value=GROUP_VALUE,
            rows=np.concatenate([part.rows for part in sexes]),
        ),
        value={name: _difference(scores, sexes, metric) for name, (_, metric) in FAIRNESS.items()},
        drawn={name: women[of] - men[of] for name, (of, _) in FAIRNESS.items()},
        n=np.where(n.min(axis=0) > 0, n.sum(axis=0), 0),
        speakers=known.sum(axis=0),
    )


def _difference(
    scores: Scores, sexes: list[Subset], figure: Callable[[Floats, Floats], Floats]
) -> Floats:
    women, men = (
        np.array(
            [
                figure(scores.truth[part.rows], prediction[part.rows])
                for prediction in scores.predictions.values()
            ]
        )
        for part in sexes
    )
    return np.asarray(women - men, np.float64)


def _gap_rows(scores: Scores, gap: _Gap) -> Iterator[Row]:
    for name in FAIRNESS:
        low, high = gap.drawn[name].interval()
        for m, model in enumerate(scores.predictions):
            value, bounds = gap.value[name][m], (low[m], high[m])
            yield from dimension_rows(
                gap.cell, model, name, value, gap.n[m], bounds, speakers=gap.speakers[m]
            )


def _mean_rows(scores: Scores, gaps: list[_Gap]) -> Iterator[Row]:
    for name in FAIRNESS:
        for m, model in enumerate(scores.predictions):
            defined = [np.isfinite(gap.value[name][m]) for gap in gaps]
            kept = [
                (g, d) for g, there in zip(gaps, defined, strict=True) for d in range(3) if there[d]
            ]
            if not kept:
                continue
            drawn = np.mean([gap.drawn[name].values[:, m, d] for gap, d in kept], axis=0)
            low, high = interval(drawn, min(int(gap.drawn[name].units[m, d]) for gap, d in kept))
            yield Row(
                model=model,
                dataset=OVER_ALL,
                split="",
                group="sex",
                group_value=GROUP_VALUE,
                dimension=MEAN,
                metric=name,
                value=float(np.mean([gap.value[name][m, d] for gap, d in kept])),
                ci_low=float(low),
                ci_high=float(high),
                n=int(sum(gap.n[m, d] for gap, d in kept)),
                speakers=sum({id(gap): int(gap.speakers[m].max()) for gap, _ in kept}.values()),
            )


#: Clips drawn per speaker, and what a speaker must have more of; and how often they are drawn.
SAMPLES, REPEATS = 200, 1000
_FEWEST_RANKED = 3
#: Counts held at a time.
_CHUNK_COUNTS = 2_000_000


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
    for cell in base_subsets(scores):
        means = [
            row
            for part in group_subsets(scores, cell, "speaker")
            for row in _one_speaker(scores, part, samples, seed)
        ]
        rows += [*means, *_agreement(scores, means)]
    return rows


def _one_speaker(scores: Scores, part: Subset, samples: int, seed: int) -> Iterator[Row]:
    by_id = np.array(sorted(part.rows.tolist(), key=lambda i: scores.clip_id[i]))
    found: dict[tuple[str, int], tuple[Floats, int]] = {}
    for there, series in _complete(scores, by_id, samples):
        truth = scores.truth[there][:, [d for _, d in series]]
        scored = [scores.predictions[model][there, d] for model, d in series]
        drawn = _drawn_ccc(truth, np.stack(scored, axis=1), samples, generator(seed, *part.key))
        for one, column in zip(series, drawn.T, strict=True):
            found[one] = np.ascontiguousarray(column), len(there)
    for model in scores.predictions:
        for d in range(len(DIMENSIONS)):
            if (model, d) in found:
                yield from _speaker_figures(part, model, d, *found[model, d])


def _complete(
    scores: Scores, rows: NDArray[np.intp], samples: int
) -> Iterator[tuple[NDArray[np.intp], list[tuple[str, int]]]]:
    """Models and dimensions by the clips they have, where these are more than `samples`.

    Mostly all have the same clips, and then one draw serves them all.
    """
    series: dict[bytes, list[tuple[str, int]]] = {}
    labelled = np.isfinite(scores.truth[rows])
    for model, prediction in scores.predictions.items():
        there = labelled & np.isfinite(prediction[rows])
        for d in range(len(DIMENSIONS)):
            if np.count_nonzero(there[:, d]) > samples:
                series.setdefault(there[:, d].tobytes(), []).append((model, d))
    for mask, names in series.items():
        yield rows[np.frombuffer(mask, np.bool_)], names


def _speaker_figures(part: Subset, model: str, d: int, drawn: Floats, n: int) -> Iterator[Row]:
    low, high = interval(drawn, MOST_UNITS)  # undefined when many draws are
    kept = drawn[np.isfinite(drawn)] if np.isfinite(low) else np.full(1, np.nan)
    row = Row(
        model=model,
        dataset=part.dataset,
        split=part.split,
        group="speaker",
        group_value=part.group_value,
        dimension=DIMENSIONS[d],
        metric="speaker_ccc",
        value=float(kept.mean()),
        ci_low=float(low),
        ci_high=float(high),
        n=n,
        speakers=1,
    )
    yield row
    nan = float("nan")
    yield replace(row, metric="speaker_ccc_sd", value=float(kept.std()), ci_low=nan, ci_high=nan)


def _drawn_ccc(truth: Floats, prediction: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """CCC of every draw of `samples` clips, [n, k] and [n, k] -> [REPEATS, k]."""
    n, width = truth.shape
    each = unit_sums(truth, prediction, np.arange(n), n, truth[0]).reshape(n, -1)
    picked = rng.integers(0, n, size=(REPEATS, samples))
    at_once = max(1, _CHUNK_COUNTS // n)
    sums = [_summed(each, picked[i : i + at_once]) for i in range(0, REPEATS, at_once)]
    return OF_SUMS["ccc"](np.concatenate(sums).reshape(REPEATS, width, -1))


def _summed(each: Floats, picked: NDArray[np.int64]) -> Floats:
    """Sums of the picked rows, [n, m] and [k, samples] -> [k, m], as counts times rows."""
    draws, n = len(picked), len(each)
    flat = (picked + np.arange(draws)[:, None] * n).ravel()
    counts = np.bincount(flat, minlength=draws * n).reshape(draws, n)
    return np.asarray(counts.astype(np.float64) @ each, np.float64)


def _agreement(scores: Scores, rows: list[Row]) -> Iterator[Row]:
    means = _means(rows)
    for one, other in combinations(scores.predictions, 2):
        for dimension in DIMENSIONS:
            mine, theirs = (means.get((model, dimension), {}) for model in (one, other))
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


def _means(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Mean CCC by speaker, by model and dimension; only where it is defined."""
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric == "speaker_ccc" and np.isfinite(row.value):
            means.setdefault((row.model, row.dimension), {})[row.group_value] = row.value
    return means
