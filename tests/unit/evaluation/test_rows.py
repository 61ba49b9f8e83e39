"""Rows of correctness, comparisons, fairness and speakers: by hand and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import (
    REPEATS,
    comparison_rows,
    constant_notes,
    correctness_rows,
    drop_rows,
    fairness_rows,
    speaker_rows,
)
from raysers.evaluation.rows import to_table
from raysers.evaluation.scores import base_subsets, ccc, subsets
from raysers.schemas import METRICS
from raysers.types import generator
from tests.unit.evaluation.worlds import only, scores, speakers_world, stretched

SIX = np.array([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
#: CCC 2/3 on the first three (the metric's own example, halved), 1 on the last three.
HALF_RIGHT = np.array([0.0, 0.5, 0.5, 0.0, 0.5, 1.0])


def cells(**columns):
    made = scores(SIX, columns=columns, m=HALF_RIGHT)
    return [(c.dataset, c.split, len(c.rows)) for c in base_subsets(made)]


def test_a_dataset_has_its_splits_and_with_several_also_all_of_it():
    assert cells() == [("unnamed", "all", 6)]
    assert cells(corpus=["x"] * 6, split=["test"] * 6) == [("x", "test", 6)]
    split = ["dev", "test", "test", None, None, None]
    assert cells(corpus=["x"] * 4 + ["y"] * 2, split=split) == [
        ("x", "none", 1),
        ("x", "dev", 1),
        ("x", "test", 2),
        ("x", "all", 4),
        ("y", "all", 2),
    ]


def test_values_are_of_the_cell_and_its_groups():
    made = scores(SIX, columns={"sex": ["female"] * 3 + ["male"] * 3}, m=HALF_RIGHT)
    rows = [r for r in correctness_rows(made, by=["sex", "language"], draws=0) if r.metric == "ccc"]
    found = {(r.group, r.group_value): (r.value, r.n) for r in rows}
    assert found[("sex", "female")] == (pytest.approx(2 / 3), 3)
    assert found[("sex", "male")] == (pytest.approx(1.0), 3)
    # all six: covariance 1/8, variances 24/144 and 17/144, shift 1/12
    assert found[("", "")] == (pytest.approx(6 / 7), 6)
    assert len(found) == 3  # nobody's language is known


def test_the_drop_is_the_share_of_the_home_value_that_is_lost():
    made = scores(
        np.concatenate([SIX, SIX[:3]]),
        columns={"corpus": ["home"] * 6 + ["away"] * 3, "split": ["test"] * 9},
        m=np.concatenate([SIX, HALF_RIGHT[:3]]),
    )
    row = only(drop_rows(made, "home", Bootstrap(draws=50)), metric="ccc_drop")
    assert row.value == pytest.approx(1 / 3)  # from 1 to 2/3
    assert (row.dataset, row.group, row.group_value, row.n) == ("away", "dataset", "home test", 3)


def test_rows_become_the_long_table_with_nulls_for_what_is_undefined():
    rows = correctness_rows(scores(SIX[:1], m=HALF_RIGHT[:1]))
    table = to_table(rows, "run1")
    assert table.schema == METRICS
    ccc, mae = (only(rows, metric=name) for name in ("ccc", "mae"))
    assert np.isnan(ccc.value)
    assert mae.value == 0
    by_metric = {r["metric"]: r for r in table.to_pylist()}
    assert by_metric["ccc"]["value"] is None
    assert by_metric["mae"]["value"] == 0
    assert {r["run_id"] for r in by_metric.values()} == {"run1"}


def test_constant_labels_have_no_ccc_and_a_note_says_why():
    sex = ["female"] * 3 + ["male"] * 3
    made = scores(np.where(np.arange(6) < 3, 0.5, SIX), columns={"sex": sex}, m=HALF_RIGHT)
    rows = correctness_rows(made, by=["sex"], draws=50)
    women, men = (only(rows, metric="ccc", group_value=g) for g in ("female", "male"))
    assert np.isnan([women.value, women.ci_low]).all()
    assert women.n == 3
    assert men.value == pytest.approx(1)
    (note,) = constant_notes(made, subsets(made, ["sex"]))
    assert note == "unnamed all, female: no CCC of arousal, all its labels are the same"


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
    assert (row.ci_low, row.ci_high) == pytest.approx(stretched(differences, 8))
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


def test_several_datasets_have_a_mean_over_datasets_and_dimensions():
    columns = {"sex": SEX * 2, "corpus": ["a"] * 6 + ["b"] * 6}
    made = scores(np.tile(TRUTH, 2), columns=columns, m=np.concatenate([PREDICTION, TRUTH]))
    rows = fairness_rows(made, Bootstrap(draws=20))
    bias = only(rows, metric="sex_fairness_bias", dimension="mean")
    assert bias.dataset == "all"
    assert bias.value == pytest.approx((0.1 + 1 / 6) / 2)
    assert bias.n == 12


def test_speakers_need_more_clips_than_are_drawn():
    made = speakers_world(clips=101, speakers=4)  # 26, 25, 25, 25
    rows = speaker_rows(made, samples=25)
    assert {r.group_value for r in rows if r.group == "speaker"} == {"s00"}
    assert {r.n for r in rows} == {26}
    assert speaker_rows(made, samples=26) == []


def test_mean_and_deviation_are_those_of_an_independent_bootstrap():
    made = speakers_world(clips=120, speakers=3)
    rows = speaker_rows(made, samples=30)
    mean = only(rows, model="good", metric="speaker_ccc", group_value="s01", dimension="arousal")
    sd = only(rows, model="good", metric="speaker_ccc_sd", group_value="s01", dimension="arousal")
    clips = np.arange(1, 120, 3)
    rng = np.random.default_rng(77)
    draws = [
        ccc(made.truth[c, 0], made.predictions["good"][c, 0])
        for c in rng.choice(clips, size=(REPEATS, 30))
    ]
    assert mean.value == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / REPEATS**0.5)
    assert sd.value == pytest.approx(np.std(draws), rel=0.12)
    assert mean.ci_low == pytest.approx(np.percentile(draws, 2.5), abs=np.std(draws) / 3)


def test_agreement_is_spearmans_of_the_means():
    made = speakers_world(clips=360, speakers=9)
    rows = speaker_rows(made, samples=30)
    for dimension in ("arousal", "dominance", "valence"):
        means = [
            [
                only(
                    rows,
                    metric="speaker_ccc",
                    model=m,
                    group_value=f"s{i:02d}",
                    dimension=dimension,
                ).value
                for i in range(9)
            ]
            for m in ("good", "poor")
        ]
        row = only(rows, metric="speaker_spearman", dimension=dimension)
        assert row.value == pytest.approx(stats.spearmanr(*means).statistic)
        assert (row.model, row.group_value, row.n) == ("good", "poor", 9)
