"""How much scores change with a perturbation: share unchanged, size of the change, change of CCC.

The robustness score is the share of clips whose score changed by less than the threshold (Wagner et
al. 2022, section 3.4; strictly less). It says nothing about being right: a model that ignores its
input is perfectly robust, so it is read beside the CCC. Published figures, the paper's and
ser-tests', are of their models on their corpora: they orient, they do not judge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.bootstrap import (
    Bootstrap,
    Draws,
    draw,
    draw_metrics,
    stretch,
    support,
    units_of,
)
from raysers.evaluation.published import asset, paper_model, paper_numbers
from raysers.evaluation.rows import NAN, Row, dimension_rows, drawn_rows
from raysers.evaluation.scores import (
    RANDOM,
    Floats,
    Scores,
    Subset,
    mean_of_defined,
    random_scores,
    ratio,
    subsets,
    sum_by_unit,
)
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
    """A perturbation: its repeats among the predictions, and those they are compared with.

    `small` perturbations count towards the mean.
    """

    name: str
    versions: tuple[str, ...]
    against: str
    small: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How scores are compared: a change below the threshold leaves a score unchanged.

    `rounded`: scores are rounded to 2 decimals first, as in ser-tests. Values of the columns `by`
    get rows as well. `tone_snr` is what the added tone's SNR is relative to, `peak` (paper) or
    `rms` (ser-tests).
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

    @property
    def bootstrap(self) -> Bootstrap:
        """Draws behind the intervals."""
        return Bootstrap(draws=self.draws, seed=self.seed)

    def compare(self, before: Floats, after: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Sizes of the changes, and which are below the threshold; a NaN is not.

        Rounded scores are compared as whole hundredths: .50 - .45 is less than .05 in binary.
        """
        scale = 10**_DECIMALS if self.rounded else 1
        before, after = (np.asarray(x, np.float64) * scale for x in (before, after))
        if self.rounded:
            size: Floats = np.abs(np.rint(after) - np.rint(before))
            return size / scale, size < round(self.threshold * scale, 9)
        return np.abs(after - before), np.abs(after - before) < self.threshold


def robustness_rows(
    model: str, scores: Scores, changes: Sequence[Change], how: Comparison
) -> list[Row]:
    """Rows of the metrics table, for the model and for a random one.

    Metrics: `robustness_<perturbation>`, and `robustness` for the mean over small perturbations;
    `mean_change_...`, `p95_change_...` of the absolute change; `ccc_change_...` where there are
    labels. The dimension `mean` is over the three. `scores` have labels (NaN: none) and, by
    version, predictions of all clips.
    """

    def random(version: str, predicted: Floats) -> Floats:
        names = [f"{clip}\0{version}" for clip in scores.identities]
        return np.where(np.isfinite(predicted), random_scores(names, how.seed), NAN)

    chance = {version: random(version, found) for version, found in scores.predictions.items()}
    rows: list[Row] = []
    for name, predictions in ((model, scores.predictions), (RANDOM, chance)):
        # clean predictions take the place of labels, so that unlabelled clips count as well
        compared = replace(scores, predictions=predictions).against(CLEAN)
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
    compared = np.zeros((len(cell.rows), len(changes)), bool)
    p95 = np.full((len(changes), len(_WITH_MEAN)), NAN)
    for i, change in enumerate(changes):
        before = scores.predictions[change.against][cell.rows]
        after = np.stack([scores.predictions[name][cell.rows] for name in change.versions])
        size, unchanged = how.compare(before, after)
        there = np.isfinite(size)
        for j, values in enumerate((there, there & unchanged, np.where(there, size, 0.0))):
            sums[:, i, j, :-1] = sum_by_unit(values.sum(axis=0), unit, units)
        compared[:, i] = there.any(axis=(0, 2))
        for d in range(len(_WITH_MEAN)) if model != RANDOM else ():
            kept = size[there] if d == len(DIMENSIONS) else size[..., d][there[..., d]]
            p95[i, d] = np.percentile(kept, 95) if kept.size else NAN
    sums[..., -1] = sums[..., :-1].sum(axis=-1)
    small = np.array([change.small and change.against == CLEAN for change in changes])

    def figures(sums: Floats) -> Floats:
        """Share unchanged and mean size, then the mean share over the small, [..., k + 1, 2, 4]."""
        both = ratio(sums[..., 1:, :], sums[..., :1, :], sums[..., :1, :] > 0)
        overall = mean_of_defined(both[..., small, :, :], -3)
        return np.concatenate([both, overall[..., None, :, :]], axis=-3)

    there = sums[:, :, 0, :] > 0
    there = np.concatenate([there, there[:, small].any(axis=1, keepdims=True)], axis=1)
    there = np.repeat(there[:, :, None], 2, axis=2)
    drawn = draw(figures, sums, there, how.bootstrap, *cell.key)
    clips, speakers = support(scores, cell, compared)
    names, counts = [f"{OVERALL}_{change.name}" for change in changes], clips.tolist()
    if small.any():
        names, counts = [*names, OVERALL], [*counts, int(clips[small].max())]
        speakers = np.append(speakers, speakers[small].max())
    for i, name in enumerate(names):
        n, known, share = np.full(4, counts[i]), np.full(4, speakers[i]), drawn[i, 0]
        ends = share.share_interval(n)
        yield from dimension_rows(
            cell, model, name, share.value, n, ends, speakers=known, dimensions=_WITH_MEAN
        )
    for i, change in enumerate(changes if model != RANDOM else ()):
        n, known, sizes = np.full(4, counts[i]), np.full(4, speakers[i]), drawn[i, 1]
        for metric, value, bounds in (
            (f"mean_change_{change.name}", sizes.value, sizes.interval()),
            (f"p95_change_{change.name}", p95[i], None),
        ):
            yield from dimension_rows(
                cell, model, metric, value, n, bounds, speakers=known, dimensions=_WITH_MEAN
            )


