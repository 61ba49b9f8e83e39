"""What a training process knows of its surroundings: group, device, callback.

Only process 0 calls the callback; its verdict to stop reaches the others through the group, so
that all processes stop after the same epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raysers.errors import RaysersError
from raysers.training.group import Alone, Group


class TrainingStopped(RaysersError):
    """The callback ended the training; the state of the last epoch is saved."""


class Callback(Protocol):
    """Receives the progress of a training."""

    def started(self, step: int) -> None:
        """The training starts or resumes after `step` steps."""

    def progress(self, figures: dict[str, Any]) -> None:
        """Figures of the live line."""

    def epoch(self, record: dict[str, Any]) -> bool:
        """An epoch is done and its state saved; returns whether to continue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """One process of a training.

    Attributes:
        group: all processes of the training.
        device: of this process.
        processes_here: training processes on this machine, of any training.
        callback: called by process 0.
    """

    group: Group
    device: torch.device
    processes_here: int
    callback: Callback


def in_process(
    on_epoch: Callable[[Mapping[str, Any]], None], processes_here: int = 1
) -> WorkerContext:
    """The context of a training in this process alone, on its GPU if it has one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return WorkerContext(
        group=Alone(),
        device=device,
        processes_here=processes_here,
        callback=_EpochCallback(on_epoch),
    )


@dataclass(frozen=True, slots=True)
class _EpochCallback:
    """Passes every epoch to a function of this process."""

    on_epoch: Callable[[Mapping[str, Any]], None]

    def started(self, step: int) -> None:
        """Ignored."""

    def progress(self, figures: dict[str, Any]) -> None:
        """Ignored: there is no live line."""

    def epoch(self, record: dict[str, Any]) -> bool:
        """Pass it on; always continue."""
        self.on_epoch(record)
        return True
