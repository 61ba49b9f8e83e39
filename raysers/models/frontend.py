"""The convolutional front of a backbone: samples to frames, padding kept out of every statistic.

There are two ways to the same numbers. Scoring folds the group norm into the first convolution
and works block by block, so that an hour fits into memory; training computes layer by layer,
because the folded form is slow to differentiate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.models.masking import ConvGeometry, MaskedGroupNorm, convolve_once

#: Samples of audio (rows x length) that go through the front at once. Its first layers hold 3,200
#: wide frames a second: on CPUs four seconds stay in the cache (a third faster than a whole
#: batch), on GPUs the bound is only there to keep long recordings small.
_CPU_CHUNK_SAMPLES = 4 * 16_000
_GPU_CHUNK_SAMPLES = 240 * 16_000


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

    Args:
        extractor: the stock front after `mask_group_norm`.
        geometry: its kernels and strides.
        padded: float32 [clips, samples], zero behind each clip.
        lengths: int64 [clips].
    """
    first, *others = extractor.conv_layers
    kernel, bias = first.conv.weight[:, 0], first.conv.bias
    if bias is None or has_group_norm(extractor):  # a bias in front of the norm cancels out
        bias = kernel.new_zeros(kernel.shape[0])
    signal = padded.to(kernel.dtype)
    with torch.autocast(signal.device.type, enabled=False):  # statistics need all their bits
        hidden = convolve_once(signal, kernel[None], bias[None], geometry.strides[0], kernel.dtype)
        if has_group_norm(extractor):
            frames = geometry.frames(lengths.to(padded.device), layers=1)
            hidden = first.layer_norm.over_frames(hidden, frames)
    hidden = _norm_and_activation(first, hidden)
    for layer in others:
        hidden = _norm_and_activation(layer, conv_over_frames(layer.conv, hidden))
    return hidden


def frames_in_blocks(
    extractor: Any, geometry: ConvGeometry, padded: Tensor, lengths: Tensor
) -> Tensor:
    """[clips, frames, channels] of [clips, samples], computed block by block.

    Exact: frames f0..f1 depend on samples f0*hop .. (f1-1)*hop + receptive field only.
    Arguments as of `frames_to_train`.
    """
    kernel, bias = _first_layer(extractor, geometry, padded, lengths)
    signal = padded.to(kernel.dtype)
    clips, samples = signal.shape
    chunk = _CPU_CHUNK_SAMPLES if signal.device.type == "cpu" else _GPU_CHUNK_SAMPLES
    rows_of_blocks = []
    for rows in _blocks(clips, max(1, chunk // samples)):
        step = max(1, chunk // ((rows.stop - rows.start) * geometry.hop_samples))
        weights = (kernel, bias) if kernel.shape[0] == 1 else (kernel[rows], bias[rows])
        rows_of_blocks.append(
            torch.cat(
                [
                    _convolve(extractor, geometry, signal[rows, _samples(geometry, block)], weights)
                    for block in _blocks(geometry.frames(samples), step)
                ],
                dim=1,
            )
        )
    return torch.cat(rows_of_blocks)


def conv_over_frames(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
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


def _samples(geometry: ConvGeometry, frames: slice) -> slice:
    start = frames.start * geometry.hop_samples
    return slice(start, start + geometry.span_samples(frames.stop - frames.start))


def _first_layer(
    extractor: Any, geometry: ConvGeometry, padded: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """First layer as linear weights [1 or clips, channels, taps] and biases, norm folded in.

    One row for all clips where no statistics over a clip are involved. A folded norm stays in
    float32 whatever the backbone's precision: weights and bias then cancel each other (an
    offset or a rumble the norm takes out), which rounding either would spoil.
    """
    layer = extractor.conv_layers[0]
    kernel, bias = layer.conv.weight[:, 0], layer.conv.bias
    if has_group_norm(extractor):
        frames = geometry.frames(lengths.to(padded.device), layers=1)
        folded: tuple[Tensor, Tensor] = layer.layer_norm.fold(
            kernel, padded, frames, geometry.strides[0]
        )
        return folded
    bias = kernel.new_zeros(kernel.shape[0]) if bias is None else bias
    return kernel[None], bias[None]


def _convolve(
    extractor: Any, geometry: ConvGeometry, signal: Tensor, weights: tuple[Tensor, Tensor]
) -> Tensor:
    """[rows, frames, channels] of [rows, samples] through all convolutions."""
    first, *others = extractor.conv_layers
    with torch.autocast(signal.device.type, enabled=False):  # a folded norm cancels large numbers
        hidden = convolve_once(signal, *weights, geometry.strides[0], first.conv.weight.dtype)
    hidden = _norm_and_activation(first, hidden)
    for layer in others:
        hidden = _norm_and_activation(layer, conv_over_frames(layer.conv, hidden))
    return hidden


def _norm_and_activation(layer: Any, hidden: Tensor) -> Tensor:
    """What follows a convolution, on [..., channels]; a group norm is already dealt with."""
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, nn.LayerNorm):
        hidden = norm(hidden)
    return cast(Tensor, layer.activation(hidden))


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
