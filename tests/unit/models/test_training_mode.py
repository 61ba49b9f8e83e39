"""What a training step sees: the deployed numbers where nothing is random, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysers.models.emotion import EmotionModel
from raysers.models.frontend import draw_spans
from tests.unit.models.networks import (
    NOTHING_RANDOM,
    padded_batch,
    small_model,
    speechlike,
)

#: Group and layer norm in both families; a front without gelu; a stack of positional convolutions.
KINDS = ("w2v2-b", "w2v2-L", "hubert-b", "hubert-L", "data2vec", "mel-front")

LENGTHS = (16_000, 3_400, 9_000, 23_457)


def clips() -> list[np.ndarray]:
    signals = [speechlike(n, seed) for seed, n in enumerate(LENGTHS)]
    return [((s - s.mean()) / s.std()).astype(np.float32) for s in signals]


def trained(kind: str, **config: Any) -> EmotionModel:
    model = small_model(kind, **(NOTHING_RANDOM | config))
    model.freeze("none")
    return model.train()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def some_loss(scores: Tensor, embeddings: Tensor) -> Tensor:
    """Every number counts with a weight of its own; a sum over clips."""
    generator = torch.Generator().manual_seed(1)
    both = torch.cat((scores, embeddings), 1)
    return (both @ torch.randn(both.shape[1], generator=generator)).square().sum()


@pytest.mark.parametrize("kind", [*KINDS, "wavlm-base", "whisper-base"])
def test_training_equals_evaluation_and_gradients_those_of_single_clips(kind: str) -> None:
    model = trained(kind)
    in_training = model(*padded_batch(clips()))
    with torch.no_grad():
        in_evaluation = model.eval()(*padded_batch(clips()))
    torch.testing.assert_close(in_training, in_evaluation, rtol=0, atol=1e-5)
    model.train()
    some_loss(*in_training).backward()
    batch = gradients(model)
    model.zero_grad()
    for signal in clips():
        some_loss(*model(*padded_batch([signal]))).backward()
    for name, single in gradients(model).items():
        largest = single.abs().max().item()
        torch.testing.assert_close(batch[name], single, rtol=0, atol=1e-5 * max(1.0, largest))


def test_frozen_front_neither_learns_nor_drops() -> None:
    model = small_model("w2v2-b")
    model.freeze("cnn")
    model.train()
    assert not model.backbone.feature_extractor.training
    assert model.backbone.feature_projection.training
    some_loss(*model(*padded_batch(clips()))).backward()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() <= learning
    assert not any("feature_extractor" in n or n.endswith("k_proj.bias") for n in learning)
    model.freeze("none")
    assert model.backbone.feature_extractor.training
    assert all(p.requires_grad for p in model.backbone.feature_extractor.parameters())


def test_frozen_backbone_gives_the_deployed_embeddings() -> None:
    """No dropout, no masked frames: linear probing on what will be scored."""
    model = small_model("hubert-b", final_dropout=0.5)
    batch = padded_batch(clips())
    with torch.no_grad():
        deployed = model(*batch)[1]
    model.freeze("backbone")
    model.train()
    torch.manual_seed(0)
    scores, embeddings = model(*batch)
    torch.testing.assert_close(embeddings, deployed, rtol=0, atol=1e-6)
    scores.sum().backward()
    assert {name.partition(".")[0] for name in gradients(model)} == {"classifier"}


@pytest.mark.parametrize("kind", ["w2v2-b", "w2v2-L", "wavlm-base", "data2vec", "whisper-base"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    """Dropout, SpecAugment and layer drop are on: what is computed again must draw the same."""
    random = {"layerdrop": 0.3, "hidden_dropout": 0.2, "final_dropout": 0.1}
    of_whisper = {"encoder_layerdrop": 0.3, "dropout": 0.2, "apply_spec_augment": True}
    model = small_model(kind, **(random | of_whisper))
    model.freeze("none")
    model.train()
    found = []
    for on in (False, True):
        model.gradient_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(11)
        some_loss(*model(*padded_batch(clips()))).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_everything_random_comes_from_torchs_seed() -> None:
    model = small_model("w2v2-L-robust", layerdrop=0.5, mask_time_prob=0.5)
    model.train()
    batch = padded_batch(clips())

    def draws() -> Iterator[Tensor]:
        for seed in (0, 1, 0):
            np.random.seed(seed + 5)  # where the stock masks come from
            torch.manual_seed(seed)
            yield model(*batch)[0].detach()

    first, other, again = draws()
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_masked_spans_keep_their_share_and_their_rows() -> None:
    torch.manual_seed(2)
    lengths = [1_000, 500, 9, 10, 0] * 40
    mask = draw_spans(lengths, 1_000, share=0.05, span=10, least=2)
    counts = mask.sum(1).reshape(40, 5)
    # 5 spans of 10 frames (2.5, so 2 or 3, of 10); overlaps take a little away
    assert 45 < counts[:, 0].float().mean() <= 50
    assert 21 < counts[:, 1].float().mean() <= 25
    assert counts[:, 2].sum() == 0
    assert (counts[:, 3] == 10).all()  # one span fits, though two are the least
    assert not mask[1::5, 500:].any()
    starts = mask[0::5].float().mean(0)
    assert starts[:200].mean() == pytest.approx(starts[-200:].mean().item(), abs=0.03)


def test_no_bias_in_front_of_a_norm_learns() -> None:
    """Adam would make steps of full size from its rounding noise."""
    model = trained("w2v2-b", conv_bias=True)
    some_loss(*model(*padded_batch(clips()))).backward()
    layers = model.backbone.feature_extractor.conv_layers
    assert layers[0].conv.bias.grad is None
    assert layers[1].conv.bias.grad is not None
    with torch.no_grad():
        before = model(*padded_batch(clips()))[0]
        layers[0].conv.bias.add_(3.0)
        torch.testing.assert_close(model(*padded_batch(clips()))[0], before)
