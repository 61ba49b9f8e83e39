"""The emotion network: a pre-trained speech backbone, pooling over frames, and a small head.

Parameters are named as in the published checkpoint (`<family>.*`, `classifier.dense`,
`classifier.out_proj`). The forward pass is not the stock one: it walks through the stock modules
itself, so that padding never reaches a valid frame and long recordings fit into memory.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raysers.errors import CheckpointError, ConfigError
from raysers.models import frontend
from raysers.models.backbones import FAMILIES, PLAIN, Outputs
from raysers.models.frontend import valid
from raysers.models.heads import CategoryHead, EmotionHead, OutOfDistribution, Pooling, Uncertainty

#: How names start in a backbone that was saved by itself.
_BACKBONE_PARTS = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed")


class EmotionNetwork(nn.Module, ABC):
    """What loading, scoring and training know of a network: `(padded, lengths) -> scores, ...`.

    `config` has the keys of `config.json` by `to_dict()`; `pooling_mode` is one of `POOLING_NAMES`;
    `taken`: a scorer changed the weights in place, so that no other may have the model.
    """

    config: Any
    pooling_mode: str = "mean"
    outputs: Outputs = PLAIN
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
        """Score 16 kHz clips, float32 [clips, samples], zero behind each; neighbours do not matter.

        `lengths` int64 [clips] are on the CPU, to spare a GPU the wait. Returns float32 scores
        [clips, 3] in the order of `DIMENSIONS`, about 0..1, and embeddings [clips, embedding_size].
        """

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> None:
        """Let the bulk of the network compute in `dtype`; pooling and head stay in float32."""

    def freeze(self, part: str) -> None:
        """Keep `cnn`, `backbone` or `none` without gradient, in evaluation mode; or ConfigError."""
        if part != "none":
            kind = self.config.model_type
            raise ConfigError(f"--freeze {part}: {kind} has no pre-trained part; use --freeze none")

    def gradient_checkpointing(self, on: bool) -> None:
        """Whether training keeps a layer's input only and computes the rest again for gradients."""

    def attach(self, outputs: Outputs) -> None:
        """Give the network new heads of `outputs`; with points, none for the dimensions."""
        for name in ("categories", "uncertainty", "ood"):
            self._modules.pop(name, None)
        self.outputs = outputs
        size = self.embedding_size
        points = torch.tensor(outputs.points, device="cpu")
        if outputs.categories:
            self.categories: Any = CategoryHead(size, points, len(outputs.categories))
        if outputs.points:
            if not hasattr(self, "classifier"):
                raise CheckpointError(f"category_points: {self.config.model_type} has no such head")
            del self.classifier
        if outputs.uncertainty_heads:
            self.uncertainty = Uncertainty(size, outputs.uncertainty_heads, points)
        if outputs.ood_rank:
            self.ood = OutOfDistribution(size, outputs.ood_rank)

    def extras(self, embeddings: Tensor) -> Tensor:
        """float32 [clips, len(outputs.columns)] of float32 embeddings [clips, embedding_size]."""
        parts = [embeddings.new_zeros(len(embeddings), 0)]
        if self.outputs.categories:
            parts.append(self.categories(embeddings).softmax(1))
        if self.outputs.uncertainty_heads:
            parts.append(self.uncertainty(embeddings))
        if self.outputs.ood_rank:
            parts.append(self.ood(embeddings))
        return torch.cat(parts, 1)

    def collected_statistics(self) -> Tensor | None:
        """Float64 sums of what training passes saw, to be added over all workers; None without."""
        return None

    def apply_statistics(self, sums: Tensor) -> None:
        """Update running statistics from these sums, once an optimiser step."""


