"""The tests of ser-tests by hand, and its published results beside the same data only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from raysers.evaluation.evaluate import assess
from raysers.evaluation.published import correctness_and_fairness, robustness_tests, to_tests
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import RANDOM
from raysers.schemas import TESTS
from tests.unit.evaluation.worlds import options, scores, speakers_world


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
