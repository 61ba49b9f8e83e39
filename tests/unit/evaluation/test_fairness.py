"""Sex fairness worked by hand (Eq. 1 and 2)."""

from __future__ import annotations

import numpy as np
import pytest

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.fairness import fairness_rows
from tests.unit.evaluation.worlds import only, scores

TRUTH = np.array([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
#: Women: .1 too high, otherwise perfect. Men: CCC 2/3, on average 1/6 too low.
PREDICTION = np.array([0.1, 0.6, 1.1, 0.0, 0.5, 0.5])
SEX = ["female"] * 3 + ["male"] * 3


def test_score_and_bias_by_hand():
    rows = fairness_rows(scores(TRUTH, columns={"sex": SEX}, m=PREDICTION), Bootstrap(draws=20))
    # women: cov = var = 1/6, shift .1, so CCC = (2/6) / (2/6 + .01)
    women = (1 / 3) / (1 / 3 + 0.01)
    assert only(rows, metric="sex_fairness_score").value == pytest.approx(women - 2 / 3)
    assert only(rows, metric="sex_fairness_bias").value == pytest.approx(0.1 + 1 / 6)
    assert {r.n for r in rows} == {6}
    assert {r.group_value for r in rows} == {"female - male"}


@pytest.mark.parametrize("sexes", [["female"] * 6, [None] * 6, ["female"] * 5 + ["other"]])
def test_one_sex_alone_has_no_fairness(sexes):
    assert fairness_rows(scores(TRUTH, columns={"sex": sexes}, m=TRUTH), Bootstrap(draws=5)) == []


def test_a_dimension_only_one_sex_is_labelled_in_has_none_either():
    truth = np.stack([TRUTH, np.where(np.arange(6) < 3, TRUTH, np.nan), TRUTH], axis=1)
    made = scores(truth, columns={"sex": SEX}, m=np.stack([PREDICTION] * 3, axis=1))
    found = {r.dimension for r in fairness_rows(made, Bootstrap(draws=5))}
    assert found == {"arousal", "valence"}


def test_women_and_men_are_drawn_independently():
    # the same clips for both: were the draws shared, every difference would be 0
    rng = np.random.default_rng(0)
    truth, noise = rng.random(60), rng.normal(0, 0.2, 60)
    columns = {"sex": ["female"] * 60 + ["male"] * 60}
    made = scores(np.tile(truth, 2), columns=columns, m=np.tile(truth + noise, 2))
    score = only(fairness_rows(made, Bootstrap()), metric="sex_fairness_score")
    assert score.value == 0
    assert score.ci_high - score.ci_low > 0.1


def test_several_datasets_have_a_mean_over_datasets_and_dimensions():
    columns = {"sex": SEX * 2, "corpus": ["a"] * 6 + ["b"] * 6}
    made = scores(np.tile(TRUTH, 2), columns=columns, m=np.concatenate([PREDICTION, TRUTH]))
    rows = fairness_rows(made, Bootstrap(draws=20))
    bias = only(rows, metric="sex_fairness_bias", dimension="mean")
    assert bias.dataset == "all"
    assert bias.value == pytest.approx((0.1 + 1 / 6) / 2)
    assert bias.n == 12
