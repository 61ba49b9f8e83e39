"""One training from its flags to its model folder: what the train job does, and a trial of a sweep.

The folder decides what is left: a finished training is only read, an interrupted one resumes. Ray
Train runs the loop in its process groups and starts dead workers again; a trial calls the same loop
in its own process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raysers.data.manifest import write_manifest
from raysers.engine import cluster
from raysers.engine.placement import Placement, here
from raysers.errors import RaysersError
from raysers.io import storage
from raysers.run import Exit, Run
from raysers.training import checkpoint, optim, progress
from raysers.training import plan as training_plan
from raysers.training.checkpoint import TrainProgress
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed, TrainingJob
from raysers.training.loop import AGREED, Callback, TrainingStopped, train_loop
from raysers.training.plan import LEAST_PIECES, Network
from raysers.training.progress import Epoch, ProgressFile, ProgressPoller, request_stop
from raysers.training.results import write_results
from raysers.training.tracking import check_tracking, tracked

JOB = "train"

OnEpoch = Callable[[Epoch], None]

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
#: Networks up to this size train faster in several processes than with several threads.
_SMALL_PARAMETERS = 20_000_000
#: How long workers get to save their state after a signal to the driver.
_GRACE_S = 20.0
#: Shortest time between two reports of epochs to Ray Train.
_REPORT_EVERY_S = 10.0
#: Steps between two questions to Ray Train whether a node is about to be taken away.
_ASK_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended.

    Attributes:
        output: the model folder.
        figures: `outcome` of its run.json: dev CCC of the stored model, epochs, audio, times.
        history: a record per epoch.
        trained: whether anything was left to do.
    """

    output: str
    figures: Mapping[str, Any]
    history: Sequence[Epoch]
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResources:
    """Compute threads of a training in the calling process, and how many share the memory."""

    threads: int = 1
    processes_here: int = 1


def run_training(
    flags: TrainingFlags,
    config: Mapping[str, Any],
    *,
    on_epoch: OnEpoch | None = None,
    in_process: bool = False,
    local: LocalResources | None = None,
    placement: Placement | None = None,
    indexed: Indexed | None = None,
    command: Sequence[str] | None = None,
) -> Outcome:
    """Check, plan, train what is left, conclude.

    The same settings give the same model, whichever way it is trained.

    Args:
        flags: of the training.
        config: the flags as the user gave them, for run.json.
        on_epoch: called in this thread with the record of every epoch, those of an interrupted
            run first; not for a run that is finished. May raise TrainingStopped.
        in_process: train in this process, without Ray Train; a cluster is joined only to read the
            headers of many files.
        local: with `in_process`, what of this machine the training may use.
        placement: without `in_process`, of the workers; None asks the cluster for `--workers`.
        indexed: the data of `flags`, if they have been indexed before.
        command: what to tell readers of the card to run; default: this process's command line.

    Raises:
        ConfigError: bad flags or data; nothing was written.
        TooManyFailed: too many clips cannot be used.
        TrainingStopped: `on_epoch` did; run.json says `stopped`, and the state is kept.
        RaysersError: the training failed; the same call resumes from its last state.
    """
    flags = training_plan.with_absolute_paths(flags)
    with Run.open(JOB, flags.output) as run:
        training_plan.refuse_unknown_model(run)
        check_tracking(flags.track)
        settled, network = training_plan.inspect(flags)
        if training_plan.is_finished(settled, network, run):
            print(f"train: the model in {run.output} is finished, nothing was left to do")
            document = json.loads(storage.read_bytes(storage.join(run.output, "training.json")))
            history = document["history"]
            return Outcome(
                output=run.output, figures=document["outcome"], history=history, trained=False
            )
        local = local or LocalResources()
        if in_process:
            placement = here(threads=local.threads)
        else:
            cluster.connect()
            placement = placement or cluster.place(flags.workers or _small_workers(network))
        plan = training_plan.make_plan(settled, network, run, placement, indexed=indexed)
        progress.print_plan(plan)
        if run.earlier is None:
            write_manifest(storage.join(run.output, "manifest"), plan.data.table)
        record = run.begin(config, plan.settings, command)
        listeners: list[OnEpoch] = [] if on_epoch is None else [on_epoch]
        try:
            for epoch in plan.progress.history:
                for listen in listeners:
                    listen(epoch)
            with tracked(plan.flags, record, plan.progress.history) as trackers:

                def end_epoch(epoch: Epoch) -> None:
                    run.verify()
                    print(progress.epoch_line(epoch, plan.flags.epochs), flush=True)
                    for listen in (*trackers, *listeners):
                        listen(epoch)

                job = plan.job(record.run_id)
                if in_process:
                    _train_here(job, end_epoch, local.processes_here)
                else:
                    done = len(plan.progress.history)
                    _train_on_ray(job, placement, done, end_epoch)
                saved = checkpoint.latest(run.output)
                if saved is None or not saved.progress.finished:
                    raise RaysersError(f"the state in {run.output} was changed from outside")
                figures = write_results(plan, record, saved.progress)
        except TrainingStopped as stopped:
            run.finish("stopped", {"reason": str(stopped)})
            raise
        run.finish("done", figures)
        checkpoint.clear(run.output)  # not before: a failure until here must find it
        progress.print_outcome(run.output, figures)
        history = saved.progress.history
        return Outcome(output=run.output, figures=figures, history=history, trained=True)


