"""The Whisper family against the stock encoder, which takes exactly as many frames as positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from raysers.errors import ClipError
from raysers.models.emotion import EmotionModel
from raysers.models.initialize import start_model
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer, score_rows
from raysers.types import Status
from tests.unit.models.networks import (
    SMALL_WHISPER,
    loaded,
    padded_batch,
    small_model,
    speechlike,
)

TOLERANCE = 1e-5

#: One frame, the borders around a frame, odd and even numbers of spectral frames.
LENGTHS = (16_000, 400, 479, 480, 639, 640, 23_457, 40_000)


@torch.inference_mode()
def stock_embedding(model: EmotionModel, signal: np.ndarray) -> np.ndarray:
    """Mean over the frames of the stock encoder, its positions cut to the clip's length."""
    bands = model.config.num_mel_bins
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands)
    features = extractor(
        signal, sampling_rate=16_000, return_tensors="pt", padding="longest", truncation=False
    ).input_features
    positions = features.shape[-1] // 2
    assert features.shape[-1] == 2 * positions
    keys = model.config.to_dict() | {"max_source_positions": positions}
    encoder = WhisperEncoder(transformers.WhisperConfig(**keys)).eval()
    tensors = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:positions]
    encoder.load_state_dict(tensors)
    found = encoder(features, output_hidden_states=True)
    if model.layer_weights is None:
        return found.last_hidden_state.mean(1)[0].numpy()
    shares = model.layer_weights.softmax(0)
    return sum(a * b for a, b in zip(shares, found.hidden_states, strict=True)).mean(1)[0].numpy()


def scorer_of(model: EmotionModel) -> Scorer:
    return Scorer(loaded(model, do_normalize=False), dtype="fp32", device="cpu", threads=1)


@pytest.mark.parametrize("kind", ["whisper-base", "whisper-large-v3"])
def test_thirty_seconds_equal_the_stock_encoder(kind: str) -> None:
    model, signal = small_model(kind), speechlike(480_000, 1)
    assert model.max_samples is not None
    expected = stock_embedding(model, signal)
    (found,) = scorer_of(model).score([signal]).embeddings
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_ragged_batch_equals_the_stock_encoder_at_each_clips_length(weighted: bool) -> None:
    """Lengths with whole positions, a quiet clip, digital silence at the end, and all silence."""
    model = small_model("whisper-base", use_weighted_layer_sum=weighted)
    if model.layer_weights is not None:
        torch.nn.init.normal_(model.layer_weights)
    signals = [speechlike(n, n) for n in (16_000, 640, 40_400, 23_360)]
    signals += [1e-4 * signals[0], np.concatenate((signals[3], np.zeros(8_000, np.float32)))]
    signals.append(np.zeros(6_400, np.float32))
    expected = [stock_embedding(model, signal) for signal in signals]
    found = scorer_of(model).score(signals).embeddings
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(found, axis=0).max() > 0.05  # the clips are told apart at all


