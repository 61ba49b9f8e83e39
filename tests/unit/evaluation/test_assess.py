"""An evaluation as a whole: what it measures, tells and prints; the random model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from raysers.evaluation.evaluate import assess
from raysers.evaluation.rows import WIDTH, number, print_metrics
from raysers.evaluation.scores import RANDOM as NAME
from raysers.evaluation.scores import Scores, random_scores, with_baseline
from tests.unit.evaluation.worlds import only, options, scores, speakers_world


def notes_of(made, **given) -> str:
    return "\n".join(assess(made, options(draws=10, **given))[1])


def with_columns(made, **columns):
    return dataclasses.replace(made, columns={**made.columns, **columns})


def test_the_baseline_is_measured_but_not_compared():
    rows, _ = assess(speakers_world(), options(draws=10, speaker_samples=10))
    metrics = {r.metric for r in rows if r.model == NAME}
    assert metrics == {"ccc", "pearson", "mae", "sex_fairness_score", "sex_fairness_bias"}
    assert NAME not in {r.group_value for r in rows}
    others = {r.metric for r in rows} - metrics
    assert {"ccc_difference", "speaker_ccc", "speaker_spearman"} <= others


def test_what_is_missing_is_said():
    made = speakers_world()
    assert "no CCC per speaker" in notes_of(made)
    assert "no CCC per speaker" not in notes_of(made, speaker_samples=10)
    bare = with_columns(made, speaker=[None] * 240, sex=[None] * 240)
    assert "clips were resampled" in notes_of(bare)
    assert "no fairness" in notes_of(bare)
    assert "so few speakers" not in notes_of(made)
    few = with_columns(made, speaker=["a", "b", "c", "d", "e", "f"] * 40)
    assert "made test (6): intervals from so few speakers" in notes_of(few)
    assert "made test, female (3), made test, male (3): no intervals" in notes_of(few, by=["sex"])


def test_every_figure_says_how_many_of_its_clips_the_model_was_trained_on():
    made = speakers_world()
    women = np.array(made.column("sex")) == "female"
    made = dataclasses.replace(made, trained={"good": women & (np.arange(240) < 100)})
    rows, notes = assess(made, options(draws=10, by=["sex"]))
    of = [r for r in rows if r.metric in ("ccc", "ccc_difference")]
    found = {(r.model, r.group_value): r.trained_on for r in of if r.trained_on}
    assert found == {("good", ""): 50, ("good", "female"): 50, ("good", "poor"): 50}
    assert any(note.startswith("good was trained on 50 of the 240 clips") for note in notes)


IDS = [f"{i:x}" for i in range(8000)]


def test_scores_are_truncated_gaussian():
    found = random_scores(IDS)
    theirs = stats.truncnorm(-3, 3, loc=0.5, scale=1 / 6)
    for column in found.T:
        assert stats.kstest(column, theirs.cdf).pvalue > 0.001
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.05
    assert found.min() >= 0
    assert found.max() <= 1


def test_scores_follow_the_clip_and_the_seed_only():
    some = random_scores(IDS[100:50:-1])
    np.testing.assert_array_equal(some, random_scores(IDS)[100:50:-1])
    assert np.abs(random_scores(IDS, 1) - random_scores(IDS)).min() > 0


def test_a_copy_of_the_corpus_elsewhere_has_the_same_random_scores():
    truth = np.linspace(0, 1, 5)
    here, there = (
        scores(
            truth,
            clip_id=[f"{place}{i}" for i in range(5)],
            columns={"identity": [*"abcde"]},
            m=truth,
        )
        for place in ("/data/", "s3://bucket/")
    )
    both = [with_baseline(made).predictions[NAME] for made in (here, there)]
    np.testing.assert_array_equal(*both)


@pytest.fixture(scope="module")
def made() -> Scores:
    world = speakers_world()
    names = {"good": "/models/a long/way/to/w2v2-L-robust", "poor": "s3://bucket/run/wav-lm"}
    return Scores(
        clip_id=world.clip_id,
        truth=world.truth,
        columns={**world.columns, "corpus": ["msp-podcast"] * 240, "split": ["test1"] * 240},
        predictions={names[k]: v for k, v in world.predictions.items()},
    )


def test_every_kind_of_result_is_printed_in_100_columns(made, capsys):
    rows, _ = assess(made, options(draws=100, by=("sex", "speaker"), speaker_samples=10))
    print_metrics(rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    one = only(
        rows, metric="ccc", group="", model=next(iter(made.predictions)), dimension="valence"
    )
    assert f"{number(one.value)} [{number(one.ci_low)}, {number(one.ci_high)}]" in text
    assert ".635" in text  # the paper's
    for title in ("CCC", "Pearson", "absolute", "fairness score", "fairness bias", "paired", "rank", "per speaker"):  # fmt: skip  # noqa: E501
        assert title in text
    assert "w2v2-L-robust - wav-lm" in text
    assert "more groups are in the table on disk" in text  # 12 speakers and two sexes
