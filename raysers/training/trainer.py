"""One training from its flags to its model folder: what the train job does, and a trial of a sweep.

The folder decides what is left. Ray Train runs the loop in its process groups and starts dead
workers again; a trial calls the same loop in its own process. On Ray, process 0 writes
`OUTPUT/state/progress.json`, which the driver reads: it outlives dead workers. The driver asks the
workers to stop by a file beside it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from rich.console import Console
from rich.live import Live
from rich.text import Text

from raysers.data.manifest import write_manifest
from raysers.engine import cluster
from raysers.engine.placement import Placement
from raysers.engine.progress import LINE_EVERY_S, duration
from raysers.errors import RaysersError, StorageError
from raysers.io import storage
from raysers.run import Run, with_absolute_paths
from raysers.training import checkpoint, optim, results
from raysers.training import plan as planning
from raysers.training.checkpoint import TrainProgress
from raysers.training.config import PLACES, TrainingFlags
from raysers.training.dataset import Indexed
from raysers.training.loop import AGREED, Callback, PassOn, TrainingStopped, train_loop
from raysers.training.plan import LEAST_PIECES, Network, TrainingPlan
from raysers.training.results import Epoch

#: Ray Train's settings that only the environment takes.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay where they are
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # nodes of a growing cluster take minutes
}
#: Networks up to this size train faster in several processes than with several threads.
_SMALL_PARAMETERS = 20_000_000
#: Shortest time between two reports of epochs to Ray Train.
_REPORT_EVERY_S = 10.0
#: Shortest time between two looks at the files, on disks and in object stores.
_EVERY_S, _REMOTE_EVERY_S = 0.5, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`outcome` of run.json, a record per epoch, and whether anything was left to do."""

    figures: Mapping[str, Any]
    history: Sequence[Epoch]
    trained: bool


def run_training(
    flags: TrainingFlags,
    config: Mapping[str, Any],
    *,
    on_epoch: Callable[[Epoch], None] | None = None,
    placement: Placement | None = None,
    processes_here: int = 1,
    indexed: Indexed | None = None,
    command: Sequence[str] | None = None,
) -> Outcome:
    """Check, plan, train what is left, conclude; the same settings give the same model anywhere.

    `config` has the flags as the user gave them, for run.json, `command` what the card says to run.
    `on_epoch` is called in this thread with the record of every epoch, those of an interrupted run
    first, and may raise TrainingStopped; the state is kept. With a local `placement` the training
    is in this process, without Ray Train, beside `processes_here` others; None asks the cluster for
    `--workers`. `indexed` data are not indexed again. After an error the same call resumes.
    """
    flags = with_absolute_paths(flags, *PLACES)
    with Run.open("train", flags.output) as run:
        planning.refuse_unknown_model(run)
        results.check_tracking(flags.track)
        settled, network = planning.inspect(flags)
        if planning.is_finished(settled, network, run):
            print(f"train: the model in {run.output} is finished, nothing was left to do")
            found = json.loads(storage.read_bytes(storage.join(run.output, "training.json")))
            return Outcome(figures=found["outcome"], history=found["history"], trained=False)
        if placement is None or not placement.local:
            cluster.connect()
            placement = placement or cluster.place(flags.workers or _small_workers(network))
        plan = planning.make_plan(settled, network, run, placement, indexed=indexed)
        saved = checkpoint.latest(run.output) if run.earlier else None
        progress = saved.progress if saved else TrainProgress()
        plan.print(run.earlier, progress.step)
        if run.earlier is None:
            write_manifest(storage.join(run.output, "manifest"), plan.data.table)
        record = run.begin(config, plan.settings, command)
        listeners = [] if on_epoch is None else [on_epoch]
        try:
            for epoch, listen in product(progress.history, listeners):
                listen(epoch)
            with results.tracked(plan.flags, record, progress.history) as trackers:
                known, warned = len(progress.history), 0

                def pass_on(history: Sequence[Epoch], warnings: Sequence[str]) -> None:
                    nonlocal known, warned  # what is new, in order, once
                    for text in warnings[warned:]:
                        warned += 1
                        print(f"warning: {text}", file=sys.stderr)
                    for epoch in history[known:]:
                        known += 1
                        run.verify()
                        print(results.epoch_line(epoch, plan.flags.epochs), flush=True)
                        for listen in (*trackers, *listeners):
                            listen(epoch)

                if placement.local:
                    train_loop(plan, Callback(pass_on), placement.device, processes_here)
                else:
                    _train_on_ray(plan, pass_on)
                saved = checkpoint.latest(run.output)
                if saved is None:
                    raise RaysersError(f"the state in {run.output} was changed from outside")
                progress = saved.progress
                pass_on(progress.history, progress.warnings)
                figures = results.write_results(plan, record, progress)
        except TrainingStopped as stopped:
            run.finish("stopped", {"reason": str(stopped)})
            raise
        run.finish("done", figures)
        checkpoint.clear(run.output)  # not before: a failure until here must find it
        results.print_outcome(run.output, figures)
        return Outcome(figures=figures, history=progress.history, trained=True)


def _small_workers(network: Network) -> int:
    """Workers for a small network on CPUs; 0 lets the cluster choose.

    Threads of one process wait for each other after every operation, which costs small networks a
    quarter of their speed; processes do so once a step.
    """
    resources = ray.cluster_resources()
    if network.parameters > _SMALL_PARAMETERS or resources.get("GPU", 0):
        return 0
    return min(int(resources.get("CPU", 0)), LEAST_PIECES)


