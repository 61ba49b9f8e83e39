"""Fusion: differences against audmetric, what can be learned, pinned models, the card."""

from __future__ import annotations

import audmetric
import numpy as np
import pytest

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.scores import Scores
from raysers.models.fusion import FusionConfig
from raysers.words.fusion import pinned
from raysers.words.fusion_results import (
    ACOUSTIC,
    AUDIO_HEAD,
    FUSED,
    TEXT_HEAD,
    EpochOfHead,
    differences,
    fusion_card,
    fusion_rows,
    nothing_to_learn,
    verdict,
)
from tests.unit.evaluation.worlds import only


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Words say the valence, sound the arousal, nothing the dominance."""
    rng, clips = np.random.default_rng(4), 120
    truth = rng.uniform(0, 1, (clips, 3))
    noise = {
        FUSED: (0.1, 1.0, 0.1),
        ACOUSTIC: (0.1, 1.0, 0.9),
        AUDIO_HEAD: (0.1, 1.0, 0.8),
        TEXT_HEAD: (0.9, 1.0, 0.1),
    }
    return Scores(
        clip_id=[f"{i:04d}" for i in range(clips)],
        truth=truth,
        predictions={k: truth + rng.normal(0, 1, truth.shape) * sd for k, sd in noise.items()},
        columns={
            "speaker": [f"s{i % 17}" for i in range(clips)],
            "split": ["dev" if i % 2 else "test" for i in range(clips)],
            "corpus": ["made | <b>up</b>"] * clips,
        },
    )


@pytest.fixture(scope="module")
def rows(scores):
    return fusion_rows(scores, Bootstrap(draws=200))


def test_differences_are_of_the_same_clips_and_the_verdict_says_where_text_helps(scores, rows):
    test = np.array(scores.columns["split"]) == "test"
    found = {}
    for other in (ACOUSTIC, AUDIO_HEAD, TEXT_HEAD):
        for place, dimension in enumerate(("arousal", "dominance", "valence")):
            fused, ccc = (
                audmetric.concordance_cc(
                    scores.truth[test, place], scores.predictions[name][test, place]
                )
                for name in (FUSED, other)
            )
            row = only(differences(rows), split="test", group_value=other, dimension=dimension)
            assert row.value == pytest.approx(fused - ccc)
            assert row.ci_low < row.value < row.ci_high
            assert row.n == 60
            found[other, dimension] = row
    assert found[ACOUSTIC, "valence"].ci_low > 0 > found[ACOUSTIC, "arousal"].ci_low
    assert found[ACOUSTIC, "arousal"].ci_high > 0
    line = verdict(rows)
    helps, _, does_not = line.partition("text does not help: ")
    assert helps.startswith("text helps: valence +")
    assert does_not.startswith("arousal")
    assert "dominance" in does_not
    assert line.endswith("(CCC fused - acoustic model, test)")
    assert "cannot be compared" in verdict([])


def test_the_card_says_what_it_is_made_of_and_what_is_wrong_with_it(rows):
    config = FusionConfig(
        acoustic_model="voice|s", acoustic_revision="r1", text_model="bert", text_revision="r2",
        text_pooling="mean", asr="moonshine", asr_revision="", recognise_all=False, sound_size=4,
        words_size=2, dropout=0.5,
    )  # fmt: skip
    facts = {
        "name": "a*b",
        "config": config,
        "clips": {("", "train"): 1200, ("emodb", "dev"): 3},
        "best": {"fused": EpochOfHead(7, 0.1, 0.5)},
        "command": "jobs/fuse.py train\n```\n# injected",
        "notes": ["3 texts are <b>empty</b>"],
        "leakage": ["speaker 03 is in train and in dev (2 clips)"],
    }
    card = fusion_card(rows, **facts)
    assert card.startswith("# a\\*b\n")
    for text in (
        "leaking splits: speaker 03",
        "| unnamed | train | 1,200 |",
        "| fused | 7 | .500 |",
        "| acoustic model | voice\\|s | r1 |",
        "made \\| \\<b\\>up",
        verdict(rows),
        "- 3 texts are \\<b\\>empty",
    ):
        assert text in card
    assert "\n# injected" not in card
    bare = fusion_card([], **facts | {"leakage": []})
    assert "leaking" not in bare
    assert "differences.png" not in bare


NAN = np.nan


@pytest.mark.parametrize(
    ("train", "dev", "good"),
    [
        ([[0.1, NAN, NAN], [0.2, NAN, NAN]], [[0.1, NAN, NAN], [0.2, NAN, NAN]], True),
        ([[0.1, NAN, NAN], [0.2, NAN, NAN]], [[0.1, 0.3, 0.4], [NAN, 0.2, 0.1]], False),
        ([[0.1, NAN, 0.5], [0.2, NAN, 0.5]], [[NAN, 0.3, 0.4], [NAN, 0.2, 0.1]], True),
        ([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]], [[0.1, 0.3, 0.4]], False),
        ([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]], [], False),
    ],
    ids=["one dimension", "another one", "one of several", "one dev clip", "no dev clip"],
)
def test_two_labels_of_a_dimension_are_needed_in_train_and_in_dev(train, dev, good):
    labels = np.array([*train, *dev], np.float32)
    split = ["train"] * len(train) + ["dev"] * len(dev)
    assert (nothing_to_learn(labels, split) == "") is good


def test_hub_models_are_asked_for_by_the_commit_of_the_training():
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name in ("owner/voice", "owner/voice@main"):
        assert pinned(name, commit) == f"owner/voice@{commit}"
    for name in ("minilm", "s3://b/v", "/m/a@b"):  # content hashes
        assert pinned(name, commit[:16]) == name
