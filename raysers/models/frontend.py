"""Samples to frames, padding kept out of every statistic, and the masks of training (SpecAugment).

The stock recipe (attention mask, masked mean) is not enough for models whose first layer has a
group norm: its statistics run over the whole padded row, so they need the mask as well. Scoring
folds the norm into the first convolution and works block by block, so that an hour fits into
memory; training computes layer by layer, because the folded form is slow to differentiate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_Count = TypeVar("_Count", int, Tensor)
#: Added to the variance of the samples, as the published feature extractor does.
NORMALISE_EPS = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """Kernels and strides of the convolutional front, in the order of the layers."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next (320 for the standard front)."""
        return math.prod(self.strides)

    @property
    def receptive_field_samples(self) -> int:
        """Samples one frame sees (400 for the standard front): the shortest clip that scores."""
        return int(self.samples(slice(0, 1)).stop)

    def samples(self, frames: slice) -> slice:
        """The samples that these frames see."""
        start, count = frames.start * self.hop_samples, frames.stop - frames.start
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            count = (count - 1) * stride + kernel
        return slice(start, start + count)

    def frames(self, samples: _Count, layers: int | None = None) -> _Count:
        """Frames after the first `layers` layers (default: all) of a clip of `samples`."""
        for kernel, stride in list(zip(self.kernels, self.strides, strict=True))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples


def valid(lengths: Tensor, longest: int) -> Tensor:
    """Bool [rows, longest]: True for the first `lengths[i]` places of row i."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def normalise(padded: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit population variance of each row's first `lengths[i]` samples, then 0.

    Equals the published feature extractor (eps 1e-7 inside the root); sums are in float64, so that
    a constant offset cannot drown the speech. `padded` is float32 [clips, samples].
    """
    mask = valid(lengths, padded.shape[1])
    count = lengths[:, None]
    centred = padded.masked_fill(~mask, 0.0)
    mean = centred.sum(1, keepdim=True, dtype=torch.float64) / count
    centred = (centred - mean.to(padded.dtype)).mul_(mask)
    power = torch.linalg.vector_norm(centred, dim=1, keepdim=True, dtype=torch.float64) ** 2
    return centred.mul_(torch.rsqrt(power / count + NORMALISE_EPS).to(padded.dtype))


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """float32 [rows, size]: mean of [rows, frames, size] over the frames where `mask` is True."""
    hidden = hidden.float()
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype)
    return torch.einsum("bts,bt->bs", hidden, weights) / weights.sum(1, keepdim=True)


def convolve_once(
    signal: Tensor, kernel: Tensor, bias: Tensor, stride: int, dtype: torch.dtype
) -> Tensor:
    """[rows, frames, channels] of `dtype`: one convolution, rounded to `dtype` at its end only.

    float32 input for a shorter `dtype` is split into two numbers of `dtype` each. All products go
    through one multiplication of `dtype`, which sums in float32: as exact as rounding a float32
    result, in a tenth of its time on CPUs. `signal` is [rows, samples], `kernel` [1 or rows,
    channels, taps].
    """
    taps = kernel.shape[2]
    if signal.dtype == dtype:
        windows = signal.unfold(1, taps, stride)
        return torch.matmul(windows, kernel.transpose(1, 2)) + bias[:, None]
    high, low = (part.unfold(1, taps, stride) for part in _two_parts(signal, dtype))
    kernel_high, kernel_low = _two_parts(kernel, dtype)
    ones = high.new_ones(()).expand(*high.shape[:2], 2)
    columns = torch.cat((high, low, high, ones), 2)
    biases = torch.stack(_two_parts(bias, dtype), 2)
    rows = torch.cat((kernel_high, kernel_high, kernel_low, biases), 2)
    return torch.matmul(columns, rows.transpose(1, 2))


