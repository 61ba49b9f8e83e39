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
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.data.manifest import clips_of
from raysers.data.shards import shard_name
from raysers.engine import output
from raysers.engine.feed import AHEAD_S, Budget, Decoded, Variants, decode_ahead, micro_batches
from raysers.engine.placement import Once, Placement, ProcessPool
from raysers.errors import ClipError, DecoderDied, DeviceLost, RaysersError
from raysers.io import marks
from raysers.run import RunRecord
from raysers.types import Clip, Status

Signal = NDArray[np.float32]
Row = dict[str, Any]
#: Clip id and name of the variant.
Key = tuple[str, str]

#: Long shards in work at a time: one is scored while the next is decoded.
_LONG_SHARDS = 2

#: Threads that read and write small objects of shards in work.
_STORE_THREADS = 16

#: Clips decoded together on the first attempt after a death.
_STRETCH = 32


class ClipModel(Protocol):
    """A loaded model; `max_padded_s` is the most clips x longest, in seconds, of one forward pass.

    `provenance` are columns of every row, scored or not.
    """

    max_padded_s: float
    provenance: Mapping[str, Any]

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """Columns, or why there are none, of each 16 kHz signal with its transcript, if known."""


class ClipTask(ABC):
    """What a job does with clips: a frozen dataclass that loads the model on a worker."""

    #: Name of the output table.
    table: ClassVar[str] = "annotations"
    #: Modules that `open` needs, imported while the clips are listed.
    preloads: ClassVar[Sequence[str]] = ()
    #: Whether the model pads the clips it is given to the longest; else it cuts them itself.
    pads: ClassVar[bool] = True

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Columns of the output table."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What of the task decides the rows."""

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """The task with device, precision and threads settled, the same for all workers."""
        return self

    @abstractmethod
    def open(self) -> ClipModel:
        """Load the model on this process's device."""

    @property
    def uses_gpus(self) -> bool:
        """Whether workers take a GPU where the cluster has them."""
        return True

    @property
    def model_threads(self) -> int:
        """Threads that call the model: on a GPU, one makes rows while another's batch is there."""
        return 1

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
    """What every worker of a run needs to know.

    `stamp` goes into every part (`output.stamp_of`); rows with a status in `retry` are scored
    again; `io_threads` fetch and decode, in `decode_processes` beside the worker's if any.
    """

    output: str
    run_id: str
    stamp: str
    retry: frozenset[str]
    max_clip_s: float
    io_threads: int
    decode_processes: int = 0


