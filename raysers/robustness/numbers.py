"""Published robustness figures to stand beside ours: the paper's, and ser-tests'.

Both are of their models on their corpora, and the paper's are means over models, corpora or
perturbations: what is beside a figure orients, it does not judge.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from raysers.evaluation.paper import paper_model, paper_numbers

#: Change below which both count a score as unchanged, and the perturbation they define apart.
THRESHOLD = 0.05
TONE = "additive_tone"
_NAN = float("nan")
_MEAN = "mean"
_PREFIX = "robustness"


@cache
def _document() -> Mapping[str, Any]:
    text = resources.files("raysers").joinpath("assets/robustness_numbers.json").read_text("utf-8")
    document: Mapping[str, Any] = json.loads(text)
    return document


def of_the_paper() -> set[str]:
    """Names of the paper's perturbations."""
    return set(_document()["paper"]["perturbations"])


def of_ser_tests() -> set[str]:
    """Names of ser-tests' small changes: the paper's eight and two more."""
    return of_the_paper() | {"crop_end", "prepend_zeros"}


def paper(metric: str, dimension: str, model: str) -> float:
    """The figure of section 4.5: of the perturbation, or of the model, or of the dimension.

    NaN when the paper has none. A perturbation's is a mean over models, corpora and dimensions; a
    dimension's is one over models, and for a model the paper does not name it stands as well.
    """
    numbers = _document()["paper"]
    if metric != _PREFIX:
        name = metric.removeprefix(f"{_PREFIX}_")
        return float(numbers["perturbations"].get(name, _NAN)) if dimension == _MEAN else _NAN
    if dimension != _MEAN:
        return float(numbers["dimensions"][dimension])
    of_all = fmean(numbers["dimensions"].values())
    return float(numbers["models"].get(paper_model(model), of_all))


def ser_tests_share(
    names: Collection[str], model: str = "", *, threshold: float, tone_snr: str
) -> float:
    """Mean share unchanged over perturbations, as `ser_tests`.

    NaN beside another threshold, and with the tone where its SNR is not of root mean squares.
    """
    if threshold != THRESHOLD or not names or (TONE in names and tone_snr != "rms"):
        return _NAN
    return fmean(ser_tests(_PREFIX, name, _MEAN, model) for name in names)


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
        for row in _document()["ser_tests"]
        if (row["metric"], row["perturbation"]) == (metric, perturbation)
        and dimension in (row["dimension"], _MEAN)
        for name, value in row["models"].items()
        if name in wanted
    ]
    return fmean(values) if values else _NAN
