"""What every network that scores clips offers, whatever it is built from.

Loading, scoring and training know this class only. A network is frozen through `freeze`, not by
hand: frozen parts must also stay in evaluation mode when the rest of the model trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class EmotionNetwork(nn.Module, ABC):
    """Speech to arousal, dominance, valence: `model(padded, lengths) -> (scores, embeddings)`.

    `config` is an object with `to_dict()`, the keys of `config.json` that describe the network;
    `pooling_mode` how frames become an embedding, of `POOLING_NAMES`; `taken` whether a scorer
    changed the weights in place, so that no other may have the model.
    """

    config: Any
    pooling_mode: str = "mean"
    taken: bool = False

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """Numbers of an embedding."""

    @property
    @abstractmethod
    def min_samples(self) -> int:
        """Samples (16 kHz) of the shortest clip that scores."""

    @property
    def max_samples(self) -> int | None:
        """Samples of the longest clip that scores; None where any length does."""
        return None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Keys of `preprocessor_config.json` besides `do_normalize` and `sampling_rate`."""
        return {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
        }

    @abstractmethod
    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """float32 scores [clips, 3] and embeddings [clips, embedding_size] of a batch.

        Args:
            padded: float32 [clips, samples], 16 kHz, zero behind each clip.
            lengths: int64 [clips], samples of each clip, from `min_samples` to `max_samples`.
        """

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> None:
        """Let the bulk of the network compute in `dtype`; pooling and head stay in float32."""

    @abstractmethod
    def freeze(self, part: str) -> None:
        """Keep a part of the network as it is in training: `cnn`, `backbone` or `none`.

        Its parameters want no gradient, and it stays in evaluation mode after `train()`. What
        came before is forgotten.

        Raises:
            ConfigError: the network has no such part.
        """

    @abstractmethod
    def gradient_checkpointing(self, on: bool) -> None:
        """Whether training keeps a layer's input only and computes the rest again for gradients."""

    def collected_statistics(self) -> Tensor | None:
        """What the training passes since the last `apply_statistics` saw, as sums.

        A float64 vector of fixed length: add those of all workers, then hand the sum to
        `apply_statistics` of each. None where the network keeps no statistics.
        """
        return None

    def apply_statistics(self, sums: Tensor) -> None:
        """Update running statistics from the sums over all workers, once an optimiser step."""
