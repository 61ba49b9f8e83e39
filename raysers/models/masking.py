"""Masks of padding, which keep a clip's scores its own, and those of training (SpecAugment).

The stock recipe (attention mask, masked mean) is not enough for models whose first layer has a
group norm: its statistics run over the whole padded row, so they need the mask as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
        return self.span_samples(1)

    def span_samples(self, frames: int) -> int:
        """Samples that `frames` consecutive frames see."""
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            frames = (frames - 1) * stride + kernel
        return frames

    def frames(self, samples: _Count, layers: int | None = None) -> _Count:
        """Frames after the first `layers` layers (default: all) of a clip of `samples`."""
        for kernel, stride in list(zip(self.kernels, self.strides, strict=True))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples


def valid(lengths: Tensor, longest: int) -> Tensor:
    """Bool [rows, longest]: True for the first `lengths[i]` places of row i."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def normalise(padded: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit population variance of each row's first `lengths[i]` samples.

    `padded` is float32 [clips, samples]; what lies behind a row's length comes out as 0 whatever
    it held. Equals the published feature extractor (eps 1e-7 inside the root) row by row; sums
    are in float64, so that a constant offset cannot drown the speech.
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

    float32 input for a shorter `dtype` is split into two numbers of `dtype` each, the second for
    what the first rounds off. All products then go through one multiplication of `dtype`, which
    sums in float32: as exact as rounding a float32 result, in a tenth of its time on CPUs.

    Args:
        signal: [rows, samples], float32 or `dtype`.
        kernel: [1 or rows, channels, taps], of the signal's type.
        bias: [1 or rows, channels], of the signal's type.
        stride: samples between windows.
        dtype: type of the result.
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

    It has the parameters of the norm it replaces. Training applies it as it is (`over_frames`),
    scoring together with the bias-free convolution in front of it (`fold`): mean and variance of
    a linear layer's output follow exactly from mean and covariance of its input windows, so norm
    and convolution become one small linear layer per clip, and the widest tensor of the whole
    network is never stored unnormalised.
    """

    def over_frames(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """The norm by itself, of [clips, frames, channels] as the convolution left them.

        float32; what lies behind a clip's `frames` (int64 [clips]) counts in no statistic and
        comes out as some finite number.
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
        """The layer "convolve, then normalise" as one linear layer per row.

        Args:
            kernel: [channels, taps] weights of the convolution; a bias would cancel out.
            padded: float32 [clips, samples], zero behind each clip.
            frames: int64 [clips], frames of each clip after this convolution.
            stride: samples between windows.

        Returns:
            float32 weight [clips, channels, taps] and bias [clips, channels]:
            `gamma (w.x - w.mean) / sqrt(w' cov w + eps) + beta`, biased covariance.
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

    Spans of frames become the learned vector, spans of channels zeros. The stock function draws
    from numpy's global generator and fails on clips shorter than a span. Here every draw comes from
    torch's CPU generator, so its seed fixes the masks, and such a clip stays as it is.

    Args:
        hidden: float [clips, frames, size].
        frames: valid frames of each clip; padding is never drawn.
        backbone: the stock module, for its configuration and `masked_spec_embed`, if it has one.
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

    Row i gets `share * lengths[i] / span` spans, rounded up or down at random, at least `least`
    and at most what fits side by side: none where `lengths[i] < span`.
    """
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        rounding, places = torch.rand(()).item(), max(0, length - span + 1)
        wanted = max(int(share * length / span + rounding), least)
        starts = torch.randperm(places)[: min(wanted, length // span)]
        for start in starts.tolist():
            mask[row, start : start + span] = True
    return mask
