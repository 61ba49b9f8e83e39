"""Samples to frames, padding kept out of every statistic: convolutions and log-mel spectrograms.

There are two ways to the same convolutions. Scoring folds the group norm into the first convolution
and works block by block, so that an hour fits into memory; training computes layer by layer,
because the folded form is slow to differentiate.

The mel scale is Slaney's, with filters of equal area (librosa's default, which the published
networks of this family were trained on); torchaudio's default, HTK's scale with filters of equal
height, gives other numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.models.masking import ConvGeometry, MaskedGroupNorm, convolve_once
from raysers.types import SAMPLE_RATE_HZ

#: Samples of audio (rows x length) that go through the front at once. Its first layers hold 3,200
#: wide frames a second: on CPUs four seconds stay in the cache (a third faster than a whole
#: batch), on GPUs the bound is only there to keep long recordings small.
_CPU_CHUNK_SAMPLES = 4 * 16_000
_GPU_CHUNK_SAMPLES = 240 * 16_000

#: Least power under the logarithm: nothing is below -100 dB.
_LEAST_POWER = 1e-10


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
        hidden = _norm_and_activation(layer, _conv_to_train(layer.conv, hidden))
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


def _conv_to_train(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """As `conv_over_frames`, without padding and groups, made to be differentiated.

    On CPUs a product of matrices: oneDNN compiles kernels for every new length, and those for the
    gradient take up to four times as long.
    """
    if hidden.device.type != "cpu":
        return conv_over_frames(conv, hidden)
    windows = hidden.unfold(1, conv.kernel_size[0], conv.stride[0]).flatten(2)
    return functional.linear(windows, conv.weight.flatten(1), conv.bias)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSettings:
    """Shape of a log-mel spectrogram at 16 kHz; the window is also the length of the transform."""

    bands: int = 64
    window_samples: int = 512
    hop_samples: int = 160
    low_hz: float = 50.0
    high_hz: float = 8_000.0

    def __post_init__(self) -> None:
        """Raises ValueError: the numbers leave no spectrogram."""
        if min(self.bands, self.hop_samples, self.window_samples // 4) < 1:
            raise ValueError(f"no spectrogram has these settings: {self}")
        if not 0 <= self.low_hz < self.high_hz <= SAMPLE_RATE_HZ / 2:
            raise ValueError(f"mel bands need 0 <= low < high <= {SAMPLE_RATE_HZ / 2:.0f} Hz")

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames of clips of `lengths` samples: one every hop, the first at sample 0."""
        return lengths // self.hop_samples + 1


def log_mel(padded: Tensor, lengths: Tensor, settings: MelSettings) -> Tensor:
    """float32 [clips, frames, bands] in dB re 1, at least -100.

    Frames are centred on their sample; each clip is mirrored at its own ends.

    Args:
        padded: float32 [clips, samples].
        lengths: int64 [clips] on the same device, each more than half a window.
        settings: what to compute. Frames behind `settings.frames(lengths)` mean nothing.
    """
    half = settings.window_samples // 2
    signal = functional.pad(padded, (0, half))
    signal = torch.cat((signal[:, 1 : half + 1].flip(1), signal), 1)
    steps = torch.arange(half, device=padded.device)
    last = lengths[:, None] + half  # where the clip ends in `signal`
    signal = signal.scatter(1, last + steps, signal.gather(1, last - 2 - steps))
    return mel_of_windows(signal, settings.hop_samples, settings)


def mel_of_windows(signal: Tensor, hop_samples: int, settings: MelSettings) -> Tensor:
    """float32 [clips, frames, bands] in dB of windows at 0, hop, 2 hop ... of [clips, samples]."""
    with torch.autocast(signal.device.type, enabled=False):
        window = torch.hann_window(settings.window_samples, device=signal.device)
        if torch.onnx.is_in_onnx_export():
            power = _power_by_convolution(signal, hop_samples, window)
        else:
            spectrum = torch.stft(
                signal.float(),
                settings.window_samples,
                hop_samples,
                window=window,
                center=False,
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
        filters = torch.as_tensor(mel_filters(settings), device=signal.device)
        return 10 * torch.log10((power.transpose(1, 2) @ filters).clamp_min(_LEAST_POWER))


def _power_by_convolution(signal: Tensor, hop_samples: int, window: Tensor) -> Tensor:
    """[clips, bins, frames] power spectrum without complex numbers, which ONNX has none of."""
    samples = len(window)
    bins = torch.arange(samples // 2 + 1, dtype=torch.float64)[:, None]
    turns = bins * torch.arange(samples) % samples / samples
    kernels = torch.cat([torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)])
    kernels = (kernels * window)[:, None].float()
    real, imaginary = functional.conv1d(signal[:, None], kernels, stride=hop_samples).chunk(2, 1)
    return real.square() + imaginary.square()


@functools.lru_cache(maxsize=8)
def mel_filters(settings: MelSettings) -> npt.NDArray[np.float32]:
    """float32 [window // 2 + 1, bands]: triangles on Slaney's mel scale, each of the same area."""
    from transformers.audio_utils import mel_filter_bank

    filters: npt.NDArray[np.float32] = mel_filter_bank(
        num_frequency_bins=settings.window_samples // 2 + 1,
        num_mel_filters=settings.bands,
        min_frequency=settings.low_hz,
        max_frequency=settings.high_hz,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
        dtype=np.float32,
    )
    return filters
