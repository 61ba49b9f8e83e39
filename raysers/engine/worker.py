"""What a worker does with one shard: fetch, decode, score, write one Parquet object.

The same code runs in a Ray actor and in the driver's own process (`--workers local`). After a
worker death the shard is retried in isolation, in the same micro-batches, so that its rows do not
depend on the death; only clips that were in work at a second death are scored alone.
"""

from __future__ import annotations

import math
import resource
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.data.manifest import clips_of
from raysers.data.shards import shard_name
from raysers.engine import ledger, output
from raysers.engine.feed import AHEAD_S, Decoded, decode_ahead, micro_batches
from raysers.engine.plan import Placement
from raysers.errors import ClipError, DeviceLost, RaysersError
from raysers.run import RunRecord
from raysers.types import Clip, Status

Signal = NDArray[np.float32]
Row = dict[str, Any]
#: Clip id and name of the variant.
Key = tuple[str, str]

#: Shards in one worker at a time: one is scored while the next is decoded.
SHARDS_AT_A_TIME = 2

#: Clips decoded together on the first attempt after a death.
_STRETCH = 32


class ClipModel(Protocol):
    """A loaded model as the worker uses it.

    Attributes:
        max_padded_s: largest clips x longest, in seconds, of one forward pass.
        provenance: columns of every row, scored or not.
    """

    max_padded_s: float
    provenance: Mapping[str, Any]

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """One forward pass over 16 kHz signals with their transcripts, None where unknown.

        Returns per signal its columns, or why it has none.
        """


