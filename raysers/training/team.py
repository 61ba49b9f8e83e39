"""The processes that train together, and who hears how they fare: under Ray Train, or one alone.

A listener is told by process 0 only; that it wants no more epochs reaches the others through the
group, so that all of them stop at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raysers.errors import RaysersError
from raysers.training.group import Alone, Group


class TrainingStopped(RaysersError):
    """Whoever follows the training wants no further epoch; the state of the last one is saved."""


class Listener(Protocol):
    """Who is told how a training goes."""

    def started(self, step: int) -> None:
        """Ready to go on after `step` steps."""

    def progress(self, figures: dict[str, Any]) -> None:
        """Figures of the live line."""

    def epoch(self, record: dict[str, Any]) -> bool:
        """An epoch is done and its state saved; returns whether another one is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """This process's place among those that train together.

    Attributes:
        group: all of them.
        device: what this one computes on.
        processes_here: training processes on this machine, of whatever training.
        listener: told by process 0.
    """

    group: Group
    device: torch.device
    processes_here: int
    listener: Listener


def alone(on_epoch: Callable[[Mapping[str, Any]], None], processes_here: int = 1) -> Team:
    """A team of this process only, on its GPU if it has one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Team(
        group=Alone(),
        device=device,
        processes_here=processes_here,
        listener=_Caller(on_epoch),
    )


@dataclass(frozen=True, slots=True)
class _Caller:
    """Hands every epoch to a function of this process."""

    on_epoch: Callable[[Mapping[str, Any]], None]

    def started(self, step: int) -> None:
        """Nobody waits to hear it."""

    def progress(self, figures: dict[str, Any]) -> None:
        """There is no live line."""

    def epoch(self, record: dict[str, Any]) -> bool:
        """Hand it over."""
        self.on_epoch(record)
        return True
