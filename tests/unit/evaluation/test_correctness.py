"""Which rows there are, over which clips, and the cross-corpus drop worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import constant_notes, correctness_rows, drop_rows
from raysers.evaluation.rows import to_table
from raysers.evaluation.scores import base_subsets, subsets
from raysers.schemas import METRICS
from tests.unit.evaluation.worlds import only, scores

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


def test_a_missing_label_or_prediction_leaves_the_clip_out_of_that_dimension():
    truth = np.stack([SIX, SIX, np.full(6, np.nan)], axis=1)
    truth[0, 1] = np.nan
    prediction = np.stack([HALF_RIGHT] * 3, axis=1)
    prediction[5] = np.nan
    rows = correctness_rows(scores(truth, m=prediction), draws=0)
    counts = {r.dimension: r.n for r in rows if r.metric == "ccc"}
    assert counts == {"arousal": 5, "dominance": 4}


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