class _OnRayTrain(Callback):
    """Writes `progress.json`, reports to Ray Train, saves before a node is taken away."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._output = plan.output
        self._content: dict[str, Any] = {"run_id": plan.run_id}
        self._starts = _read_progress(plan).get("starts", [])  # of workers that died
        self._steps, self._is_saved = 0, False
        self._reported_s = self._written_s = self._asked_s = time.monotonic()

    def on_step(self, progress: TrainProgress, total_steps: int) -> None:
        """Write the figures of the live line, at the start and now and then."""
        is_start = "starts" not in self._content
        self._content.setdefault("starts", [*self._starts, progress.step])
        if is_start or time.monotonic() - self._written_s >= _every_s(self._output):
            sums = progress.sums
            self._content["live"] = bool(sums.steps) and {
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "steps": total_steps,
                "loss": sums.mean_loss,
                "audio_s": sums.audio_s,
                "audio_hours_per_s": sums.audio_hours_per_s,
            }
            self._write(progress)

    def on_epoch(self, progress: TrainProgress) -> None:
        """Report numbers, too, if the last time is long ago: a report waits for Ray Train."""
        self._write(progress)
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

    def should_stop(self) -> bool:
        if optim.rank() or time.monotonic() - self._asked_s < _every_s(self._output):
            return False
        self._asked_s = time.monotonic()
        with suppress(StorageError):  # not there, or not readable just now
            storage.stat(_state_uri(self._output, "stop"))
            return True
        return False

    def should_save(self) -> bool:
        self._steps += 1
        if self._is_saved or self._steps % 10:
            return False
        self._is_saved = ray.train.get_preemption_info() is not None
        return self._is_saved

    def _write(self, progress: TrainProgress) -> None:
        if optim.rank() == 0:
            self._content |= {"history": progress.history, "warnings": progress.warnings}
            text = json.dumps(self._content).encode()
            storage.write_atomic(_state_uri(self._output, "progress.json"), text)
            self._written_s = time.monotonic()


def _every_s(output: str) -> float:
    return _REMOTE_EVERY_S if storage.is_remote(output) else _EVERY_S


def _state_uri(output: str, name: str) -> str:
    return storage.join(output, "state", name)


def _read_progress(plan: TrainingPlan) -> dict[str, Any]:
    """`progress.json` of this run; empty when it is not there, or not readable just now."""
    with suppress(StorageError):
        uri = _state_uri(plan.output, "progress.json")
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
        return found if found["run_id"] == plan.run_id else {}
    return {}


def _run_worker(config: dict[str, Any]) -> Exception | None:
    """Train in a worker; an error that all met is returned: raised, it would restart them."""
    plan: TrainingPlan = ray.get(config["plan"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    beside = ray.train.get_context().get_local_world_size()
    try:
        train_loop(plan, _OnRayTrain(plan), device, beside)
    except AGREED as error:
        return error
    return None


def _train_on_ray(plan: TrainingPlan, pass_on: PassOn) -> None:
    """Train with Ray Train to the end; TrainingStopped of `pass_on`, or what ended the workers."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    storage.delete(_state_uri(plan.output, "stop"))
    folder = _state_uri(plan.output, "ray-train")
    if storage.is_remote(folder):  # Ray has its own way to object stores, with other settings
        folder = tempfile.mkdtemp(prefix="raysers-train-")
    placement, restarts = plan.placement, plan.flags.max_restarts
    cpus, gpus = placement.num_cpus, placement.num_gpus
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"plan": ray.put(plan)},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=f"raysers-{uuid.uuid4().hex[:12]}",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=restarts, controller_failure_limit=5),
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "passive"}},  # spinning takes cores
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
    try:
        _follow(plan, fitted, pass_on)
    except (TrainingStopped, SystemExit, KeyboardInterrupt):
        storage.write_atomic(_state_uri(plan.output, "stop"), b"")
        wait([fitted], 20.0)  # they save their state
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    error = fitted.exception() or fitted.result()
    if error is not None:
        _raise(error, restarts)


def _follow(plan: TrainingPlan, fitted: Future[Any], pass_on: PassOn) -> None:
    """Read `progress.json` until `fitted`: a live line on a terminal, else a line every 10 s."""
    console = Console(stderr=True)
    news_s = printed_s = polled_s = time.monotonic()
    found: dict[str, Any] = {}
    starts, is_over = 1, False
    with Live(console=console, transient=True) if console.is_terminal else nullcontext() as view:
        while not is_over:
            is_over = bool(wait([fitted], _EVERY_S).done)
            if not is_over and time.monotonic() - polled_s < _every_s(plan.output):
                continue
            before, polled_s, found = found, time.monotonic(), _read_progress(plan) or found
            if found != before:
                news_s = polled_s
            for step in found.get("starts", [])[starts:]:
                print(f"workers died and were started again after step {step}", file=sys.stderr)
            starts = max(starts, len(found.get("starts", [])))
            pass_on(found.get("history", []), found.get("warnings", []))
            line = results.live_line(found.get("live", {}), plan.flags.epochs)
            if polled_s - news_s > 30.0:
                line = f"waiting for workers, no news for {duration(polled_s - news_s)} ({line})"
            if view is not None:
                view.update(Text(line))
            elif polled_s - printed_s >= LINE_EVERY_S:
                printed_s = polled_s
                print(line, file=sys.stderr, flush=True)


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
