"""Fairness between the sexes, and CCC per speaker (Wagner et al. 2022, sections 3.4, 4.6, 4.7).

The paper prints Eq. 2 garbled; meant is by how much the model shifts women's values against men's:
(mean prediction - mean label of women) - (the same of men). 0 is fair for both figures.

CCC per speaker is by the paper's bootstrap, not the one of the intervals: equally many clips are
drawn for every speaker, so speakers with more clips are not measured more exactly. The paper takes
the speakers with more than 200 samples and draws 200 with replacement, 1000 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from raysers.evaluation.bootstrap import (
    MOST_UNITS,
    Bootstrap,
    Draws,
    draw_metrics,
    interval,
    resample,
    support,
)
from raysers.evaluation.metrics import OF_SUMS, Floats, Integers, pearson, unit_sums
from raysers.evaluation.rows import Row, drawn_rows, row_of
from raysers.evaluation.scores import Scores, Subset, base_subsets, group_subsets, main_subset
from raysers.types import DIMENSIONS, generator

_GROUP_VALUE = "female - male"
#: Dataset and dimension of the mean over datasets and dimensions.
OVER_ALL, MEAN = "all", "mean"
#: Fairness figures: the difference, women minus men, of a metric (Eq. 1 and Eq. 2).
_FAIRNESS: Mapping[str, str] = {"sex_fairness_score": "ccc", "sex_fairness_bias": "mean_error"}
#: Clips drawn per speaker, who must have more, and how often.
SAMPLES, REPEATS = 200, 1000
_FEWEST_RANKED = 3


def fairness_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """Score and bias of every model, dataset, split and dimension with clips of both sexes.

    Women and men are drawn independently. With several datasets there is also the mean over
    datasets (each by its main split) and dimensions, as the paper's section 4.6 reports it.
    """
    cells, rows = base_subsets(scores), list[Row]()
    over: dict[tuple[str, str], list[tuple[Draws, Integers, Integers]]] = {}
    for cell in cells:
        parts = {part.group_value: part for part in group_subsets(scores, cell, "sex")}
        if not {"female", "male"} <= set(parts):
            continue
        sexes = parts["female"], parts["male"]
        women, men = (
            draw_metrics(scores, part, list(scores.predictions.values()), bootstrap)
            for part in sexes
        )
        named = replace(cell, group="sex", group_value=_GROUP_VALUE)
        for name, of in _FAIRNESS.items():
            for m, model in enumerate(scores.predictions):
                gap = women[of][m].with_independent(men[of][m], np.subtract)
                found = [support(scores, part, scores.scored(model, part.rows)) for part in sexes]
                counts, speakers = np.array(found).swapaxes(0, 1)
                n = np.where(counts.min(axis=0) > 0, counts.sum(axis=0), 0)
                rows += drawn_rows(named, model, name, gap, n, speakers.sum(axis=0))
                if cell is main_subset(cells, cell.dataset):
                    own = gap, n, speakers.sum(axis=0)
                    over.setdefault((name, model), []).append(own)
    for (name, model), gaps in over.items():
        if len(gaps) > 1:
            rows += _mean_row(name, model, gaps)
    return rows


def _mean_row(name: str, model: str, gaps: list[tuple[Draws, Integers, Integers]]) -> Iterator[Row]:
    """Over datasets and dimensions."""
    values, draws, units, wider = (
        np.concatenate(parts, axis=-1)
        for parts in zip(*((g.value, g.values, g.units, g.wider) for g, *_ in gaps), strict=True)
    )
    there = np.isfinite(values)
    if there.any():
        mean = draws[:, there].mean(axis=1)
        bounds = interval(mean, int(units[there].min()), wider[there].max())
        n = sum(n[np.isfinite(g.value)].sum() for g, n, _ in gaps)
        known = sum(int(k.max()) for g, _, k in gaps if np.isfinite(g.value).any())
        over = Subset(dataset=OVER_ALL, split="", group="sex", group_value=_GROUP_VALUE)
        about: dict[str, Any] = {"dimension": MEAN, "speakers": known}
        yield row_of(over, model, name, values[there].mean(), n, bounds, **about)


def speaker_rows(scores: Scores, *, samples: int = SAMPLES, seed: int = 0) -> list[Row]:
    """Mean and standard deviation of CCC per model, speaker and dimension, and rank agreement.

    Metrics: `speaker_ccc` (mean over the draws, with their middle 95 %), `speaker_ccc_sd`, and for
    two models `speaker_spearman`: Spearman's rank correlation of the speakers' means, `n` speakers.
    A speaker must have more than `samples` clips.
    """
    rows: list[Row] = []
    for cell in base_subsets(scores):
        means = [
            row
            for part in group_subsets(scores, cell, "speaker")
            for row in _speaker(scores, part, samples, seed)
        ]
        rows += [*means, *_agreement(scores, means)]
    return rows


def _speaker(scores: Scores, part: Subset, samples: int, seed: int) -> Iterator[Row]:
    """Models and dimensions with the same clips, mostly all of them, share the draws."""
    rows = np.array(sorted(part.rows.tolist(), key=lambda i: scores.clip_id[i]))
    series: dict[bytes, list[tuple[str, int]]] = {}
    for model in scores.predictions:
        for d, there in enumerate(scores.scored(model, rows).T):
            if there.sum() > samples:
                series.setdefault(there.tobytes(), []).append((model, d))
    found: dict[tuple[str, int], tuple[Floats, int]] = {}
    for mask, names in series.items():
        clips = rows[np.frombuffer(mask, np.bool_)]
        truth = scores.truth[clips][:, [d for _, d in names]]
        scored = np.stack([scores.predictions[model][clips, d] for model, d in names], axis=1)
        drawn = _drawn_ccc(truth, scored, samples, generator(seed, *part.key))
        for name, column in zip(names, drawn.T, strict=True):
            found[name] = np.ascontiguousarray(column), len(clips)
    for model, d in sorted(found, key=lambda one: ([*scores.predictions].index(one[0]), one[1])):
        drawn, n = found[model, d]
        bounds = interval(drawn, MOST_UNITS)  # undefined when many draws are
        kept = drawn[np.isfinite(drawn)] if np.isfinite(bounds[0]) else np.full(1, np.nan)
        about: dict[str, Any] = {"dimension": DIMENSIONS[d], "speakers": 1}
        yield row_of(part, model, "speaker_ccc", kept.mean(), n, bounds, **about)
        yield row_of(part, model, "speaker_ccc_sd", kept.std(), n, **about)


def _drawn_ccc(truth: Floats, prediction: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """CCC of every draw of `samples` clips, [n, k] and [n, k] -> [REPEATS, k]."""
    sums = unit_sums(truth, prediction, np.arange(len(truth)), len(truth), truth[0])
    return OF_SUMS["ccc"](resample(sums, REPEATS, rng, samples))


def _agreement(scores: Scores, rows: list[Row]) -> Iterator[Row]:
    """Rank correlation of the speakers between every two models."""
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric == "speaker_ccc" and np.isfinite(row.value):
            means.setdefault((row.model, row.dimension), {})[row.group_value] = row.value
    for one, other in combinations(scores.predictions, 2):
        for dimension in DIMENSIONS:
            mine, theirs = (means.get((model, dimension), {}) for model in (one, other))
            both = sorted(set(mine) & set(theirs))
            if len(both) >= _FEWEST_RANKED:
                value = pearson(*(rankdata([of[k] for k in both]) for of in (mine, theirs)))
                where = Subset(dataset=rows[0].dataset, split=rows[0].split, group="model",
                               group_value=other)  # fmt: skip
                yield row_of(where, one, "speaker_spearman", value, len(both), dimension=dimension)