def test_a_clips_scores_are_the_same_in_any_batch() -> None:
    scorer = scorer_of(small_model("whisper-base"))
    signals = [speechlike(n, seed) for seed, n in enumerate(LENGTHS)]
    batch = scorer.score(signals)
    for signal, scores, embedding in zip(signals, batch.scores, batch.embeddings, strict=True):
        alone = scorer.score([signal])
        np.testing.assert_allclose(scores, alone.scores[0], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(embedding, alone.embeddings[0], rtol=0, atol=TOLERANCE)


def test_silence_around_a_clip_and_its_level_change_nothing_where_the_model_says_so() -> None:
    """In a batch with others; the edges of the speech lie on frames."""
    keys = {"trim_db": 50.0, "peak_level": 1.5, "final_norm": False}
    scorer = scorer_of(small_model("whisper-base", **keys))
    speech = speechlike(20_800, 3) - np.float32(0.03)
    quiet = np.zeros(32_000, np.float32)
    around = np.concatenate((quiet, speech, quiet[:8_000]))
    batch = scorer.score([speech, around, 0.1 * speech, speechlike(60_000, 4), quiet])
    alone = scorer.score([around])
    np.testing.assert_allclose(batch.embeddings[1], alone.embeddings[0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(batch.embeddings[2], batch.embeddings[0], rtol=0, atol=1e-4)
    apart = np.abs(batch.embeddings[3] - batch.embeddings[0]).max()
    # windows over the edges differ: the clip by itself is mirrored at its ends
    assert np.abs(batch.embeddings[1] - batch.embeddings[0]).max() < 0.2 * apart
    assert np.isfinite(batch.scores).all()


def test_clips_beyond_the_positions_are_too_long() -> None:
    scorer = scorer_of(small_model("whisper-base", max_source_positions=50))  # one second
    fits, long, short = score_rows(scorer, [speechlike(n, n) for n in (16_159, 16_160, 399)])
    assert not isinstance(fits, ClipError)
    assert isinstance(long, ClipError)
    assert long.status == Status.TOO_LONG
    assert "--segment window --window-s 1 " in long.message
    assert isinstance(short, ClipError)
    assert short.status == Status.TOO_SHORT


def save_stock(folder: Path, model_class: Any, **config: Any) -> Any:
    """A stock checkpoint of `model_class` with its preprocessing, as transformers saves both."""
    torch.manual_seed(21)
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    keys = SMALL_WHISPER | decoder | {"vocab_size": 100, "pad_token_id": 0} | config
    model = model_class(transformers.WhisperConfig(**keys)).eval()
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    extractor.save_pretrained(folder)
    return model


def encoder_of(stock: Any) -> dict[str, Tensor]:
    return (stock.encoder if hasattr(stock, "encoder") else stock.get_encoder()).state_dict()


@pytest.mark.parametrize(
    "model_class",
    [
        transformers.WhisperForConditionalGeneration,
        transformers.WhisperModel,
        transformers.WhisperForAudioClassification,
    ],
)
def test_training_starts_from_the_encoder_of_any_whisper(tmp_path: Path, model_class: Any) -> None:
    stock = save_stock(tmp_path, model_class, num_mel_bins=128)
    start = start_model(str(tmp_path), seed=5)
    assert isinstance(start.model, EmotionModel)
    torch.testing.assert_close(start.model.backbone.state_dict(), encoder_of(stock), rtol=0, atol=0)
    assert (start.freeze, start.head_kept, start.do_normalize) == ("cnn", False, False)
    assert (start.model.min_samples, start.model.max_samples, start.model.embedding_size) == (
        400,
        480_159,
        48,
    )


def test_bottom_layers_and_the_whole_model_survive_the_folder(tmp_path: Path) -> None:
    stock = save_stock(tmp_path / "stock", transformers.WhisperForConditionalGeneration)
    start = start_model(str(tmp_path / "stock"), seed=5, layers=1, head_dropout=0.5)
    assert isinstance(start.model, EmotionModel)
    kept = start.model.backbone.state_dict()
    expected = {k: v for k, v in encoder_of(stock).items() if not k.startswith("layers.1.")}
    torch.testing.assert_close(kept, expected, rtol=0, atol=0)
    save_emotion_model(start.model, tmp_path / "ours", do_normalize=start.do_normalize)
    again = load_emotion_model(str(tmp_path / "ours"))
    assert (again.do_normalize, again.model.max_samples) == (False, 480_159)
    assert again.model.config.final_dropout == 0.5
    batch = padded_batch([speechlike(9_000, 1), speechlike(5_000, 2)])
    with torch.no_grad():
        torch.testing.assert_close(again.model(*batch), start.model(*batch), rtol=0, atol=0)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert isinstance(extractor, transformers.WhisperFeatureExtractor)
    assert extractor.nb_max_frames == 3_000
