"""An evaluation as a whole: what it measures and what it tells the reader."""

from __future__ import annotations

import dataclasses

import numpy as np

from raysers.evaluation.evaluate import assess
from raysers.evaluation.scores import RANDOM as NAME
from tests.unit.evaluation.worlds import options, speakers_world


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


def test_training_clips_are_pointed_out():
    made = speakers_world()
    assert "training clips" not in notes_of(made)
    split = ["train"] * 40 + ["test"] * 200
    assert "made: 40 predicted clips are training clips" in notes_of(
        with_columns(made, split=split)
    )


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
    found = {
        (r.model, r.group_value): r.trained_on
        for r in rows
        if r.metric in ("ccc", "ccc_difference")
    }
    assert found == {
        ("good", ""): 50,
        ("good", "female"): 50,
        ("good", "male"): 0,
        ("good", "poor"): 50,
        ("poor", ""): 0,
        ("poor", "female"): 0,
        ("poor", "male"): 0,
        (NAME, ""): 0,
        (NAME, "female"): 0,
        (NAME, "male"): 0,
    }
    assert any(note.startswith("good was trained on 50 of the 240 clips") for note in notes)
