"""What a worker does with one shard: fetch, decode, score, write one Parquet object.

Two shards are in a worker at a time: the model scores one while the next one is already fetched
and decoded by threads. A shard on which a process died before is worked on clip by clip, alone.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.data.manifest import clips_of
from raysers.data.shards import shard_name
from raysers.distributed import ledger, parts
from raysers.distributed.feed import Decoded, decode_ahead, decode_run, micro_batches
from raysers.errors import ClipError
from raysers.types import Clip, Status

Signal = NDArray[np.float32]


class ClipWorker(Protocol):
    """A loaded model as the stage uses it."""

    schema: pa.Schema
    max_padded_s: float
    provenance: dict[str, Any]

    def score(self, signals: Sequence[Signal]) -> list[dict[str, Any] | ClipError]:
        """One forward pass; per signal its columns, or why it has none."""


class ClipTask(Protocol):
    """What a job does with clips: picklable settings that load the model on the worker."""

    @property
    def table(self) -> str:
        """Name of the output table."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output table."""

    def open(self) -> ClipWorker:
        """Load the model on this process's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """What every worker of a run needs to know.

    Attributes:
        output: the run's folder.
        run_id: written into every row.
        redo: statuses whose rows are made again (`--retry`).
        max_clip_s: longer clips are `too_long`.
        io_threads: threads that fetch and decode.
    """

    output: str
    run_id: str
    redo: frozenset[str]
    max_clip_s: float
    io_threads: int


#: (shard, audio seconds so far, clips by status so far)
Report = Callable[[int, float, dict[str, int]], None]


class ShardStage:
    """The callable of the worker actors: a shard's clips in, one summary row out."""

    def __init__(self, settings: StageSettings, task: ClipTask, report: Report) -> None:
        self._settings = settings
        self._table = task.table
        self._report = report
        self._worker = task.open()
        self._io = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="decode")
        # one thread owns the model: shards are scored first come, first served
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._gate = _Gate()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on one shard. Safe to repeat: the part has the same name and the same rows."""
        shard = block["shard"][0].as_py()
        uri = parts.part_uri(self._settings.output, self._table, shard)
        earlier = parts.read_part(uri)
        clips = clips_of(block)
        if earlier is not None:
            clips = _to_redo(clips, earlier, self._settings.redo, self._settings.run_id)
            if not clips:  # a finished shard whose summary was lost with its worker
                return _summary(shard, earlier, Tally())
        attempt = ledger.begin(self._settings.output, shard_name(shard))
        tally = Tally()
        work = self._clip_by_clip if attempt.suspicious else self._batched
        rows = work(shard, clips, attempt, tally)
        table = parts.to_table(rows, self._worker.schema)
        if earlier is not None:
            table = parts.replace_rows(earlier, table)
        parts.write_part(uri, table)
        attempt.close()
        return _summary(shard, table, tally)

    def _batched(
        self, shard: int, clips: list[Clip], _: ledger.Attempt, tally: Tally
    ) -> list[dict[str, Any]]:
        order = _decode_order(clips)
        with self._gate.shared():
            feed = decode_ahead(
                [clips[i] for i in order],
                self._io,
                max_clip_s=self._settings.max_clip_s,
                ahead_s=max(600.0, 4 * self._worker.max_padded_s),
            )
            rows = self._model.submit(self._score_feed, shard, feed, tally).result()
        in_order: list[dict[str, Any]] = [{}] * len(clips)
        for position, row in zip(order, rows, strict=True):
            in_order[position] = row
        return in_order

    def _score_feed(
        self, shard: int, feed: Iterator[Decoded], tally: Tally
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for batch in micro_batches(tally.timing_waits(feed), self._worker.max_padded_s):
            rows += self._score(batch, tally)
            self._report(shard, tally.audio_s, dict(tally.statuses))
        return rows

    def _clip_by_clip(
        self, shard: int, clips: list[Clip], attempt: ledger.Attempt, tally: Tally
    ) -> list[dict[str, Any]]:
        """Alone in the process, so that a death has one suspect."""
        rows: list[dict[str, Any]] = []
        with self._gate.exclusive():
            for clip in clips:
                rows += self._model.submit(self._alone, clip, attempt, tally).result()
                self._report(shard, tally.audio_s, dict(tally.statuses))
        return rows

    def _alone(self, clip: Clip, attempt: ledger.Attempt, tally: Tally) -> list[dict[str, Any]]:
        if attempt.given_up(clip.clip_id):
            message = f"its worker process died {ledger.MAX_DEATHS} times on this clip"
            dead = Decoded(clip=clip, error=ClipError(Status.WORKER_DIED, message))
            return self._score([dead], tally)
        attempt.enter(clip.clip_id)
        return self._score(decode_run([clip], self._settings.max_clip_s), tally)

    def _score(self, batch: Sequence[Decoded], tally: Tally) -> list[dict[str, Any]]:
        signals = [one.signal for one in batch if one.signal is not None]
        started = time.perf_counter()
        results = iter(self._worker.score(signals) if signals else ())
        tally.model_s += time.perf_counter() - started
        tally.padded_s += len(signals) * max((d.duration_s for d in batch), default=0.0)
        rows = []
        for one in batch:
            result = one.error if one.signal is None else next(results)
            row = self._row(one, result)
            tally.add(one, row["status"])
            rows.append(row)
        return rows

    def _row(self, one: Decoded, result: dict[str, Any] | ClipError | None) -> dict[str, Any]:
        clip = one.clip
        status, error, columns = str(Status.OK), "", {}
        if isinstance(result, ClipError):
            status, error = str(result.status), result.message
        elif result is not None:
            columns = result
        return {
            "file": clip.file,
            "start": clip.start_ns,
            "end": clip.end_ns,
            "clip_id": clip.clip_id,
            "status": status,
            "error": error,
            "duration_s": one.duration_s if one.signal is not None else None,
            "rms_db": one.rms_db,
            "clipped_ratio": one.clipped_ratio,
            "run_id": self._settings.run_id,
            "created_at": datetime.now(UTC),
            **self._worker.provenance,
            **columns,
        }


def _to_redo(clips: list[Clip], earlier: pa.Table, redo: frozenset[str], run_id: str) -> list[Clip]:
    """Clips, as if unprobed, whose row has a status to redo and is not of this very run."""
    rows = earlier.select(["clip_id", "status", "run_id"]).to_pylist()
    again = {r["clip_id"] for r in rows if r["status"] in redo and r["run_id"] != run_id}
    return [parts.unprobed(c) for c in clips if c.clip_id in again]


def _decode_order(clips: Sequence[Clip]) -> list[int]:
    """Longest first for the least padding; stretches of one recording stay as the plan has them.

    The plan groups by length to within some percent already, so keeping neighbours together costs
    little padding and saves opening a long recording once per clip.
    """
    order = list(range(len(clips)))
    if len({clip.file for clip in clips}) == len(clips):
        order.sort(key=lambda i: -clips[i].duration_s if clips[i].duration_s > 0 else 0.0)
    return order


class Tally:
    """Running figures of one shard."""

    def __init__(self) -> None:
        self.audio_s = 0.0
        self.padded_s = 0.0
        self.model_s = 0.0
        self.wait_s = 0.0
        self.decoded = 0
        self.statuses: Counter[str] = Counter()

    def add(self, one: Decoded, status: str) -> None:
        """Count a finished clip."""
        self.audio_s += one.duration_s
        self.decoded += one.signal is not None
        self.statuses[status] += 1

    def timing_waits(self, feed: Iterator[Decoded]) -> Iterator[Decoded]:
        """Pass `feed` on, adding up how long its consumer had to wait."""
        while True:
            started = time.perf_counter()
            try:
                one = next(feed)
            except StopIteration:
                return
            self.wait_s += time.perf_counter() - started
            yield one


def _summary(shard: int, table: pa.Table, tally: Tally) -> pa.Table:
    statuses = Counter(table["status"].to_pylist())
    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "clips": [table.num_rows],
            "audio_s": [float(np.nansum(table["duration_s"].to_numpy()))],
            "padded_s": [tally.padded_s],
            "scored_s": [tally.audio_s],
            "model_s": [tally.model_s],
            "wait_s": [tally.wait_s],
            "decoded": [tally.decoded],
            "statuses": [json.dumps(statuses)],
        }
    )


class _Gate:
    """Many may be inside shared, or one exclusive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._sharing)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
