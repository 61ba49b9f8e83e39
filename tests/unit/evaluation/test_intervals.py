"""Bootstrap intervals against brute force, scipy, and what resampling speakers must change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from raysers.evaluation.correctness import correctness_rows
from raysers.evaluation.draws import Bootstrap, drawn_sums
from raysers.evaluation.intervals import interval, resampling_units
from raysers.evaluation.metrics import METRICS, ccc
from raysers.evaluation.moments import OF_SUMS
from raysers.evaluation.scores import Scores, Subset, base_subsets
from raysers.seeding import generator
from tests.unit.evaluation.worlds import only, permuted, scores, speakers_world


def drawn_speakers(made: Scores, cell: Subset, draws: int, seed: int) -> np.ndarray:
    """Numbers of the speakers of every draw, read from the generator the cell names."""
    names = sorted(set(made.column("speaker")))
    rng = generator(seed, cell.dataset, cell.split, cell.group, cell.group_value)
    return rng.integers(0, len(names), size=(draws, len(names)))


def test_draws_equal_brute_force_resampling_of_the_clips_of_speakers():
    made = speakers_world(clips=90, speakers=7)
    (cell,) = base_subsets(made)
    sums = drawn_sums(made, cell, [made.predictions["good"]], Bootstrap(draws=60, seed=5))
    speakers = np.array(made.column("speaker"))
    names = sorted(set(speakers))
    for draw, picked in enumerate(drawn_speakers(made, cell, 60, 5)):
        clips = np.concatenate([np.flatnonzero(speakers == names[i]) for i in picked])
        for name, metric in METRICS.items():
            truth, prediction = made.truth[clips, 1], made.predictions["good"][clips, 1]
            assert OF_SUMS[name](sums)[draw, 0, 1] == pytest.approx(metric(truth, prediction))


def test_interval_agrees_with_scipy_when_clips_are_drawn():
    rng = np.random.default_rng(8)
    truth = rng.random(150)
    made = scores(truth, model=truth + rng.normal(0, 0.2, 150))
    row = only(correctness_rows(made, draws=4000), metric="ccc")
    theirs = stats.bootstrap(
        (truth, made.predictions["model"][:, 0]),
        ccc,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (row.ci_low, row.ci_high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert theirs.high - theirs.low > 0.05


def test_speakers_with_biases_of_their_own_make_the_interval_wider():
    made = speakers_world(clips=600)
    anonymous = dataclasses.replace(made, columns={"corpus": ["made"] * 600})
    widths = []
    for one in (made, anonymous):
        rows = correctness_rows(one)
        row = only(rows, model="poor", metric="ccc", dimension="arousal")
        assert row.ci_low < row.value < row.ci_high
        widths.append(row.ci_high - row.ci_low)
    assert widths[0] > 1.3 * widths[1]


def test_the_interval_covers_the_population_value_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    rho, inside = 0.6, 0
    for world in range(200):
        pairs = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=80)
        made = scores(pairs[:, 0], model=pairs[:, 1])
        row = only(correctness_rows(made, draws=300, seed=world), metric="ccc")
        inside += row.ci_low <= rho <= row.ci_high  # equal means and variances: CCC is rho
    assert 0.88 <= inside / 200 <= 0.99


def test_results_do_not_depend_on_the_order_of_the_rows():
    made = speakers_world()
    ours, theirs = (correctness_rows(w, by=["sex"], draws=200) for w in (made, permuted(made)))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.model, one.metric, one.n) == (other.model, other.metric, other.n)
        for name in ("value", "ci_low", "ci_high"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


def test_units_are_speakers_and_clips_of_nobody_known():
    unit, units = resampling_units(["b", None, "a", "b", ""], ["1", "2", "3", "4", "5"])
    assert units == 4
    assert unit[0] == unit[3]
    assert len({*unit}) == 4


@pytest.mark.parametrize("speakers", [["a"] * 3, [None] * 3, ["a", None, "a"]])
def test_without_two_speakers_clips_are_drawn(speakers):
    assert resampling_units(speakers, ["1", "2", "3"])[1] == 3


def test_interval_leaves_few_undefined_draws_out_and_gives_up_on_many():
    draws = np.tile(np.linspace(0, 1, 1001)[:, None], (1, 2))
    draws[:50, 0] = np.nan
    draws[:51, 1] = np.nan
    low, high = interval(draws)
    assert low[0] == pytest.approx(np.percentile(draws[50:, 0], 2.5))
    assert high[0] == pytest.approx(np.percentile(draws[50:, 0], 97.5))
    assert np.isnan([low[1], high[1]]).all()


def test_no_draws_no_interval():
    rows = correctness_rows(speakers_world(), draws=0)
    assert rows
    assert all(np.isnan(row.ci_low) and np.isnan(row.ci_high) for row in rows)
    assert not any(np.isnan(row.value) for row in rows)