@dataclass(slots=True, kw_only=True)
class ShardResult:
    """A finished shard: what its part holds, and what this attempt did for it.

    `statuses` and `audio_s` count the part's rows and audio, `scored_s` and `padded_s` what went
    through the model, without and with padding. `model_s` is the wall time of forward passes,
    `wait_s` that of waiting for audio. `faults` has the clips and one file of each of
    `samples.FAULTS`. `began_at` is since the epoch; `peak_bytes` are the worker's.
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

    def count_decoded(self, one: Decoded) -> None:
        """Count a clip and the faults of its recording."""
        self.decoded += 1
        for fault in one.faults:
            clips, file = self.faults.get(fault, (0, one.clip.file))
            self.faults[fault] = clips + 1, file

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
    """Scores shards with one model, which on CPUs only the thread that loaded it calls."""

    def __init__(self, settings: WorkerSettings, task: ClipTask, report: Report) -> None:
        self._settings = settings
        self._task = task
        self._report = report
        self._model_threads = ThreadPoolExecutor(task.model_threads, thread_name_prefix="model")
        self._io, self._variants = decoding(task, settings.io_threads, settings.decode_processes)
        self._store = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store")
        self._stopped = threading.Event()
        self._model = self._model_threads.submit(task.open).result()
        self._ahead_s = ahead_of(task, max(AHEAD_S, 4 * self._model.max_padded_s))
        self._all_s = _LONG_SHARDS * self._ahead_s
        self._budget = Budget(self._all_s)

    def stop(self) -> None:
        """Make shards in work end at their next micro-batch, with an error."""
        self._stopped.set()

    def close(self) -> None:
        """End the threads; nothing is in work any more."""
        self._io.shutdown(wait=False, cancel_futures=True)
        self._store.shutdown()
        self._model_threads.shutdown(wait=False, cancel_futures=True)

    def run(self, block: pa.Table) -> ShardResult:
        """Score one shard's clips and write its part. Safe to repeat: same name, same rows."""
        shard = block["shard"][0].as_py()
        settings, task = self._settings, self._task
        result = ShardResult(shard=shard)
        uri = output.part_uri(settings.output, task.table, shard)
        # both answers of the store at once: a shard of short clips would wait longer than it works
        mark = (settings.output, shard_name(shard), settings.run_id)
        begun = self._store.submit(marks.begin, *mark)
        try:
            earlier = output.read_part(uri, stamp=settings.stamp)
        finally:
            attempt = begun.result()
        clips = clips_of(block)
        if earlier is not None:
            again = _to_retry(earlier, settings)
            clips = [clip for clip in clips if clip.clip_id in again]
            if not clips:  # nothing to retry, or a finished shard whose result was lost
                attempt.close()
                return result.about(earlier)
        while True:
            try:
                rows = self._rows_of(clips, attempt, result)
                break
            except DecoderDied:  # as after the death of this process, but the model stays loaded
                result = ShardResult(shard=shard)
                attempt = marks.begin(*mark)
            except BaseException as error:
                if not isinstance(error, DeviceLost):
                    attempt.abandon()
                raise
        ordered = [rows[clip.clip_id, name] for clip in clips for name in task.variant_names]
        part = output.to_table(ordered, output.row_schema(task.schema, block.column_names))
        if earlier is not None:
            part = output.replace_rows(earlier, part)
        output.write_part(uri, part, stamp=settings.stamp)
        self._store.submit(attempt.close)  # a mark that stays does no harm: its part is there
        return result.about(part)

    def _rows_of(
        self, clips: list[Clip], attempt: marks.Attempt, result: ShardResult
    ) -> dict[Key, Row]:
        clips = _decode_order(clips)
        seconds = sum(clip.duration_s for clip in clips if clip.duration_s > 0)
        # nothing else is in work beside a shard on which a worker died
        with self._budget.taken(self._all_s if attempt.suspicious else min(seconds, self._ahead_s)):
            feed = self._isolated_feed(clips, attempt) if attempt.suspicious else self._feed(clips)
            return self._model_threads.submit(self._score_feed, feed, attempt, result).result()

    def _feed(self, clips: list[Clip]) -> Iterator[Decoded]:
        return decode_ahead(
            clips,
            self._io,
            max_clip_s=self._settings.max_clip_s,
            ahead_s=self._ahead_s,
            variants=self._variants,
        )

    def _isolated_feed(self, clips: list[Clip], attempt: marks.Attempt) -> Iterator[Decoded]:
        for alone, group in groupby(clips, key=lambda c: c.clip_id in attempt.alone):
            while stretch := list(islice(group, 1 if alone else _STRETCH)):
                if attempt.given_up(stretch[0].clip_id):
                    times = f"{marks.MAX_DEATHS} times on this clip alone"
                    error = ClipError(Status.WORKER_DIED, f"its worker process died {times}")
                    yield from self._task.variants(Decoded(clip=stretch[0], error=error))
                    continue
                attempt.enter([clip.clip_id for clip in stretch])
                yield from self._feed(stretch)

    def _score_feed(
        self, feed: Iterator[Decoded], attempt: marks.Attempt, result: ShardResult
    ) -> dict[Key, Row]:
        rows: dict[Key, Row] = {}
        for batch in micro_batches(_timed(feed, result), self._model.max_padded_s, self._task.pads):
            if self._stopped.is_set():
                raise RaysersError("the run was stopped")
            for group in _groups(batch, attempt):
                rows.update(self._score(group, result))
            self._report(result.shard, result.scored_s, dict(result.statuses))
        return rows

    def _score(self, batch: Sequence[Decoded], result: ShardResult) -> Iterator[tuple[Key, Row]]:
        started = time.perf_counter()
        scored = score_batch(self._model, batch)
        result.model_s += time.perf_counter() - started
        lengths_s = [one.duration_s for one in batch if one.signal is not None]
        longest_s = max(lengths_s, default=0.0)
        result.padded_s += sum(longest_s if self._task.pads else own_s for own_s in lengths_s)
        shared = {"run_id": self._settings.run_id, "created_at": datetime.now(UTC)}
        for one, found in zip(batch, scored, strict=True):
            clip, has_signal = one.clip, one.signal is not None
            failure = found if isinstance(found, ClipError) else None
            status = str(failure.status if failure else Status.OK)
            result.scored_s += one.duration_s
            result.statuses[status] += 1
            if has_signal and one.variant == self._task.variant_names[0]:
                result.count_decoded(one)
            row = {
                "file": clip.file,
                "start": clip.start_ns,
                "end": clip.end_ns,
                "clip_id": clip.clip_id,
                "channel": clip.channel,
                "audio_stream": clip.audio_stream,
                "status": status,
                "error": failure.message if failure else "",
                "duration_s": one.duration_s if has_signal else None,
                "rms_db": one.rms_db,
                "clipped_ratio": one.clipped_ratio,
            }
            scores = found if isinstance(found, dict) else {}
            key = (clip.clip_id, one.variant)
            yield key, {**row, **shared, **self._model.provenance, **one.columns, **scores}


