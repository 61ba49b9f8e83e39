"""The driver's store of pieces: which there are, which are at work, and how the others ended.

Every change that has to survive the driver is written to the piece's folder before anything else
is informed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from raysers.tuning.trial_progress import Progress
from raysers.tuning.trial_record import TrialRecord, missing, stored

#: Tells how far a piece is; raises TrainingStopped when no more of it is wanted.
Report = Callable[[Mapping[str, Any]], None]

#: Keys of what workers send through Tune's results, each a JSON text.
REPORT, ERROR, END = "raysers_report", "raysers_error", "raysers_end"

#: What is known of a process that said nothing.
_DIED = "its worker process died (killed, or out of memory)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of work.

    Attributes:
        name: unique among the pieces of a run.
        path: its folder, local or s3://.
        call: does it in a worker process, picklable; returns JSON-ready values. Called again in
            the same folder after an interruption.
        notes: JSON-ready values to keep with its record.
        needs: names of pieces that have to be done before it can begin.
    """

    name: str
    path: str
    call: Callable[[Report], Mapping[str, Any]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(slots=True)
class TrialStore:
    """Which pieces there are, which are at work, and how the others ended."""

    pieces: Iterator[Piece]
    retries: int
    scheduler: TrialScheduler | None
    progress: Progress
    on_ended: Callable[[TrialRecord], None]
    waiting: Piece | None = None
    held: list[Piece] = field(default_factory=list)
    running: dict[str, Piece] = field(default_factory=dict)
    records: dict[str, TrialRecord] = field(default_factory=dict)
    ended: dict[str, TrialRecord] = field(default_factory=dict)
    began_s: dict[str, float] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    error: Exception | None = None

    @contextmanager
    def kept_error(self) -> Iterator[None]:
        """Remember what the block raises."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def next(self) -> Piece | None:
        """The next piece with something left to do; those without are passed on as they are.

        None while all the others need one that is at work: they are `held`, and take no place.
        """
        if self.waiting is not None:
            piece, self.waiting = self.waiting, None
            return piece
        while (ready := self._ready()) is not None:
            record = stored(ready.path)
            if record is not None and record.is_final(self.retries):
                self._known(record)
                continue
            attempted = record or TrialRecord(name=ready.name, path=ready.path, status="running")
            self.records[ready.name] = replace(attempted.again(), notes=ready.notes)
            error = missing(self.ended.get(name) for name in ready.needs)
            if not error:
                return ready
            if record is not None and record.error == error:
                self._known(record)
            else:
                before = self.records[ready.name]
                self._end(ready, replace(before, status="failed", error=error, outside=True))
        return None

    def _ready(self) -> Piece | None:
        """The next piece that needs none that is not over yet."""
        for piece in self.held:
            if self._may_begin(piece):
                self.held.remove(piece)
                return piece
        for piece in self.pieces:
            self.drawn.append(piece.name)
            if self._may_begin(piece):
                return piece
            self.held.append(piece)
        return None

    def _may_begin(self, piece: Piece) -> bool:
        return all(name in self.ended or name not in self.drawn for name in piece.needs)

    def _known(self, record: TrialRecord) -> None:
        """It ended before this run."""
        self.ended[record.name] = record
        self.progress.known(record)
        _replay(self.scheduler, record)
        self.on_ended(record)

    def start(self, piece: Piece) -> None:
        """A worker takes it up, or takes it up again."""
        before = self.records[piece.name]
        attempts = before.attempts + 1
        self.began_s[piece.name] = time.monotonic()
        self.progress.started(piece.name)
        self._save(
            before, status="running", error="", repeats=False, outside=False, reports=(),
            attempts=attempts,
        )  # fmt: skip

    def reported(self, piece: Piece, result: Mapping[str, Any]) -> None:
        """What a worker says on its way."""
        record = self.records[piece.name]
        if REPORT in result:
            report = json.loads(result[REPORT])
            self.progress.reported(piece.name, report)
            record = replace(record, reports=(*record.reports, report))
        if ERROR in result:
            record = replace(record, **json.loads(result[ERROR]))
        if END in result:
            record = replace(record, **json.loads(result[END]))
        self.records[piece.name] = record

    def failed(self, piece: Piece) -> None:
        """An attempt failed; Tune makes another one."""
        record = _blamed(self._counted(piece))
        self._save(record, failures=record.failures + 1)
        self.progress.failed(piece.name, self.records[piece.name].error)

    def gave_up(self, piece: Piece) -> None:
        """The last attempt failed."""
        record = _blamed(self._counted(piece))
        self._end(piece, replace(record, status="failed", failures=record.failures + 1))

    def over(self, piece: Piece) -> None:
        """It came to its end, or the scheduler stopped it."""
        record = self._counted(piece)
        status = "stopped" if record.status == "running" else record.status
        failures = record.failures + (status == "failed")
        self._end(piece, replace(record, status=status, failures=failures))

    def _counted(self, piece: Piece) -> TrialRecord:
        record = self.records[piece.name]
        ran_s = time.monotonic() - self.began_s.pop(piece.name, time.monotonic())
        return replace(record, wall_s=round(record.wall_s + ran_s, 3))

    def _end(self, piece: Piece, record: TrialRecord) -> None:
        record.save()
        self.ended[piece.name] = record
        self.progress.over(record)
        self.on_ended(record)

    def _save(self, record: TrialRecord, **changes: Any) -> None:
        self.records[record.name] = replace(record, **changes)
        self.records[record.name].save()


def _blamed(record: TrialRecord) -> TrialRecord:
    """Of a failed attempt: a process that said nothing died."""
    return record if record.error else replace(record, error=_DIED, outside=True)


def _replay(scheduler: TrialScheduler | None, record: TrialRecord) -> None:
    """Let the scheduler hear what a piece of an earlier run reported."""
    if scheduler is None or record.status == "failed":
        return
    trial = SimpleNamespace(trial_id=record.name)
    scheduler.on_trial_add(None, trial)
    for report in record.reports:
        scheduler.on_trial_result(None, trial, dict(report))
