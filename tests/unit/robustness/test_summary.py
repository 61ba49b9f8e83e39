"""Robustness scores against theory, hand-worked cases and another library."""

from __future__ import annotations

import math

import audmetric
import numpy as np
import pytest
from scipy import integrate, stats

from raysers.evaluation.scores import RANDOM, Scores
from raysers.robustness.comparison import Change, Comparison, paper_share
from raysers.robustness.summary import robustness_rows

GAIN = Change(name="gain", versions=("gain",), against="clean")
NO_DRAWS = Comparison(draws=0)


def scores_of(clean, gain, *, truth=None, columns=None, **more) -> Scores:
    """Scores with every dimension the same unless given as [n, 3]."""

    def wide(x):
        x = np.asarray(x, np.float32)
        return np.repeat(x[:, None], 3, axis=1) if x.ndim == 1 else x

    n = len(clean)
    predictions = {"clean": wide(clean), "gain": wide(gain)}
    predictions |= {name: wide(x) for name, x in more.items()}
    return Scores(
        clip_id=[f"clip{i}" for i in range(n)],
        truth=np.full((n, 3), np.nan) if truth is None else np.asarray(truth, np.float64),
        predictions=predictions,
        columns=columns or {},
    )


def value(rows, metric, dimension="mean", model="m", **where):
    found = [
        r
        for r in rows
        if (r.metric, r.dimension, r.model) == (metric, dimension, model)
        and all(getattr(r, k) == v for k, v in ({"group": ""} | where).items())
    ]
    assert len(found) == 1, (metric, dimension, [r.metric for r in rows])
    return found[0]


def test_the_score_is_the_share_that_changed_by_less_than_the_threshold_strictly():
    # changes of .02, .05 exactly (binary fractions: .5 + .0625), .0625, -.04
    clean = [0.5, 0.5, 0.5, 0.5]
    gain = [0.52, 0.5625, 0.5 + 0.0625, 0.46]
    rows = robustness_rows(
        "m", scores_of(clean, gain), [GAIN], Comparison(threshold=0.0625, draws=0)
    )
    assert value(rows, "robustness_gain", "arousal").value == 0.5
    rows = robustness_rows("m", scores_of(clean, gain), [GAIN], Comparison(threshold=0.07, draws=0))
    assert value(rows, "robustness_gain", "valence").value == 1.0


def test_rounded_scores_that_differ_by_five_hundredths_count_as_changed():
    # .50 - .45 is below .05 in binary
    scores = scores_of([0.454, 0.451, 0.2, 0.3], [0.496, 0.504, 0.2449, 0.3549])
    plain = robustness_rows("m", scores, [GAIN], NO_DRAWS)
    rounded = robustness_rows("m", scores, [GAIN], Comparison(draws=0, rounded=True))
    assert value(plain, "robustness_gain").value == 0.5  # .042, .053, .0449, .0549
    assert value(rounded, "robustness_gain").value == 0.25  # 5, 5, 4, 5 hundredths


def test_a_model_that_ignores_its_input_scores_1_everywhere_with_an_honest_interval():
    scores = scores_of(np.full(20, 0.4), np.full(20, 0.4))
    rows = robustness_rows("m", scores, [GAIN], Comparison())
    for metric in ("robustness_gain", "robustness"):
        for dimension in ("arousal", "dominance", "valence", "mean"):
            row = value(rows, metric, dimension)
            assert (row.value, row.ci_high, row.n) == (1.0, 1.0, 20)
            # Clopper-Pearson for 20 of 20
            exact = stats.binomtest(20, 20).proportion_ci(method="exact").low
            assert row.ci_low == pytest.approx(exact, abs=1e-9)
    assert value(rows, "mean_change_gain").value == 0.0


def random_share_in_theory(threshold: float) -> float:
    """P(|X - Y| < threshold) of two scores from ser-tests' random-gaussian model."""
    score = stats.truncnorm(-3, 3, loc=0.5, scale=1 / 6)

    def inner(x: float) -> float:
        return score.pdf(x) * (score.cdf(x + threshold) - score.cdf(x - threshold))

    return integrate.quad(inner, 0, 1)[0]


