"""Published figures of the probe to stand beside ours: the paper's section 5.3, and ser-tests'.

Both are of other voices, and ser-tests' of translated sentences: what is beside a figure orients,
it does not judge. The paper's two sentences were read to its 24-layer w2v2-L-robust.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from raysers.evaluation.paper import paper_model, paper_numbers
from raysers.words.tokens import folded, tokens

_NAN = float("nan")


@cache
def _document() -> Mapping[str, Any]:
    text = resources.files("raysers").joinpath("assets/probe_numbers.json").read_text("utf-8")
    document: Mapping[str, Any] = json.loads(text)
    return document


def threshold(name: str) -> float:
    """ser-tests' limit of a difference between languages, or the fewest sentences of a bin."""
    return float(_document()["thresholds"][name])


def paper_sentence(text: str, dimension: str) -> float:
    """The paper's valence of a spoken sentence; NaN when it has none. Case does not matter.

    >>> paper_sentence("this is wonderful", "valence")
    0.816
    """
    if dimension != "valence":
        return _NAN
    known = {_said(name): value for name, value in _document()["paper"]["sentences"].items()}
    return float(known.get(_said(text), _NAN))


def paper_transcribed(dataset: str, split: str) -> float:
    """Share of the clips the paper had transcripts of; NaN for other clips than its own."""
    theirs = _document()["paper"]["transcribed_share"]
    same = (dataset, split) == (theirs["dataset"], theirs["split"])
    return float(theirs["value"]) if same else _NAN


def ser_tests_shift(
    sentiment: str, dimension: str, *, language: str = "en", model: str = "", what: str = "shift"
) -> float:
    """Mean of a sentiment minus mean of all sentences of the language.

    Args:
        sentiment: positive, neutral or negative.
        dimension: one of the three.
        language: de, en, es, fr, it, ja, pt or zh.
        model: as in a result; empty, or a model ser-tests does not have: mean of the paper's eight.
        what: `shift`, or `difference` from the mean shift of the eight languages.

    Returns:
        The figure, to 2 decimals for a single model; NaN when ser-tests has none.
    """
    wanted = (language, sentiment, dimension)
    rows = _document()["ser_tests"]
    of = next((r for r in rows if (r["language"], r["sentiment"], r["dimension"]) == wanted), None)
    if of is None:
        return _NAN
    mine = paper_model(model) if model else ""
    names = [mine] if mine in of[what] else list(paper_numbers().models.values())
    values = [of[what][name] for name in names if name in of[what]]
    return fmean(values) if values else _NAN


def _said(text: str) -> tuple[str, ...]:
    return tuple(folded(word) for word in tokens(text))
