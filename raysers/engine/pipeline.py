"""The shard engine: a fixed pool of model actors on Ray Data, one call per shard.

A shard travels as one block of clip references; audio never enters the object store. Every worker
writes its own parts, and only a summary row per shard comes back.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raysers.data.shards import ShardPlan
from raysers.engine.cluster import Placement, dataset_of
from raysers.engine.failures import carried, raise_carried
from raysers.engine.progress import Monitor, ThrottledReport
from raysers.engine.worker import ClipTask, ShardStage, StageSettings
from raysers.errors import DeviceLost, RaysersError
from raysers.run import load_record

#: Columns of the manifest that a worker needs, where they are there.
_TRAVELLING = (
    "clip_id", "file", "start", "end", "duration_s", "num_bytes", "etag",
    "byte_offset", "byte_size", "status", "error", "transcript",
)  # fmt: skip


#: Starts per worker that may die while loading before the job gives up.
_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What a worker says of a finished shard: what it holds, and what this attempt did for it.

    Attributes:
        shard: its number.
        clips: rows of its part.
        audio_s: audio seconds of its part.
        padded_s: seconds that went through the model, padding included.
        scored_s: audio seconds that went through the model.
        model_s: wall seconds of forward passes.
        wait_s: wall seconds in which the model waited for decoded audio.
        decoded: clips decoded.
        peak_bytes: most memory the worker ever held.
        statuses: rows of its part by status.
    """

    shard: int
    clips: int
    audio_s: float
    padded_s: float
    scored_s: float
    model_s: float
    wait_s: float
    decoded: int
    peak_bytes: int
    statuses: Counter[str] = field(default_factory=Counter)


class _Worker:
    """The stage as Ray Data builds it: its own errors travel back as rows."""

    def __init__(
        self, *, settings: StageSettings, task: ClipTask, monitor: Any, workers: int
    ) -> None:
        self._settings, self._task, self._monitor = settings, task, monitor
        self._workers = workers
        self._stage: ShardStage | None = None
        self._making = threading.Lock()

    @carried
    def __call__(self, block: pa.Table) -> pa.Table:
        # the model is loaded by the first call, because an error in a constructor has no row
        with self._making:
            self._stage = self._stage or self._make()
        try:
            return self._stage(block)
        except DeviceLost:
            os._exit(1)  # nothing works in this process any more; the ledger finds the clip

    def _make(self) -> ShardStage:
        """The stage with its model loaded, unless loading it keeps killing workers."""
        self._require_same_output()
        if ray.get(self._monitor.loading.remote()) > _FAILED_STARTS * self._workers:
            raise RaysersError(
                "workers die while they load the model: give fewer --workers or more memory"
            )
        stage = ShardStage(self._settings, self._task, ThrottledReport(self._monitor))
        self._monitor.loaded.remote()
        return stage

    def _require_same_output(self) -> None:
        record = load_record(self._settings.output)
        if record is None or record.run_id != self._settings.run_id:
            raise RaysersError(
                f"{platform.node()} does not see {self._settings.output}: give an --output that "
                "every node reaches, s3:// or a shared disk"
            )


def shard_blocks(manifest: pa.Table, plan: ShardPlan, shards: Sequence[int]) -> list[pa.Table]:
    """One block of clip references per shard number; the blocks are views of one table."""
    rows = [plan.rows(shard) for shard in shards]
    sizes = np.array([len(r) for r in rows])
    present = [name for name in _TRAVELLING if name in manifest.column_names]
    references = manifest.select(present).combine_chunks()
    references = references.take(np.concatenate(rows)).combine_chunks()
    references = references.append_column("shard", pa.array(np.repeat(shards, sizes)))
    starts = np.cumsum(sizes) - sizes
    return [references.slice(s, n) for s, n in zip(starts.tolist(), sizes.tolist(), strict=True)]


def run_shards(
    blocks: Sequence[pa.Table],
    *,
    settings: StageSettings,
    task: ClipTask,
    placement: Placement,
    monitor: Any,
) -> Iterator[ShardResult]:
    """Work on every block; results come as shards finish, in any order.

    Raises:
        RaysersError: what a worker raised on purpose (credentials, storage, writing).
        ray.exceptions.RayError: a bug in a worker.
    """
    pool = ray.data.ActorPoolStrategy(
        size=min(placement.workers, len(blocks)),
        # one shard is scored while the next is decoded
        max_tasks_in_flight_per_actor=2,
        max_concurrent_calls_per_actor=2,
        enable_true_multi_threading=True,
    )
    results = dataset_of(blocks).map_batches(
        _Worker,
        fn_constructor_kwargs={
            "settings": settings,
            "task": task,
            "monitor": monitor,
            "workers": placement.workers,
        },
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=pool,
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus or None,
    )
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from _results(raise_carried(batch))


def _results(batch: pa.Table) -> Iterator[ShardResult]:
    for row in batch.to_pylist():
        statuses = Counter(json.loads(row.pop("statuses")))
        yield ShardResult(**row, statuses=statuses)


def new_monitor() -> Any:
    """A Monitor actor on the driver's node, so that it lives as long as the driver."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Monitor).remote()
