"""The emotion network: a pre-trained speech backbone, its masked mean, and a small head.

Parameters are named as in the published checkpoint (`<family>.*`, `classifier.dense`,
`classifier.out_proj`). The forward pass is not the stock one: it walks through the stock modules
itself, so that padding never reaches a valid frame (in any family, group norm and stacked
positional convolutions included) and so that long recordings fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.errors import CheckpointError
from raysers.models.masking import (
    ConvGeometry,
    MaskedGroupNorm,
    convolve_once,
    masked_mean,
    valid,
)
from raysers.types import DIMENSIONS

#: Samples of audio (rows x length) that go through the convolutional front at once. Its first
#: layers hold 3,200 wide frames a second: on CPUs four seconds stay in the cache (a third faster
#: than a whole batch), on GPUs the bound is only there to keep long recordings small.
_CPU_CHUNK_SAMPLES = 4 * 16_000
_GPU_CHUNK_SAMPLES = 240 * 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How `transformers` names one kind of backbone.

    `prefix` is the family's parameter prefix; `attention` the attention implementation that
    never stores a frames x frames table, where the family offers one.
    """

    prefix: str
    config_class: str
    model_class: str
    attention: str = "sdpa"


#: WavLM adds a learned bias per pair of frames, so its memory grows with the length squared.
FAMILIES: dict[str, Family] = {
    "wav2vec2": Family(
        prefix="wav2vec2", config_class="Wav2Vec2Config", model_class="Wav2Vec2Model"
    ),
    "hubert": Family(prefix="hubert", config_class="HubertConfig", model_class="HubertModel"),
    "wavlm": Family(
        prefix="wavlm", config_class="WavLMConfig", model_class="WavLMModel", attention="eager"
    ),
    "data2vec-audio": Family(
        prefix="data2vec_audio",
        config_class="Data2VecAudioConfig",
        model_class="Data2VecAudioModel",
    ),
}


class EmotionHead(nn.Module):
    """Dense, tanh, projection to the three dimensions (the paper's section 3.2)."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(size, len(DIMENSIONS))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores [clips, 3] of embeddings [clips, size]."""
        hidden = self.dropout(embeddings.to(self.dense.weight.dtype))
        hidden = self.dropout(torch.tanh(self.dense(hidden)))
        return cast(Tensor, self.out_proj(hidden))


