"""A checkpoint in the published layout and its plain single-file forward.

Torch and transformers only: nothing of the project, so that tests compare with other code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

LABELS = ("arousal", "dominance", "valence")
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_LARGE_STYLE = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}


class PlainModel(nn.Module):
    """The model card's class: backbone, mean over time, dense-tanh-out."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "out_proj": nn.Linear(config.hidden_size, 3),
            }
        )

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.wav2vec2(values)[0].mean(1)
        hidden = torch.tanh(self.classifier["dense"](pooled))
        return self.classifier["out_proj"](hidden), pooled


def write_checkpoint(folder: Path, *, seed: int = 0, **config: object) -> PlainModel:
    """Write a small published-layout checkpoint (layer-norm stack) and return its model."""
    torch.manual_seed(seed)
    model = PlainModel(Wav2Vec2Config(**(_SMALL | _LARGE_STYLE | config))).eval()
    with torch.no_grad():  # spread the scores, or every clip would look alike
        model.classifier["out_proj"].weight.mul_(8)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {str(i): label for i, label in enumerate(LABELS)}
    described = model.wav2vec2.config.to_dict() | {"id2label": labels}
    (folder / "config.json").write_text(json.dumps(described))
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def score_files(model: PlainModel, files: list[str]) -> dict[str, np.ndarray]:
    """Scores and pooled embedding, file by file, without padding: what batches must equal."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    results = {}
    for file in files:
        signal, rate_hz = sf.read(file, dtype="float32")
        assert rate_hz == 16_000
        assert signal.ndim == 1
        values = extractor(signal, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.inference_mode():
            scores, pooled = model(values)
        results[file] = np.concatenate([scores[0].numpy(), pooled[0].numpy()])
    return results
