from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

from raysers.models.frontend import (
    ConvGeometry,
    MaskedGroupNorm,
    convolve_once,
    masked_mean,
    normalise,
)
from tests.unit.models.networks import speechlike

STANDARD = ConvGeometry(kernels=(10, 3, 3, 3, 3, 2, 2), strides=(5, 2, 2, 2, 2, 2, 2))
MEL = ConvGeometry(kernels=(400, 3, 5, 5), strides=(160, 2, 1, 2))


def test_standard_front() -> None:
    assert STANDARD.receptive_field_samples == 400
    assert STANDARD.hop_samples == 320
    assert [STANDARD.frames(n) for n in (399, 400, 719, 720, 16_000)] == [0, 1, 1, 2, 49]


@pytest.mark.parametrize("geometry", [STANDARD, MEL])
@given(samples=st.integers(3_500, 9_000))
def test_frames_are_what_the_convolutions_yield(geometry: ConvGeometry, samples: int) -> None:
    signal = torch.zeros(1, 1, samples)
    for kernel, stride in zip(geometry.kernels, geometry.strides, strict=True):
        signal = torch.nn.functional.conv1d(signal, torch.zeros(1, 1, kernel), stride=stride)
    assert geometry.frames(samples) == signal.shape[-1]
    assert geometry.frames(torch.tensor([samples])).tolist() == [signal.shape[-1]]


@pytest.mark.parametrize("geometry", [STANDARD, MEL])
@given(frames=st.integers(1, 50))
def test_span_is_the_shortest_signal_with_that_many_frames(
    geometry: ConvGeometry, frames: int
) -> None:
    span = geometry.samples(slice(0, frames)).stop
    assert geometry.frames(span) == frames
    assert geometry.frames(span - 1) == frames - 1


def test_normalise_is_the_published_extractor() -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    signals = [speechlike(n, n) * gain for n, gain in ((400, 1), (9_000, 1e-3), (5_000, 30))]
    lengths = torch.tensor([len(s) for s in signals])
    padded = torch.full((3, 9_000), float("nan"))  # whatever lies behind a clip must not matter
    for row, signal in zip(padded, signals, strict=True):
        row[: len(signal)] = torch.from_numpy(signal)
    got = normalise(padded, lengths)
    for row, signal in zip(got, signals, strict=True):
        expected = extractor(signal, sampling_rate=16_000)["input_values"][0]
        np.testing.assert_allclose(row[: len(signal)], expected, rtol=0, atol=2e-6)
        assert not row[len(signal) :].any()


def test_group_norm_ignores_padding_and_equals_the_stock_layers() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv1d(1, 6, 10, stride=5, bias=True)
    stock = torch.nn.GroupNorm(6, 6)
    stock.weight.data.normal_()
    stock.bias.data.normal_()
    masked = MaskedGroupNorm(6, 6, stock.eps)
    masked.load_state_dict(stock.state_dict())
    lengths = [300, 1_000, 15]
    padded = torch.zeros(3, 1_000)
    for row, length in zip(padded, lengths, strict=True):
        row[:length] = torch.randn(length) * 3 + 1
    frames = torch.tensor([(n - 10) // 5 + 1 for n in lengths])
    weight, bias = masked.fold(convolution.weight[:, 0], padded, frames, stride=5)
    for index, length in enumerate(lengths):
        expected = stock(convolution(padded[index, :length][None, None]))[0].T
        windows = padded[index, :length].unfold(0, 10, 5)
        got = windows @ weight[index].T + bias[index]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_masked_mean_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert masked_mean(hidden, mask).tolist() == [[2.0], [4.0]]
    assert masked_mean(hidden[1:], None).tolist() == [[4.0]]
    assert masked_mean(hidden.bfloat16(), mask).dtype == torch.float32


def test_short_types_round_a_convolution_only_at_its_end() -> None:
    """Kernel and bias cancel an offset 3000 times the rest; rounding any input would show."""
    generator = torch.Generator().manual_seed(0)
    signal = 3_000 + torch.randn(2, 500, generator=generator)
    kernel = torch.randn(2, 8, 10, generator=generator)
    bias = -3_000 * kernel.sum(2)
    got = convolve_once(signal, kernel, bias, 5, torch.bfloat16)
    exact = torch.stack(
        [
            torch.nn.functional.conv1d(s[None, None], k[:, None], b, stride=5)[0].T
            for s, k, b in zip(signal.double(), kernel.double(), bias.double(), strict=True)
        ]
    )
    assert got.dtype == torch.bfloat16
    # bf16 holds 8 bits: half a unit of 2 ** -8, and what float32 loses against the offset
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 0.25).all()
    assert exact.abs().max() < 30