class EmotionModel(nn.Module):
    """Speech to arousal, dominance, valence.

    Args:
        config: a `transformers` configuration of one of `FAMILIES`.

    Raises:
        CheckpointError: the configuration asks for something that would make a clip's scores
            depend on its batch.
    """

    #: Whether a scorer changed the weights in place, so that no other may have the model.
    taken: bool = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        import transformers

        if getattr(config, "conv_pos_batch_norm", False):
            raise CheckpointError(
                "conv_pos_batch_norm lets padding into the scores; models with it cannot be used"
            )
        family = FAMILIES[config.model_type]
        config._attn_implementation = family.attention
        self.config = config
        self.family = family
        self.geometry = ConvGeometry(
            kernels=tuple(config.conv_kernel), strides=tuple(config.conv_stride)
        )
        self.add_module(family.prefix, getattr(transformers, family.model_class)(config))
        self.classifier = EmotionHead(config.hidden_size, config.final_dropout)
        for projection in (self.classifier.dense, self.classifier.out_proj):
            nn.init.normal_(projection.weight, std=config.initializer_range)
            nn.init.zeros_(projection.bias)
        self._mask_group_norm()

    @property
    def backbone(self) -> Any:
        """The stock `transformers` module that holds the pre-trained parameters."""
        return getattr(self, self.family.prefix)

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score normalised clips.

        Args:
            padded: float32 [clips, samples], 16 kHz, zero behind each clip.
            lengths: int64 [clips], samples of each clip, at least the receptive field; keep it
                on the CPU to spare a GPU the wait.

        Returns:
            float32 scores [clips, 3] in the order of `DIMENSIONS`, about 0..1, and float32
            embeddings [clips, hidden]. Pooling and head run in the head's precision (float32)
            whatever the backbone's. With a float32 backbone both equal a plain single-file
            forward pass to about 1e-6; see `raysers.models.inference` for bfloat16.
        """
        features = self._features(padded, lengths)
        frames = self.geometry.frames(lengths)
        # without padding there is no mask, which is what lets attention take its fastest kernel
        ragged = bool((frames < features.shape[1]).any())
        mask = valid(frames, features.shape[1]).to(features.device) if ragged else None
        projected = self.backbone.feature_projection(features)
        hidden = projected if isinstance(projected, Tensor) else projected[0]
        if self.training:  # SpecAugment, as the authors' fine-tuning had it
            hidden = self.backbone._mask_hidden_states(
                hidden, attention_mask=None if mask is None else mask.long()
            )
        embeddings = masked_mean(self._encode(hidden, mask), mask)
        return self.classifier(embeddings), embeddings

    def _mask_group_norm(self) -> None:
        """Put `MaskedGroupNorm` where the stock front has a group norm, same parameters."""
        first = self.backbone.feature_extractor.conv_layers[0]
        norm = getattr(first, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            masked = MaskedGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
            masked.weight, masked.bias = norm.weight, norm.bias
            first.layer_norm = masked

    def _features(self, padded: Tensor, lengths: Tensor) -> Tensor:
        """[clips, frames, channels] of the convolutional front, computed block by block.

        Exact: frames f0..f1 depend on samples f0*hop .. (f1-1)*hop + receptive field only.
        """
        kernel, bias = self._first_layer(padded, lengths)
        signal = padded.to(kernel.dtype)
        clips, samples = signal.shape
        rows_of_blocks = []
        for rows in _blocks(clips, max(1, self._chunk_samples(signal) // samples)):
            hop = self.geometry.hop_samples
            step = max(1, self._chunk_samples(signal) // ((rows.stop - rows.start) * hop))
            shared = kernel.shape[0] == 1
            weights = (kernel, bias) if shared else (kernel[rows], bias[rows])
            rows_of_blocks.append(
                torch.cat(
                    [
                        self._convolve(signal[rows, self._samples(block)], *weights)
                        for block in _blocks(self.geometry.frames(samples), step)
                    ],
                    dim=1,
                )
            )
        return torch.cat(rows_of_blocks)

    def _samples(self, frames: slice) -> slice:
        start = frames.start * self.geometry.hop_samples
        return slice(start, start + self.geometry.span_samples(frames.stop - frames.start))

    def _chunk_samples(self, signal: Tensor) -> int:
        return _CPU_CHUNK_SAMPLES if signal.device.type == "cpu" else _GPU_CHUNK_SAMPLES

    def _first_layer(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """First layer as linear weights [1 or clips, channels, taps] and biases, norm folded in.

        One row for all clips where no statistics over a clip are involved. A folded norm stays in
        float32 whatever the backbone's precision: weights and bias then cancel each other (an
        offset or a rumble the norm takes out), which rounding either would spoil.
        """
        layer = self.backbone.feature_extractor.conv_layers[0]
        kernel, bias = layer.conv.weight[:, 0], layer.conv.bias
        if isinstance(getattr(layer, "layer_norm", None), MaskedGroupNorm):
            frames = self.geometry.frames(lengths.to(padded.device), layers=1)
            folded: tuple[Tensor, Tensor] = layer.layer_norm.fold(
                kernel, padded, frames, self.geometry.strides[0]
            )
            return folded
        bias = kernel.new_zeros(kernel.shape[0]) if bias is None else bias
        return kernel[None], bias[None]

    def _convolve(self, signal: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """[rows, frames, channels] of [rows, samples] through all convolutions."""
        first, *others = self.backbone.feature_extractor.conv_layers
        hidden = convolve_once(
            signal, kernel, bias, self.geometry.strides[0], first.conv.weight.dtype
        )
        hidden = _norm_and_activation(first, hidden)
        for layer in others:
            hidden = _norm_and_activation(layer, _conv_over_frames(layer.conv, hidden))
        return hidden

    def _encode(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[clips, frames, hidden] of the transformer; `mask` is True on valid frames."""
        encoder = self.backbone.encoder
        if self.family.prefix == "wavlm":  # its layers pass a position bias along
            return cast(Tensor, encoder(hidden, attention_mask=mask).last_hidden_state)
        if mask is not None:
            hidden = hidden.masked_fill(~mask[..., None], 0.0)
        stable = getattr(self.config, "do_stable_layer_norm", False)
        hidden = hidden + _positions(encoder.pos_conv_embed, hidden, mask)
        if not stable:
            hidden = encoder.layer_norm(hidden)
        hidden = encoder.dropout(hidden)
        # one row of keys for all queries: a frames x frames table is never stored
        keys = None if mask is None else mask[:, None, None, :]
        for layer in encoder.layers:
            if self.training and torch.rand(()).item() < self.config.layerdrop:
                continue
            hidden = layer(hidden, attention_mask=keys)
        return cast(Tensor, encoder.layer_norm(hidden)) if stable else hidden


def _positions(embedding: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Convolutional position embedding of [clips, frames, size].

    data2vec stacks several, and the stock module lets them see the padding: one convolution of
    zeros is what a single file sees at its end, but what comes out behind the end is not zero,
    and the next one would carry it back into the clip. So the mask is applied in between.
    """
    stack = getattr(embedding, "layers", None)
    if stack is None:
        frames = hidden.shape[1]  # an even kernel yields one more
        hidden = _conv_over_frames(embedding.conv, hidden)[:, :frames]
        return cast(Tensor, embedding.activation(hidden))
    hidden = hidden.transpose(1, 2)
    for layer in stack:
        hidden = layer(hidden)
        hidden = hidden if mask is None else hidden.masked_fill(~mask[:, None], 0.0)
    return hidden.transpose(1, 2)


def _conv_over_frames(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """`conv` over the frames of [rows, frames, channels].

    Written as the two-dimensional convolution of an image one pixel high, because that takes the
    channels-last layout as it is; the stock `Conv1d` of a transposed tensor needs up to twice
    the time on CPUs.
    """
    image = hidden[:, None].permute(0, 3, 1, 2)  # [rows, channels, 1, frames], a view
    (stride,), (padding,) = conv.stride, cast(tuple[int], conv.padding)
    image = functional.conv2d(
        image, conv.weight[:, :, None], conv.bias, (1, stride), (0, padding), groups=conv.groups
    )
    return image.permute(0, 2, 3, 1)[:, 0]


def _norm_and_activation(layer: Any, hidden: Tensor) -> Tensor:
    """What follows a convolution, on [..., channels]; a group norm is already folded in."""
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, nn.LayerNorm):
        hidden = norm(hidden)
    return cast(Tensor, layer.activation(hidden))


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