def test_a_random_model_scores_as_the_theory_says():
    theory = random_share_in_theory(0.05)
    assert theory == pytest.approx(0.17, abs=0.005)  # what ser-tests reports
    n = 20_000
    rows = robustness_rows("m", scores_of(np.full(n, 0.5), np.full(n, 0.5)), [GAIN], NO_DRAWS)
    for dimension in ("arousal", "dominance", "valence"):
        got = value(rows, "robustness_gain", dimension, model=RANDOM).value
        assert got == pytest.approx(theory, abs=4 * math.sqrt(theory * (1 - theory) / n))


def test_less_change_never_gives_a_wider_interval():
    widths, ends = [], []
    for changed in (0, 1, 2, 3, 5, 10, 20, 50, 100):
        after = np.full(500, 0.5)
        after[:changed] += 0.1  # of all speakers alike
        speakers = {"speaker": [f"s{i % 10}" for i in range(500)]}
        scores = scores_of(np.full(500, 0.5), after, columns=speakers)
        row = value(robustness_rows("m", scores, [GAIN], Comparison()), "robustness_gain")
        widths.append(row.ci_high - row.ci_low)
        ends.append(row.ci_low)
    assert widths == sorted(widths)
    assert ends == sorted(ends, reverse=True)
    assert 0 < widths[0] < 0.02


def test_clips_of_one_speaker_are_drawn_together():
    # five speakers whose clips all change or all do not: five facts, not five hundred
    changes = np.repeat([0.0, 0.1, 0.0, 0.1, 0.0], 100)
    speakers = [f"s{i // 100}" for i in range(500)]
    clean = np.full(500, 0.5)
    alone = robustness_rows("m", scores_of(clean, clean + changes), [GAIN], Comparison())
    known = scores_of(clean, clean + changes, columns={"speaker": speakers})
    together = robustness_rows("m", known, [GAIN], Comparison())
    narrow, wide = (value(rows, "robustness_gain") for rows in (alone, together))
    assert narrow.value == wide.value == pytest.approx(0.6)
    assert wide.ci_high - wide.ci_low > 5 * (narrow.ci_high - narrow.ci_low)


def test_repeats_are_pooled_and_harder_changes_stay_out_of_the_mean():
    repeated = Change(name="gain", versions=("gain", "gain#2"), against="clean")
    hard = Change(name="phone", versions=("phone",), against="clean", small=False)
    half = [0.5, 0.9]
    scores = scores_of([0.5, 0.5], [0.5, 0.5], **{"gain#2": half, "phone": [0.9, 0.9]})
    rows = robustness_rows("m", scores, [repeated, hard], NO_DRAWS)
    assert value(rows, "robustness_gain").value == 0.75
    assert value(rows, "robustness_gain").n == 2
    assert value(rows, "robustness_phone").value == 0.0
    assert value(rows, "robustness").value == 0.75


def test_the_change_of_ccc_is_audmetrics_difference():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 1, (120, 3))
    clean = np.float32(truth + rng.normal(0, 0.1, truth.shape))
    gain = np.float32(truth + rng.normal(0, 0.2, truth.shape))
    gain[:5] = np.nan  # failed: left out on both sides
    rows = robustness_rows("m", scores_of(clean, gain, truth=truth), [GAIN], Comparison(draws=200))
    for d, dimension in enumerate(("arousal", "dominance", "valence")):
        after = audmetric.concordance_cc(truth[5:, d], gain[5:, d])
        before = audmetric.concordance_cc(truth[5:, d], clean[5:, d])
        row = value(rows, "ccc_change_gain", dimension)
        assert row.value == pytest.approx(after - before, abs=1e-6)
        assert row.ci_low < row.value < row.ci_high < 0
        assert row.n == 115


def test_published_means_are_of_the_papers_perturbations_and_models():
    assert (paper_share("gain"), paper_share("models/w2v2-L-robust")) == (0.995, 0.98)
    assert math.isnan(paper_share("mine"))
    rows = robustness_rows("w2v2-L-robust", scores_of([0.5] * 3, [0.5] * 3), [GAIN], NO_DRAWS)
    assert all(math.isnan(row.paper) for row in rows)  # means are no number of this data
