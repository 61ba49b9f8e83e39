"""A front end that works before training: for small models that start from random weights.

The first convolution becomes a bank of mel-spaced filters, then the whole front learns to give
log-mel frames (no labels needed). Both change the weights only: the network stays a standard one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.errors import ConfigError
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.frontend import MelSettings, frames_to_train, mel_of_windows
from raysers.models.masking import valid
from raysers.types import SAMPLE_RATE_HZ

#: A shorter window (6.25 ms) cannot tell the low mel bands apart.
_LEAST_TAPS = 100

#: Cosine, sine and their negatives: after a ReLU their sum is a band's magnitude.
_PHASES = 4

#: Range of the bank's centre frequencies.
_LOW_HZ, _HIGH_HZ = 50.0, 7_800.0


def as_mel_bank(model: EmotionNetwork) -> None:
    """Make the first convolution a mel-spaced bank of windowed cosines in four phases, in place.

    Channel `4 b + p` is band b, from low to high, at phase `p / 4` of a turn, under a Hann window
    as long as the kernel, each of unit energy. The bias becomes zero.

    Raises:
        ConfigError: the first kernel is too short, or its channels are no multiple of four.
    """
    conv = _first_convolution(model)
    channels, _, taps = conv.weight.shape
    if taps < _LEAST_TAPS or channels % _PHASES:
        raise ConfigError(
            f"--front mel needs a first convolution of at least {_LEAST_TAPS} taps and channels in"
            f" multiples of {_PHASES}; this model has {taps} taps and {channels} channels"
        )
    centres_hz = _mel_spaced(channels // _PHASES)
    time_s = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / SAMPLE_RATE_HZ
    turns = torch.arange(_PHASES, dtype=torch.float64) / _PHASES
    angle = 2 * math.pi * (centres_hz[:, None, None] * time_s + turns[:, None])
    bank = torch.hann_window(taps, periodic=False, dtype=torch.float64) * torch.cos(angle)
    bank = functional.normalize(bank.reshape(channels, 1, taps), dim=2)
    with torch.no_grad():
        conv.weight.copy_(bank)
        if conv.bias is not None:
            conv.bias.zero_()


def regress_mel(
    model: EmotionNetwork,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    seed: int,
) -> list[float]:
    """Let the front learn to give 64 log-mel bands, through a linear layer that is then dropped.

    Targets are windows of 32 ms around the centre of what each frame sees, standardised per band
    by the first batch. Only the front changes, and the same way for the same seed and batches.

    Args:
        model: its front is trained even where it is frozen otherwise.
        batches: (float32 [clips, samples], zero behind each clip; int64 [clips]) as the model
            gets them in training, on its device; each clip has at least `model.min_samples`.
        steps: batches to take, fewer where they end earlier.
        lr: learning rate of Adam.
        seed: of the linear layer.

    Returns:
        Mean squared error of each step, in variances of a band.

    Raises:
        ConfigError: the model has no convolutional front on samples.
    """
    front = _emotion_model(model).backbone.feature_extractor
    geometry, settings = _emotion_model(model).geometry, MelSettings()
    trainable = [parameter.requires_grad for parameter in front.parameters()]
    first = _first_convolution(model).weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = nn.Linear(model.config.conv_dim[-1], settings.bands).to(first.device)
    front.requires_grad_(True)
    optimizer = torch.optim.Adam([*front.parameters(), *reader.parameters()], lr=lr)
    losses: list[float] = []
    centre = scale = torch.zeros(0)
    for step, (padded, lengths) in enumerate(itertools.islice(batches, steps)):
        hidden = frames_to_train(front, geometry, padded, lengths)
        mask = valid(geometry.frames(lengths), hidden.shape[1]).to(hidden.device)
        with torch.no_grad():
            target = mel_of_frames(padded, model, hidden.shape[1], settings)[mask]
            if step == 0:
                centre, scale = target.mean(0), target.std(0, correction=0).clamp_min(1e-3)
        loss = functional.mse_loss(reader(hidden[mask]), (target - centre) / scale)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    for parameter, wanted in zip(front.parameters(), trainable, strict=True):
        parameter.requires_grad_(wanted)
        parameter.grad = None
    return losses


def mel_of_frames(
    padded: Tensor, model: EmotionNetwork, frames: int, settings: MelSettings
) -> Tensor:
    """[clips, frames, bands]: one window in the middle of each frame's receptive field."""
    geometry = _emotion_model(model).geometry
    left = (geometry.receptive_field_samples - settings.window_samples) // 2
    needed = (frames - 1) * geometry.hop_samples + settings.window_samples
    signal = functional.pad(padded, (-left, 0))  # a negative number of zeros cuts
    signal = functional.pad(signal, (0, max(0, needed - signal.shape[1])))
    return mel_of_windows(signal, geometry.hop_samples, settings)[:, :frames]


def _mel_spaced(bands: int) -> Tensor:
    """float64 [bands]: centres in Hz, evenly spaced on O'Shaughnessy's scale 2595 lg(1 + f/700)."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (_LOW_HZ, _HIGH_HZ))
    mels = torch.linspace(low, high, bands, dtype=torch.float64)
    return 700 * (10 ** (mels / 2595) - 1)


def _emotion_model(model: EmotionNetwork) -> EmotionModel:
    if not isinstance(model, EmotionModel):
        raise ConfigError("--front mel: this network has no convolutional front on samples")
    return model


def _first_convolution(model: EmotionNetwork) -> nn.Conv1d:
    conv = _emotion_model(model).backbone.feature_extractor.conv_layers[0].conv
    assert isinstance(conv, nn.Conv1d)
    return conv