def _small_workers(network: Network) -> int:
    """Workers for a small network on CPUs alone; 0 lets the cluster choose.

    Threads of one process wait for each other after every operation, which costs small networks
    half of their speed; processes do so once a step.
    """
    resources = ray.cluster_resources()
    if network.parameters > _SMALL_PARAMETERS or resources.get("GPU", 0):
        return 0
    return min(int(resources.get("CPU", 0)), LEAST_PIECES)


class _InProcess(Callback):
    """Passes epochs to a function, prints warnings, and stops after SIGTERM."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self._on_epoch = on_epoch
        self.terminated = threading.Event()

    def on_epoch(self, progress: TrainProgress) -> None:
        """Pass the record on."""
        self._on_epoch(progress.history[-1])

    def on_warning(self, text: str) -> None:
        """Print it."""
        print(f"warning: {text}", file=sys.stderr)

    def should_stop(self) -> bool:
        """After SIGTERM."""
        return self.terminated.is_set()

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Within, a first SIGTERM is only noted, where this thread is the one to receive it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = signal.getsignal(signal.SIGTERM)

        def note(*_: object) -> None:
            self.terminated.set()
            signal.signal(signal.SIGTERM, earlier)

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, earlier)


def _train_here(job: TrainingJob, on_epoch: OnEpoch, processes_here: int) -> None:
    """Train in this process alone, on its GPU if it has one.

    Raises:
        SystemExit: after SIGTERM, with the state saved.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    callback = _InProcess(on_epoch)
    try:
        with callback.on_sigterm():
            train_loop(job, [callback], device=device, processes_here=processes_here)
    except TrainingStopped:
        if callback.terminated.is_set():
            raise SystemExit(int(Exit.TERMINATED)) from None
        raise


