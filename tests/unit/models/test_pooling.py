"""Pooling: attentive statistics written out, and which frames count when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysers.models.emotion import EmotionModel
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.masking import normalise
from raysers.models.pooling import AttentiveStatistics, MeanPooling, Statistics
from raysers.models.scorer import Scorer
from tests.unit.models.networks import (
    NOTHING_RANDOM,
    padded_batch,
    small_model,
    speechlike,
)


def written_out(pooling: AttentiveStatistics, frames: np.ndarray) -> np.ndarray:
    """Okabe et al. 2018, equations 1 to 6, for one clip [frames, size] in float64."""
    w, b = (getattr(pooling.dense, n).detach().double().numpy() for n in ("weight", "bias"))
    v = pooling.score.weight.detach().double().numpy()[0]
    scores = np.array([v @ np.tanh(w @ h + b) for h in frames])
    alpha = np.exp(scores) / np.exp(scores).sum()
    mean = sum(a * h for a, h in zip(alpha, frames, strict=True))
    square = sum(a * h * h for a, h in zip(alpha, frames, strict=True))
    return np.concatenate((mean, np.sqrt(square - mean * mean)))


@given(st.lists(st.integers(2, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_attentive_statistics_as_in_the_paper(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    pooling = AttentiveStatistics(12)
    hidden = 3 * torch.randn(len(lengths), max(lengths), 12)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pooled = pooling(hidden, mask).detach().numpy()
    for row, length in enumerate(lengths):
        expected = written_out(pooling, hidden[row, :length].double().numpy())
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_a_clips_own_frames() -> None:
    torch.manual_seed(4)
    hidden, lengths = 3 * torch.randn(3, 30, 12) + 2, [30, 7, 1]
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    pooled = Statistics(12)(hidden, mask).numpy()
    for row, length in enumerate(lengths):
        own = hidden[row, :length].double().numpy()
        expected = np.concatenate((own.mean(0), own.std(0)))
        np.testing.assert_allclose(pooled[row], expected, rtol=0, atol=1.1e-3)  # the least spread


def test_attentive_model_scores_alone_as_in_a_batch_after_saving(tmp_path: Path) -> None:
    model = small_model("w2v2-b", pooling_mode="attentive")
    save_emotion_model(model, tmp_path)
    loaded = load_emotion_model(str(tmp_path))
    assert (loaded.hidden_size, loaded.model.pooling_mode) == (96, "attentive")
    scorer = Scorer(loaded, dtype="fp32", device="cpu", threads=1)
    signals = [speechlike(n, n) for n in (16_000, 400, 9_000)]
    batch = scorer.score(signals)
    assert batch.embeddings.shape == (3, 96)
    for signal, scores, embedding in zip(signals, batch.scores, batch.embeddings, strict=True):
        single = scorer.score([signal])
        np.testing.assert_allclose(scores, single.scores[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(embedding, single.embeddings[0], rtol=0, atol=1e-5)
        with torch.inference_mode():
            ours = model(
                normalise(torch.from_numpy(signal)[None], torch.tensor([len(signal)])),
                torch.tensor([len(signal)]),
            )[0][0]
        np.testing.assert_allclose(scores, ours, rtol=0, atol=1e-5)


def test_unmasked_means_the_padding_too_but_only_in_training() -> None:
    model = small_model("w2v2-L", **NOTHING_RANDOM)
    assert isinstance(model, EmotionModel)
    assert isinstance(model.pooling, MeanPooling)
    batch = padded_batch([speechlike(n, n) for n in (16_000, 6_000)])
    masked = model.train()(*batch)[1]
    model.pooling.whole_rows = True
    pooled: list[torch.Tensor] = []
    hook = model.pooling.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    unmasked = model(*batch)[1]
    hook.remove()
    torch.testing.assert_close(unmasked, pooled[0].mean(1), rtol=0, atol=1e-6)
    assert (unmasked[1] - masked[1]).abs().max() > 0.01  # the short clip's padding counts
    torch.testing.assert_close(unmasked[0], masked[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.eval()(*batch)[1], masked, rtol=0, atol=1e-5)
