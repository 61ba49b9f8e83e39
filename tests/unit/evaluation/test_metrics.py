"""Metrics against published vectors, another library, and what must not change them."""

from __future__ import annotations

import json
import warnings

import audmetric
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.evaluation.scores import (
    COLUMNS,
    METRICS,
    OF_SUMS,
    ccc,
    mae,
    pearson,
    unit_sums,
)
from tests.places import SHARED_DATA, needs_shared

# labels and scores are float32 in about 0..1: steps of 1/64 keep sums exact, so both libraries
# agree on what is constant
GRID = st.integers(0, 64).map(lambda k: k / 64)
PAIRS = st.lists(st.tuples(GRID, GRID), min_size=0, max_size=40)


def same(ours: float, theirs: float | None) -> bool:
    undefined = theirs is None or np.isnan(theirs)
    return np.isnan(ours) if undefined else ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@needs_shared
def test_ccc_and_pearson_equal_the_published_vectors():
    document = json.loads((SHARED_DATA.parent / "reference/ccc_vectors.json").read_text())
    assert len(document["cases"]) > 5
    for case in document["cases"]:
        assert same(ccc(case["truth"], case["prediction"]), case["ccc"])
        assert same(pearson(case["truth"], case["prediction"]), case["pcc"])


@given(PAIRS)
def test_metrics_equal_audmetric(pairs):
    truth, prediction = np.array(pairs, float).reshape(-1, 2).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs divides by zero for constant labels
        assert same(ccc(truth, prediction), audmetric.concordance_cc(truth, prediction))
        assert same(pearson(truth, prediction), audmetric.pearson_cc(truth, prediction))
        if len(truth):
            theirs = audmetric.mean_absolute_error(truth, prediction)
            assert same(mae(truth, prediction), theirs)


@given(PAIRS.filter(lambda pairs: len(pairs) > 2))
def test_ccc_does_not_see_order_or_exchange_and_punishes_a_shift(pairs):
    truth, prediction = np.array(pairs, float).T
    value = ccc(truth, prediction)
    assert same(ccc(truth[::-1], prediction[::-1]), value)
    assert same(ccc(prediction, truth), value)
    assert same(ccc(3 + 2 * truth, 3 + 2 * prediction), value)
    if value > 0.01 and truth.mean() <= prediction.mean():
        assert ccc(truth, prediction + 0.25) < value
        assert same(pearson(truth, prediction + 0.25), pearson(truth, prediction))


def test_unequal_lengths_are_refused():
    for metric in METRICS.values():
        with pytest.raises(ValueError, match="do not pair up"):
            metric([0.1, 0.2], [0.1])


@given(PAIRS, st.integers(1, 5), st.floats(0, 1))
def test_metrics_follow_from_the_sums_of_units(pairs, units, offset):
    truth, prediction = np.array(pairs, float).reshape(-1, 2).T
    unit = np.arange(len(truth)) % units
    sums = unit_sums(truth[:, None], prediction[:, None], unit, units, np.array([offset]))
    assert sums.shape == (units, 1, len(COLUMNS))
    whole = sums.sum(axis=0)
    for name, metric in {
        **METRICS,
        "mean_error": lambda y, x: np.mean(x - y) if x.size else np.nan,
    }.items():
        (found,) = OF_SUMS[name](whole)
        direct = metric(truth, prediction)
        assert np.isnan(found) == np.isnan(direct)
        # the square root of what rounding leaves of a variance
        assert np.isnan(found) or found == pytest.approx(direct, abs=1e-6)
