"""Fusion: what it can be trained on, which models it loads, differences against audmetric."""

from __future__ import annotations

import audmetric
import numpy as np
import pytest

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.scores import Scores
from raysers.models.fusion import FusionConfig
from raysers.words.fusion import pinned_models
from raysers.words.fusion_card import (
    ACOUSTIC,
    AUDIO_HEAD,
    FUSED,
    TEXT_HEAD,
    differences,
    fusion_card,
    verdict,
)
from raysers.words.fusion_results import fusion_rows, nothing_to_learn
from tests.unit.evaluation.worlds import only


def made(splits: tuple[str, ...] = ("dev", "test"), clips: int = 120) -> Scores:
    """Words say the valence, sound the arousal, nothing the dominance."""
    rng = np.random.default_rng(4)
    truth = rng.uniform(0, 1, (clips, 3))

    def heard(*noise: float) -> np.ndarray:
        return truth + rng.normal(0, 1, truth.shape) * noise

    return Scores(
        clip_id=[f"{i:04d}" for i in range(clips)],
        truth=truth,
        predictions={
            FUSED: heard(0.1, 1.0, 0.1),
            ACOUSTIC: heard(0.1, 1.0, 0.9),
            AUDIO_HEAD: heard(0.1, 1.0, 0.8),
            TEXT_HEAD: heard(0.9, 1.0, 0.1),
        },
        columns={
            "speaker": [f"s{i % 17}" for i in range(clips)],
            "split": [splits[i % len(splits)] for i in range(clips)],
            "corpus": ["made | <b>up</b>"] * clips,
        },
    )


@pytest.fixture(scope="module")
def rows():
    return fusion_rows(made(), Bootstrap(draws=200))


def test_differences_are_of_the_same_clips_and_have_the_right_sign(rows):
    scores = made()
    test = np.array(scores.columns["split"]) == "test"
    for other in (ACOUSTIC, AUDIO_HEAD, TEXT_HEAD):
        for place, dimension in enumerate(("arousal", "dominance", "valence")):
            ccc = {
                name: audmetric.concordance_cc(
                    scores.truth[test, place], scores.predictions[name][test, place]
                )
                for name in (FUSED, other)
            }
            row = only(differences(rows), split="test", group_value=other, dimension=dimension)
            assert row.value == pytest.approx(ccc[FUSED] - ccc[other])
            assert row.ci_low < row.value < row.ci_high
            assert row.n == 60
    clear = only(differences(rows), split="test", group_value=ACOUSTIC, dimension="valence")
    assert clear.ci_low > 0
    none = only(differences(rows), split="test", group_value=ACOUSTIC, dimension="arousal")
    assert none.ci_low < 0 < none.ci_high


def test_the_verdict_names_where_text_helps_and_where_it_does_not(rows):
    line = verdict(rows)
    helps, _, does_not = line.partition("text does not help: ")
    assert helps.startswith("text helps: valence +")
    assert does_not.startswith("arousal")
    assert "dominance" in does_not
    assert line.endswith("(CCC fused - acoustic model, test)")
    assert "\n" not in line
    assert "cannot be compared" in verdict([])


def test_the_card_says_what_it_is_made_of_and_what_is_wrong_with_it(rows):
    facts = {
        "name": "a*b",
        "parts": [("acoustic model", "voice|s", "r1"), ("text model", "bert", "r2")],
        "clips": {("", "train"): 1200, ("emodb", "dev"): 3},
        "recipe": {"lr": 0.001},
        "kept": {"fused": (7, 0.5)},
        "rows": rows,
        "command": "jobs/fuse.py train\n```\n# injected",
        "notes": ["3 texts are cut"],
        "leakage": ["speaker 03 is in train and in dev (2 clips)"],
        "has_figure": True,
    }
    card = fusion_card(**facts)
    assert card.startswith("# a\\*b\n")
    assert "leaking splits: speaker 03" in card
    assert "| unnamed | train | 1,200 |" in card
    assert "| fused | 7 | .500 |" in card
    assert "voice\\|s" in card
    assert "differences.png" in card
    assert "\n# injected" not in card
    assert "leaking" not in fusion_card(**facts | {"leakage": []})


@pytest.mark.parametrize(
    ("train", "dev", "good"),
    [
        (
            [[0.1, np.nan, np.nan], [0.2, np.nan, np.nan]],
            [[0.1, np.nan, np.nan], [0.2, np.nan, np.nan]],
            True,
        ),
        (
            [[0.1, np.nan, np.nan], [0.2, np.nan, np.nan]],
            [[0.1, 0.3, 0.4], [np.nan, 0.2, 0.1]],
            False,
        ),
        ([[0.1, np.nan, 0.5], [0.2, np.nan, 0.5]], [[np.nan, 0.3, 0.4], [np.nan, 0.2, 0.1]], True),
        ([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]], [[0.1, 0.3, 0.4]], False),
        ([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]], [], False),
    ],
    ids=["one dimension", "another one", "one of several", "one dev clip", "no dev clip"],
)
def test_two_labels_of_a_dimension_are_needed_in_train_and_in_dev(train, dev, good):
    labels = np.array([*train, *dev], np.float32)
    split = ["train"] * len(train) + ["dev"] * len(dev)
    assert (nothing_to_learn(labels, split) == "") is good


CONFIG = {
    "acoustic_revision": "a1", "text_revision": "b2", "asr_revision": "c3", "text_pooling": "mean",
    "recognise_all": False, "sound_size": 4, "words_size": 2, "dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # the commit of the training, whatever the hub's newest is by now
        (
            ("owner/voice", "bert-base-uncased", "owner/words"),
            ("owner/voice@a1", "bert-base-uncased@b2", "owner/words@c3"),
        ),
        (
            ("owner/voice@main", "owner/bert@main", "owner/words@main"),
            ("owner/voice@a1", "owner/bert@b2", "owner/words@c3"),
        ),
        # what has no commits
        (("raysers-base", "minilm", "moonshine"), ("raysers-base", "minilm", "moonshine")),
        (("random:w2v2-b", "/m/bert", "manifest"), ("random:w2v2-b", "/m/bert", "manifest")),
        (("s3://b/v", "s3://b/t", "s3://b/a"), ("s3://b/v", "s3://b/t", "s3://b/a")),
    ],
)
def test_hub_models_are_asked_for_by_the_commit_of_the_training(names, expected):
    sound, words, asr = names
    config = FusionConfig(acoustic_model=sound, text_model=words, asr=asr, **CONFIG)
    assert pinned_models(config) == expected