class EmotionModel(EmotionNetwork):
    """A backbone of one of `FAMILIES` by its `transformers` configuration, pooling and head."""

    layer_weights: nn.Parameter | None

    def __init__(self, config: Any, pooling_mode: str = "mean") -> None:
        super().__init__()
        self.register_parameter("layer_weights", None)
        self.config = config
        self.family = FAMILIES[config.model_type]
        self.pooling_mode = pooling_mode
        config._attn_implementation = self.family.attention
        self.add_module(self.family.prefix, self._stock_backbone())
        self.init_head()
        self._frozen: tuple[nn.Module, ...] = ()

    def _stock_backbone(self) -> nn.Module:
        """The family's stock network, changed where padding would reach valid frames."""
        import transformers

        config = self.config
        self._layerdrop: float = config.layerdrop
        self.geometry = frontend.ConvGeometry(
            kernels=tuple(config.conv_kernel), strides=tuple(config.conv_stride)
        )
        backbone: Any = getattr(transformers, f"{self.family.classes}Model")(config)
        frontend.mask_group_norm(backbone.feature_extractor)
        if self.family.prefix == "wavlm":
            for layer in backbone.encoder.layers:
                attention = layer.attention
                attention.torch_multi_head_self_attention = functools.partial(_attend, attention)
        return cast(nn.Module, backbone)

    @property
    def backbone(self) -> Any:
        """The stock `transformers` module that holds the pre-trained parameters."""
        return getattr(self, self.family.prefix)

    @property
    def embedding_size(self) -> int:
        """The hidden size, twice that with statistics."""
        return self.pooling.embedding_size

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip: the receptive field of one frame."""
        return self.geometry.receptive_field_samples

    def init_head(self) -> None:
        """Pooling and head as new, drawn from torch's generator, and equal layer weights."""
        size = self.config.hidden_size
        weights = nn.Parameter(torch.zeros(len(self._layers) + 1))
        weighted = getattr(self.config, "use_weighted_layer_sum", False)
        self.register_parameter("layer_weights", weights if weighted else None)
        self.pooling = Pooling(self.pooling_mode, size)
        self.classifier = EmotionHead(
            self.embedding_size, size, self.config.final_dropout, self.config.initializer_range
        )

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and embeddings of normalised clips; pooling and head always run in float32."""
        hidden, mask = self._hidden(padded, lengths)
        with torch.autocast(hidden.device.type, enabled=False):
            embeddings = self.pooling(hidden, mask)
            if self.outputs.points:
                return self.categories.scores(embeddings), embeddings
            return self.classifier(embeddings), embeddings

    def cast(self, dtype: torch.dtype) -> None:
        """Let the backbone compute in `dtype`."""
        self.backbone.to(dtype)

    def freeze(self, part: str) -> None:
        """Keep `cnn` (the convolutional front), `backbone` (all but pooling and head) or `none`.

        Keys' biases (a softmax cancels them) and a bias before a group norm never get a gradient:
        theirs is rounding noise, which Adam would turn into full steps.
        """
        parts = {"cnn": self._front, "backbone": (self.backbone,), "none": ()}
        if part not in parts:
            raise ConfigError(f"--freeze {part}: choose from {', '.join(parts)}")
        self._frozen = parts[part]
        self.requires_grad_(True)
        for module in self._frozen:
            module.requires_grad_(False)
        for parameter in self._idle_parameters():
            parameter.requires_grad_(False)
        self.train(self.training)

    @property
    def _front(self) -> tuple[nn.Module, ...]:
        """What `--freeze cnn` keeps."""
        return (self.backbone.feature_extractor,)

    def _idle_parameters(self) -> Iterator[nn.Parameter]:
        yield from (p for name, p in self.named_parameters() if name.endswith("k_proj.bias"))
        first = self.backbone.feature_extractor.conv_layers[0].conv
        if frontend.has_group_norm(self.backbone.feature_extractor) and first.bias is not None:
            yield first.bias

    def backbone_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a stock checkpoint under the names they have inside this model."""
        return {
            f"{self.family.prefix}.{key}" if key.startswith(_BACKBONE_PARTS) else key: value
            for key, value in tensors.items()
        }

    def train(self, mode: bool = True) -> EmotionModel:
        """Training mode; frozen parts stay in evaluation mode (no dropout, no masking)."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def gradient_checkpointing(self, on: bool) -> None:
        """Keep only each transformer layer's input in training; dropout is drawn the same again."""
        for layer in self._layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)

    @property
    def _layers(self) -> Any:
        return self.backbone.encoder.layers

    def _hidden(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """[clips, frames, hidden] of the backbone and the mask of valid frames, None if all are."""
        frames = self.geometry.frames(lengths)
        features = self._features(padded, lengths)
        # without padding there is no mask, which is what lets attention take its fastest kernel
        ragged = bool((frames < features.shape[1]).any())
        mask = valid(frames, features.shape[1]).to(features.device) if ragged else None
        projected = self.backbone.feature_projection(features)
        hidden = projected if isinstance(projected, Tensor) else projected[0]
        if self.backbone.training:  # SpecAugment, as the authors' fine-tuning had it
            hidden = frontend.augment_hidden(hidden, frames.tolist(), self.backbone)
        return self._encode(hidden, mask), mask

    def _features(self, padded: Tensor, lengths: Tensor) -> Tensor:
        extractor = self.backbone.feature_extractor
        if torch.onnx.is_in_onnx_export():  # one clip of any length, no padding, no blocks
            return cast(Tensor, extractor(padded).transpose(1, 2))
        if extractor.training:
            return frontend.frames_to_train(extractor, self.geometry, padded, lengths)
        return frontend.frames_in_blocks(extractor, self.geometry, padded, lengths)

    def _encode(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[clips, frames, hidden] of the transformer; `mask` is True on valid frames."""
        encoder = self.backbone.encoder
        if mask is not None:
            hidden = hidden.masked_fill(~mask[..., None], 0.0)
        hidden = hidden + _positions(encoder.pos_conv_embed, hidden, mask)
        stable = getattr(self.config, "do_stable_layer_norm", False)
        hidden = encoder.dropout(hidden if stable else encoder.layer_norm(hidden))
        # one row of keys for all queries: a frames x frames table is never stored
        wavlm = self.family.prefix == "wavlm"
        keys = mask if mask is None or wavlm else mask[:, None, None, :]
        return self._through_layers(hidden, keys, encoder.layer_norm if stable else None)

    def _through_layers(self, hidden: Tensor, keys: Tensor | None, norm: Any) -> Tensor:
        """[clips, frames, hidden] behind the layers and `norm`, or the weighted sum (SUPERB)."""
        along = {"position_bias": None} if self.family.prefix == "wavlm" else {}
        states = []
        for number, layer in enumerate(self._layers):
            states += [] if self.layer_weights is None else [hidden]
            # drawn for every layer, so that what is drawn later does not depend on it
            dropped = self.backbone.training and torch.rand(()).item() < self._layerdrop
            if not dropped or (along and number == 0):  # WavLM's first gives the others their bias
                hidden = layer(hidden, attention_mask=keys, **along)
                if along:
                    hidden, along["position_bias"] = hidden[:2]
        hidden = hidden if norm is None else norm(hidden)
        if self.layer_weights is None:
            return hidden
        shares = self.layer_weights.softmax(0)
        parts = zip(shares, (*states, hidden), strict=True)
        return torch.stack([share * state.float() for share, state in parts]).sum(0)


def _attend(attention: Any, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> Any:
    """WavLM's attention without torch's warning: the mask is laid into the position bias before."""
    if mask is not None:
        padding = ~mask.repeat_interleave(attention.num_heads, 0)[:, None, :]
        bias = bias.masked_fill(padding, -torch.inf)
    stock = type(attention).torch_multi_head_self_attention
    return stock(attention, hidden, None, bias)


def _positions(embedding: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Convolutional position embedding of [clips, frames, size].

    data2vec stacks several: behind a clip's end one leaves what the next would carry back into it.
    """
    stack = getattr(embedding, "layers", None)
    if stack is None:
        frames = hidden.shape[1]  # an even kernel yields one more
        hidden = frontend.conv_over_frames(embedding.conv, hidden)[:, :frames]
        return cast(Tensor, embedding.activation(hidden))
    hidden = hidden.transpose(1, 2)
    for layer in stack:
        hidden = layer(hidden)
        hidden = hidden if mask is None else hidden.masked_fill(~mask[:, None], 0.0)
    return hidden.transpose(1, 2)
