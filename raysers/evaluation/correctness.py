"""Correctness, fairness of the sexes, and CCC per speaker (Wagner et al. 2022, 3.4, 4.1 to 4.7).

Differences between models are on the clips both predicted, and both see the same speakers in every
draw: most of what makes a draw easy or hard cancels, so a difference can be clear although the
models' intervals overlap.

Recall and F1 of emotion categories are averaged over those that the labels of a subset name, as
scikit-learn does with `labels=` set to these. A clip of a category that the model does not know
counts as wrong, so that models with different categories are measured on the same clips;
`uar_known` averages over the categories known to the model alone, which is what cross-corpus
studies report. Clips labelled as "other" or "no agreement" have no category and count nowhere.

The paper prints Eq. 2 garbled; meant is by how much the model shifts women's values against men's:
(mean prediction - mean label of women) - (the same of men). 0 is fair for both figures.

CCC per speaker is by the paper's bootstrap, not the one of the intervals: equally many clips are
drawn for every speaker, so speakers with more clips are not measured more exactly. The paper takes
the speakers with more than 200 samples and draws 200 with replacement, 1000 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysers.evaluation.bootstrap import (
    MOST_UNITS,
    Bootstrap,
    Draws,
    draw,
    draw_metrics,
    drawn_counts,
    interval,
    resample,
    share_interval,
    some_cells,
    support,
    units_of,
)
from raysers.evaluation.rows import (
    CATEGORY_METRICS,
    COVERAGE,
    EMOTION,
    Row,
    dimension_rows,
    drawn_rows,
    row_of,
)
from raysers.evaluation.scores import (
    METRICS,
    OF_SUMS,
    Categories,
    Floats,
    Integers,
    Scores,
    Subset,
    base_subsets,
    group_subsets,
    main_subset,
    mean_of_defined,
    pearson,
    ratio,
    subsets,
    sum_by_unit,
    unit_sums,
)
from raysers.types import DIMENSIONS, generator

#: How many deviations a stated 90 % interval reaches to each side.
_Z_90 = 1.645
#: Bins of the expected calibration error, equally wide: (0, .1], (.1, .2], ... (.9, 1].
_ECE_BINS = 10


def correctness_rows(
    scores: Scores, *, by: Sequence[str] = (), draws: int = 1000, seed: int = 0
) -> list[Row]:
    """CCC, Pearson and MAE of every model, subset and dimension, with 95 % intervals.

    Of models that state how far their scores spread also `coverage_90`: the share of labels within
    1.645 standard deviations of the score, .9 where these are right. Values of the columns `by` get
    rows as well.
    """
    bootstrap, rows = Bootstrap(draws=draws, seed=seed), list[Row]()
    for cell in subsets(scores, by):
        drawn = draw_metrics(scores, cell, list(scores.predictions.values()), bootstrap)
        for m, model in enumerate(scores.predictions):
            of = support(scores, cell, scores.scored(model, cell.rows))
            for name in METRICS:
                rows += drawn_rows(cell, model, name, drawn[name][m], *of)
            if model in scores.deviations:
                rows += _coverage_rows(scores, cell, model, bootstrap)
    return rows


def _coverage_rows(scores: Scores, cell: Subset, model: str, bootstrap: Bootstrap) -> Iterator[Row]:
    """Share of labels within the 90 % interval that the model states for its scores."""
    reach = _Z_90 * scores.deviations[model][cell.rows]
    error = np.abs(scores.predictions[model] - scores.truth)[cell.rows]
    there = np.isfinite(error) & np.isfinite(reach)
    each = np.hstack([there & (error <= reach), there]).astype(np.float64)
    sums = sum_by_unit(each, *units_of(scores, cell))

    def share(sums: Floats) -> Floats:
        return ratio(sums[..., :3], sums[..., 3:])

    drawn = draw(share, sums, sums[:, 3:] > 0, bootstrap, *cell.key)
    n, speakers = support(scores, cell, there)
    bounds = drawn.share_interval(n)
    yield from dimension_rows(cell, model, COVERAGE, drawn.value, n, bounds, speakers=speakers)


def constant_notes(scores: Scores, cells: Sequence[Subset]) -> Iterator[str]:
    """Subsets whose labels of a dimension are all the same."""
    for d, dimension in enumerate(DIMENSIONS):
        names = []
        for cell in cells:
            labels = scores.truth[cell.rows, d]
            labels = labels[np.isfinite(labels)]
            if len(labels) > 1 and np.ptp(labels) == 0:
                names.append(str(cell))
        if names:
            yield f"{some_cells(names)}: no CCC of {dimension}, all its labels are the same"


def comparison_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """First minus second for every two models, subset, metric and dimension.

    Metrics: `ccc_difference`, `pearson_difference`, `mae_difference` with their intervals, and
    `..._difference_above_0`: the share of draws in which the difference is above 0 (for `mae` less
    is better, so there a small share speaks for the first). `group` is "model" and `group_value`
    the second model.
    """
    rows: list[Row] = []
    for cell in base_subsets(scores):
        for one, other in combinations(scores.predictions, 2):
            there = scores.scored(one) & scores.scored(other)
            both = [np.where(there, scores.predictions[m], np.nan) for m in (one, other)]
            drawn = draw_metrics(scores, cell, both, bootstrap)
            of = support(scores, cell, there[cell.rows])
            named = replace(cell, group="model", group_value=other)
            for name in METRICS:
                change, what = drawn[name][0] - drawn[name][1], f"{name}_difference"
                defined = np.isfinite(change.values).sum(axis=0)
                above = ratio((change.values > 0).sum(axis=0).astype(float), defined)
                rows += drawn_rows(named, one, what, change, *of)
                rows += dimension_rows(named, one, f"{what}_above_0", above, of[0], speakers=of[1])
    return rows


def drop_rows(scores: Scores, in_domain: str, bootstrap: Bootstrap) -> list[Row]:
    """Relative loss of CCC from the dataset `in_domain` to each other one (section 4.2).

    (CCC in domain - CCC elsewhere) / CCC in domain, per model and dimension; 0.2 is a fifth lost.
    Undefined where the CCC in domain is not above 0. The datasets are drawn independently.
    """

    def drop(inside: Floats, outside: Floats) -> Floats:
        return ratio(inside - outside, inside)

    cells, rows = base_subsets(scores), list[Row]()
    home = main_subset(cells, in_domain)
    predictions = list(scores.predictions.values())
    at_home = draw_metrics(scores, home, predictions, bootstrap)["ccc"]
    for dataset in dict.fromkeys(cell.dataset for cell in cells if cell.dataset != in_domain):
        cell = main_subset(cells, dataset)
        named = replace(cell, group="dataset", group_value=f"{home.dataset} {home.split}")
        away = draw_metrics(scores, cell, predictions, bootstrap)["ccc"]
        lost = at_home.with_independent(away, drop)
        for m, model in enumerate(scores.predictions):
            n, speakers = support(scores, cell, scores.scored(model, cell.rows))
            n = np.where(np.isfinite(at_home.value[m]), n, 0)
            rows += drawn_rows(named, model, "ccc_drop", lost[m], n, speakers)
    return rows


def category_rows(
    scores: Scores, *, by: Sequence[str] = (), draws: int = 1000, seed: int = 0
) -> list[Row]:
    """`CATEGORY_METRICS` of every model with categories and every subset, with 95 % intervals.

    Unweighted average recall, macro F1, accuracy, and expected calibration error. By the column
    `emotion` there is the recall of each category alone, as `uar`.
    """
    if not scores.categories:
        return []
    labels, bootstrap = scores.emotions(), Bootstrap(draws=draws, seed=seed)
    return [
        row
        for cell in subsets(scores, by)
        for model, found in scores.categories.items()
        for row in _category_rows(scores, cell, model, found, labels, bootstrap)
    ]


def category_notes(scores: Scores) -> Iterator[str]:
    """Models whose categories could not be measured, or do not include all those labelled."""
    labels, used = scores.emotions(), np.zeros(len(scores.clip_id), bool)
    for cell in base_subsets(scores):
        used[cell.rows] = True
    for model, found in scores.categories.items():
        named = labels[used & (labels != "") & np.isfinite(found.probabilities).all(axis=1)]
        if not len(named):
            yield f"{model}: no figures of its emotion categories, the labels name none"
        elif unknown := sorted(set(named) - set(found.names)):
            count = int(np.isin(named, unknown).sum())
            yield (
                f"{model}: {count:,} of {len(named):,} clips are labelled {', '.join(unknown)}, "
                "which it does not know: they count as wrong, but for uar_known"
            )


def _category_rows(
    scores: Scores,
    cell: Subset,
    model: str,
    found: Categories,
    labels: NDArray[np.object_],
    bootstrap: Bootstrap,
) -> Iterator[Row]:
    truth, probabilities = labels[cell.rows], found.probabilities[cell.rows]
    there = (truth != "") & np.isfinite(probabilities).all(axis=1)
    present = sorted(set(truth[there]))
    if not present:
        return
    each = np.zeros((len(truth), 3 * len(present) + _ECE_BINS))
    each[there] = _counts(truth[there], probabilities[there], found.names, present)
    known = np.isin(present, found.names)
    values = _figures(each.sum(axis=0), known)
    sums, units = drawn_counts(scores, cell, each, bootstrap)
    drawn = _figures(sums, known)
    n, speakers = (int(count[0]) for count in support(scores, cell, there[:, None]))
    for metric in CATEGORY_METRICS:
        # clips of one category have its recall, and nothing to average
        if metric != "uar" if cell.group == EMOTION else metric == "uar_known" and known.all():
            continue
        value, draws = values[metric], drawn[metric]
        is_share = metric == "accuracy" or cell.group == EMOTION
        bounds = share_interval(value, draws, units, n) if is_share else interval(draws, units)
        about: dict[str, Any] = {"dimension": EMOTION, "speakers": speakers}
        yield row_of(cell, model, metric, value, n, bounds, **about)


def _counts(
    truth: NDArray[np.object_], probabilities: Floats, names: Sequence[str], present: Sequence[str]
) -> Floats:
    """What each clip counts, [n, 3 k + bins]: labelled, right and predicted as each category.

    The bins have the top probability less 1 where it is right, which adds up to the gap between
    confidence and accuracy.
    """
    predicted = np.array(names, object)[probabilities.argmax(axis=1)]
    top, columns = probabilities.max(axis=1), np.array(present, object)
    is_label, is_predicted = truth[:, None] == columns, predicted[:, None] == columns
    bins = np.clip(np.ceil(top * _ECE_BINS).astype(int) - 1, 0, _ECE_BINS - 1)
    gaps = np.zeros((len(truth), _ECE_BINS))
    gaps[np.arange(len(truth)), bins] = top - (truth == predicted)
    return np.hstack([is_label, is_label & is_predicted, is_predicted, gaps]).astype(np.float64)


def _figures(sums: Floats, known: NDArray[np.bool_]) -> dict[str, Floats]:
    """The metrics from sums of `_counts`, [..., 3 k + bins] -> [...] each."""
    k = len(known)
    labelled, right, predicted, gaps = np.split(sums, [k, 2 * k, 3 * k], axis=-1)
    n, recall = labelled.sum(axis=-1), ratio(right, labelled)
    f1 = ratio(2 * right, labelled + predicted, labelled > 0)
    return {
        "uar": mean_of_defined(recall, -1),
        "uar_known": mean_of_defined(recall[..., known], -1),
        "macro_f1": mean_of_defined(f1, -1),
        "accuracy": ratio(right.sum(axis=-1), n),
        "ece": ratio(np.abs(gaps).sum(axis=-1), n),
    }


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
        known = [(gap[there], n[there], k) for gap, n, k in gaps if (there := gap.defined).any()]
        if len(gaps) > 1 and known:
            value, mean = (
                np.concatenate(parts, axis=-1).mean(axis=-1)
                for parts in zip(*((gap.value, gap.values) for gap, *_ in known), strict=True)
            )
            units = min(int(gap.units.min()) for gap, *_ in known)
            bounds = interval(mean, units, max(float(gap.wider.max()) for gap, *_ in known))
            n, speakers = sum(n.sum() for _, n, _ in known), sum(k.max() for *_, k in known)
            cell = Subset(dataset=OVER_ALL, split="", group="sex", group_value=_GROUP_VALUE)
            about: dict[str, Any] = {"dimension": MEAN, "speakers": speakers}
            rows.append(row_of(cell, model, name, value, n, bounds, **about))
    return rows


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
        rows += [*means, *_agreement(scores, cell, means)]
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


def _agreement(scores: Scores, cell: Subset, rows: list[Row]) -> Iterator[Row]:
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
                ranks = (pd.Series([of[k] for k in both]).rank() for of in (mine, theirs))
                value = pearson(*(rank.to_numpy() for rank in ranks))
                where = replace(cell, group="model", group_value=other)
                yield row_of(where, one, "speaker_spearman", value, len(both), dimension=dimension)
