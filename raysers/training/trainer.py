"""Running the training loop on Ray Train: placement, restarts of dead workers, and how it ended.

Ray Train is used for its process groups and restarts only. Its own checkpoints stay empty, so the
folder it insists on lives on the driver's machine and is thrown away.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError

from raysers.engine.cluster import own_errors
from raysers.engine.plan import Placement
from raysers.errors import RaysersError
from raysers.training import checkpoint
from raysers.training.context import TrainingStopped
from raysers.training.initial_model import TrainingJob
from raysers.training.progress import ProgressPoller, new_monitor, raise_failure
from raysers.training.worker import run_worker

#: Ray Train's settings that only the environment takes.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay where they are
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # nodes of a growing cluster take minutes
}

#: Failures of Ray Train itself, as of placing workers, after which it gives up. Its own default
#: is to try for ever.
_CONTROLLER_FAILURES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """How a training went: records of all epochs, and by clip id why clips were passed over."""

    history: list[dict[str, Any]]
    failed: dict[str, str]


def fit(
    job: TrainingJob,
    placement: Placement,
    done: int,
    on_epoch: Callable[[Mapping[str, Any]], None],
) -> Fitted:
    """Train until the job is finished; the model is in the job's output then.

    Args:
        job: what every worker needs to know.
        placement: how many workers, on what.
        done: epochs whose records are known.
        on_epoch: called in the caller's thread with each further epoch's record, in order; may
            raise TrainingStopped.

    Raises:
        TrainingStopped: `on_epoch` did.
        RaysersError: what a worker raised on purpose, or that workers died too often.
    """
    monitor = new_monitor()
    poller = ProgressPoller(monitor=monitor, epochs=job.flags.epochs, done=done, on_epoch=on_epoch)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _scratch() as folder:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": ray.put(job), "monitor": monitor},
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=placement.num_gpus > 0,
                resources_per_worker=_resources(placement),
            ),
            torch_config=TorchConfig(backend="nccl" if placement.num_gpus else "gloo"),
            run_config=RunConfig(
                name=f"raysers-{uuid.uuid4().hex[:12]}",
                storage_path=folder,
                failure_config=FailureConfig(
                    max_failures=job.flags.max_restarts,
                    controller_failure_limit=_CONTROLLER_FAILURES,
                ),
            ),
        )
        fitting = _Fitting(trainer)
        fitting.start()
        try:
            poller.follow(fitting.is_over)
        except TrainingStopped as stopped:
            # the workers leave at the end of the epoch they are in
            monitor.fail.remote(type(stopped).__name__, str(stopped))
            raise
    raise_failure(monitor)
    fitting.raise_error(job.flags.max_restarts)
    return fitted(job)


def fitted(job: TrainingJob) -> Fitted:
    """How a training went, from the state it left.

    Raises:
        RaysersError: the state is not that of a finished training.
    """
    saved = checkpoint.latest(job.output)
    if saved is None or not saved.notes["finished"]:
        raise RaysersError(f"the training's state in {job.output} was changed from outside")
    return Fitted(history=saved.notes["history"], failed=saved.notes["failed"])


class _Fitting(threading.Thread):
    """`fit()` off the main thread, which stays free to show progress and to be interrupted."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._trainer = trainer
        self._error: BaseException | None = None

    def run(self) -> None:
        """Train."""
        try:
            self._trainer.fit()
        except Exception as error:  # raised again in the main thread
            self._error = error

    def is_over(self, wait_s: float) -> bool:
        """Whether training ended, after waiting that long for it."""
        self.join(wait_s)
        return not self.is_alive()

    def raise_error(self, max_restarts: int) -> None:
        """Raise what ended the training, in one line when it was the death of workers."""
        if self._error is None:
            return
        if isinstance(self._error, ControllerError):
            reason = " ".join(str(self._error.controller_failure).split())[:300]
            raise RaysersError(
                f"Ray Train could not start the workers ({reason}): see that the cluster has the "
                "CPUs or GPUs free, then the same command resumes from the last checkpoint"
            ) from self._error
        failures = getattr(self._error, "worker_failures", {})
        died = [f for f in failures.values() if isinstance(f, ray.exceptions.RayActorError)]
        if died:
            raise RaysersError(
                f"training workers died {max_restarts + 1} times; give them more memory "
                "(--accumulate and --gradient-checkpointing need less), then the same command goes "
                "on from the last checkpoint"
            ) from self._error
        with own_errors():
            raise self._error


def _resources(placement: Placement) -> dict[str, float]:
    gpus = {"GPU": placement.num_gpus} if placement.num_gpus else {}
    return {"CPU": placement.num_cpus, **gpus}


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for Ray Train, which is also kept from talking in this process."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    folder = tempfile.mkdtemp(prefix="raysers-train-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
