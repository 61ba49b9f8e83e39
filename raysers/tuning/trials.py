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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ray import tune
from ray.train import TrainingFailedError
from ray.tune.schedulers import TrialScheduler

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
from raysers.tuning.resources import TrialResources

#: Tune's settings that only the environment takes.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job at once, as everywhere
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_AIR_NEW_OUTPUT": "0",
}
#: How long a worker process waits for a stopped trial to leave before it is replaced.
_LEAVE_S = "60"
#: Score of a trial without one: a CCC below every other.
WORST = -1.0
_DIED = "its worker process died (killed, or out of memory)"
_MAX_ERROR = 2000
#: Errors that an immediate retry would repeat, and those that may be gone by the next command.
_REPEATED = (ConfigError, TooManyFailed, TrainingDiverged)
_OUTSIDE = (ConfigError, DeviceLost, OSError, StorageError, WriteError)

#: Reports an epoch; raises TrainingStopped when the scheduler stops the trial.
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A unit of work.

    `call` does it in a worker process and returns JSON-ready values; after an interruption it is
    called again with the same folder `path`. `notes` are JSON-ready values to keep in the record.
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
    """`trial.json`.

    Attributes:
        path: the trial's folder; not in the file, so that a sweep can be moved.
        status: `stopped` is by the scheduler; `failed` is as often as it may.
        result, history: what its call returned, and the epochs it reported.
        wall_s: seconds it ran, over attempts that came to an end.
        attempts, failures: how often it was started, and how often it failed.
        repeats: whether an immediate retry would fail in the same way.
        outside: whether the cause lies outside of the trial, so that the next command retries it.
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
        if self.status == "failed":
            return self.repeats or self.failures > retries
        return self.status != "running"

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
            error=(kind + " ".join(str(error).split()))[:_MAX_ERROR],
            failures=self.failures + 1,
            repeats=isinstance(error, _REPEATED),
            outside=lost or isinstance(error, _OUTSIDE),
        )


def stored(path: str) -> TrialRecord | None:
    """The record in the folder `path`, or None when the trial was never started.

    Raises RaysersError: it is damaged.
    """
    uri = storage.join(path, "trial.json")
    try:
        values = json.loads(storage.read_bytes(uri))
        return TrialRecord(**{**values, "path": path, "history": tuple(values["history"])})
    except ObjectMissing:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RaysersError(f"{uri} is damaged ({error}): delete its folder") from error


def attempt(trial: Trial, retries: int, report: Report) -> TrialRecord:
    """Call a trial in this process until it is done or has failed as often as it may.

    Raises TrainingStopped: `report` did; WriteError: the record cannot be written.
    """
    record = replace(trial.record(), notes=trial.notes)
    if record.outside:  # counted in one command only
        record = replace(record, failures=0, repeats=False, outside=False)
    record = replace(record, status="running")

    def keep(epoch: Mapping[str, Any]) -> None:
        nonlocal record
        record = replace(record, history=(*record.history, dict(epoch)))
        record.save()
        report(epoch)

    while not record.is_over(retries):
        record = replace(record, status="running", error="", repeats=False, history=())
        record = replace(record, attempts=record.attempts + 1)
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

    Args:
        make: the trial of a configuration of Tune, which has its `number`.
        numbers: of the trials to run, without a search.
        resources: how many at once, and what each reserves.
        total: how many there are, those that have ended before too.
        retries: how often a trial may fail, and how often its process may die.
        on_ended: called with the record of every trial that ends; returns words for its line.
        search: of Tune; numbers its configurations from 0 to `total`.
        scheduler: stops trials by their `epoch` and `score`.

    Raises RaysersError: Tune gave up.
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
    if record.status != "running":
        return record
    if died:
        return replace(record, status="failed", error=_DIED, outside=True)
    return replace(record, status="stopped")


def _work(config: dict[str, Any], make: Callable[[Mapping[str, Any]], Trial], retries: int) -> None:
    """One trial, in a worker process."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = _LEAVE_S
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
        text = f"{self.ended.total()} of {self.total} ended" + (f" ({other})" if other else "")
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
