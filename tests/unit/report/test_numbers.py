"""The numbers of each figure against small tables worked by hand."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from raysers.report import numbers
from raysers.report.values import Value, main_splits, number_in, values_of
from raysers.schemas import METRICS, STUDY_METRICS

NAN = math.nan


def value(number: float = 0.5, **other) -> Value:
    known = {"model": "m", "dataset": "emodb", "split": "test", "dimension": "arousal"}
    return Value(**({**known, "metric": "ccc", "n": 9} | other), value=number)


def brief(dots):
    return [(d.block, d.column, d.row, d.series, d.value) for d in dots]


def test_several_seeds_of_a_study_are_one_mark():
    study = {"study": "backbones", "model": "m"}
    seeds = [
        value(0.1 * n, seed=n, ci_low=0.1 * n - 0.05, ci_high=0.1 * n + 0.2, **study)
        for n in (1, 2, 3)
    ]
    (dot,) = numbers.correctness([*seeds, value(0.3, seed=3, ci_low=0.25, ci_high=0.5, **study)])
    assert dot.row == "m, 3 seeds"
    assert (dot.value, dot.low, dot.high) == pytest.approx((0.2, 0.05, 0.5))
    random = [value(0.0, seed=n, study="backbones", model=numbers.RANDOM) for n in (1, 2)]
    assert [d.row for d in numbers.correctness(random)] == [numbers.RANDOM]
    frozen = [value(0.1 * n, seed=n, study="frozen", factor_value="frozen") for n in (1, 3)]
    assert brief(numbers.by_factor(frozen, "frozen"))[0][2:] == ("m, 2 seeds", "frozen", 0.2)


@pytest.mark.parametrize(
    ("figure", "known"),
    [
        (numbers.robustness_by_model, {"metric": "robustness", "study": "robustness"}),
        (numbers.robustness_by_change, {"metric": "robustness_gain", "study": "robustness"}),
        (
            lambda v: numbers.fairness(v, "sex_fairness_bias"),
            {"metric": "sex_fairness_bias", "study": "backbones", "group": "sex"},
        ),
        (
            numbers.speakers,
            {"metric": "speaker_ccc", "study": "speakers", "group": "speaker", "group_value": "a"},
        ),
    ],
    ids=["3 by model", "3 by change", "4", "5"],
)
def test_figures_3_to_5_pool_the_seeds_too(figure, known):
    rows = [
        value(v, seed=n, cell=f"m-{n}", ci_low=v - 0.1, ci_high=v + 0.1, **known)
        for n, v in enumerate((0.1, 0.2, 0.6))
    ]
    (dot,) = figure(rows)
    assert (dot.value, dot.low, dot.high) == pytest.approx((0.3, 0.0, 0.7))
    assert "m, 3 seeds" in (dot.row, dot.series)


def test_values_come_from_a_metrics_table_as_they_are_and_null_is_undefined():
    row = dict.fromkeys(METRICS.names) | {
        "model": "m", "dataset": "d", "split": "s", "group": "", "group_value": "",
        "dimension": "valence", "metric": "ccc", "value": 0.25, "n": 3,
    }  # fmt: skip
    (found,) = values_of(pa.Table.from_pylist([row], METRICS))
    assert (found.value, found.n, found.study) == (0.25, 3, "")
    assert math.isnan(found.ci_low)
    assert math.isnan(found.paper)


def test_a_cell_of_a_study_lends_its_model_a_name_unless_it_looks_at_several():
    def row(cell, model):
        return dict.fromkeys(STUDY_METRICS.names) | {
            "study": "s", "cell": cell, "model": model, "metric": "ccc", "value": 0.1,
        }  # fmt: skip

    rows = [row("one", "/x/1"), row("one", "random-gaussian"), row("both", "a"), row("both", "b")]
    names = {("s", "one"): "w2v2-b", ("s", "both"): "all of them"}
    found = values_of(pa.Table.from_pylist(rows, STUDY_METRICS), names)
    assert [v.model for v in found] == ["w2v2-b", "random-gaussian", "a", "b"]


def test_a_dataset_is_shown_by_its_first_test_split_and_by_dev_only_for_want_of_another():
    rows = [value(split=s) for s in ("dev", "test2", "test1")]
    rows += [value(dataset="other", split="dev"), value(model="n", split="all")]
    kept = [(v.model, v.dataset, v.split) for v in main_splits(rows)]
    assert kept == [("m", "emodb", "test1"), ("m", "other", "dev"), ("n", "emodb", "all")]


def test_figure_2_is_ccc_of_whole_splits_of_the_backbones_with_the_random_model_last():
    found = numbers.correctness(
        [
            value(0.1, model="random-gaussian"),
            value(0.6, paper=0.7, ci_low=0.5, ci_high=0.65),
            value(0.9, group="sex", group_value="female"),
            value(0.8, metric="pearson"),
            value(0.2, study="frozen", factor_value="frozen"),
            value(0.4, study="backbones", model="w2v2-b"),
            value(0.3, dataset="all", split=""),
            value(0.35, model="fused"),
        ]
    )
    assert brief(found) == [
        ("emodb test", "arousal", "m", "", 0.6),
        ("emodb test", "arousal", "w2v2-b", "", 0.4),
        ("emodb test", "arousal", "random-gaussian", "", 0.1),
    ]
    assert (found[0].paper, found[0].low, found[0].high, found[0].n) == (0.7, 0.5, 0.65, 9)


def test_figure_3_tells_the_mean_from_each_perturbation():
    rows = [
        value(0.9, metric="robustness"),
        value(0.8, metric="robustness_white_noise"),
        value(0.7, metric="robustness_white_noise", dimension="mean"),
        value(0.6, metric="robustness_gain", group="sex", group_value="male"),
        value(0.2, metric="robustness", model="random-gaussian"),
        value(0.2, metric="robustness_white_noise", model="random-gaussian"),
    ]
    by_model = numbers.robustness_by_model(rows)
    assert [(d.row, d.value) for d in by_model] == [("m", 0.9), ("random-gaussian", 0.2)]
    assert brief(numbers.robustness_by_change(rows)) == [
        ("emodb test", "arousal", "white noise", "m", 0.8)
    ]


def test_figure_5_begins_with_the_hardest_speaker_by_the_mean_over_models_and_dimensions():
    rows = [
        value(v, metric="speaker_ccc", group="speaker", group_value=s, model=m)
        for s, m, v in (("a", "m", 0.9), ("a", "n", 0.1), ("b", "m", 0.3), ("b", "n", 0.5))
    ]
    found = numbers.speakers(rows)
    assert [(d.row, d.series) for d in found] == [("b", "m"), ("b", "n"), ("a", "m"), ("a", "n")]


def test_figure_12_is_the_mean_over_seeds_with_a_sample_standard_deviation():
    rows = [
        {"study": "seeds", "model": "m", "dimension": "valence", "epoch": 1, "ccc": ccc, "seed": s}
        for s, ccc in enumerate((0.2, 0.4, 0.9))
    ]
    rows.append(rows[0] | {"epoch": 2, "ccc": 0.7})
    rows += [rows[0] | {"study": "other"}, rows[0] | {"dimension": "mean"}, rows[0] | {"ccc": None}]
    rows.append(dict(rows[0]))  # a seed that is there twice is one seed
    first, second = numbers.learning(rows)
    # deviations of -.3, -.1, .4 from .5: sqrt(.26 / 2)
    assert (first.value, first.n) == (pytest.approx(0.5), 3)
    assert (first.low, first.high) == (
        pytest.approx(0.5 - 0.13**0.5),
        pytest.approx(0.5 + 0.13**0.5),
    )
    assert (second.x, second.value) == (2.0, 0.7)
    assert math.isnan(second.low)


def test_figure_14_orders_shares_as_numbers_and_pools_seeds():
    rows = [
        value(v, study="fraction", factor_value=f, seed=s, ci_low=v - 0.1, ci_high=v + 0.2)
        for f, s, v in (("100 %", 0, 0.6), ("12.5 %", 0, 0.2), ("12.5 %", 1, 0.4), ("all", 0, 0.9))
    ]
    found = numbers.over_numbers(rows, "fraction")
    assert [(p.series, p.x, p.value, p.n) for p in found] == [
        ("emodb", 0.125, pytest.approx(0.3), 2),
        ("emodb", 1.0, 0.6, 1),
    ]
    assert (found[0].low, found[0].high) == (pytest.approx(0.1), pytest.approx(0.6))


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12.0), ("0.5", 0.5), ("7.5 %", 0.075), ("25%", 0.25), ("random", NAN), ("", NAN)],
)
def test_a_factor_s_value_as_a_number(text, number):
    assert number_in(text) == pytest.approx(number, nan_ok=True)
