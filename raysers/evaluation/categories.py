"""Emotion categories: unweighted average recall, macro F1, accuracy, and calibration error.

Recall and F1 are averaged over the categories that the labels of a cell name, as scikit-learn does
with `labels=` set to these. A clip of a category that the model does not know counts as wrong, so
that models with different categories are measured on the same clips; `uar_known` averages over the
categories known to the model alone, which is what cross-corpus studies report. Clips labelled as
"other" or "no agreement" have no category and count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.bootstrap import (
    Bootstrap,
    drawn_counts,
    interval,
    share_interval,
    speakers_of,
)
from raysers.evaluation.metrics import Floats, ratio
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import Categories, Scores, Subset, base_subsets, subsets

#: Dimension of the rows.
EMOTION = "emotion"
#: The metrics, in the order of their rows.
CATEGORY_METRICS = ("uar", "uar_known", "macro_f1", "accuracy", "ece")
#: Bins of the expected calibration error, equally wide: (0, .1], (.1, .2], ... (.9, 1].
ECE_BINS = 10


def category_rows(
    scores: Scores, *, by: Sequence[str] = (), draws: int = 1000, seed: int = 0
) -> list[Row]:
    """`CATEGORY_METRICS` of every model with categories and every cell, with 95 % intervals.

    Args:
        scores: labels (column `emotion`) and predicted categories.
        by: columns whose values get rows of their own, beside those over all clips; by `emotion`
            there is the recall of each category alone, as `uar`.
        draws: bootstrap draws; 0 leaves the intervals undefined.
        seed: of the draws.
    """
    if not scores.categories:
        return []
    labels, bootstrap = scores.emotions(), Bootstrap(draws=draws, seed=seed)
    return [
        row
        for cell in subsets(scores, by)
        for model, found in scores.categories.items()
        for row in _cell_rows(scores, cell, model, found, labels, bootstrap)
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


def _cell_rows(
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
    each = np.zeros((len(truth), 3 * len(present) + ECE_BINS))
    each[there] = _counts(truth[there], probabilities[there], found.names, present)
    known = np.isin(present, found.names)
    values = _figures(each.sum(axis=0), known)
    sums, units = drawn_counts(scores, cell, each, bootstrap)
    drawn = _figures(sums, known)
    left_out = [] if not known.all() else ["uar_known"]
    if cell.group == EMOTION:  # clips of one category: its recall, and nothing to average
        left_out = [metric for metric in CATEGORY_METRICS if metric != "uar"]
    n = there[:, None].sum(axis=0)
    speakers = speakers_of(scores, cell, there[:, None])
    for metric in CATEGORY_METRICS:
        if metric in left_out:
            continue
        value, draws = values[metric][None], drawn[metric][:, None]
        bounds = (
            share_interval(value, draws, units, n)
            if metric == "accuracy" or cell.group == EMOTION
            else interval(draws, units)
        )
        yield from dimension_rows(
            cell, model, metric, value, n, bounds, speakers=speakers, dimensions=[EMOTION]
        )


def _counts(
    truth: NDArray[np.object_], probabilities: Floats, names: Sequence[str], present: Sequence[str]
) -> Floats:
    """What each clip counts, [n, 3 k + bins]: labelled, right and predicted as each category.

    The bins have the top probability less 1 where it is right, which adds up to the gap between
    confidence and accuracy.
    """
    predicted = np.array(names, object)[probabilities.argmax(axis=1)]
    top = probabilities.max(axis=1)
    columns = np.array(present, object)
    is_label, is_predicted = truth[:, None] == columns, predicted[:, None] == columns
    bins = np.clip(np.ceil(top * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.zeros((len(truth), ECE_BINS))
    gaps[np.arange(len(truth)), bins] = top - (truth == predicted)
    return np.hstack([is_label, is_label & is_predicted, is_predicted, gaps]).astype(np.float64)


def _figures(sums: Floats, known: NDArray[np.bool_]) -> Mapping[str, Floats]:
    """The metrics from sums of `_counts`, [..., 3 k + bins] -> [...] each."""
    k = len(known)
    labelled, right, predicted, gaps = np.split(sums, [k, 2 * k, 3 * k], axis=-1)
    n = labelled.sum(axis=-1)
    recall = ratio(right, labelled, labelled > 0)
    f1 = ratio(2 * right, labelled + predicted, labelled > 0)
    return {
        "uar": _mean(recall),
        "uar_known": _mean(recall[..., known]),
        "macro_f1": _mean(f1),
        "accuracy": ratio(right.sum(axis=-1), n, n > 0),
        "ece": ratio(np.abs(gaps).sum(axis=-1), n, n > 0),
    }


def _mean(values: Floats) -> Floats:
    """Over the last axis, of what is defined."""
    there = np.isfinite(values)
    count = there.sum(axis=-1)
    return ratio(np.where(there, values, 0).sum(axis=-1), count, count > 0)
