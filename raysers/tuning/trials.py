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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """`trial.json`.

    Attributes:
        path: the trial's folder; not in the file, so that a sweep can be moved.
        status: `stopped` is by the scheduler; `failed` is as often as it may.
        error: why it failed; empty otherwise.
        result: what its call returned.
        history: its epochs.
        wall_s: seconds it ran, over attempts that came to an end.
        attempts: how often it was started.
        failures: how often it failed.
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
        """Write the record.

        Raises:
            WriteError: the folder cannot be written.
        """
        values = {k: v for k, v in asdict(self).items() if k != "path"}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        storage.write_atomic(storage.join(self.path, "trial.json"), text.encode())


def stored(path: str) -> TrialRecord | None:
    """The record in the folder `path`, or None when the trial was never started.

    Raises:
        RaysersError: it is damaged.
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

    Returns:
        The record; a failed trial raises nothing.

    Raises:
        TrainingStopped: `report` did.
        WriteError: the record cannot be written.
    """
    record = stored(trial.path) or TrialRecord(name=trial.name, path=trial.path)
    if record.outside:  # counted in one command only
        record = replace(record, failures=0, repeats=False, outside=False)
    record = replace(record, notes=trial.notes, status="running")
    while not record.is_over(retries):
        history: list[Mapping[str, Any]] = []

        attempts = record.attempts + 1
        record = replace(record, status="running", error="", repeats=False, attempts=attempts)
        record.save()

        def keep(
            epoch: Mapping[str, Any],
            kept: list[Mapping[str, Any]] = history,
            running: TrialRecord = record,
        ) -> None:
            kept.append(dict(epoch))
            replace(running, history=tuple(kept)).save()
            report(epoch)

        began_s, ended = time.monotonic(), replace(record, status="done")
        stopped = None
        try:
            ended = replace(ended, result=dict(trial.call(keep)))
        except TrainingStopped as error:
            stopped, ended = error, replace(ended, status="stopped")
        except Exception as error:  # whatever a trial fails of is its record
            ended = _failed(record, error)
        wall_s = round(record.wall_s + time.monotonic() - began_s, 3)
        record = replace(ended, history=tuple(history), wall_s=wall_s)
        record.save()
        if stopped is not None:
            raise stopped
    return record


def _failed(record: TrialRecord, error: Exception) -> TrialRecord:
    words = " ".join(str(error).split())
    kind = "" if isinstance(error, RaysersError) else f"{type(error).__name__}: "
    # of training workers that died, or never started, only the cause tells
    lost = isinstance(error, RaysersError) and isinstance(error.__cause__, TrainingFailedError)
    return replace(
        record,
        status="failed",
        error=f"{kind}{words}"[:_MAX_ERROR],
        failures=record.failures + 1,
        repeats=isinstance(error, _REPEATED),
        outside=lost or isinstance(error, _OUTSIDE),
    )


def run_trials(
    make: Callable[[Mapping[str, Any]], Trial],
    numbers: list[int],
    resources: TrialResources,
    *,
    total: int,
    retries: int,
    search: Any = None,
    scheduler: TrialScheduler | None = None,
    describe: Callable[[TrialRecord], str] = lambda _: "",
    on_ended: Callable[[TrialRecord], None] = lambda _: None,
) -> None:
    """Run trials on the connected cluster; how each ended is in its record.

    Args:
        make: the trial of a configuration of Tune, which has its `number`.
        numbers: of the trials to run, without a search.
        resources: how many at once, and what each reserves.
        total: how many there are, those that have ended before too.
        retries: how often a trial may fail, and how often its process may die.
        search: of Tune, in place of `numbers`; its configurations are numbered from 0 to `total`.
        scheduler: stops trials by their `epoch` and `score`.
        describe: further words of the line about a trial that ended.
        on_ended: called with the record of every trial that ends now.

    Raises:
        RaysersError: Tune gave up.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.at_once)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    before = 0 if search else total - len(numbers)
    progress = _Progress(make, total, before, resources.at_once, retries, describe, on_ended)
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
                reuse_actors=resources.placement is None,
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
            _settle(make(result.config), result.error)


