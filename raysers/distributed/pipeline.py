"""The shard engine: a fixed pool of model actors on Ray Data, one call per shard.

A shard travels as one block of clip references; audio never enters the object store. Every worker
writes its own parts, and only a summary row per shard comes back.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raysers.distributed.cluster import Placement
from raysers.distributed.failures import carried, raise_carried
from raysers.distributed.progress import Monitor, ThrottledReport
from raysers.distributed.stages import ClipTask, ShardStage, StageSettings

#: Columns of the manifest that a worker needs.
_TRAVELLING = (
    "clip_id", "file", "start", "end", "duration_s", "num_bytes",
    "byte_offset", "byte_size", "status", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What a worker says of a finished shard."""

    shard: int
    clips: int
    audio_s: float
    padded_s: float
    scored_s: float
    model_s: float
    wait_s: float
    decoded: int
    statuses: Counter[str] = field(default_factory=Counter)


class _Worker:
    """The stage as Ray Data builds it: its own errors travel back as rows."""

    def __init__(self, *, settings: StageSettings, task: ClipTask, monitor: Any) -> None:
        self._stage: ShardStage | None = None
        self._make = partial(ShardStage, settings, task, ThrottledReport(monitor))
        self._making = threading.Lock()

    @carried
    def __call__(self, block: pa.Table) -> pa.Table:
        # the model is loaded by the first call, because an error in a constructor has no row
        with self._making:
            self._stage = self._stage or self._make()
        return self._stage(block)


def shard_blocks(manifest: pa.Table, shards: Iterable[tuple[int, np.ndarray]]) -> list[pa.Table]:
    """One block of clip references per (shard number, row indices)."""
    travelling = manifest.select(_TRAVELLING)
    return [
        travelling.take(rows).append_column("shard", pa.array(np.full(len(rows), shard)))
        for shard, rows in shards
    ]


def run_shards(
    blocks: Sequence[pa.Table],
    *,
    settings: StageSettings,
    task: ClipTask,
    placement: Placement,
    monitor: Any,
    longest_shard_s: float,
) -> Iterator[ShardResult]:
    """Work on every block; results come as shards finish, in any order.

    Raises:
        RaysersError: what a worker raised on purpose (credentials, storage, writing).
        ray.exceptions.RayError: a bug in a worker.
    """
    context = ray.data.DataContext.get_current()
    # a slow worker may take long over one shard without anything being wrong
    context.execution_no_progress_timeout_s = max(3600.0, 20 * longest_shard_s)
    pool = ray.data.ActorPoolStrategy(
        size=min(placement.workers, len(blocks)),
        # one shard is scored while the next is decoded
        max_tasks_in_flight_per_actor=2,
        max_concurrent_calls_per_actor=2,
        enable_true_multi_threading=True,
    )
    results = ray.data.from_arrow(list(blocks)).map_batches(
        _Worker,
        fn_constructor_kwargs={"settings": settings, "task": task, "monitor": monitor},
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
