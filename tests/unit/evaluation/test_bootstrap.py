"""Bootstrap intervals against brute force, scipy, and what resampling speakers must change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from raysers.evaluation.bootstrap import (
    MOST_UNITS,
    Bootstrap,
    draw,
    draw_metrics,
    interval,
    interval_notes,
    resampling_units,
    share_interval,
    stretch,
)
from raysers.evaluation.correctness import correctness_rows
from raysers.evaluation.scores import METRICS, Scores, Subset, base_subsets
from raysers.types import generator
from tests.benchmarks.coverage import covered
from tests.unit.evaluation.worlds import only, permuted, speakers_world


def drawn_speakers(made: Scores, cell: Subset, draws: int, seed: int) -> np.ndarray:
    """Numbers of the speakers of every draw, read from the generator the cell names."""
    names = sorted(set(made.column("speaker")))
    rng = generator(seed, cell.dataset, cell.split, cell.group, cell.group_value)
    return rng.integers(0, len(names), size=(draws, len(names)))


def test_draws_equal_brute_force_resampling_of_the_clips_of_speakers():
    made = speakers_world(clips=90, speakers=7)
    (cell,) = base_subsets(made)
    drawn = draw_metrics(made, cell, [made.predictions["good"]], Bootstrap(draws=60, seed=5))
    speakers = np.array(made.column("speaker"))
    names = sorted(set(speakers))
    for row, picked in enumerate(drawn_speakers(made, cell, 60, 5)):
        clips = np.concatenate([np.flatnonzero(speakers == names[i]) for i in picked])
        for name, metric in METRICS.items():
            truth, prediction = made.truth[clips, 1], made.predictions["good"][clips, 1]
            found = drawn[name].values[row, 0, 1]
            assert found == pytest.approx(metric(truth, prediction))


@pytest.mark.parametrize(
    "name",
    [
        "CCC, 5 speakers",
        "CCC, 100 clips",
        "fairness score, 5 + 5 speakers",
        "robustness share, 5 speakers",
        "robustness share, 100 clips",
    ],
)
def test_intervals_cover_the_population_value_as_often_as_they_say(name):
    """Plain percentiles cover it in .81 to .88 of such worlds; `tests.benchmarks coverage`."""
    assert 0.90 <= covered(name, worlds=200) <= 0.99


def test_intervals_of_few_units_are_wider_as_students_t_is():
    """From a table: t(.975) is 2.776 for 4 degrees of freedom and 2.262 for 9, 1.96 for many."""
    expected = [(5 / 4) ** 0.5 * 2.776 / 1.96, (10 / 9) ** 0.5 * 2.262 / 1.96, 1]
    assert stretch(np.array([5, 10, 1_000_000])) == pytest.approx(expected, rel=3e-4)


def test_a_difference_of_independent_groups_has_welchs_degrees_of_freedom():
    """Means of 5 and 12 units, whose draws have (n - 1) / n of the variance that scipy has."""
    rng = np.random.default_rng(2)
    groups = rng.normal(0, 1, 5), rng.normal(0, 3, 12)
    one, other = (
        draw(
            lambda s: s,
            g[:, None] / len(g),
            np.ones((len(g), 1), bool),
            Bootstrap(draws=20_000),
            n,
        )
        for g, n in zip(groups, "ab", strict=True)
    )
    gap = one.with_independent(other, np.subtract)
    welch = stats.ttest_ind(*groups, equal_var=False).confidence_interval(0.95)
    half = 1.96 * gap.wider[0] * gap.values[:, 0].std()
    assert (gap.value[0] - half, gap.value[0] + half) == pytest.approx(tuple(welch), rel=0.02)


def test_a_model_that_predicted_a_part_has_the_intervals_of_that_part():
    made = speakers_world(clips=600, speakers=30)
    of = np.array(made.column("speaker"))
    part = np.isin(of, [f"s{i:02d}" for i in range(6)])
    both = dataclasses.replace(
        made,
        predictions={
            "whole": made.predictions["good"],
            "part": np.where(part[:, None], made.predictions["good"], np.nan),
        },
    )
    alone = Scores(
        clip_id=np.array(made.clip_id)[part].tolist(),
        truth=made.truth[part],
        predictions={"part": made.predictions["good"][part]},
        columns={k: np.array(v, object)[part].tolist() for k, v in made.columns.items()},
    )
    rows, expected = (correctness_rows(world) for world in (both, alone))
    for dimension in ("arousal", "dominance", "valence"):
        wanted = {"model": "part", "metric": "ccc", "dimension": dimension}
        ours, theirs = only(rows, **wanted), only(expected, **wanted)
        assert (ours.n, ours.speakers) == (theirs.n, theirs.speakers) == (120, 6)
        assert (ours.ci_low, ours.ci_high) == pytest.approx((theirs.ci_low, theirs.ci_high))
        assert ours.ci_low < ours.value < ours.ci_high


def test_less_change_never_widens_the_interval_of_a_share():
    """Clips of 20 speakers become unchanged one after the other, those of one speaker last."""
    rng = np.random.default_rng(0)
    changed, widths = np.full(20, 3.0), []
    while changed.sum() > 0:
        draws = changed[rng.integers(0, 20, (1000, 20))].sum(axis=1)
        share = 1 - changed.sum() / 500
        low, high = share_interval(np.array(share), 1 - draws / 500, 20, np.array(500))
        widths.append(high - low)
        changed[np.flatnonzero(changed)[-1]] -= 1
    low, high = share_interval(np.array(1.0), np.ones(1000), 20, np.array(500))
    assert high - low < widths[-1] < widths[-6] < widths[0]
    exact = stats.binomtest(500, 500).proportion_ci(0.95).low
    assert low < exact  # never inside the interval of as many independent clips


def test_below_five_speakers_there_is_no_interval_and_a_note_says_why():
    made = speakers_world(speakers=4)
    rows = correctness_rows(made)
    assert rows
    assert all(np.isnan(row.ci_low) and np.isnan(row.ci_high) for row in rows)
    (note,) = interval_notes(made, base_subsets(made))
    assert note == "made test (4): no intervals, which need at least 5 speakers"


def test_results_do_not_depend_on_the_order_of_the_rows():
    made = speakers_world()
    ours, theirs = (correctness_rows(w, by=["sex"], draws=200) for w in (made, permuted(made)))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.model, one.metric, one.n) == (other.model, other.metric, other.n)
        for name in ("value", "ci_low", "ci_high"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


@pytest.mark.parametrize("speakers", [["a"] * 3, [None] * 3, ["a", None, "a"]])
def test_without_two_speakers_clips_are_drawn(speakers):
    assert resampling_units(speakers, ["1", "2", "3"])[1] == 3


def test_many_clips_are_merged_into_units_at_random():
    ids = [f"{i:06d}" for i in range(3 * MOST_UNITS)]
    unit, units = resampling_units([None] * len(ids), ids)
    assert units == MOST_UNITS
    assert set(np.bincount(unit)) == {3}
    assert np.corrcoef(unit[:-1], unit[1:])[0, 1] < 0.05


def test_interval_leaves_few_undefined_draws_out_and_gives_up_on_many():
    draws = np.tile(np.linspace(0, 1, 1001)[:, None], (1, 2))
    draws[:50, 0] = np.nan
    draws[:51, 1] = np.nan
    low, high = interval(draws, 10**9)
    assert low[0] == pytest.approx(np.quantile(draws[50:, 0], 0.025))
    assert high[0] == pytest.approx(np.quantile(draws[50:, 0], 0.975))
    assert np.isnan([low[1], high[1]]).all()
