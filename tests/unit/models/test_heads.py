"""Pooling, and what the heads on an embedding say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.spatial.distance import mahalanobis

from raysers.errors import CheckpointError
from raysers.models.backbones import Outputs, category_labels
from raysers.models.emotion import EmotionModel
from raysers.models.frontend import normalise
from raysers.models.heads import (
    OutOfDistribution,
    Pooling,
    Uncertainty,
)
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from tests.unit.models.networks import (
    NOTHING_RANDOM,
    padded_batch,
    small_model,
    speechlike,
)


def written_out(pooling: Pooling, frames: np.ndarray) -> np.ndarray:
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
    pooling = Pooling("attentive", 12)
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
    pooled = Pooling("statistics", 12)(hidden, mask).numpy()
    for row, length in enumerate(lengths):
        own = hidden[row, :length].double().numpy()
        expected = np.concatenate((own.mean(0), own.std(0)))
        np.testing.assert_allclose(pooled[row], expected, rtol=0, atol=1.1e-3)  # the least spread


def test_attentive_model_scores_alone_as_in_a_batch_after_saving(tmp_path: Path) -> None:
    model = small_model("w2v2-b", pooling_mode="attentive")
    save_emotion_model(model, tmp_path)
    loaded = load_emotion_model(str(tmp_path))
    assert (loaded.model.embedding_size, loaded.model.pooling_mode) == (96, "attentive")
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
    assert model.pooling.mode == "mean"
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


CATEGORIES = ("anger", "neutral", "joy & pride")


def with_heads() -> EmotionModel:
    model = small_model("w2v2-b")
    torch.manual_seed(7)
    model.attach(Outputs(categories=CATEGORIES, uncertainty_heads=4, ood_rank=5))
    with torch.no_grad():
        model.uncertainty.floor.copy_(torch.tensor([0.1, 0.2, 0.3]))
        model.ood.whiten.normal_()
    return model


def test_what_the_heads_say_of_a_clip_survives_the_folder_and_any_batch(tmp_path: Path) -> None:
    model = with_heads()
    save_emotion_model(model, tmp_path)
    scorer = Scorer(load_emotion_model(str(tmp_path)), dtype="fp32", device="cpu")
    clips = [speechlike(samples, seed) for seed, samples in enumerate((16_000, 9_000, 24_000))]
    batch = scorer.score(clips)
    assert batch.extras.shape == (3, 3 + 3 + 1)
    for row, clip in enumerate(clips):
        alone = scorer.score([clip])
        np.testing.assert_allclose(batch.extras[row], alone.extras[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(batch.extras[:, :3].sum(1), 1, atol=1e-6)
    assert (batch.extras[:, 3:6] >= [0.1, 0.2, 0.3]).all()
    weight = model.categories.weight.detach().numpy()
    logits = batch.embeddings @ weight.T + model.categories.bias.detach().numpy()
    assert batch.extras[:, :3].argmax(1).tolist() == logits.argmax(1).tolist()


def test_the_distance_is_that_of_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    speech = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + 3
    covariance = np.cov(speech.T)
    head = OutOfDistribution(6, 6)
    head.mean.copy_(torch.from_numpy(speech.mean(0)))
    head.whiten.copy_(torch.from_numpy(np.linalg.inv(np.linalg.cholesky(covariance))))
    points = torch.from_numpy(rng.normal(size=(5, 6)) * 4).float()
    inverse = np.linalg.inv(covariance)
    expected = [
        mahalanobis(point, speech.mean(0), inverse) / np.sqrt(6) for point in points.numpy()
    ]
    np.testing.assert_allclose(head.distance(points), expected, rtol=1e-4)
    head.middle.fill_(float(np.log(expected[2])))
    assert head(points)[2, 0].item() == pytest.approx(0.5, abs=1e-4)
    assert (head(points)[:, 0].argsort() == torch.tensor(expected).argsort()).all()


def test_spread_of_the_heads_is_the_uncertainty() -> None:
    head = Uncertainty(2, 3, torch.tensor(()))
    with torch.no_grad():
        head.heads.weight.zero_()
        head.heads.bias.copy_(torch.tensor([0.0, 0.2, 0.5, 0.3, 0.2, 0.5, 0.6, 0.2, 0.5]))
        head.scale.fill_(2.0)
        head.floor.copy_(torch.tensor([0.0, 0.1, 0.0]))
    found = head(torch.zeros(1, 2))[0]
    # arousal 0, .3, .6: standard deviation .3 sqrt(2 / 3), twice that; the others do not vary
    np.testing.assert_allclose(found.detach(), [0.6 * np.sqrt(2 / 3), 0.1, 0.0], atol=1e-6)


def test_scores_and_their_spread_come_from_points_where_a_model_has_them(tmp_path: Path) -> None:
    points = ((0.8, 0.6, 0.2), (0.5, 0.5, 0.5), (0.7, 0.7, 0.9))
    model = small_model("w2v2-b")
    torch.manual_seed(5)
    model.attach(Outputs(categories=CATEGORIES, points=points, uncertainty_heads=2))
    save_emotion_model(model, tmp_path)
    assert "classifier.dense.weight" not in load_file(tmp_path / "model.safetensors")
    scorer = Scorer(load_emotion_model(str(tmp_path)), dtype="fp32", device="cpu")
    found = scorer.score([speechlike(16_000, 1), speechlike(24_000, 2)])
    places = np.array(points)
    np.testing.assert_allclose(found.scores, found.extras[:, :3] @ places, atol=1e-6)
    heads = model.uncertainty.heads
    logits = found.embeddings @ heads.weight.detach().numpy().T + heads.bias.detach().numpy()
    odds = np.exp(logits.reshape(2, 2, 3))
    chances = (odds / odds.sum(2, keepdims=True)).mean(1)
    for row in range(2):  # the variance of a draw from the three points
        mean = sum(p * point for p, point in zip(chances[row], places, strict=True))
        variance = sum(
            p * (point - mean) ** 2 for p, point in zip(chances[row], places, strict=True)
        )
        np.testing.assert_allclose(found.extras[row, 3:6], np.sqrt(variance), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("categories", "anger"),
        ("categories", ["anger", "anger"]),
        ("categories", [3]),
        ("categories", [str(number) for number in range(5000)]),
        ("uncertainty_heads", -1),
        ("uncertainty_heads", 10**9),
        ("ood_rank", True),
        ("ood_rank", 1e30),
        ("category_points", [[0, 0, 0]]),
        ("category_points", "middle"),
        ("trained_dimensions", []),
        ("trained_dimensions", ["anger"]),
    ],
)
def test_impossible_outputs_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        Outputs.from_config({key: value}, "folder")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["female", "male"], None),
        (["de", "en", "fr"], "single_label_classification"),
        (["arousal", "dominance", "valence"], None),
        (["LABEL_0", "LABEL_1"], None),
        (["anger", "happiness", "sadness"], "regression"),
        (["anger", "happiness", "sadness"], "multi_label_classification"),
    ],
)
def test_only_classifiers_of_emotions_get_categories(labels: list[str], problem: str) -> None:
    named = {str(number): label for number, label in enumerate(labels)}
    assert category_labels({"id2label": named, "problem_type": problem}) == []


def test_labels_of_a_classifier_of_emotions_keep_their_order() -> None:
    named = {"1": "Happy", "0": "NEUTRAL", "2": "other"}
    assert category_labels({"id2label": named}) == ["NEUTRAL", "Happy", "other"]