def score_batch(model: ClipModel, batch: Sequence[Decoded]) -> list[Row | ClipError]:
    """One forward pass over the clips of a batch that have a signal; the errors of the others."""
    signals = [one.signal for one in batch if one.signal is not None]
    texts = [one.clip.transcript for one in batch if one.signal is not None]
    scored = iter(model.score(signals, texts) if signals else ())
    return [next(scored) if one.error is None else one.error for one in batch]


def decoding(task: ClipTask, threads: int, processes: int) -> tuple[Executor, Variants | None]:
    """What decodes, and what makes a task's variants there."""
    if not processes:
        return ThreadPoolExecutor(threads, thread_name_prefix="decode"), task.variants
    plain = type(task).variants is ClipTask.variants
    pool = ProcessPool(processes, max(2, -(-threads // processes)))
    return pool, None if plain else Once(task.variants)


def score_stream(
    model: ClipModel,
    clips: Sequence[Clip],
    pool: Executor,
    *,
    max_clip_s: float,
    ahead_s: float = AHEAD_S,
    variants: Variants | None = None,
) -> Iterator[tuple[Decoded, Row | ClipError]]:
    """Clips or their variants, and their scores."""
    feed = decode_ahead(clips, pool, max_clip_s=max_clip_s, ahead_s=ahead_s, variants=variants)
    for batch in micro_batches(feed, model.max_padded_s):
        yield from zip(batch, score_batch(model, batch), strict=True)


def ahead_of(task: ClipTask, plain_s: float = AHEAD_S) -> float:
    """Clip seconds to decode ahead, fewer where their variants are in memory too."""
    return plain_s / math.sqrt(len(task.variant_names))


def _timed(feed: Iterator[Decoded], result: ShardResult) -> Iterator[Decoded]:
    started = time.perf_counter()
    for one in feed:
        result.wait_s += time.perf_counter() - started
        yield one
        started = time.perf_counter()


def _groups(batch: list[Decoded], attempt: marks.Attempt) -> Iterator[list[Decoded]]:
    """The batch itself; in isolation, each quarantined clip alone, then the others."""
    if not attempt.suspicious:
        yield batch
        return
    groups = [[d] for d in batch if d.clip.clip_id in attempt.alone]
    groups.append([d for d in batch if d.clip.clip_id not in attempt.alone])
    for group in filter(None, groups):
        attempt.enter([d.clip.clip_id for d in group if d.signal is not None])
        yield group


def _to_retry(earlier: pa.Table, settings: WorkerSettings) -> set[str]:
    """Ids of clips whose row has a status to retry and is not of this very run."""
    rows = zip(
        *(earlier[name].to_pylist() for name in ("clip_id", "status", "run_id")), strict=True
    )
    return {clip for clip, s, run in rows if s in settings.retry and run != settings.run_id}


def _decode_order(clips: list[Clip]) -> list[Clip]:
    """Longest first for the least padding, but neighbours in one recording share its reader."""
    if len({clip.file for clip in clips}) < len(clips):
        return clips
    return sorted(clips, key=lambda c: -c.duration_s if c.duration_s > 0 else 0.0)
