"""What a training process knows of its surroundings: the other processes, its device, a callback.

Every process of a group must make the same calls in the same order; one that leaves makes the
others wait until the process group itself gives up. Only process 0 calls the callback; its verdict
to stop reaches the others through the group, so that all stop after the same epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch.distributed
from torch import Tensor

from raysers.errors import RaysersError

T = TypeVar("T")


class Group(Protocol):
    """`rank` of `size` processes, from 0."""

    @property
    def rank(self) -> int:
        """Which process this is."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bits in each."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of process 0."""

    def gather(self, value: T) -> list[T]:
        """Every process's (picklable) value, by rank."""

    def wait(self) -> None:
        """Go on only when every process has come here."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A group of one."""

    rank: int = 0
    size: int = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to copy."""

    def gather(self, value: T) -> list[T]:
        """The one value."""
        return [value]

    def wait(self) -> None:
        """Nobody to wait for."""


class TorchGroup:
    """A process group of `torch.distributed`; by default all processes, which have to be up.

    Tensors have to be contiguous; all of a call are under way at the same time.
    """

    def __init__(self, processes: torch.distributed.ProcessGroup | None = None) -> None:
        self._processes = processes
        self.rank = torch.distributed.get_rank(processes)
        self.size = torch.distributed.get_world_size(processes)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        self._finish(
            torch.distributed.all_reduce(tensor, group=self._processes, async_op=True)
            for tensor in tensors
        )

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of process 0."""
        self._finish(
            torch.distributed.broadcast(tensor, group_src=0, group=self._processes, async_op=True)
            for tensor in tensors
        )

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        found: list[T | None] = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self._processes)
        return cast(list[T], found)

    def wait(self) -> None:
        """Go on only when every process has come here."""
        torch.distributed.barrier(group=self._processes)

    def _finish(self, started: Iterable[torch.distributed.Work | None]) -> None:
        for work in [work for work in started if work is not None]:
            work.wait()


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
