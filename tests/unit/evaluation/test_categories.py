"""Figures of emotion categories against scikit-learn, by hand, and what must not change them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from raysers.evaluation.correctness import category_rows, correctness_rows
from raysers.evaluation.evaluate import assess
from raysers.evaluation.scores import Categories, Scores
from raysers.types import generator
from tests.unit.evaluation.worlds import only, options, permuted, scores, speakers_world, stretched

NAMES = ("anger", "fear", "neutral", "sadness")
#: How a corpus may write them.
SPELT = {"anger": "Angry", "fear": "fea", "neutral": "neutral", "sadness": "sad"}


def world(clips: int = 240, seed: int = 1, labelled=NAMES) -> tuple[Scores, np.ndarray]:
    """Speakers' clips with categories predicted better than by chance, and the labels."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array(labelled), clips)
    logits = rng.normal(0, 1.5, (clips, len(NAMES))) + 2 * (truth[:, None] == np.array(NAMES))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    made = speakers_world(clips)
    columns = {**made.columns, "emotion": [SPELT.get(name, name) for name in truth]}
    found = Categories(names=NAMES, probabilities=probabilities)
    return dataclasses.replace(made, columns=columns, categories={"m": found}), truth


def figures(made: Scores, **wanted) -> dict[str, float]:
    rows = [r for r in category_rows(made, draws=0) if r.model == "m"]
    wanted = {"group": "", **wanted}
    return {r.metric: r.value for r in rows if all(getattr(r, k) == v for k, v in wanted.items())}


def test_figures_equal_scikit_learns():
    made, truth = world()
    probabilities = made.categories["m"].probabilities
    predicted = np.array(NAMES)[probabilities.argmax(axis=1)]
    top, right = probabilities.max(axis=1), predicted == truth
    accuracy, confidence = calibration_curve(right, top, n_bins=10)
    filled, counts = np.unique(np.ceil(top * 10), return_counts=True)
    assert len(filled) == len(accuracy)
    assert figures(made) == pytest.approx(
        {
            "uar": metrics.recall_score(truth, predicted, average="macro"),
            "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
            "accuracy": metrics.accuracy_score(truth, predicted),
            "ece": np.abs(accuracy - confidence) @ counts / len(truth),
        }
    )


def test_categories_that_one_side_lacks():
    """Anger and joy are labelled, anger and fear known."""
    made = scores(
        np.full(4, np.nan),
        columns={"emotion": ["anger", "anger", "happy", "joy"]},
        m=np.full(4, np.nan),
    )
    sure = np.array([[0.95, 0.05], [0.15, 0.85], [0.65, 0.35], [0.25, 0.75]])
    known = Categories(names=("anger", "fear"), probabilities=sure)
    made = dataclasses.replace(made, categories={"m": known})
    found = figures(made)
    assert found["uar"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["uar_known"] == pytest.approx(1 / 2)
    # anger: precision 1/2, recall 1/2; joy: 0; fear is no label
    assert found["macro_f1"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["accuracy"] == pytest.approx(1 / 4)
    # each clip in a separate bin
    assert found["ece"] == pytest.approx((0.05 + 0.85 + 0.65 + 0.75) / 4)
    notes = "\n".join(assess(made, options(draws=0))[1])
    assert "m: 2 of 4 clips are labelled happiness, which it does not know" in notes


def test_clips_without_a_category_or_a_prediction_count_nowhere():
    made, _ = world()
    emotion = list(made.columns["emotion"])
    emotion[:40] = ["other", "no_agreement", "", None] * 10
    probabilities = made.categories["m"].probabilities.copy()
    probabilities[40:60] = np.nan
    bare = dataclasses.replace(
        made,
        columns={**made.columns, "emotion": emotion},
        categories={"m": Categories(names=NAMES, probabilities=probabilities)},
    )
    whole = Categories(names=NAMES, probabilities=probabilities[60:])
    rest = dataclasses.replace(
        made,
        clip_id=made.clip_id[60:],
        truth=made.truth[60:],
        predictions={},
        columns={name: column[60:] for name, column in made.columns.items()},
        categories={"m": whole},
    )
    assert figures(bare) == figures(rest)
    assert {r.n for r in category_rows(bare, draws=0)} == {180}


def test_intervals_equal_brute_force_resampling_of_speakers():
    made, truth = world(clips=80)
    predicted = np.array(NAMES)[made.categories["m"].probabilities.argmax(axis=1)]
    rows = category_rows(made, draws=200, seed=9)
    speakers = np.array(made.column("speaker"))
    names = sorted(set(speakers))
    recalls = []
    for picked in generator(9, "made", "test", "", "").integers(0, 12, size=(200, 12)):
        clips = np.concatenate([np.flatnonzero(speakers == names[i]) for i in picked])
        recalls.append(metrics.recall_score(truth[clips], predicted[clips], average="macro"))
    row = only(rows, metric="uar")
    assert (row.ci_low, row.ci_high) == pytest.approx(stretched(recalls, 12))
    again = category_rows(permuted(made), draws=200, seed=9)
    assert [r.ci_low for r in again] == pytest.approx([r.ci_low for r in rows])


def test_groups_have_figures_and_a_group_of_one_category_its_recall():
    made, truth = world()
    predicted = np.array(NAMES)[made.categories["m"].probabilities.argmax(axis=1)]
    rows = category_rows(made, by=("sex", "emotion"), draws=0)
    assert {r.metric for r in rows if r.group == "emotion"} == {"uar"}
    rows = [r for r in rows if r.metric == "uar"]
    women = np.array(made.column("sex")) == "female"
    recall = metrics.recall_score(truth[women], predicted[women], average="macro")
    assert only(rows, group_value="female").value == pytest.approx(recall)
    anger = truth == "anger"
    assert only(rows, group_value="Angry").value == pytest.approx(
        (predicted[anger] == "anger").mean()
    )


def test_stated_intervals_cover_the_labels_as_often_as_is_counted():
    rng = np.random.default_rng(2)
    truth = rng.random(4000)
    deviation = rng.uniform(0.02, 0.1, 4000)
    made = scores(truth, m=truth + rng.normal(0, deviation), n=truth)
    wide = np.stack([deviation] * 3, axis=1)
    made = dataclasses.replace(made, deviations={"m": wide})
    row = only(correctness_rows(made, draws=50), metric="coverage_90")
    assert (row.model, row.dimension, row.n) == ("m", "arousal", 4000)
    assert row.value == pytest.approx(0.9, abs=0.015)
    assert row.ci_low < row.value < row.ci_high
    halved = dataclasses.replace(made, deviations={"m": wide / 2})
    row = only(correctness_rows(halved, draws=0), metric="coverage_90")
    assert row.value == pytest.approx(0.589, abs=0.02)  # within .8225 deviations
