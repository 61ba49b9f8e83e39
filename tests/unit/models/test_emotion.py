"""Batch invariance: a clip's scores are those of a plain single-file pass, whoever it sits with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysers.models.scorer import Scorer
from tests.unit.models.networks import (
    PAPER,
    PlainModel,
    loaded,
    small_model,
    speechlike,
)

KINDS = (*PAPER, "wavlm-base", "wavlm-large", "data2vec", "mel-front")
TOLERANCE = 1e-5

#: One frame, the borders around a frame, ordinary clips, two lengths with the same frame count.
LENGTHS = (16_000, 400, 719, 720, 3_000, 16_100, 23_457, 40_000)

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


def pair(kind: str) -> tuple[PlainModel, Scorer, list[np.ndarray]]:
    model = small_model(kind)
    plain = PlainModel(model)
    scorer = Scorer(loaded(model), dtype="fp32", device="cpu", threads=1)
    signals = [speechlike(n, seed) for seed, n in enumerate(LENGTHS) if n >= scorer.min_samples]
    return plain, scorer, signals


@pytest.mark.parametrize("kind", KINDS)
def test_one_ragged_batch_equals_single_files(kind: str) -> None:
    plain, scorer, signals = pair(kind)
    batch = scorer.score(signals)
    for signal, scores, embedding in zip(signals, batch.scores, batch.embeddings, strict=True):
        expected_scores, expected_embedding = plain(signal)
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(embedding, expected_embedding, rtol=0, atol=TOLERANCE)
    assert np.ptp(batch.embeddings, axis=0).max() > 0.05  # the clips are told apart at all


@pytest.mark.parametrize("kind", ["w2v2-b", "hubert-L"])
def test_any_composition_gives_the_same_scores(kind: str) -> None:
    plain, scorer, signals = pair(kind)
    expected = [np.concatenate(plain(signal)) for signal in signals]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(0, len(signals) - 1), min_size=1, max_size=6))
    def check(indices: list[int]) -> None:
        batch = scorer.score([signals[i] for i in indices])
        got = np.concatenate((batch.scores, batch.embeddings), axis=1)
        np.testing.assert_allclose(got, [expected[i] for i in indices], rtol=0, atol=TOLERANCE)

    check()


@pytest.mark.parametrize("kind", ["w2v2-b", "w2v2-L", "data2vec", "mel-front"])
def test_blocks_of_the_front_leave_no_trace(kind: str) -> None:
    plain, scorer, _ = pair(kind)
    signals = [speechlike(n, n) for n in (150_001, 20_003)]  # several blocks of 4 s a row
    batch = scorer.score(signals)
    for signal, embedding in zip(signals, batch.embeddings, strict=True):
        np.testing.assert_allclose(embedding, plain(signal)[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["w2v2-b", "w2v2-L"])
def test_silence_and_constants_score_as_single_files_do(kind: str) -> None:
    plain, scorer, _ = pair(kind)
    signals = [np.zeros(5_000, np.float32), np.full(9_000, 0.25, np.float32), speechlike(7_000, 1)]
    batch = scorer.score(signals)
    for signal, scores in zip(signals, batch.scores, strict=True):
        np.testing.assert_allclose(scores, plain(signal)[0], rtol=0, atol=TOLERANCE)


def test_equal_lengths_build_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast attention path is only there without a mask."""
    masks: list[object] = []
    model = small_model("w2v2-L")
    layer = model.backbone.encoder.layers[0]
    layer.register_forward_pre_hook(
        lambda _module, _args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    scorer = Scorer(loaded(model), dtype="fp32", device="cpu")
    scorer.score([speechlike(6_000, 0), speechlike(6_000, 1)])
    assert masks == [None]