def _ccc_rows(
    model: str, scores: Scores, cell: Subset, change: Change, how: Comparison
) -> Iterator[Row]:
    """CCC of the perturbed clips less that of the same clips as they are."""
    before = scores.predictions[change.against]
    after = [scores.predictions[version] for version in change.versions]
    there = [np.isfinite(before) & np.isfinite(p) for p in after]
    both = [np.where(t, before, NAN) for t in there]
    both += [np.where(t, p, NAN) for t, p in zip(there, after, strict=True)]
    drawn = draw_metrics(scores, cell, both, how.bootstrap)["ccc"]
    each = drawn[len(after) :] - drawn[: len(after)]
    units = each.units.max(axis=0)
    value, values = mean_of_defined(each.value, 0), mean_of_defined(each.values, 1)
    mean = Draws(value, values, units, stretch(units))
    of = support(scores, cell, (np.isfinite(scores.truth) & there[0])[cell.rows])
    yield from drawn_rows(cell, model, f"ccc_change_{change.name}", mean, *of)


def paper_share(name: str) -> float:
    """The paper's mean share unchanged of a model or perturbation (section 4.5); NaN: not stated.

    Over its three corpora and the dimensions, and its eight perturbations or its models.
    """
    theirs = asset("robustness_numbers")["paper"]
    known = theirs["perturbations"] | theirs["models"]
    return float(known.get(name, known.get(paper_model(name), NAN)))


def of_ser_tests() -> set[str]:
    """Names of ser-tests' small changes: the paper's eight and two more."""
    perturbations = asset("robustness_numbers")["paper"]["perturbations"]
    return {*perturbations, "crop_end", "prepend_zeros"}


def ser_tests_share(names: Collection[str], model: str, how: Comparison) -> float:
    """Mean of `ser_tests` over perturbations; NaN beside another threshold or SNR of the tone."""
    if how.threshold != _THRESHOLD or not names or (TONE in names and how.tone_snr != "rms"):
        return NAN
    return fmean(ser_tests(OVERALL, name, model) for name in names)


def ser_tests(metric: str, perturbation: str, model: str = "") -> float:
    """Mean over ser-tests' corpora and dimensions; NaN when it has no such test.

    Of the model, or where ser-tests does not have it (or it is empty) of the paper's eight;
    `metric` is `robustness` (share unchanged, scores rounded to 2 decimals) or `ccc_change`.
    """
    mine = paper_model(model) if model else ""
    wanted = {mine} if mine else set(paper_numbers().models.values())
    values = [
        value
        for row in asset("robustness_numbers")["ser_tests"]
        if (row["metric"], row["perturbation"]) == (metric, perturbation)
        for name, value in row["models"].items()
        if name in wanted
    ]
    return fmean(values) if values else NAN
