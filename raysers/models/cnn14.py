"""CNN14 (Kong et al. 2020, PANNs) on log-mel spectrograms, the paper's baseline (section 3.2).

The variant for speech emotion: linear outputs, dropout after each block only. Activations behind a
clip's end are zero wherever a convolution could carry them back. In training, batch norm sees one
micro-batch at a time; its running statistics are updated once a step: see `collected_statistics`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from raysers.models.backbones import CNN14
from raysers.models.emotion import EmotionNetwork
from raysers.models.frontend import valid
from raysers.models.whisper import MelSettings, log_mel
from raysers.types import DIMENSIONS

#: Share of a step's statistics in the new running statistics, as everywhere in torch.
_MOMENTUM = 0.1
_EPS = 1e-5
#: Scores begin near 0, because a concordance loss is all but blind to targets far off.
_OUT_STD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cnn14Config:
    """The network as `config.json` keys.

    `widths`: channels of each block, all but the last followed by a halving of time and mel axis;
    `dropout` follows each block, `final_dropout` surrounds the last hidden layer.
    """

    model_type: str = CNN14
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    dropout: float = 0.2
    final_dropout: float = 0.0
    mel_bands: int = 64
    window_samples: int = 512
    hop_samples: int = 160
    mel_low_hz: float = 50.0
    mel_high_hz: float = 8_000.0

    def __post_init__(self) -> None:
        """Raises ValueError: no network has these numbers."""
        if self.mel_bands >> (len(self.widths) - 1) < 2:
            raise ValueError(f"{self.mel_bands} mel bands cannot be halved by each block")

    @classmethod
    def from_dict(cls, keys: dict[str, Any]) -> Cnn14Config:
        """The configuration of a `config.json`, whose other keys are about other things."""
        known = {k: v for k, v in keys.items() if k in cls.__dataclass_fields__}
        return cls(**known | {"widths": tuple(keys.get("widths", cls().widths))})

    def to_dict(self) -> dict[str, Any]:
        """All keys, as JSON has them."""
        return asdict(self) | {"widths": list(self.widths)}

    def mel(self) -> MelSettings:
        """The spectrogram that goes in."""
        return MelSettings(
            bands=self.mel_bands,
            window_samples=self.window_samples,
            hop_samples=self.hop_samples,
            low_hz=self.mel_low_hz,
            high_hz=self.mel_high_hz,
        )


class MaskedBatchNorm(nn.Module):
    """Batch norm over channels whose statistics, in training, leave the padding out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Buffer(torch.zeros(channels))
        self.running_var = nn.Buffer(torch.ones(channels))

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[clips, channels, frames, bands] after the norm, zero where `mask` is False.

        `mask` is bool [clips, frames]. Also returns the sums for `absorb`, empty outside of
        training.
        """
        if not self.training:
            scaled = functional.batch_norm(
                hidden, self.running_mean, self.running_var, self.weight, self.bias, eps=_EPS
            )
            return scaled.masked_fill(~mask[:, None, :, None], 0.0), self.weight.new_empty(0)
        by_frame = hidden.transpose(1, 2)
        own = by_frame[mask]  # [all valid frames of the batch, channels, bands]
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        normalised = functional.batch_norm(
            own, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=_EPS
        )
        spread = normalised.new_zeros(by_frame.shape).masked_scatter(
            mask[..., None, None], normalised
        )
        return spread.transpose(1, 2), self._sums(own.shape[0] * own.shape[2], mean, variance)

    def _sums(self, count: int, mean: Tensor, variance: Tensor) -> Tensor:
        """float64 [1 + 2 * channels]: count, sums of x - m and (x - m)^2, m the running mean.

        Around the mean that all workers share, sums lose no digits to a large offset.
        """
        offset = mean.double() - self.running_mean
        square = variance.double() * ((count - 1) / count) + offset.square()
        return torch.cat((offset.new_full((1,), count), count * offset, count * square))

    @torch.no_grad()
    def absorb(self, sums: Tensor) -> None:
        """Move the running statistics towards those of the sums, unbiased as torch has them."""
        count = sums[0]
        if count < 2:
            return
        offset, square = (sums[1:] / count).chunk(2)
        variance = (square - offset.square()).clamp_min(0.0) * (count / (count - 1))
        self.running_var.lerp_(variance.to(self.running_var), _MOMENTUM)
        self.running_mean.add_(offset.to(self.running_mean), alpha=_MOMENTUM)


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with norm and ReLU, then a halving of both axes, dropout."""

    def __init__(self, channels_in: int, channels: int, *, halve: bool, dropout: float) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn1 = MaskedBatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = MaskedBatchNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[clips, channels, frames, bands] through the block, and the statistics of its norms.

        Behind the valid `frames`, int64 [clips], all is zero, before and after; halving drops the
        last of an odd number of frames, as it does for a single clip.
        """
        mask = valid(frames, hidden.shape[2])
        hidden, first = self.bn1(self.conv1(hidden.to(self.conv1.weight.dtype)), mask)
        hidden, second = self.bn2(self.conv2(torch.relu(hidden)), mask)
        hidden = torch.relu(hidden)
        if self.halve:
            hidden = functional.avg_pool2d(hidden, 2)
            inside = valid(frames // 2, hidden.shape[2])
            hidden = hidden.masked_fill(~inside[:, None, :, None], 0.0)
        return self.dropout(hidden), torch.cat((first, second))


class Cnn14(EmotionNetwork):
    """CNN14; an embedding is the mean over mel bands, then time, of the last block (footnote 4)."""

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.config = config
        self._mel = config.mel()
        self.bn0 = MaskedBatchNorm(config.mel_bands)
        channels = 1
        for number, width in enumerate(config.widths, 1):
            last = number == len(config.widths)
            block = ConvBlock(channels, width, halve=not last, dropout=config.dropout)
            self.add_module(f"conv_block{number}", block)
            channels = width
        self.fc1 = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, len(DIMENSIONS))
        self.final_dropout = nn.Dropout(config.final_dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.out.weight, std=_OUT_STD)
        self._checkpointing = False
        self._sums: Tensor | None = None

    @property
    def blocks(self) -> list[ConvBlock]:
        """The convolutional blocks, first to last."""
        return [module for module in self.children() if isinstance(module, ConvBlock)]

    @property
    def embedding_size(self) -> int:
        """Channels of the last block."""
        return cast(int, self.config.widths[-1])

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip that leaves a frame after all halvings (.31 s)."""
        frames = 1 << (len(self.config.widths) - 1)
        return max((frames - 1) * self._mel.hop_samples, self._mel.window_samples // 2 + 1)

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score clips that are not normalised; shapes as in `EmotionNetwork.forward`."""
        lengths = lengths.to(padded.device)
        frames = self._mel.frames(lengths)
        with torch.no_grad():
            mel = log_mel(padded, lengths, self._mel)
        by_band, sums = self.bn0(mel.transpose(1, 2)[..., None], valid(frames, mel.shape[1]))
        hidden, collected = by_band.permute(0, 3, 2, 1), [sums]
        for block in self.blocks:
            if self._checkpointing and self.training:
                hidden, sums = checkpoint(block, hidden, frames, use_reentrant=False)
            else:
                hidden, sums = block(hidden, frames)
            frames = frames // 2 if block.halve else frames
            collected.append(sums)
        if self.training and torch.is_grad_enabled():
            seen = torch.cat(collected).detach()
            self._sums = seen if self._sums is None else self._sums + seen
        with torch.autocast(hidden.device.type, enabled=False):
            by_frame = hidden.float().mean(3)  # [clips, channels, frames], zero behind a clip
            embeddings = by_frame.sum(2) / frames[:, None]
            pooled = self.final_dropout(by_frame.amax(2) + embeddings)  # none is below zero
            return self.out(self.final_dropout(torch.relu(self.fc1(pooled)))), embeddings

    def cast(self, dtype: torch.dtype) -> None:
        """Let the convolutions compute in `dtype`; norms stay in float32."""
        for block in self.blocks:
            block.conv1.to(dtype)
            block.conv2.to(dtype)

    def gradient_checkpointing(self, on: bool) -> None:
        """Keep only each block's input in training."""
        self._checkpointing = on

    def collected_statistics(self) -> Tensor | None:
        """Per norm, of passes with gradient: count, sums of x - m, (x - m)^2 (m: running mean)."""
        if self._sums is None:
            device = self.out.weight.device
            return torch.zeros(sum(self._sizes()), dtype=torch.float64, device=device)
        return self._sums

    def apply_statistics(self, sums: Tensor) -> None:
        """Update every norm's running statistics as one batch of all counted clips would."""
        norms = self._norms()
        parts = torch.split(sums.to(self.out.weight.device), self._sizes())
        for norm, part in zip(norms, parts, strict=True):
            norm.absorb(part)
        self._sums = None

    def _norms(self) -> list[MaskedBatchNorm]:
        return [module for module in self.modules() if isinstance(module, MaskedBatchNorm)]

    def _sizes(self) -> list[int]:
        return [1 + 2 * len(norm.weight) for norm in self._norms()]