class ClipTask(ABC):
    """What a job does with clips: a frozen dataclass that loads the model on a worker."""

    #: Name of the output table.
    table: ClassVar[str] = "annotations"
    #: Modules that `open` needs, imported while the clips are listed.
    preloads: ClassVar[Sequence[str]] = ()

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Columns of the output table."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What of the task decides the rows."""

    @abstractmethod
    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """The task with device, precision and threads settled, the same for all workers."""

    @abstractmethod
    def open(self) -> ClipModel:
        """Load the model on this process's device."""

    @property
    def uses_gpus(self) -> bool:
        """Whether workers take a GPU where the cluster has them."""
        return True

    @property
    def notes(self) -> Sequence[str]:
        """Warnings to print before the work starts."""
        return ()

    @property
    def licence(self) -> str:
        """Of the model whose output the rows are; empty: unknown."""
        return ""

    @property
    def variant_names(self) -> tuple[str, ...]:
        """Names of the rows of each clip, in their order; one without a name by default."""
        return ("",)

    def variants(self, decoded: Decoded) -> list[Decoded]:
        """One per name, in their order, each with a signal or an error."""
        return [decoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What every worker of a run needs to know."""

    output: str
    run_id: str
    #: Written into every part (`output.stamp_of`).
    stamp: str
    #: Statuses whose rows are scored again.
    retry: frozenset[str]
    max_clip_s: float
    #: Threads that fetch and decode.
    io_threads: int


@dataclass(slots=True, kw_only=True)
class ShardResult:
    """A finished shard: what its part holds, and what this attempt did for it.

    `statuses` and `audio_s` count the part's rows and audio, `scored_s` and `padded_s` what went
    through the model, without and with padding. `model_s` is the wall time of forward passes,
    `wait_s` the time in which the model waited for audio. `faults` has, by fault of recordings
    (`audio.level.FAULTS`), the clips decoded and one file. `began_at` (since the epoch) is when the
    worker, its model loaded, took the shard up; `peak_bytes` the worker's largest resident memory.
    """

    shard: int
    began_at: float = field(default_factory=time.time)
    statuses: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0
    scored_s: float = 0.0
    padded_s: float = 0.0
    model_s: float = 0.0
    wait_s: float = 0.0
    decoded: int = 0
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    peak_bytes: int = 0

    def about(self, part: pa.Table) -> Self:
        """This result, with what `part` holds."""
        self.statuses = Counter(part["status"].to_pylist())
        self.audio_s = float(np.nansum(part["duration_s"].to_numpy()))
        # the kernel counts in KiB on Linux, in bytes on macOS
        unit_bytes = 1 if sys.platform == "darwin" else 1024
        self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
        return self


#: (shard, audio seconds so far, rows by status so far)
Report = Callable[[int, float, dict[str, int]], None]


class ShardWorker:
    """Scores shards with one model, which one thread loads and calls.

    A second thread would start a second team of compute threads.
    """

    def __init__(self, settings: WorkerSettings, task: ClipTask, report: Report) -> None:
        self._settings = settings
        self._task = task
        self._report = report
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._io = ThreadPoolExecutor(settings.io_threads, thread_name_prefix="decode")
        self._store = ThreadPoolExecutor(2 * SHARDS_AT_A_TIME, thread_name_prefix="store")
        self._slots = threading.Semaphore(SHARDS_AT_A_TIME)
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        self._model = self._model_thread.submit(task.open).result()

    def stop(self) -> None:
        """Make shards in work end at their next micro-batch, with an error."""
        self._stopped.set()

    def close(self) -> None:
        """End the threads; nothing is in work any more."""
        self._io.shutdown(wait=False, cancel_futures=True)
        self._store.shutdown()
        self._model_thread.shutdown(wait=False, cancel_futures=True)

    def run(self, block: pa.Table) -> ShardResult:
        """Score one shard's clips and write its part. Safe to repeat: same name, same rows."""
        shard = block["shard"][0].as_py()
        settings = self._settings
        result = ShardResult(shard=shard)
        uri = output.part_uri(settings.output, self._task.table, shard)
        # both answers of the store at once: a shard of short clips would wait longer than it works
        begun = self._store.submit(
            ledger.begin, settings.output, shard_name(shard), settings.run_id
        )
        try:
            earlier = output.read_part(uri, stamp=settings.stamp)
        finally:
            attempt = begun.result()
        clips = clips_of(block)
        if earlier is not None:
            clips = _to_retry(clips, earlier, settings)
            if not clips:  # nothing to retry, or a finished shard whose result was lost
                attempt.close()
                return result.about(earlier)
        try:
            rows = self._rows_of(clips, attempt, result)
        except BaseException as error:
            if not isinstance(error, DeviceLost):
                attempt.abandon()
            raise
        names = self._task.variant_names
        ordered = [rows[clip.clip_id, name] for clip in clips for name in names]
        schema = output.row_schema(self._task.schema, block.column_names)
        part = output.to_table(ordered, schema)
        if earlier is not None:
            part = output.replace_rows(earlier, part)
        output.write_part(uri, part, stamp=settings.stamp)
        self._store.submit(attempt.close)  # a mark that stays does no harm: its part is there
        return result.about(part)

    def _rows_of(
        self, clips: list[Clip], attempt: ledger.Attempt, result: ShardResult
    ) -> dict[Key, Row]:
        clips = _decode_order(clips)
        slots = SHARDS_AT_A_TIME if attempt.suspicious else 1
        with self._turn:  # one at a time collects slots, or two could wait for each other
            for _ in range(slots):
                self._slots.acquire()
        try:
            isolated = self._isolated_feed(clips, attempt, result)
            feed = isolated if attempt.suspicious else self._feed(clips, result)
            return self._model_thread.submit(self._score_feed, feed, attempt, result).result()
        finally:
            self._slots.release(slots)

    def _feed(self, clips: list[Clip], result: ShardResult) -> Iterator[Decoded]:
        counting = threading.Lock()

        def variants(decoded: Decoded) -> list[Decoded]:
            if decoded.signal is not None:
                with counting:
                    result.decoded += 1
                    for fault in decoded.faults:
                        clips, file = result.faults.get(fault, (0, decoded.clip.file))
                        result.faults[fault] = clips + 1, file
            return self._task.variants(decoded)

        return decode_ahead(
            clips,
            self._io,
            max_clip_s=self._settings.max_clip_s,
            ahead_s=ahead_s(max(AHEAD_S, 4 * self._model.max_padded_s), self._task),
            variants=variants,
        )

    def _isolated_feed(
        self, clips: list[Clip], attempt: ledger.Attempt, result: ShardResult
    ) -> Iterator[Decoded]:
        for alone, group in groupby(clips, key=lambda c: c.clip_id in attempt.alone):
            while stretch := list(islice(group, 1 if alone else _STRETCH)):
                if attempt.given_up(stretch[0].clip_id):
                    message = (
                        f"its worker process died {ledger.MAX_DEATHS} times on this clip alone"
                    )
                    error = ClipError(Status.WORKER_DIED, message)
                    yield from self._task.variants(Decoded(clip=stretch[0], error=error))
                    continue
                attempt.enter([clip.clip_id for clip in stretch])
                yield from self._feed(stretch, result)

    def _score_feed(
        self, feed: Iterator[Decoded], attempt: ledger.Attempt, result: ShardResult
    ) -> dict[Key, Row]:
        rows: dict[Key, Row] = {}
        for batch in micro_batches(_timed(feed, result), self._model.max_padded_s):
            if self._stopped.is_set():
                raise RaysersError("the run was stopped")
            for group in _groups(batch, attempt):
                rows.update(self._score(group, result))
            self._report(result.shard, result.scored_s, dict(result.statuses))
        return rows

    def _score(self, batch: Sequence[Decoded], result: ShardResult) -> Iterator[tuple[Key, Row]]:
        """Rows of a batch, with one forward pass over the clips that have a signal."""
        good = [one for one in batch if one.signal is not None]
        started = time.perf_counter()
        scored = iter(score_clips(self._model, good))
        result.model_s += time.perf_counter() - started
        result.padded_s += len(good) * max((one.duration_s for one in good), default=0.0)
        shared = {"run_id": self._settings.run_id, "created_at": datetime.now(UTC)}
        for one in batch:
            clip, has_signal = one.clip, one.signal is not None
            found = next(scored) if has_signal else one.error
            failure = found if isinstance(found, ClipError) else None
            status = str(failure.status if failure else Status.OK)
            result.scored_s += one.duration_s
            result.statuses[status] += 1
            row = {
                "file": clip.file,
                "start": clip.start_ns,
                "end": clip.end_ns,
                "clip_id": clip.clip_id,
                "channel": clip.channel,
                "status": status,
                "error": failure.message if failure else "",
                "duration_s": one.duration_s if has_signal else None,
                "rms_db": one.rms_db,
                "clipped_ratio": one.clipped_ratio,
            }
            scores = found if isinstance(found, dict) else {}
            key = (clip.clip_id, one.variant)
            yield key, {**row, **shared, **self._model.provenance, **one.columns, **scores}


def score_clips(model: ClipModel, decoded: Sequence[Decoded]) -> list[Row | ClipError]:
    """One forward pass over clips that all have a signal."""
    signals = [one.signal for one in decoded if one.signal is not None]
    return model.score(signals, [one.clip.transcript for one in decoded]) if signals else []


def ahead_s(plain_s: float, task: ClipTask) -> float:
    """Clip seconds to decode ahead: `plain_s` without variants, fewer with them in memory too."""
    return plain_s / math.sqrt(len(task.variant_names))


def _timed(feed: Iterator[Decoded], result: ShardResult) -> Iterator[Decoded]:
    """The same clips, adding up how long the model waits for them."""
    started = time.perf_counter()
    for one in feed:
        result.wait_s += time.perf_counter() - started
        yield one
        started = time.perf_counter()


def _groups(batch: list[Decoded], attempt: ledger.Attempt) -> Iterator[list[Decoded]]:
    """The batch itself; in isolation, each quarantined clip alone, then the others."""
    if not attempt.suspicious:
        yield batch
        return
    groups = [[d] for d in batch if d.clip.clip_id in attempt.alone]
    groups.append([d for d in batch if d.clip.clip_id not in attempt.alone])
    for group in filter(None, groups):
        attempt.enter([d.clip.clip_id for d in group if d.signal is not None])
        yield group


def _to_retry(clips: list[Clip], earlier: pa.Table, settings: WorkerSettings) -> list[Clip]:
    """Clips whose row has a status to retry and is not of this very run."""
    failed = {
        row["clip_id"]
        for row in earlier.select(["clip_id", "status", "run_id"]).to_pylist()
        if row["status"] in settings.retry and row["run_id"] != settings.run_id
    }
    return [clip for clip in clips if clip.clip_id in failed]


def _decode_order(clips: list[Clip]) -> list[Clip]:
    """Longest first for the least padding, but neighbours in one recording share its reader."""
    if len({clip.file for clip in clips}) < len(clips):
        return clips
    return sorted(clips, key=lambda c: -c.duration_s if c.duration_s > 0 else 0.0)
