"""The steps before the first one: a fresh network's front learns to give log-mel frames.

Process 0 does it alone, and its weights then reach the others as all first weights do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raysers.models.initialize import InitialModel
from raysers.models.mel_front import regress_mel
from raysers.training.batch import pad
from raysers.training.batches import Schedule
from raysers.training.config import TrainingFlags
from raysers.training.feed import Signal, Signals

#: Learning rate of Adam for the front; the regression is short and forgiving.
_LR = 1e-3

#: Epochs of pre-training the front end are numbered from here, so that no other epoch is like them.
_FIRST_EPOCH = 1 << 20


def pretrain_frontend(
    start: InitialModel,
    flags: TrainingFlags,
    schedule: Schedule,
    signals: Signals,
    device: torch.device,
) -> None:
    """Train the front of `start.model`, in place.

    Raises:
        ConfigError: the model has no such front.
    """
    start.model.to(device)
    batches = _batches(start, flags, schedule, signals, device)
    regress_mel(start.model, batches, steps=flags.front_steps, lr=_LR, seed=flags.seed)


def _batches(
    start: InitialModel,
    flags: TrainingFlags,
    schedule: Schedule,
    signals: Signals,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches, padded, for as long as anyone asks."""
    epochs = -(-flags.front_steps // schedule.steps_per_epoch)
    for epoch in range(_FIRST_EPOCH, _FIRST_EPOCH + epochs):

        def changed(number: int, signal: Signal, epoch: int = epoch) -> Signal:
            return schedule.changed(epoch, number, signal, start.min_samples)

        steps = schedule.epoch(epoch)
        for _, found in signals.ahead(steps, lambda step: step.batch.tolist(), changed):
            decoded = [signal for signal in found if signal is not None]
            if decoded:
                yield pad(decoded, do_normalize=start.do_normalize, device=device)
