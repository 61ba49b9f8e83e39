"""Adapters change queries and values alone, and are part of the stored weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raysers.errors import ConfigError
from raysers.models.emotion import EmotionNetwork
from raysers.models.initialize import add_adapters, merged, start_model
from raysers.models.loading import load_emotion_model, save_emotion_model

RANK = 3


def tiny(rank: int = 0) -> EmotionNetwork:
    model = start_model("random:tiny", seed=0).model
    if rank:
        add_adapters(model, rank, seed=1)
    return model


def scores(model: EmotionNetwork) -> np.ndarray:
    padded = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 8_000)).astype(np.float32))
    with torch.inference_mode():
        return model.eval()(padded, torch.tensor([8_000, 8_000]))[0].numpy()


def test_an_adapted_network_starts_as_the_given_one_and_is_stored_merged(tmp_path: Path) -> None:
    plain, adapted = tiny(), tiny(RANK)
    np.testing.assert_allclose(scores(adapted), scores(plain), atol=1e-6)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    by_layer = RANK * 4 * plain.config.hidden_size  # A and B of queries and values
    size = sum(p.numel() for n, p in trained.items() if not n.startswith("classifier."))
    assert size == plain.config.num_hidden_layers * by_layer
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)
    expected = scores(adapted)
    save_emotion_model(merged(adapted), tmp_path)
    stored = load_emotion_model(str(tmp_path)).model
    np.testing.assert_allclose(scores(stored), expected, atol=1e-5)
    assert np.abs(expected - scores(plain)).max() > 1e-3
    before, after = plain.state_dict(), stored.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed
    assert all("q_proj.weight" in n or "v_proj.weight" in n or "classifier" in n for n in changed)
    assert scores(adapted) == pytest.approx(expected)  # the original is as it was


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="--lora"):
        add_adapters(start_model("random:cnn14", seed=0).model, RANK, seed=0)
