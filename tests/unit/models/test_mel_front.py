"""Fronts that start as a mel bank: each filter answers to its own tone, and regression learns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from raysers.errors import ConfigError
from raysers.models.emotion import EmotionModel
from raysers.models.frontend import normalise
from raysers.models.initialize import as_mel_bank, mel_of_frames, regress_mel
from raysers.models.whisper import MelSettings
from tests.places import SHARED_DATA, needs_shared
from tests.unit.models.networks import padded_batch, small_model


def answers(model: EmotionModel, tone_hz: float) -> np.ndarray:
    """[bands, phases]: what each filter gives of a tone, after a ReLU, summed over its windows."""
    kernel = model.backbone.feature_extractor.conv_layers[0].conv.weight[:, 0]
    time_s = torch.arange(16_000) / 16_000
    windows = torch.sin(2 * torch.pi * tone_hz * time_s).unfold(0, kernel.shape[1], 37)
    magnitude = torch.relu(windows @ kernel.T).sum(0).detach()
    return magnitude.reshape(-1, 4).numpy()


@pytest.mark.parametrize("taps", [400, 100, 251])
def test_each_band_answers_to_its_own_tone(taps: int) -> None:
    model = small_model("mel-front", conv_kernel=[taps, 3, 5, 5])
    as_mel_bank(model)
    loudest = [int(answers(model, hz).sum(1).argmax()) for hz in (60, 500, 1_500, 4_000, 7_700)]
    assert loudest == sorted(set(loudest))
    assert (loudest[0], loudest[-1]) == (0, 11)
    # twelve bands: steps of 250 mel, so 1,500 Hz (1,291 mel) is nearest to the sixth, 1,338 mel
    assert loudest[2] in (4, 5)


def tones(samples: int, seed: int) -> np.ndarray:
    """A new pitch and loudness every tenth of a second, over a little noise."""
    rng = np.random.default_rng(seed)
    steps = -(-samples // 1_600)
    hz = np.repeat(rng.uniform(100, 7_000, steps), 1_600)[:samples]
    loud = np.repeat(10 ** rng.uniform(-2, 0, steps), 1_600)[:samples]
    wave = loud * np.sin(2 * np.pi * np.cumsum(hz) / 16_000)
    return (wave + 0.01 * rng.normal(size=samples)).astype(np.float32)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    number = 0
    while True:
        signals = [tones(n, number + n) for n in (9_000, 16_000, 12_500)]
        padded, lengths = padded_batch(signals)
        yield normalise(padded, lengths), lengths
        number += 1


def test_regression_learns_the_spectrogram_and_touches_the_front_only() -> None:
    model = small_model("mel-front")
    model.freeze("cnn")
    as_mel_bank(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    few = itertools.cycle(list(itertools.islice(batches(), 2)))
    losses = regress_mel(model, few, steps=60, lr=3e-3, seed=0)
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(".feature_extractor." in k for k in changed)
    assert not any(p.requires_grad for p in model.backbone.feature_extractor.parameters())
    assert all(p.grad is None for p in model.parameters())


@needs_shared
def test_regression_carries_over_to_speech_it_has_not_seen() -> None:
    """From other speakers than those it learnt from, against guessing each band's mean (1.0)."""
    files = sorted((SHARED_DATA / "emodb" / "wav").glob("*.wav"))
    signals = [sf.read(file, dtype="float32")[0][:24_000] for file in files[::8]]
    model = small_model("mel-front", conv_dim=[64, 64, 64, 64])
    as_mel_bank(model)

    def speech() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(44):
            chosen = signals[:40] if number < 40 else signals[-20:]
            padded, lengths = padded_batch(chosen[number * 8 % len(chosen) :][:8])
            yield normalise(padded, lengths), lengths

    losses = regress_mel(model, speech(), steps=44, lr=3e-3, seed=0)
    assert len(losses) == 44
    assert np.mean(losses[-4:]) < 0.7


def test_targets_are_where_the_frames_look() -> None:
    """A short tone in the middle of what frame 7 sees is loudest in frame 7's target."""
    model = small_model("mel-front")
    hop, sees = model.geometry.hop_samples, model.geometry.receptive_field_samples
    signal = torch.zeros(1, 16_000)
    start = 7 * hop + sees // 2 - 100
    signal[0, start : start + 200] = torch.sin(torch.arange(200) * 0.6)
    frames = model.geometry.frames(16_000)
    target = mel_of_frames(signal, model, frames, MelSettings())
    assert target.shape == (1, frames, 64)
    assert target[0].mean(1).argmax() == 7
    # 0.6 rad a sample are 1,528 Hz, 21.2 mel; centres lie at 0.75 + 0.684 (i + 1) mel
    assert int(target[0, 7].argmax()) == pytest.approx(29, abs=1)


def test_short_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="100 taps"):
        as_mel_bank(small_model("w2v2-b"))
    with pytest.raises(ConfigError, match="multiples of 4"):
        as_mel_bank(small_model("mel-front", conv_dim=[42, 32, 32, 32]))
