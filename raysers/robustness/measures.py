"""How much scores change with a perturbation: share unchanged, size of the change, change of CCC.

The robustness score is the share of clips whose score changed by less than the threshold (Wagner et
al. 2022, section 3.4; strictly less). It says nothing about being right: a model that ignores its
input is perfectly robust, so it is read beside the CCC. Published figures, the paper's and
ser-tests', are of their models on their corpora: they orient, they do not judge.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.baseline import random_scores
from raysers.evaluation.bootstrap import (
    Bootstrap,
    draw,
    draw_metrics,
    interval,
    pairs,
    share_interval,
    speakers_of,
    sum_by_unit,
    units_of,
)
from raysers.evaluation.metrics import Floats, ccc, per_dimension, ratio
from raysers.evaluation.paper import paper_model, paper_numbers
from raysers.evaluation.rows import NAN, Row, dimension_rows
from raysers.evaluation.scores import Scores, Subset, subsets
from raysers.types import DIMENSIONS

#: Predictions of the clips as they are.
CLEAN = "clean"
#: Dimension of a row that is the mean of the three, and metric that is the mean of perturbations.
MEAN, OVERALL = "mean", "robustness"
_WITH_MEAN = (*DIMENSIONS, MEAN)
#: Change below which both publications count a score as unchanged.
_THRESHOLD = 0.05
#: The perturbation that the two define apart.
TONE = "additive_tone"
_DECIMALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A perturbation in a table of predictions.

    Attributes:
        name: of the perturbation.
        versions: the predictions of its repeats.
        against: the predictions they are compared with.
        small: whether it counts towards the mean over perturbations.
    """

    name: str
    versions: tuple[str, ...]
    against: str
    small: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How scores are compared.

    Attributes:
        threshold: a change below it leaves a score unchanged.
        rounded: round scores to 2 decimals first, as ser-tests does.
        by: columns whose values get rows of their own.
        draws: bootstrap draws; 0: no intervals.
        seed: of the draws and of the random baseline.
        tone_snr: what the added tone's SNR is relative to, `peak` (paper) or `rms` (ser-tests).
    """

    threshold: float = _THRESHOLD
    rounded: bool = False
    by: Sequence[str] = ("sex", "language", "emotion")
    draws: int = 1000
    seed: int = 0
    tone_snr: str = "peak"

    @property
    def text(self) -> str:
        """When a score counts as unchanged, in words."""
        rounding = f", scores rounded to {_DECIMALS} decimals" if self.rounded else ""
        return f"changed by less than {self.threshold:g}{rounding}"

    def compare(self, before: Floats, after: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Sizes of the changes, and which are below the threshold; a NaN is not.

        Rounded scores are compared as whole hundredths: .50 - .45 is less than .05 in binary.
        """
        before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
        if not self.rounded:
            size: Floats = np.abs(after - before)
            return size, size < self.threshold
        scale = 10**_DECIMALS
        hundredths = np.abs(np.rint(after * scale) - np.rint(before * scale))
        return hundredths / scale, hundredths < round(self.threshold * scale, 9)


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
    random = {
        version: np.where(
            np.isfinite(predicted),
            random_scores([f"{clip}\0{version}" for clip in scores.identities], how.seed),
            NAN,
        )
        for version, predicted in scores.predictions.items()
    }
    rows: list[Row] = []
    for name, by_version in ((model, scores.predictions), (RANDOM, random)):
        # clean predictions take the place of labels, so that unlabelled clips count as well
        compared = replace(
            scores, truth=np.asarray(by_version[CLEAN], np.float64), predictions=by_version
        )
        for cell in subsets(compared, how.by):
            rows += _change_rows(name, compared, cell, changes, how)
    labelled = replace(scores, predictions={CLEAN: scores.predictions[CLEAN]})
    for cell in subsets(labelled, how.by):
        for change in changes:
            rows += _ccc_rows(model, scores, cell, change, how)
    return rows


