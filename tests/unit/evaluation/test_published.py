"""What is published: the paper's numbers beside the right rows, the tests of ser-tests by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from raysers.evaluation.evaluate import assess
from raysers.evaluation.published import (
    correctness_and_fairness,
    paper_numbers,
    robustness_tests,
    to_tests,
    with_paper,
)
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import RANDOM
from raysers.schemas import TESTS
from tests.places import SHARED_DATA, needs_shared
from tests.unit.evaluation.worlds import options, scores, speakers_world

SIZES = {("msp-podcast", "test1"): 12902, ("iemocap", "all"): 10039, ("cmu-mosi", "test"): 685}


def row(dataset="msp-podcast", split="test1", **changes) -> Row:
    given = {"model": "w2v2-L-robust", "dimension": "arousal", "metric": "ccc", "value": 0.5}
    given |= {"dataset": dataset, "split": split, "n": SIZES.get((dataset, split), 100)}
    return Row(**{**given, **changes})


def paper_of(one: Row, **kwargs) -> float:
    return with_paper([one], **kwargs)[0][0].paper


@pytest.mark.parametrize(
    ("one", "value"),
    [
        (row(), 0.745),
        (row(model="hubert-L", dimension="dominance"), 0.655),
        (row("iemocap", "all", dimension="valence"), 0.448),
        (row("cmu-mosi", "test", dimension="valence", model="CNN14"), 0.046),
        (
            row(
                "iemocap",
                "all",
                metric="ccc_drop",
                group="dataset",
                group_value="msp-podcast test1",
            ),
            0.11,
        ),
        (row(model="w2v2-L", dimension="valence", metric="sex_fairness_bias", group="sex"), 0.086),
        (row(model="/models/W2V2-l-ROBUST/@abc123"), 0.745),
    ],
)
def test_a_row_of_the_paper_has_its_number(one, value):
    assert paper_of(one) == value


@pytest.mark.parametrize(
    "one",
    [
        row(split="test2"),
        row(split="all"),
        row("iemocap", "test"),
        row("emodb", "test"),
        row(model="w2v2-L-robust-12"),
        row(model="random:w2v2-L-robust"),
        row(model="random:/configs/w2v2-L-robust"),
        row(metric="pearson"),
        row("iemocap", "all", metric="ccc_drop", group="dataset", group_value="emodb all"),
        row(group="sex", group_value="female"),
        row(group="model", group_value="hubert-L"),
    ],
)
def test_another_row_has_none(one):
    assert np.isnan(paper_of(one))


def test_the_backbone_a_model_was_trained_from_counts():
    one = row(model="s3://bucket/run7")
    assert np.isnan(paper_of(one))
    assert paper_of(one, names={"s3://bucket/run7": "w2v2-L-robust"}) == 0.745
    assert np.isnan(paper_of(one, names={"s3://bucket/run7": "random:w2v2-L-robust"}))


def test_what_cannot_be_compared_is_said():
    assert with_paper([row()])[1] == []
    assert "300 clips here, 12,902 in the paper" in with_paper([row(n=300)])[1][0]
    assert np.isnan(paper_of(row(n=300)))
    assert with_paper([row(n=12850)])[1] == []  # a few unreadable files
    assert paper_of(row(n=12850)) == 0.745
    assert "not comparable" in with_paper([row(split="test2")])[1][0]
    assert "emodb is not in the paper" in with_paper([row("emodb", "all")])[1][0]
    assert "mine is not one of the paper's models" in with_paper([row(model="mine")])[1][0]


@needs_shared
def test_the_numbers_are_those_of_the_reference():
    folder = SHARED_DATA.parent / "reference"
    places = {
        "MSP-Podcast v1.7 test-1": ("msp-podcast", "test1"),
        "IEMOCAP (all)": ("iemocap", "all"),
        "MOSI test": ("cmu-mosi", "test"),
    }
    values = paper_numbers().values
    checked = set()
    for known in json.loads((folder / "paper_reference.json").read_text()):
        place = places.get(known.get("dataset") or "")
        if known["quantity"] != "CCC" or not place or known["section"] not in ("4.1", "4.2"):
            continue
        dimension = known["dimension"].replace("sentiment", "valence")
        key = ("ccc", known["model"], *place, dimension)
        assert values[key] == known["value"]
        checked.add(key)
    for known in json.loads((folder / "ser_tests_ccc.json").read_text())["rows"]:
        if "test-1" in known["dataset"] and known["model"] in paper_numbers().models.values():
            key = ("ccc", known["model"], "msp-podcast", "test1", known["dimension"])
            assert values[key] == pytest.approx(known["ccc"], abs=5e-4)
            checked.add(key)
    assert checked == {key for key in values if key[0] == "ccc"}


def verdicts(made) -> dict[tuple[str, str, str], tuple[float, bool]]:
    """Score and verdict of arousal by test, metric and subject."""
    frame = correctness_and_fairness(made, [])
    assert to_tests(frame, "run").schema == TESTS
    mine = frame[frame["dimension"] == "arousal"]
    keys = zip(mine["test"], mine["metric"], mine["subject"], strict=True)
    return dict(zip(keys, zip(mine["value"], mine["passed"], strict=True), strict=True))


def test_emotions_are_expected_in_their_ranges():
    """Anger is high (from .55), boredom low (to .45), neutral between; rounded first."""
    made = scores(
        np.full(8, np.nan),
        columns={
            "emotion": ["anger"] * 4 + ["boredom"] * 2 + ["neutral"] * 2,
            "speaker": ["a"] * 8,
        },
        m=np.array([0.546, 0.6, 0.7, 0.9, 0.45, 0.46, 0.3, 0.61]),
    )
    made = replace(made, truth=np.full((8, 3), 0.5))  # a clip needs a label
    found = verdicts(made)
    test, metric = "correctness_consistency", "share_in_expected_range"
    assert found[test, metric, "anger: high"] == (1.0, True)
    assert found[test, metric, "boredom: low"] == (0.5, False)
    assert found[test, metric, "neutral: neutral"] == (0.5, False)


def test_speakers_are_compared_by_their_means():
    """Ten clips each of three speakers whose means are .2, .4, .6, predicted .25, .35, .8."""
    truth = np.repeat([0.2, 0.4, 0.6], 10)
    made = scores(
        truth,
        columns={"speaker": [f"s{i // 10}" for i in range(30)]},
        m=np.repeat([0.25, 0.35, 0.8], 10),
    )
    found = verdicts(made)
    assert found["correctness_speaker_average", "mae", ""] == (0.1, False)  # not below .1
    assert found["correctness_speaker_ranking", "spearman", ""] == (1.0, True)


def test_languages_are_compared_with_the_average_of_the_languages():
    """Ten and thirty clips with means .5 and .6: .05 off to either side; two alike accents."""
    made = scores(
        np.full(40, 0.5),
        columns={"language": ["de"] * 10 + ["en-GB"] * 15 + ["en-US"] * 15},
        m=np.repeat([0.5, 0.6], [10, 30]),
    )
    found = verdicts(made)
    assert found["fairness_language", "mean_difference", "de"] == (-0.05, False)
    assert found["fairness_language", "mean_difference", "en"] == (0.05, False)
    assert found["fairness_language", "bin_difference", "de, (0.25, 0.5]"] == (0.5, False)
    assert found["fairness_accent", "mean_difference", "en-GB"] == (0.0, True)


def test_a_sex_that_is_scored_worse_fails_and_one_scored_alike_passes():
    rng = np.random.default_rng(0)
    truth = rng.beta(4, 4, 3000)
    sex = np.where(np.arange(3000) % 3, "female", "male")
    noise = rng.normal(0, 0.05, 3000)
    worse = rng.normal(0, 0.2, 3000)
    columns = {"sex": sex.tolist()}
    fair = verdicts(scores(truth, columns=columns, m=truth + noise))
    unfair = verdicts(
        scores(truth, columns=columns, m=truth + np.where(sex == "male", worse, noise))
    )
    key = ("fairness_sex", "ccc_difference", "male")
    assert fair[key][1]
    assert unfair[key] == (pytest.approx(unfair[key][0]), False)
    assert unfair[key][0] < -0.075
    assert unfair["fairness_sex", "recall_difference", "male, (0.25, 0.5]"][0] < -0.05


def test_speakers_of_one_pitch_that_are_scored_worse_fail():
    """30 clips of each of 20 speakers, at 120 or 220 Hz; others have no pitch or 25 clips."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(26), [30] * 20 + [60] * 5 + [25])
    pitch_hz = np.select([speaker < 10, speaker < 20, speaker == 25], [120.0, 220.0, 170.0], np.nan)
    truth = rng.beta(4, 4, len(speaker))
    noise = rng.normal(0, 0.05, len(speaker)) * np.where(pitch_hz < 145, 4, 1)
    columns = {"speaker": [f"s{i}" for i in speaker], "pitch_hz": pitch_hz.tolist()}
    found = verdicts(scores(truth, columns=columns, m=truth + noise))
    test = "fairness_pitch"
    assert {subject for name, _, subject in found if name == test and "," not in subject} == {
        "low pitch", "high pitch",
    }  # fmt: skip
    assert found[test, "ccc_difference", "low pitch"][0] < -0.1
    assert not found[test, "ccc_difference", "low pitch"][1]