def _two_parts(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    high = values.to(dtype)
    return high, (values - high.to(values.dtype)).to(dtype)


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm, one group a channel, whose statistics leave out each row's padding.

    Training applies it as it is, scoring with the bias-free convolution in front of it, as one
    small linear layer per clip: mean and variance of a linear layer's output follow exactly from
    mean and covariance of its input windows. So the widest tensor of all is never stored
    unnormalised.
    """

    def over_frames(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """The norm by itself, float32, of [clips, frames, channels] as the convolution left them.

        What lies behind a clip's `frames` counts in no statistic and becomes some finite number.
        """
        hidden = hidden.float()
        # [clips, 1, frames]: multiplying with it takes the mean over a clip's own frames
        shares = (valid(frames, hidden.shape[1]) / frames[:, None])[:, None]
        centred = hidden - shares @ hidden
        variance = shares @ centred.square()
        return torch.addcmul(self.bias, centred, torch.rsqrt(variance + self.eps) * self.weight)

    def fold(
        self, kernel: Tensor, padded: Tensor, frames: Tensor, stride: int
    ) -> tuple[Tensor, Tensor]:
        """The layers "convolve, then normalise" as one linear layer per row.

        Weights [clips, channels, taps] and biases, float32: `gamma (w.x - w.mean) / sqrt(w' cov w +
        eps) + beta`. `kernel` is [channels, taps], `padded` float32 [clips, samples], zero behind
        each clip.
        """
        taps = kernel.shape[1]
        kernel = kernel.double()
        windows = padded.unfold(1, taps, stride)
        mask = valid(frames, windows.shape[1])
        windows = windows.double() * mask[..., None]
        count = frames[:, None].double()
        mean = windows.sum(1) / count
        covariance = windows.transpose(1, 2) @ windows / count[..., None]
        covariance = covariance - mean[:, :, None] * mean[:, None, :]
        variance = torch.einsum("ck,bkl,cl->bc", kernel, covariance, kernel).clamp_min(0.0)
        gain = torch.rsqrt(variance + self.eps) * self.weight.double()
        bias = self.bias.double() - gain * (mean @ kernel.T)
        return (gain[..., None] * kernel).float(), bias.float()


def augment_hidden(hidden: Tensor, frames: Sequence[int], backbone: Any) -> Tensor:
    """SpecAugment (Park et al. 2019) on hidden states, as wav2vec 2.0 has it in fine-tuning.

    Spans of `frames` of each clip become the learned vector, spans of channels zeros. Unlike in the
    stock function, torch's seed fixes the masks, and a clip shorter than a span stays as it is.
    """
    config = backbone.config
    if not getattr(config, "apply_spec_augment", True):
        return hidden
    clips, longest, size = hidden.shape
    if config.mask_time_prob > 0:
        spans = draw_spans(
            frames,
            longest,
            share=config.mask_time_prob,
            span=config.mask_time_length,
            least=config.mask_time_min_masks,
        )
        vector = getattr(backbone, "masked_spec_embed", None)  # Whisper masks with zeros
        vector = hidden.new_zeros(()) if vector is None else vector.to(hidden.dtype)
        hidden = torch.where(spans.to(hidden.device)[..., None], vector, hidden)
    if config.mask_feature_prob > 0:
        spans = draw_spans(
            [size] * clips,
            size,
            share=config.mask_feature_prob,
            span=config.mask_feature_length,
            least=getattr(config, "mask_feature_min_masks", 0),  # WavLM's has none
        )
        hidden = hidden.masked_fill(spans.to(hidden.device)[:, None], 0.0)
    return hidden


def draw_spans(
    lengths: Sequence[int], longest: int, *, share: float, span: int, least: int
) -> Tensor:
    """Bool [rows, longest]: True within randomly placed spans, which may overlap.

    Row i gets `share * lengths[i] / span` spans, rounded up or down at random, at least `least` and
    at most what fits side by side.
    """
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        rounding, places = torch.rand(()).item(), max(0, length - span + 1)
        wanted = max(int(share * length / span + rounding), least)
        starts = torch.randperm(places)[: min(wanted, length // span)]
        for start in starts.tolist():
            mask[row, start : start + span] = True
    return mask


#: Samples of audio (rows x length) that go through the front at once: on CPUs four seconds stay in
#: the cache (a third faster than a whole batch), on GPUs only long recordings need a bound.
_CHUNK_SAMPLES = {"cpu": 4 * 16_000, "cuda": 240 * 16_000}


def mask_group_norm(extractor: Any) -> None:
    """Put `MaskedGroupNorm` where the stock front has a group norm, same parameters."""
    first = extractor.conv_layers[0]
    norm = getattr(first, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm):
        masked = MaskedGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
        masked.weight, masked.bias = norm.weight, norm.bias
        first.layer_norm = masked


def has_group_norm(extractor: Any) -> bool:
    """Whether a norm over time follows the first convolution, whose bias then cancels out."""
    return isinstance(getattr(extractor.conv_layers[0], "layer_norm", None), MaskedGroupNorm)


def frames_to_train(
    extractor: Any, geometry: ConvGeometry, padded: Tensor, lengths: Tensor
) -> Tensor:
    """[clips, frames, channels] of [clips, samples], layer by layer, made to be differentiated.

    `extractor` is the stock front after `mask_group_norm`; `padded` is zero behind each clip.
    """
    first = extractor.conv_layers[0]
    kernel, bias = first.conv.weight[:, 0], first.conv.bias
    if bias is None or has_group_norm(extractor):  # a bias in front of the norm cancels out
        bias = kernel.new_zeros(kernel.shape[0])
    signal = padded.to(kernel.dtype)
    with torch.autocast(signal.device.type, enabled=False):  # statistics need all their bits
        hidden = convolve_once(signal, kernel[None], bias[None], geometry.strides[0], kernel.dtype)
        if has_group_norm(extractor):
            frames = geometry.frames(lengths.to(padded.device), layers=1)
            hidden = first.layer_norm.over_frames(hidden, frames)
    return _further(extractor, hidden, _conv_to_train)


def frames_in_blocks(
    extractor: Any, geometry: ConvGeometry, padded: Tensor, lengths: Tensor
) -> Tensor:
    """As `frames_to_train`, block by block: frames f0..f1 depend on their own samples only."""
    first = extractor.conv_layers[0]
    kernel, bias = first.conv.weight[:, 0], first.conv.bias
    if has_group_norm(extractor):
        # float32 in any precision: weights and bias cancel each other (an offset or a rumble the
        # norm takes out), which rounding either would spoil
        frames = geometry.frames(lengths.to(padded.device), layers=1)
        kernel, bias = first.layer_norm.fold(kernel, padded, frames, geometry.strides[0])
    else:  # one row for all clips
        bias = kernel.new_zeros(kernel.shape[0]) if bias is None else bias
        kernel, bias = kernel[None], bias[None]
    signal = padded.to(kernel.dtype)
    clips, samples = signal.shape
    chunk = _CHUNK_SAMPLES.get(signal.device.type, _CHUNK_SAMPLES["cuda"])
    rows_of_blocks = []
    for rows in _blocks(clips, max(1, chunk // samples)):
        step = max(1, chunk // ((rows.stop - rows.start) * geometry.hop_samples))
        weights = (kernel, bias) if kernel.shape[0] == 1 else (kernel[rows], bias[rows])
        blocks = []
        for block in _blocks(geometry.frames(samples), step):
            part, stride = signal[rows, geometry.samples(block)], geometry.strides[0]
            with torch.autocast(signal.device.type, enabled=False):  # large numbers cancel
                hidden = convolve_once(part, *weights, stride, first.conv.weight.dtype)
            blocks.append(_further(extractor, hidden, conv_over_frames))
        rows_of_blocks.append(torch.cat(blocks, dim=1))
    return torch.cat(rows_of_blocks)


def conv_over_frames(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """`conv` over the frames of [rows, frames, channels], as that of an image one pixel high.

    It takes channels last as they are; `Conv1d` needs up to twice the time on CPUs.
    """
    image = hidden[:, None].permute(0, 3, 1, 2)  # [rows, channels, 1, frames], a view
    (stride,), (padding,) = conv.stride, cast(tuple[int], conv.padding)
    image = functional.conv2d(
        image, conv.weight[:, :, None], conv.bias, (1, stride), (0, padding), groups=conv.groups
    )
    return image.permute(0, 2, 3, 1)[:, 0]


def _conv_to_train(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """As `conv_over_frames`, without padding and groups, made to be differentiated.

    On CPUs a product of matrices: oneDNN's kernels for the gradient take up to four times as long.
    """
    if hidden.device.type != "cpu":
        return conv_over_frames(conv, hidden)
    windows = hidden.unfold(1, conv.kernel_size[0], conv.stride[0]).flatten(2)
    return functional.linear(windows, conv.weight.flatten(1), conv.bias)


def _further(
    extractor: Any, hidden: Tensor, convolve: Callable[[nn.Conv1d, Tensor], Tensor]
) -> Tensor:
    """[rows, frames, channels] behind all layers from what the first convolution made of it.

    Behind that a group norm is already dealt with.
    """
    for number, layer in enumerate(extractor.conv_layers):
        hidden = convolve(layer.conv, hidden) if number else hidden
        norm = getattr(layer, "layer_norm", None)
        hidden = layer.activation(norm(hidden) if isinstance(norm, nn.LayerNorm) else hidden)
    return hidden


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
