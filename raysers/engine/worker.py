"""What a worker does with one shard: fetch, decode, score, write one Parquet object.

Two shards are in a worker at a time: the model scores one while the next one is already fetched
and decoded by threads. A shard on which a process died before is worked on alone and with care, in
the same micro-batches, so that its rows do not depend on what happened; only clips that were being
worked on at a second death are scored alone.

A job may ask for several rows of a clip (`versions`); they are made in the decoding threads and go
through the model together with those of other clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.data.manifest import clips_of
from raysers.data.shards import shard_name
from raysers.engine import ledger
from raysers.engine import output as parts
from raysers.engine.feed import AHEAD_S, Decoded, decode_ahead, micro_batches
from raysers.engine.gate import Gate
from raysers.engine.tally import Tally, summary_row
from raysers.engine.versions import Versions, ahead_s, expanded, names_of
from raysers.errors import ClipError
from raysers.types import Clip, Status

Signal = NDArray[np.float32]
Row = dict[str, Any]
#: Clip and version.
Key = tuple[str, str]

#: Clips decoded together on the first attempt after a death.
_STRETCH = 32


class ClipWorker(Protocol):
    """A loaded model as the stage uses it."""

    schema: pa.Schema
    max_padded_s: float
    provenance: dict[str, Any]

    def score(self, signals: Sequence[Signal]) -> list[Row | ClipError]:
        """One forward pass; per signal its columns, or why it has none."""


@runtime_checkable
class TranscriptReader(Protocol):
    """A worker that also wants the words a manifest has of a clip; used in place of `score`."""

    def score_spoken(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None]
    ) -> list[Row | ClipError]:
        """As `score`; a transcript is None where the manifest has none."""


def score_clips(worker: ClipWorker, batch: Sequence[Decoded]) -> list[Row | ClipError]:
    """One forward pass over those clips of a micro-batch that have a signal."""
    heard = [(one.signal, one.clip.transcript) for one in batch if one.signal is not None]
    if not heard:
        return []
    signals, transcripts = zip(*heard, strict=True)
    if isinstance(worker, TranscriptReader):
        return worker.score_spoken(list(signals), list(transcripts))
    return worker.score(list(signals))


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
        whole: clips are whole files, so one whose header failed may be tried again.
        max_clip_s: longer clips are `too_long`.
        io_threads: threads that fetch and decode.
        versions: the rows of a clip, when it has several.
    """

    output: str
    run_id: str
    redo: frozenset[str]
    whole: bool
    max_clip_s: float
    io_threads: int
    versions: Versions | None = None


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
        self._gate = Gate()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on one shard. Safe to repeat: the part has the same name and the same rows."""
        shard = block["shard"][0].as_py()
        uri = parts.part_uri(self._settings.output, self._table, shard)
        earlier = parts.read_part(uri)
        clips = clips_of(block)
        if earlier is not None:
            clips = _to_redo(clips, earlier, self._settings)
            if not clips:  # nothing to redo, or a finished shard whose summary was lost
                ledger.discard(ledger.mark_uri(self._settings.output, shard_name(shard)))
                return summary_row(shard, earlier, Tally())
        attempt = ledger.begin(self._settings.output, shard_name(shard), self._settings.run_id)
        tally = Tally()
        rows = self._rows_of(shard, clips, attempt, tally)
        names = names_of(self._settings.versions)
        ordered = [rows[clip.clip_id, name] for clip in clips for name in names]
        table = parts.to_table(ordered, self._worker.schema)
        if earlier is not None:
            table = parts.replace_rows(earlier, table)
        parts.write_part(uri, table)
        attempt.close()
        return summary_row(shard, table, tally)

    def _rows_of(
        self, shard: int, clips: list[Clip], attempt: ledger.Attempt, tally: Tally
    ) -> dict[Key, Row]:
        clips = _decode_order(clips)
        with self._gate.exclusive() if attempt.suspicious else self._gate.shared():
            careful = attempt.suspicious
            feed = (
                self._careful_feed(clips, attempt, tally) if careful else self._feed(clips, tally)
            )
            return self._model.submit(self._score_feed, shard, feed, attempt, tally).result()

    def _feed(self, clips: list[Clip], tally: Tally) -> Iterator[Decoded]:
        most_s = max(AHEAD_S, 4 * self._worker.max_padded_s)
        return decode_ahead(
            clips,
            self._io,
            max_clip_s=self._settings.max_clip_s,
            ahead_s=ahead_s(most_s, self._settings.versions),
            finish=self._versions_of,
            counted=tally.count_decode,
        )

    def _versions_of(self, decoded: list[Decoded]) -> list[Decoded]:
        return expanded(decoded, self._settings.versions)

    def _careful_feed(
        self, clips: list[Clip], attempt: ledger.Attempt, tally: Tally
    ) -> Iterator[Decoded]:
        for stretch in _stretches(clips, attempt):
            if attempt.given_up(stretch[0].clip_id):
                message = f"its worker process died {ledger.MAX_DEATHS} times on this clip alone"
                given_up = Decoded(clip=stretch[0], error=ClipError(Status.WORKER_DIED, message))
                yield from self._versions_of([given_up])
                continue
            attempt.enter([clip.clip_id for clip in stretch])
            yield from self._feed(stretch, tally)

    def _score_feed(
        self, shard: int, feed: Iterator[Decoded], attempt: ledger.Attempt, tally: Tally
    ) -> dict[Key, Row]:
        rows: dict[Key, Row] = {}
        for batch in micro_batches(tally.timing_waits(feed), self._worker.max_padded_s):
            for group in _groups(batch, attempt):
                for one, row in self._score(group, tally):
                    rows[one.clip.clip_id, one.version] = row
            self._report(shard, tally.audio_s, dict(tally.statuses))
        return rows

    def _score(self, batch: Sequence[Decoded], tally: Tally) -> Iterator[tuple[Decoded, Row]]:
        signals = sum(one.signal is not None for one in batch)
        started = time.perf_counter()
        results = iter(score_clips(self._worker, batch))
        tally.model_s += time.perf_counter() - started
        tally.padded_s += signals * max((d.duration_s for d in batch), default=0.0)
        for one in batch:
            row = self._row(one, one.error if one.signal is None else next(results))
            tally.add(one, row["status"])
            yield one, row

    def _row(self, one: Decoded, result: Row | ClipError | None) -> Row:
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
            **one.columns,
            **columns,
        }


def _groups(batch: list[Decoded], attempt: ledger.Attempt) -> Iterator[list[Decoded]]:
    """The batch itself; with care, each clip that is to be taken alone, then the others."""
    if not attempt.suspicious:
        yield batch
        return
    apart = [[d] for d in batch if d.clip.clip_id in attempt.apart]
    others = [d for d in batch if d.clip.clip_id not in attempt.apart]
    for group in [*apart, others] if others else apart:
        attempt.enter([d.clip.clip_id for d in group if d.signal is not None])
        yield group


def _stretches(clips: list[Clip], attempt: ledger.Attempt) -> Iterator[list[Clip]]:
    """Clips to decode under one mark: those under suspicion alone, the others some at a time."""
    for apart, group in groupby(clips, key=lambda c: c.clip_id in attempt.apart):
        members = list(group)
        size = 1 if apart else _STRETCH
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _to_redo(clips: list[Clip], earlier: pa.Table, settings: StageSettings) -> list[Clip]:
    """Clips, as if unprobed, whose row has a status to redo and is not of this very run."""
    rows = earlier.select(["clip_id", "status", "run_id"]).to_pylist()
    again = {
        r["clip_id"]
        for r in rows
        if r["status"] in settings.redo and r["run_id"] != settings.run_id
    }
    wanted = (c for c in clips if c.clip_id in again and can_redo(c, whole=settings.whole))
    return [parts.unprobed(c) for c in wanted]


def can_redo(clip: Clip, *, whole: bool) -> bool:
    """Whether the clip means the same once its file is mended.

    A file whose header failed was never cut into windows, and a cut one has a clip as long as what
    was left of it; both need a new list of clips.
    """
    return clip.status == Status.OK or (whole and clip.end_ns is None)


def _decode_order(clips: list[Clip]) -> list[Clip]:
    """Longest first for the least padding; stretches of one recording stay as the plan has them.

    The plan groups by length to within some percent already, so keeping neighbours together costs
    little padding and saves opening a long recording once per clip.
    """
    if len({clip.file for clip in clips}) < len(clips):
        return clips
    return sorted(clips, key=lambda c: -c.duration_s if c.duration_s > 0 else 0.0)
