"""Figure 6: differences by hand and against audmetric, as rows, table, picture and card."""

from __future__ import annotations

from dataclasses import replace

import audmetric
import numpy as np
import pytest

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.scores import Scores
from raysers.words.fusion_card import FusionFacts, fusion_card
from raysers.words.fusion_scores import (
    ACOUSTIC,
    AUDIO_HEAD,
    FUSED,
    TEXT_HEAD,
    differences,
    fusion_rows,
)
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


def test_the_card_says_what_it_is_made_of_and_what_is_wrong_with_it(rows):
    facts = FusionFacts(
        name="a*b",
        parts=[("acoustic model", "voice|s", "r1"), ("text model", "bert", "r2")],
        clips={("", "train"): 1200, ("emodb", "dev"): 3},
        recipe={"lr": 0.001},
        kept={"fused": (7, 0.5)},
        rows=rows,
        command="jobs/fuse.py train\n```\n# injected",
        notes=["3 texts are cut"],
        leakage=["speaker 03 is in train and in dev (2 clips)"],
        has_figure=True,
    )
    card = fusion_card(facts)
    assert card.startswith("# a\\*b\n")
    assert "leaking splits: speaker 03" in card
    assert "| unnamed | train | 1,200 |" in card
    assert "| fused | 7 | .500 |" in card
    assert "voice\\|s" in card
    assert "differences.png" in card
    assert "\n# injected" not in card
    assert "leaking" not in fusion_card(replace(facts, leakage=[]))
