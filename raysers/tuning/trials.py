"""Named pieces of work through Ray Tune: so many at a time, each with a folder, none run twice.

Tune places, stops and retries; what has been done is decided by the records in the pieces' own
folders, never by Tune's, so rerunning the command resumes after any crash. An interrupted piece
is called again and must resume from its folder by itself.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raysers.errors import RaysersError
from raysers.training.loop import TrainingStopped
from raysers.tuning.trial_progress import Progress
from raysers.tuning.trial_record import TrialRecord, failure, missing, stored
from raysers.tuning.trial_store import END, ERROR, REPORT, Piece, Report, TrialStore

__all__ = [
    "Piece",
    "Progress",
    "Report",
    "Share",
    "TrialRecord",
    "failure",
    "missing",
    "run_pieces",
    "stored",
]  # fmt: skip

#: Tune's settings that only the environment takes.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the records say all that its files would
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job at once, as everywhere
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a piece's last word is no report
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_AIR_NEW_OUTPUT": "0",  # which talks at any verbosity
}
#: How long a worker process waits for a stopped piece to leave before it is replaced.
_LEAVE_S = "60"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many pieces run at once, and what each reserves of the cluster.

    A piece that starts Ray tasks must leave the CPUs for it to the cluster.

    Attributes:
        at_once: pieces at a time.
        cpus_each: CPUs of a piece's process.
        gpus_each: its GPUs.
        reuse: hand a process on to the next piece, which saves starting it.
    """

    at_once: int
    cpus_each: float
    gpus_each: float = 0.0
    reuse: bool = True


def run_pieces(
    pieces: Iterable[Piece],
    share: Share,
    *,
    total: int,
    retries: int = 1,
    scheduler: TrialScheduler | None = None,
    progress: Progress | None = None,
    on_ended: Callable[[TrialRecord], None] | None = None,
) -> list[TrialRecord]:
    """Run what is left of the pieces on the connected cluster.

    Args:
        pieces: may be a generator: the next one is drawn when there is a place for it. What a
            piece needs comes before it.
        share: of the cluster.
        total: how many pieces there are.
        retries: how often a piece may fail before it is recorded as failed. What came from
            outside of it (its process died, a disk was full) counts in this command only.
        scheduler: decides from the reports, those of earlier runs too, which pieces to stop.
        progress: tells the user; default: without words about a piece.
        on_ended: called with every piece that has ended, now or in an earlier run.

    Returns:
        How every piece ended, in the order in which they were drawn. Failed ones raise nothing.

    Raises:
        WriteError: a record cannot be written.
    """
    progress = progress or Progress(total=total, at_once=share.at_once)
    store = TrialStore(iter(pieces), retries, scheduler, progress, on_ended or _ignore)
    waiting = store.next()  # for what was all done before, Tune need not start
    if waiting is not None:
        store.waiting = waiting
        _tune(store, share, scheduler, retries)
    return [store.ended[name] for name in store.drawn]


def _ignore(_: TrialRecord) -> None:
    """Ignores the record."""


def _tune(store: TrialStore, share: Share, scheduler: TrialScheduler | None, retries: int) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # as many may wait for their process at the same time
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(share.at_once)
    # a place that holds nothing is not allowed: a byte of memory stands for it
    resources = {"cpu": share.cpus_each, "gpu": share.gpus_each, "memory": 1}
    with _scratch() as folder, _own_error(store):
        tune.Tuner(
            tune.with_resources(_work, resources),
            tune_config=tune.TuneConfig(
                search_alg=_QueueSearcher(store),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=share.at_once,
                reuse_actors=share.reuse,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="pieces",
                storage_path=folder,
                verbose=0,
                callbacks=[_RecordTrials(store)],
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        ).fit()
    if store.running:
        names = ", ".join(sorted(piece.name for piece in store.running.values()))
        raise RaysersError(f"{names} did not end: the same command resumes them")


def _work(config: dict[str, Any]) -> dict[str, str]:
    """One piece, in a worker process."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = _LEAVE_S
    piece: Piece = config["piece"]
    try:
        end: dict[str, Any] = {"status": "done", "result": dict(piece.call(_report))}
    except TrainingStopped:
        raise SystemExit(0) from None  # how Tune's functions leave
    except Exception as error:
        found = failure(error)
        if not found["repeats"]:
            tune.report({ERROR: json.dumps(found)})  # Tune itself passes on a traceback only
            raise
        end = {"status": "failed", **found}
    return {END: json.dumps(end)}


def _report(report: Mapping[str, Any]) -> None:
    try:
        tune.report({**report, REPORT: json.dumps(dict(report))})
    except SystemExit:
        raise TrainingStopped("stopped by the scheduler") from None


class _QueueSearcher(Searcher):  # type: ignore[misc]
    """Hands Tune the pieces."""

    def __init__(self, store: TrialStore) -> None:
        super().__init__()
        self._store = store

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given, to restore runs that we never restore."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Tune's configuration of another trial; None: there is none yet."""
        with self._store.kept_error():
            piece = self._store.next()
        if piece is None:
            return None if self._store.held else Searcher.FINISHED
        self._store.running[trial_id] = piece
        return {"piece": piece}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scribe takes note."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is needed again."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _RecordTrials(tune.Callback):  # type: ignore[misc]
    """Writes into the store what Tune does."""

    def __init__(self, store: TrialStore) -> None:
        self._store = store

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as of the feeder."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        with self._store.kept_error():
            self._store.start(self._store.running[trial.trial_id])

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        with self._store.kept_error():
            self._store.reported(self._store.running[trial.trial_id], result)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        with self._store.kept_error():
            self._store.failed(self._store.running[trial.trial_id])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        with self._store.kept_error():
            self._store.gave_up(self._store.running.pop(trial.trial_id))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        with self._store.kept_error():
            self._store.over(self._store.running.pop(trial.trial_id))

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        self._store.progress.now_and_then()


@contextmanager
def _own_error(store: TrialStore) -> Iterator[None]:
    """Raise what went wrong in the store, of which Tune passes on the text only."""
    try:
        yield
    except Exception:
        if store.error is not None:
            raise store.error from None
        raise


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for Tune, which is also kept from talking."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    folder = tempfile.mkdtemp(prefix="raysers-tune-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
