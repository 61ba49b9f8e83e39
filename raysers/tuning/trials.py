"""Trials on Ray Tune, and the record that makes each of them idempotent.

Tune places, stops and retries trials, but continues a run only from a pickle in the output folder,
and never with more trials. So every trial keeps a small `trial.json`: how it ended, its point and
what it reported. A trial that has ended reports that again and returns, so schedulers and searches
see earlier results the ordinary way; an interrupted one resumes from its own folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ray import tune
from ray.train import TrainingFailedError
from ray.tune.schedulers import TrialScheduler

from raysers.engine.placement import Placement, choose_placement, here
from raysers.engine.progress import LINE_EVERY_S, duration
from raysers.errors import (
    ConfigError,
    DeviceLost,
    ObjectMissing,
    RaysersError,
    StorageError,
    TrainingDiverged,
    WriteError,
)
from raysers.io import storage
from raysers.training.dataset import TooManyFailed
from raysers.training.loop import TrainingStopped

#: Tune's settings that only the environment takes.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job at once, as everywhere
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_AIR_NEW_OUTPUT": "0",
}
#: Score of a trial without one: a CCC below every other.
WORST = -1.0
_DIED = "its worker process died (killed, or out of memory)"
#: Errors that an immediate retry would repeat, and those that may be gone by the next command.
_REPEATED = (ConfigError, TooManyFailed, TrainingDiverged)
_OUTSIDE = (ConfigError, DeviceLost, OSError, StorageError, WriteError)
#: More trials than this on one machine without GPUs take its memory from each other.
_MAX_ON_A_NODE = 8
#: Workers that may share a CPU, as `placement.choose_placement` has it.
_SHARING = 4
#: Reports an epoch; raises TrainingStopped when the scheduler stops the trial.
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A unit of work: `call` does it in a worker process, after an interruption once more.

    What it returns, and the `notes` that the record keeps, are JSON-ready values.
    """

    name: str
    path: str
    call: Callable[[Report], Mapping[str, Any]]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> TrialRecord:
        """What is stored, or a new record."""
        return stored(self.path) or TrialRecord(name=self.name, path=self.path, notes=self.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """`trial.json`, without the trial's folder `path`, so that a sweep can be moved.

    `stopped` is by the scheduler, `failed` as often as it may. `result` is what its call returned,
    `history` the epochs it reported, `wall_s` how long it ran, over attempts that came to an end.
    `repeats`: an immediate retry would fail in the same way; `outside`: the cause lies outside of
    the trial, so that the next command retries it.
    """

    name: str
    path: str
    status: Literal["running", "done", "stopped", "failed"] = "running"
    error: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    wall_s: float = 0.0
    attempts: int = 0
    failures: int = 0
    repeats: bool = False
    outside: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    def is_over(self, retries: int) -> bool:
        """Whether this command leaves it as it is."""
        may_retry = self.status == "failed" and not self.repeats and self.failures <= retries
        return self.status != "running" and not may_retry

    def is_final(self, retries: int) -> bool:
        """Whether another command leaves it as it is too."""
        return self.is_over(retries) and not (self.status == "failed" and self.outside)

    def save(self) -> None:
        """Write the record; raises WriteError."""
        values = {k: v for k, v in asdict(self).items() if k != "path"}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        storage.write_atomic(storage.join(self.path, "trial.json"), text.encode())

    def failed(self, error: Exception) -> TrialRecord:
        """The record after one more failure."""
        kind = "" if isinstance(error, RaysersError) else f"{type(error).__name__}: "
        # of training workers that died, or never started, only the cause tells
        lost = isinstance(error, RaysersError) and isinstance(error.__cause__, TrainingFailedError)
        return replace(
            self,
            status="failed",
            error=(kind + " ".join(str(error).split()))[:2000],
            failures=self.failures + 1,
            repeats=isinstance(error, _REPEATED),
            outside=lost or isinstance(error, _OUTSIDE),
        )


def stored(path: str) -> TrialRecord | None:
    """The record in the folder `path`, or None when the trial was never started."""
    uri = storage.join(path, "trial.json")
    try:
        values = json.loads(storage.read_bytes(uri))
        return TrialRecord(**{**values, "path": path, "history": tuple(values["history"])})
    except ObjectMissing:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RaysersError(f"{uri} is damaged ({error}): delete its folder") from error


def attempt(trial: Trial, retries: int, report: Report) -> TrialRecord:
    """Call a trial in this process until it is done or has failed as often as it may."""
    record = replace(trial.record(), notes=trial.notes, status="running")
    if record.outside:  # counted in one command only
        record = replace(record, failures=0, repeats=False, outside=False)

    def keep(epoch: Mapping[str, Any]) -> None:
        nonlocal record
        record = replace(record, history=(*record.history, dict(epoch)))
        record.save()
        report(epoch)

    while not record.is_over(retries):
        again = replace(record, status="running", error="", repeats=False, history=())
        record = replace(again, attempts=record.attempts + 1)
        record.save()
        began_s, stopped = time.monotonic(), None
        try:
            result = dict(trial.call(keep))
            record = replace(record, status="done", result=result)
        except TrainingStopped as error:
            stopped = error
            record = replace(record, status="stopped")
        except Exception as error:  # whatever a trial fails of is its record
            record = record.failed(error)
        record = replace(record, wall_s=round(record.wall_s + time.monotonic() - began_s, 3))
        record.save()
        if stopped is not None:
            raise stopped
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResources:
    """Places for `at_once` trials, whose processes reserve `cpus_each` and `gpus_each`.

    A trial with one worker has a local `placement`: it trains in its own process, one of
    `processes_here` on the same machine. Tune does not reserve what the workers of Ray Train need:
    with several a trial, `at_once` is what keeps them from taking each other's places.
    """

    at_once: int
    cpus_each: float
    gpus_each: float = 0.0
    placement: Placement = field(default_factory=lambda: here(threads=1))
    processes_here: int = 1

    @property
    def words(self) -> str:
        """For the user."""
        threads, workers = self.placement.threads, self.placement.workers
        each = "a GPU" if self.gpus_each else f"{threads} CPU thread{'s' * (threads > 1)}"
        each = each if self.placement.local else f"{workers} workers on {self.placement.device}"
        return f"{self.at_once} at once, each on {each}"


def choose_resources(
    trials: int, each: int, max_concurrent: int, nodes: Sequence[dict[str, float]]
) -> TrialResources:
    """Places for trials of `each` so many workers on nodes with these resources."""
    gpus = sum(min(int(n.get("GPU", 0)), int(n.get("CPU", 0))) for n in nodes)
    cpus = [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1]
    # without GPUs, more trials than CPUs share them if asked for
    most = (gpus if gpus else sum(cpus) * _SHARING) // each
    if most < 1:
        raise ConfigError(
            f"--workers-per-trial {each} does not fit the cluster ({gpus} GPUs, {sum(cpus)} CPUs)"
        )
    if max_concurrent > most:
        raise ConfigError(
            f"--max-concurrent {max_concurrent} with --workers-per-trial {each} needs more than "
            f"the cluster has: give at most {most}, or 0 to choose"
        )
    fitting = most if gpus else sum(min(c, _MAX_ON_A_NODE) for c in cpus) // each
    at_once = max(1, min(max_concurrent or fitting, trials))
    spot = choose_placement(at_once * each, nodes)
    if each > 1:  # its workers hold the CPUs
        placement = Placement(workers=each, num_cpus=spot.num_cpus, num_gpus=spot.num_gpus)
        return TrialResources(at_once=at_once, cpus_each=0, placement=placement)
    each_of = {"CPU": spot.num_cpus, "GPU": spot.num_gpus}
    held = [min(node.get(k, 0) / n for k, n in each_of.items() if n) for node in nodes]
    return TrialResources(
        at_once=at_once,
        cpus_each=spot.num_cpus,
        gpus_each=spot.num_gpus,
        placement=replace(spot, workers=1, local=True),
        processes_here=min(at_once, int(max(held))),
    )


def run_trials(
    make: Callable[[Mapping[str, Any]], Trial],
    numbers: list[int],
    resources: TrialResources,
    *,
    total: int,
    retries: int,
    on_ended: Callable[[TrialRecord], str],
    search: Any = None,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run trials on the connected cluster; how each ended is in its record.

    `make` gives the trial of a configuration of Tune, which has its `number`: one of `numbers`, or
    with a `search` 0 to `total` (those that have ended before count too). A trial may fail, and its
    process may die, `retries` times. `on_ended` gets the record of every trial that ends, and
    returns words for its line. The `scheduler` stops trials by their `epoch` and `score`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.at_once)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    progress = _Progress(make, total, resources.at_once, retries, on_ended)
    progress.ended["before"] = 0 if search else total - len(numbers)
    # a place that holds nothing is not allowed: a byte of memory stands for it
    reserved = {"cpu": resources.cpus_each, "gpu": resources.gpus_each, "memory": 1}
    work = tune.with_parameters(_work, make=make, retries=retries)
    with tempfile.TemporaryDirectory(prefix="raysers-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(work, reserved),
            param_space={} if search else {"number": tune.grid_search(numbers)},
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=total if search else 1,
                max_concurrent_trials=resources.at_once,
                # a new process per trial where its workers need the CPUs
                reuse_actors=resources.placement.local,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[progress],
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        )
        try:
            results = tuner.fit()
        except Exception:
            if progress.error is not None:  # Tune passes on its text only
                raise progress.error from None
            raise
        for result in results:
            if not result.config:
                raise RaysersError("Ray Tune gave up: the same command resumes")
            trial = make(result.config)
            if trial.record().status == "running":
                _ended(trial, died=result.error is not None).save()


def _ended(trial: Trial, *, died: bool) -> TrialRecord:
    """The record of a trial that ended, also of one whose process had no time to write it."""
    record = trial.record()
    if record.status == "running" and died:
        return replace(record, status="failed", error=_DIED, outside=True)
    return replace(record, status="stopped") if record.status == "running" else record


def _work(config: dict[str, Any], make: Callable[[Mapping[str, Any]], Trial], retries: int) -> None:
    """One trial, in a worker process."""
    # how long the process waits for a stopped trial to leave before it is replaced
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    trial = make(config)
    record = trial.record()
    try:
        if record.is_final(retries):
            for epoch in record.history:
                _report(epoch)
        else:
            record = attempt(trial, retries, _report)
        # so that a search keeps away from a failure, and Tune does not print that it has no result
        if record.status == "failed" or not record.history:
            tune.report({"score": WORST})
    except TrainingStopped:
        raise SystemExit(0) from None  # how Tune's functions leave


def _report(epoch: Mapping[str, Any]) -> None:
    try:
        tune.report(dict(epoch))
    except SystemExit:
        raise TrainingStopped("stopped by the scheduler") from None


@dataclass(eq=False)
class _Progress(tune.Callback):  # type: ignore[misc]
    """A line on stderr for every trial that ends, and now and then one about those at work."""

    make: Callable[[Mapping[str, Any]], Trial]
    total: int
    at_once: int
    retries: int
    on_ended: Callable[[TrialRecord], str]
    ended: Counter[str] = field(default_factory=Counter)
    error: Exception | None = None
    running: set[str] = field(default_factory=set)
    walls_s: list[float] = field(default_factory=list)
    printed_s: float = field(default_factory=time.monotonic)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks to restore runs, which is never done here."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        made = self.make(trial.config)
        if not made.record().is_final(self.retries):
            self.running.add(made.name)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        print_line(f"{self.make(trial.config).name} is tried again: {_DIED}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._over(_ended(self.make(trial.config), died=True))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._over(_ended(self.make(trial.config), died=False))

    def _over(self, record: TrialRecord) -> None:
        self.ended[record.status] += 1
        if record.name not in self.running:
            return
        self.running.remove(record.name)
        self.walls_s.append(record.wall_s)
        try:
            words = self.on_ended(record)
        except Exception as error:
            self.error = error
            raise
        print_ended(record, self.ended.total(), self.total, words)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """`3 of 20 ended (1 before) | at work: a (epoch 2), b | about 12:30 left`."""
        if not self.running or time.monotonic() - self.printed_s < LINE_EVERY_S:
            return
        self.printed_s = time.monotonic()
        epochs = {self.make(t.config).name: t.last_result.get("epoch", 0) for t in trials}
        names = (f"{n} (epoch {epochs[n]})" if epochs[n] else n for n in sorted(self.running))
        other = ", ".join(f"{n} {s}" for s, n in sorted(self.ended.items()) if n and s != "done")
        text = f"{self.ended.total()} of {self.total} ended" + f" ({other})" * bool(other)
        text += f" | at work: {', '.join(names)}"
        if self.walls_s:
            left = (self.total - self.ended.total()) / max(1, self.at_once)
            text += f" | about {duration(left * sum(self.walls_s) / len(self.walls_s))} left"
        print_line(text)


def print_ended(record: TrialRecord, number: int, total: int, words: str) -> None:
    """`[ 3/20] trial-0002 done in 0:12  words`; of a failed trial its error."""
    text = f"[{number:{len(str(total))}}/{total}] {record.name} {record.status} "
    print_line(f"{text}in {duration(record.wall_s)}  {record.error or words}".rstrip())


def print_line(text: str) -> None:
    """Print one line to stderr."""
    print(" ".join(text.splitlines()), file=sys.stderr, flush=True)