def _change_rows(
    model: str, scores: Scores, cell: Subset, changes: Sequence[Change], how: Comparison
) -> Iterator[Row]:
    """Shares and sizes of the changes; repeats of a perturbation count like further clips."""
    unit, units = units_of(scores, cell)
    # values compared, unchanged, and their size
    sums = np.zeros((units, len(changes), 3, len(_WITH_MEAN)))
    compared = np.zeros((len(cell.rows), len(changes), len(DIMENSIONS)), bool)
    p95 = np.full((len(changes), len(_WITH_MEAN)), NAN)
    for i, change in enumerate(changes):
        before = scores.predictions[change.against][cell.rows]
        after = np.stack([scores.predictions[name][cell.rows] for name in change.versions])
        size, unchanged = how.compare(before, after)
        there = np.isfinite(size)
        for j, values in enumerate((there, there & unchanged, np.where(there, size, 0.0))):
            sums[:, i, j, :-1] = sum_by_unit(values.sum(axis=0), unit, units)
        compared[:, i] = there.any(axis=0)
        for d in range(len(_WITH_MEAN)):
            kept = size[there] if d == len(DIMENSIONS) else size[..., d][there[..., d]]
            p95[i, d] = np.percentile(kept, 95) if kept.size else NAN
    sums[..., -1] = sums[..., :-1].sum(axis=-1)
    clips = np.any(compared, axis=2).sum(axis=0)
    small = np.array([change.small and change.against == CLEAN for change in changes])

    def figures(sums: Floats) -> Floats:
        """Share unchanged and mean size, then the mean share over the small, [..., k + 1, 2, 4]."""
        both = ratio(sums[..., 1:, :], sums[..., :1, :], sums[..., :1, :] > 0)
        return np.concatenate([both, _mean(both[..., small, :, :], -3)[..., None, :, :]], axis=-3)

    value = figures(sums.sum(axis=0))
    there = sums[:, :, 0, :] > 0
    there = np.concatenate([there, there[:, small].any(axis=1, keepdims=True)], axis=1)
    drawn = draw(
        figures,
        sums,
        np.repeat(there[:, :, None], 2, axis=2),
        Bootstrap(draws=how.draws, seed=how.seed),
        *cell.key,
    )
    names = [f"{OVERALL}_{change.name}" for change in changes]
    counts = clips.tolist()
    if small.any():
        names, counts = [*names, OVERALL], [*counts, int(clips[small].max())]
    known = speakers_of(scores, cell, np.asarray(compared.any(axis=1)))
    speakers = np.append(known, known.max())
    more: dict[str, Any] = {"speakers": speakers, "dimensions": _WITH_MEAN}
    n = np.repeat(np.array(counts)[:, None], len(_WITH_MEAN), axis=1)
    for i, name in enumerate(names):
        draws, units = drawn.values[:, i, 0], drawn.units[i, 0]
        bounds = share_interval(value[i, 0], draws, units, n[i])
        yield from dimension_rows(cell, model, name, value[i, 0], n[i], bounds, **more)
    if model == RANDOM:
        return
    low, high = drawn.interval()
    for i, change in enumerate(changes):
        bounds, metric = (low[i, 1], high[i, 1]), f"mean_change_{change.name}"
        yield from dimension_rows(cell, model, metric, value[i, 1], n[i], bounds, **more)
        metric = f"p95_change_{change.name}"
        yield from dimension_rows(cell, model, metric, p95[i], n[i], **more)


def _ccc_rows(
    model: str, scores: Scores, cell: Subset, change: Change, how: Comparison
) -> Iterator[Row]:
    """CCC of the perturbed clips less that of the same clips as they are."""
    before = scores.predictions[change.against]
    after = [scores.predictions[version] for version in change.versions]
    there = [np.isfinite(before) & np.isfinite(p) for p in after]
    both = [np.where(t, before, NAN) for t in there]
    after = [np.where(t, p, NAN) for t, p in zip(there, after, strict=True)]
    bootstrap = Bootstrap(draws=how.draws, seed=how.seed)
    drawn = draw_metrics(scores, cell, [*both, *after], bootstrap)["ccc"]
    truth, half = scores.truth[cell.rows], len(after)
    values = np.stack([per_dimension(ccc, truth, p[cell.rows]) for p in (*both, *after)])
    value = _mean(values[half:] - values[:half], 0)
    draws = _mean(drawn.values[:, half:] - drawn.values[:, :half], 1)
    first = after[0][cell.rows]
    yield from dimension_rows(
        cell,
        model,
        f"ccc_change_{change.name}",
        value,
        pairs(truth, first),
        interval(draws, drawn.units.max(axis=0)),
        speakers=speakers_of(scores, cell, np.isfinite(truth + first)),
    )


def _mean(values: Floats, axis: int) -> Floats:
    """Mean of what is defined; NaN where nothing is."""
    there = np.isfinite(values)
    total, count = np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis)
    return ratio(np.asarray(total), np.asarray(count, np.float64), np.asarray(count > 0))


@cache
def _published() -> Mapping[str, Any]:
    text = resources.files("raysers").joinpath("assets/robustness_numbers.json").read_text("utf-8")
    document: Mapping[str, Any] = json.loads(text)
    return document


def paper_share(name: str) -> float:
    """The paper's mean share unchanged of a model or perturbation (section 4.5); NaN: not stated.

    Over its three corpora and the dimensions, and its eight perturbations or its models.
    """
    theirs = _published()["paper"]
    known = theirs["perturbations"] | theirs["models"]
    return float(known.get(name, known.get(paper_model(name), NAN)))


def of_ser_tests() -> set[str]:
    """Names of ser-tests' small changes: the paper's eight and two more."""
    return set(_published()["paper"]["perturbations"]) | {"crop_end", "prepend_zeros"}


def ser_tests_share(names: Collection[str], model: str, how: Comparison) -> float:
    """Mean share unchanged over perturbations, as `ser_tests`.

    NaN beside another threshold, and with the tone where its SNR is not of root mean squares.
    """
    if how.threshold != _THRESHOLD or not names or (TONE in names and how.tone_snr != "rms"):
        return NAN
    return fmean(ser_tests(OVERALL, name, MEAN, model) for name in names)


def ser_tests(metric: str, perturbation: str, dimension: str, model: str = "") -> float:
    """Mean over ser-tests' corpora for the model, if it has it, else for the paper's models.

    Args:
        metric: `robustness` (share unchanged, scores rounded to 2 decimals) or `ccc_change`.
        perturbation: its name in our table.
        dimension: one of the three, or `mean`.
        model: as in a result; empty, or a model ser-tests does not have: the paper's eight.

    Returns:
        The mean; NaN when ser-tests has no such test.
    """
    mine = paper_model(model) if model else ""
    wanted = {mine} if mine else set(paper_numbers().models.values())
    values = [
        value
        for row in _published()["ser_tests"]
        if (row["metric"], row["perturbation"]) == (metric, perturbation)
        and dimension in (row["dimension"], MEAN)
        for name, value in row["models"].items()
        if name in wanted
    ]
    return fmean(values) if values else NAN