def _settle(trial: Trial, error: Exception | None) -> None:
    """Complete the record of a trial whose process died, or had no time to write it."""
    record = stored(trial.path) or TrialRecord(name=trial.name, path=trial.path, notes=trial.notes)
    if record.status == "running":
        ended = replace(record, status="failed", error=_DIED, outside=True)
        (replace(record, status="stopped") if error is None else ended).save()


def _work(config: dict[str, Any], make: Callable[[Mapping[str, Any]], Trial], retries: int) -> None:
    """One trial, in a worker process."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = _LEAVE_S
    trial = make(config)
    record = stored(trial.path)
    try:
        if record is not None and record.is_final(retries):
            for epoch in record.history:
                _report(epoch)
        else:
            record = attempt(trial, retries, _report)
        if record.status == "failed":  # so that a search keeps away from there
            tune.report({"score": WORST})
    except TrainingStopped:
        raise SystemExit(0) from None  # how Tune's functions leave


def _report(epoch: Mapping[str, Any]) -> None:
    try:
        tune.report(dict(epoch))
    except SystemExit:
        raise TrainingStopped("stopped by the scheduler") from None


class _Progress(tune.Callback):  # type: ignore[misc]
    """A line on stderr for every trial that ends, and now and then one about those at work."""

    def __init__(
        self,
        make: Callable[[Mapping[str, Any]], Trial],
        total: int,
        before: int,
        at_once: int,
        retries: int,
        describe: Callable[[TrialRecord], str],
        on_ended: Callable[[TrialRecord], None],
    ) -> None:
        self.error: Exception | None = None
        self._make, self._total, self._at_once = make, total, at_once
        self._retries, self._describe, self._on_ended = retries, describe, on_ended
        self._ended = Counter(before=before) if before else Counter[str]()
        self._running: dict[str, Any] = {}
        self._walls_s: list[float] = []
        self._printed_s = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks to restore runs, which is never done here."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        made = self._make(trial.config)
        record = stored(made.path)
        if record is None or not record.is_final(self._retries):
            self._running[made.name] = None

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        name = self._make(trial.config).name
        if name in self._running:
            self._running[name] = result.get("epoch")

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        print_line(f"{self._make(trial.config).name} is tried again: {_DIED}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._over(trial, "failed")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._over(trial, "stopped")

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        if self._running and time.monotonic() - self._printed_s >= LINE_EVERY_S:
            self._printed_s = time.monotonic()
            print_line(self._line())

    def _over(self, trial: Any, unfinished: Literal["failed", "stopped"]) -> None:
        made = self._make(trial.config)
        record = stored(made.path) or TrialRecord(name=made.name, path=made.path, notes=made.notes)
        if record.status == "running":
            record = replace(
                record, status=unfinished, error=_DIED if unfinished == "failed" else ""
            )
        self._ended[record.status] += 1
        if made.name not in self._running:
            return
        del self._running[made.name]
        self._walls_s.append(record.wall_s)
        try:
            self._on_ended(record)
        except Exception as error:
            self.error = error
            raise
        print_ended(record, self._ended.total(), self._total, self._describe(record))

    def _line(self) -> str:
        """`3 of 20 ended (1 before) | at work: a (epoch 2), b | about 12:30 left`."""
        other = ", ".join(f"{n} {s}" for s, n in sorted(self._ended.items()) if s != "done")
        text = f"{self._ended.total()} of {self._total} ended" + (f" ({other})" if other else "")
        names = (f"{name} (epoch {n})" if n else name for name, n in self._running.items())
        text += f" | at work: {', '.join(names)}"
        if self._walls_s:
            left = (self._total - self._ended.total()) / max(1, self._at_once)
            text += f" | about {duration(left * sum(self._walls_s) / len(self._walls_s))} left"
        return text


def print_ended(record: TrialRecord, number: int, total: int, words: str) -> None:
    """`[ 3/20] trial-0002 done in 0:12  words`; of a failed trial its error."""
    words = record.error or words
    print_line(
        f"[{number:{len(str(total))}}/{total}] {record.name} {record.status} "
        f"in {duration(record.wall_s)}" + (f"  {words}" if words else "")
    )


def print_line(text: str) -> None:
    """Print one line to stderr."""
    print(" ".join(text.splitlines()), file=sys.stderr, flush=True)
