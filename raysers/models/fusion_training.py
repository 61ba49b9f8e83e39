"""Training of the heads on vectors that are all there: no audio, no encoder, seconds.

The same vectors, labels and settings give the same head: order and dropout follow from the seed
and the epoch, on one thread, so that it does not matter where it is trained or how often.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raysers.errors import TrainingDiverged
from raysers.models.fusion import Floats, FusionHead, known_rows, parts_of
from raysers.models.losses import ccc_loss
from raysers.seeding import seed_of

#: Published seeds are of this size.
_SEED_BYTES = 7
#: A dimension with fewer labels is not learned.
LEAST_LABELS = 2


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How a head is trained.

    Attributes:
        epochs: passes at most.
        batch_size: clips the CCC of a step is taken over; 0: a sixteenth of them, 16 to 256.
        lr: learning rate of Adam at the start; it falls to 0 in a straight line over the epochs,
            without which a head with words that say nothing ends .01 below one without words.
        weight_decay: decoupled from the gradient.
        dropout: of the input and the hidden layer.
        patience: epochs without a better dev CCC after which it ends; 0: never.
        seed: of initial weights, order and dropout.
    """

    epochs: int = 100
    batch_size: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.0
    dropout: float = 0.3
    patience: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Vectors float32 [clips, size] with labels float32 [clips, 3], NaN where unknown."""

    values: Floats
    labels: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochOfHead:
    """What an epoch came to: mean loss of its steps, and dev CCC over the whole dev set."""

    epoch: int
    train_loss: float
    dev_ccc: float


def train_head(
    name: str, train: Vectors, dev: Vectors, settings: HeadSettings, device: str = "cpu"
) -> tuple[FusionHead, list[EpochOfHead]]:
    """The head of the epoch with the best mean dev CCC, and what every epoch came to.

    Args:
        name: of the head; it goes into the seed, so heads are drawn independently.
        train: clips to learn from; those without any label are left out. A dimension that has
            none always gets the middle of the scale.
        dev: clips that choose the epoch.
        settings: how.
        device: where; heads of another kind of device differ in the last digits.

    Raises:
        TrainingDiverged: the loss is not a number.
    """
    rows = known_rows(train.labels)
    values, labels = _placed(Vectors(values=train.values[rows], labels=train.labels[rows]), device)
    judged = _placed(dev, device)
    unlabelled = _unlabelled(labels)
    with _alone(seed_of(name, settings.seed, 0, size_bytes=_SEED_BYTES)):
        head = FusionHead(values.shape[1], settings.dropout).to(device)
        head.standardise(values)
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        best, kept = 0, copy.deepcopy(head.state_dict())
        history: list[EpochOfHead] = []
        head.silence(unlabelled)
        size = settings.batch_size or min(max(len(values) // 16, 16), 256)
        for epoch in range(1, settings.epochs + 1):
            torch.manual_seed(seed_of(name, settings.seed, epoch, size_bytes=_SEED_BYTES))
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * (1 - (epoch - 1) / settings.epochs)
            loss = _epoch(head, optimiser, values, labels, size)
            history.append(EpochOfHead(epoch=epoch, train_loss=loss, dev_ccc=_ccc(head, *judged)))
            if best == 0 or history[-1].dev_ccc > history[best - 1].dev_ccc:
                best, kept = epoch, copy.deepcopy(head.state_dict())
            if settings.patience and epoch - best >= settings.patience:
                break
    head.load_state_dict(kept)
    head.silence(unlabelled)  # weight decay has moved them
    return head.cpu().eval(), history


def _placed(vectors: Vectors, device: str) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(vectors.values).to(device),
        torch.from_numpy(vectors.labels).to(device),
    )


def _unlabelled(labels: Tensor) -> list[int]:
    """Numbers of the dimensions no correlation can be taken of."""
    counts = (~labels.isnan()).sum(0).tolist()
    return [place for place, count in enumerate(counts) if count < LEAST_LABELS]


def best_epoch(history: list[EpochOfHead]) -> EpochOfHead:
    """The epoch that was kept: the first of those with the highest dev CCC."""
    return max(history, key=lambda one: (one.dev_ccc, -one.epoch))


def _epoch(
    head: FusionHead,
    optimiser: torch.optim.Optimizer,
    values: Tensor,
    labels: Tensor,
    batch_size: int,
) -> float:
    """One pass; the mean loss of its steps."""
    head.train()
    losses = []
    for part in parts_of(torch.randperm(len(values)).tolist(), batch_size):
        loss = ccc_loss(head(values[part]), labels[part])
        if not torch.isfinite(loss):
            raise TrainingDiverged("the loss of a head is not a finite number: give a smaller --lr")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        optimiser.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def _ccc(head: FusionHead, values: Tensor, labels: Tensor) -> float:
    """Mean CCC over the dimensions with labels, of all clips at once."""
    return 1.0 - ccc_loss(head.eval()(values).double(), labels).item()


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Torch's own generator at `seed` and one thread; both are given back as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
