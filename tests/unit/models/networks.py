"""Small networks with the exact flags of the real ones, and the plain way to score a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from raysers.models.backbones import BACKBONES
from raysers.models.emotion import FAMILIES, EmotionModel
from raysers.models.loading import LoadedModel, build_network

PAPER = ("w2v2-b", "hubert-b", "w2v2-L", "hubert-L", "w2v2-L-robust", "w2v2-L-vox", "w2v2-L-xls-r")

SMALL = {
    "conv_dim": [32] * 7,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


SMALL_WHISPER = {
    "d_model": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
}


def small_config(kind: str) -> dict[str, Any]:
    """A paper alias, or one of the other families, at toy width."""
    if kind.startswith("whisper-"):
        return BACKBONES[kind].config() | SMALL_WHISPER
    if kind in BACKBONES:
        return BACKBONES[kind].config() | SMALL
    base = BACKBONES["w2v2-L" if kind == "wavlm-large" else "w2v2-b"].config() | SMALL
    others: dict[str, dict[str, Any]] = {
        "wavlm-base": {"model_type": "wavlm"},
        "wavlm-large": {"model_type": "wavlm"},
        "data2vec": {
            "model_type": "data2vec-audio",
            "num_conv_pos_embeddings": 5,
            "conv_pos_kernel_size": 19,
        },
        # a mel-like front: long first window, other hop, no gelu
        "mel-front": {
            "conv_dim": [48, 32, 32, 32],
            "conv_kernel": [400, 3, 5, 5],
            "conv_stride": [160, 2, 1, 2],
            "feat_extract_activation": "relu",
        },
    }
    return base | others[kind]


#: Nothing random is left in training: dropout, layer drop, SpecAugment.
NOTHING_RANDOM = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "dropout": 0.0,  # Whisper's two
    "encoder_layerdrop": 0.0,
}


def lively(model: EmotionModel) -> EmotionModel:
    """Move norms and biases away from 1 and 0, where a swapped one would go unnoticed."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def small_model(kind: str, **config: Any) -> EmotionModel:
    torch.manual_seed(3)
    model = build_network(small_config(kind) | config, kind)
    assert isinstance(model, EmotionModel)
    return lively(model).eval()


def loaded(model: EmotionModel, *, do_normalize: bool = True) -> LoadedModel:
    return LoadedModel(
        model=model,
        name="test",
        revision="r",
        do_normalize=do_normalize,
    )


class PlainModel:
    """One file at a time through stock `transformers` modules and a head written out by hand."""

    def __init__(self, model: EmotionModel) -> None:
        family = FAMILIES[model.config.model_type]
        config = getattr(transformers, f"{family.classes}Config")(**model.config.to_dict())
        self.backbone = getattr(transformers, f"{family.classes}Model")(config).eval()
        # copies: a scorer changes its model in place
        state = {k: v.clone() for k, v in model.backbone.state_dict().items()}
        self.backbone.load_state_dict(state)
        self.head = {k: v.clone() for k, v in model.classifier.state_dict().items()}
        self.extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)

    @torch.inference_mode()
    def __call__(self, signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores [3] and embedding [hidden] as the model card computes them."""
        values = self.extractor(signal, sampling_rate=16_000)["input_values"][0]
        pooled = self.backbone(torch.as_tensor(values)[None])[0].mean(dim=1)
        dense = torch.tanh(pooled @ self.head["dense.weight"].T + self.head["dense.bias"])
        scores = dense @ self.head["out_proj.weight"].T + self.head["out_proj.bias"]
        return scores[0].numpy(), pooled[0].numpy()


def padded_batch(signals: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """[clips, samples] float32, zero behind each clip, and int64 [clips] lengths."""
    lengths = torch.tensor([len(signal) for signal in signals])
    padded = torch.zeros(len(signals), int(lengths.max()))
    for row, signal in zip(padded, signals, strict=True):
        row[: len(signal)] = torch.from_numpy(signal)
    return padded, lengths


def speechlike(samples: int, seed: int) -> np.ndarray:
    """Coloured noise with a swell and a constant offset: neither white nor zero-mean."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.normal(size=samples + 15), np.ones(16) / 16, "valid")
    return (noise * np.linspace(0.05, 0.4, samples) + 0.03).astype(np.float32)
