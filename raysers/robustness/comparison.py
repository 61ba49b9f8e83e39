"""How scores of perturbed clips are compared, and how much they changed in publications."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.published import asset, paper_model, paper_numbers
from raysers.evaluation.rows import NAN
from raysers.evaluation.scores import Floats

#: Change below which both publications count a score as unchanged.
_THRESHOLD, _DECIMALS = 0.05, 2
#: The perturbation that the two define apart, and metric that is the mean of perturbations.
TONE, OVERALL = "additive_tone", "robustness"


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
