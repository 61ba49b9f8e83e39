"""What a training step is made of: a global batch, this process's pieces of it, and its outcome.

Labels and categories are those of the whole batch in every process; audio is only there for the
pieces that a process handles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysers.models.losses import NO_CATEGORY
from raysers.models.masking import normalise
from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """One piece of a global batch: clips that are padded together.

    Attributes:
        number: of the piece within the batch; decides its dropout.
        rows: places of the clips in the batch. Clips that could not be decoded are left out.
        signals: 16 kHz mono float32 clips, one for each of `rows`.
    """

    number: int
    rows: Sequence[int]
    signals: Sequence[Floats]

    @property
    def padded_s(self) -> float:
        """Seconds of the padded piece: clips x longest."""
        return len(self.rows) * max(map(len, self.signals)) / SAMPLE_RATE_HZ

    def halved(self, times: int) -> list[MicroBatch]:
        """Up to 2 ** times parts, each with another number; none is empty."""
        if not times:
            return [self]
        middle = (len(self.rows) + 1) // 2
        halves = [
            MicroBatch(
                number=2 * self.number + half, rows=self.rows[part], signals=self.signals[part]
            )
            for half, part in enumerate((slice(middle), slice(middle, None)))
        ]
        return [part for half in halves if half.rows for part in half.halved(times - 1)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """A global batch as one process has it.

    Attributes:
        labels: float32 [clips, 3] of all clips, NaN where missing.
        classes: int64 [clips] of all clips, -1 where unknown.
        pieces: this process's own; together the processes have every clip once.
    """

    labels: Floats
    classes: npt.NDArray[np.int64]
    pieces: Sequence[MicroBatch]

    @classmethod
    def of(cls, labels: Floats, pieces: Sequence[MicroBatch]) -> Batch:
        """A batch without categories."""
        return cls(
            labels=labels, classes=np.full(len(labels), NO_CATEGORY, np.int64), pieces=pieces
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """The same in every process.

    Attributes:
        loss: of the global batch, before the step.
        ccc: float64 [3], concordance per target over the batch; NaN with fewer than two labels.
        predictions: float32 [clips, 3] in training mode, NaN for absent clips.
        present: bool [clips]; False where a clip was in no process's pieces or was too short.
        gradient_norm: of the global batch, before clipping.
        lr: learning rate of the step.
    """

    loss: float
    ccc: npt.NDArray[np.float64]
    predictions: Floats
    present: npt.NDArray[np.bool_]
    gradient_norm: float
    lr: float


def pad(
    signals: Sequence[Floats], *, do_normalize: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a network takes: [clips, samples] on the device, and lengths on the CPU.

    Args:
        signals: 16 kHz mono float32 clips.
        do_normalize: zero mean and unit variance per clip.
        device: where the network is.
    """
    lengths = torch.tensor([len(signal) for signal in signals])
    pinned = device.type == "cuda"
    padded = torch.zeros((len(signals), int(lengths.max())), pin_memory=pinned)
    for row, signal in zip(padded.numpy(), signals, strict=True):
        row[: len(signal)] = signal
    padded = padded.to(device, non_blocking=True)
    if do_normalize:
        padded = normalise(padded, lengths.to(device, non_blocking=True))
    return padded, lengths


def batch_ccc(predictions: Floats, labels: Floats) -> npt.NDArray[np.float64]:
    """float64 [targets]: concordance correlation (Lin 1989) where both numbers are known."""
    known = ~(np.isnan(labels) | np.isnan(predictions))
    count = known.sum(0)
    usable = np.where(count >= 2, count, np.nan)
    guess, truth = (np.where(known, a, 0.0).astype(np.float64) for a in (predictions, labels))
    means = [a.sum(0) / usable for a in (guess, truth)]
    guess, truth = (np.where(known, a - m, 0.0) for a, m in zip((guess, truth), means, strict=True))
    spread = ((guess**2).sum(0) + (truth**2).sum(0)) / usable + (means[0] - means[1]) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * (guess * truth).sum(0) / usable / spread)