class _OnRayTrain(Callback):
    """Reports epochs to Ray Train, and saves the state before a node is taken away."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._steps = 0
        self._is_saved = False
        self._reported_s = time.monotonic()

    def on_epoch(self, progress: TrainProgress) -> None:
        """Report the numbers of the record, with a checkpoint that points to the output.

        A report waits for Ray Train, so short epochs are not all reported.
        """
        (due, *_) = optim.gather(time.monotonic() - self._reported_s > _REPORT_EVERY_S)
        if not due:
            return
        numbers = {k: v for k, v in progress.history[-1].items() if isinstance(v, int | float)}
        with tempfile.TemporaryDirectory() as folder:
            pointer = None
            if optim.rank() == 0 and not storage.is_remote(self._output):
                Path(folder, "pointer.json").write_text(json.dumps({"uri": self._output}))
                pointer = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(numbers, checkpoint=pointer)
        self._reported_s = time.monotonic()

    def should_save(self) -> bool:
        """Once, when a node with a worker is about to be taken away."""
        self._steps += 1
        if self._is_saved or self._steps % _ASK_EVERY:
            return False
        self._is_saved = ray.train.get_preemption_info() is not None
        return self._is_saved


def _run_worker(config: dict[str, Any]) -> Exception | None:
    """The training of one of Ray Train's workers; `config` has a reference to the TrainingJob.

    Returns:
        An error that all workers met: raised, it would make Ray Train start them again.
    """
    job: TrainingJob = ray.get(config["job"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    callbacks: list[Callback] = [_OnRayTrain(job.output)]
    if optim.rank() == 0:
        callbacks.append(ProgressFile(job.output, job.run_id))
    beside = ray.train.get_context().get_local_world_size()
    try:
        train_loop(job, callbacks, device=device, processes_here=beside)
    except AGREED as error:
        return error
    return None


def _train_on_ray(job: TrainingJob, placement: Placement, done: int, on_epoch: OnEpoch) -> None:
    """Train with Ray Train until the job is finished; `done` epochs are known to `on_epoch`.

    Raises:
        TrainingStopped: `on_epoch` did.
        RaysersError: what a worker raised on purpose, or that workers died too often.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    request_stop(job.output, stop=False)
    folder = storage.join(job.output, "state", "ray-train")
    if storage.is_remote(folder):  # Ray has its own way to object stores, with other settings
        folder = tempfile.mkdtemp(prefix="raysers-train-")
    gpus = {"GPU": placement.num_gpus} if placement.num_gpus else {}
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"job": ray.put(job)},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.num_gpus > 0,
            resources_per_worker={"CPU": placement.num_cpus, **gpus},
        ),
        torch_config=TorchConfig(backend="nccl" if placement.num_gpus else "gloo"),
        run_config=RunConfig(
            name=f"raysers-{uuid.uuid4().hex[:12]}",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=job.flags.max_restarts, controller_failure_limit=_CONTROLLER_FAILURES
            ),
        ),
    )
    fitted: Future[Exception | None] = Future()

    def fit() -> None:
        try:
            fitted.set_result(trainer.fit().return_value)
        except BaseException as error:  # raised again in the main thread
            fitted.set_exception(error)

    # off the main thread, which stays free to show progress and to be interrupted
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    poller = ProgressPoller(job, done, on_epoch)
    try:
        poller.follow(lambda wait_s: bool(wait([fitted], wait_s).done))
    except (TrainingStopped, SystemExit, KeyboardInterrupt):
        request_stop(job.output)
        wait([fitted], _GRACE_S)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    saved = checkpoint.latest(job.output)
    poller.pass_on(saved.progress.history if saved else [])
    error = fitted.exception() or fitted.result()
    if error is not None:
        _raise(error, job.flags.max_restarts)


def _raise(error: BaseException, max_restarts: int) -> NoReturn:
    """Raise what ended a training, in one line when it was the death of workers."""
    if isinstance(error, ControllerError):
        reason = " ".join(str(error.controller_failure).split())[:300]
        raise RaysersError(
            f"Ray Train could not start the workers ({reason}): see that the cluster has the CPUs "
            "or GPUs free, then the same command resumes from the last checkpoint"
        ) from error
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    if any(isinstance(failure, ray.exceptions.RayActorError) for failure in failures):
        raise RaysersError(
            f"training workers died {max_restarts + 1} times; give them more memory (--accumulate "
            "and --gradient-checkpointing need less), then the same command resumes from the last "
            "checkpoint"
        ) from error
    for failure in failures:
        error = getattr(failure, "_base_exc", failure)  # without Ray Train's wrapping
    raise error
