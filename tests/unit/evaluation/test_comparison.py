"""Paired differences: by hand, against brute force, and why the pairing matters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import comparison_rows, correctness_rows
from raysers.evaluation.metrics import ccc
from raysers.seeding import generator
from tests.unit.evaluation.worlds import only, scores, speakers_world

TRUTH = np.array([0.0, 0.5, 1.0])


def test_difference_by_hand():
    made = scores(TRUTH, one=TRUTH, two=np.array([0.0, 0.5, 0.5]))
    rows = comparison_rows(made, Bootstrap(draws=0))
    difference = only(rows, metric="ccc_difference")
    assert difference.value == pytest.approx(1 - 2 / 3)
    assert (difference.model, difference.group, difference.group_value) == ("one", "model", "two")
    assert only(rows, metric="mae_difference").value == pytest.approx(-1 / 6)
    assert only(rows, metric="ccc_difference_above_0").n == 3


def test_interval_and_share_equal_brute_force():
    made = speakers_world(clips=80, speakers=8)
    rows = comparison_rows(made, Bootstrap(draws=200, seed=9))
    speakers = np.array(made.column("speaker"))
    names = sorted(set(speakers))
    differences = []
    for picked in generator(9, "made", "test", "", "").integers(0, 8, size=(200, 8)):
        clips = np.concatenate([np.flatnonzero(speakers == names[i]) for i in picked])
        good, poor = (
            ccc(made.truth[clips, 0], made.predictions[m][clips, 0]) for m in ("good", "poor")
        )
        differences.append(good - poor)
    row = only(rows, metric="ccc_difference", dimension="arousal")
    tails = stats.norm.cdf(np.array([-1, 1]) * (8 / 7) ** 0.5 * 2.364624)  # t(.975, 7)
    expected = np.quantile(differences, tails)
    assert (row.ci_low, row.ci_high) == pytest.approx(expected, rel=1e-4)
    share = only(rows, metric="ccc_difference_above_0", dimension="arousal")
    assert share.value == np.mean(np.array(differences) > 0)


def test_pairing_shows_a_small_difference_that_lies_within_both_intervals():
    made = speakers_world(clips=400, speakers=20)
    poor = made.predictions["poor"]
    rng = np.random.default_rng(0)
    made = scores(
        made.truth, columns=made.columns, one=poor, two=poor + rng.normal(0, 0.06, poor.shape)
    )
    rows = [*correctness_rows(made), *comparison_rows(made, Bootstrap())]
    one, two = (only(rows, metric="ccc", model=m, dimension="arousal") for m in ("one", "two"))
    assert one.ci_low < two.value < one.ci_high
    assert two.ci_low < one.value < two.ci_high
    difference = only(rows, metric="ccc_difference", dimension="arousal")
    assert difference.ci_high - difference.ci_low < (one.ci_high - one.ci_low) / 3
    assert difference.ci_low > 0
