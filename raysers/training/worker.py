"""One of Ray Train's workers: its context, and its errors, which go to the monitor.

An error that no restart can mend ends all workers in peace, because Ray Train would start them
again after any exception.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from raysers.errors import RaysersError, TrainingDiverged
from raysers.training.context import TorchGroup, TrainingStopped, WorkerContext
from raysers.training.dataset import TooManyFailed
from raysers.training.loop import train_in

#: Errors that every worker meets at the same step, so that all of them can leave in peace.
_AGREED = (TrainingDiverged, TooManyFailed, TrainingStopped)


def run_worker(config: dict[str, Any]) -> None:
    """The training of one worker; its errors are left with the monitor.

    Args:
        config: `job`, an object reference to the TrainingJob, and `monitor`, the actor.
    """
    monitor = config["monitor"]
    if ray.get(monitor.failure.remote()) is not None:
        return  # started again after an error that no restart can mend
    try:
        train_in(_team(monitor), ray.get(config["job"]))
    except _AGREED as error:
        ray.get(monitor.fail.remote(type(error).__name__, str(error)))
    except RaysersError as error:
        ray.get(monitor.fail.remote(type(error).__name__, str(error)))
        raise  # the other workers wait for this one


def _team(monitor: Any) -> WorkerContext:
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return WorkerContext(
        group=TorchGroup(),
        device=device,
        processes_here=ray.train.get_context().get_local_world_size(),
        callback=_MonitorCallback(monitor),
    )


class _MonitorCallback:
    """Tells the actor that the driver asks."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def started(self, step: int) -> None:
        """The workers are ready to go on after `step` steps."""
        self._monitor.started.remote(step)

    def progress(self, figures: dict[str, Any]) -> None:
        """Replace the figures of the live line."""
        self._monitor.progress.remote(figures)

    def epoch(self, record: dict[str, Any]) -> bool:
        """Leave the record; no further epoch is wanted once the run has failed or was stopped."""
        return bool(ray.get(self._monitor.epoch.remote(record)))
