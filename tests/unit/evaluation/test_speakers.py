"""CCC per speaker: who counts, the draws, and the agreement of models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raysers.evaluation.fairness import REPEATS, speaker_rows
from raysers.evaluation.metrics import ccc
from tests.unit.evaluation.worlds import only, scores, speakers_world


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


def test_a_models_figures_do_not_depend_on_the_models_beside_it():
    """Models with the same clips share draws; one that lacks clips has draws of its own."""
    made = speakers_world(clips=240, speakers=4)
    gaps = made.predictions["good"].copy()
    gaps[::5, 2] = np.nan

    def figures(**predictions):
        rows = speaker_rows(scores(made.truth, columns=made.columns, **predictions), samples=30)
        found = [r for r in rows if r.model == "m"]
        assert {r.n for r in found} == {48, 60}
        values = np.array([(r.value, r.ci_low, r.ci_high) for r in found])
        return [(r.group_value, r.dimension, r.metric, r.n) for r in found], values

    alone, together = figures(m=gaps), figures(n=made.predictions["poor"], m=gaps)
    assert together[0] == alone[0]
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-12)