def test_published_results_stand_beside_the_same_data_only():
    made = speakers_world()
    columns = {**made.columns, "corpus": ["msp-podcast"] * 240, "split": ["test1"] * 240}
    made = replace(made, columns=columns, predictions={"w2v2-L-robust": made.predictions["good"]})
    rows, _ = assess(made, options(draws=0))
    regression = (
        correctness_and_fairness(made, rows).set_index("test").loc["correctness_regression"]
    )
    assert regression["published"].isna().all()  # 240 clips are not the paper's 12,902
    many = replace(
        made,
        clip_id=[f"{i}" for i in range(12902)],
        truth=np.resize(made.truth, (12902, 3)),
        predictions={"w2v2-L-robust": np.resize(made.truth, (12902, 3))},
        columns={k: np.resize(np.array(v, object), 12902).tolist() for k, v in columns.items()},
    )
    frame = correctness_and_fairness(many, []).set_index(["test", "metric", "dimension"])
    assert frame.loc[("correctness_regression", "ccc", "arousal"), "published"].item() == 0.745


def test_perturbations_are_tested_by_their_kind():
    place = {"model": "m", "dataset": "d", "split": "all", "n": 10}
    rows = [
        Row(**place, dimension="arousal", metric=metric, value=value)
        for metric, value in (
            ("robustness_gain", 0.96),
            ("robustness_phone", 0.5),
            ("robustness_tilt_up", 0.85),
            ("ccc_change_background_music", -0.04),
            ("ccc_change_gain", -0.5),
            ("robustness_room_reference", 0.1),
            ("robustness", 0.1),
        )
    ]
    rows.append(replace(rows[0], model=RANDOM))
    frame = robustness_tests(rows).set_index("subject")
    assert frame["passed"].to_dict() == {
        "gain": True,
        "phone": False,
        "tilt_up": True,
        "background_music": True,
    }
    assert frame.loc["phone", "test"] == "robustness_low_quality_phone"
    assert math.isnan(frame.loc["gain", "published"])
