"""Shards on a fixed pool of Ray Data actors, and what these report while they work.

A shard travels as one block of clip references; audio never enters the object store. Every worker
writes its own parts, and only a summary row per shard comes back.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import ray

from raysers.engine.cluster import dataset_of
from raysers.engine.plan import Placement
from raysers.engine.progress import Shards
from raysers.engine.worker import (
    SHARDS_AT_A_TIME,
    ClipTask,
    ShardResult,
    ShardWorker,
    WorkerSettings,
)
from raysers.errors import DeviceLost, RaysersError, errors_as_rows, raise_from_rows
from raysers.run import load_record

#: Fields of a shard's result that travel as JSON: Arrow would make columns of their keys.
_MAPPINGS = ("statuses", "faults")

#: Starts per worker that may die while loading before the job gives up.
_FAILED_STARTS = 3


class Monitor:
    """Actor that keeps, per shard in work, audio seconds and rows by status; and worker starts."""

    def __init__(self) -> None:
        self._shards: Shards = {}
        self._unfinished_starts = 0

    def report(self, shard: int, audio_s: float, statuses: dict[str, int]) -> None:
        """Replace what is known of `shard`."""
        self._shards[shard] = (audio_s, statuses)

    def loading(self) -> int:
        """A worker begins to load its model; returns how many such starts have not finished."""
        self._unfinished_starts += 1
        return self._unfinished_starts - 1

    def loaded(self) -> None:
        """That worker has its model."""
        self._unfinished_starts -= 1

    def snapshot(self) -> Shards:
        """Everything, by shard."""
        return dict(self._shards)


def new_monitor() -> Any:
    """A Monitor actor on the driver's node, so that it lives as long as the driver."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Monitor).remote()


def snapshot(monitor: Any) -> Shards | None:
    """What workers have reported; None when the actor does not answer just now."""
    try:
        shards: Shards = ray.get(monitor.snapshot.remote(), timeout=5)
        return shards
    except ray.exceptions.RayError:  # a time-out is one
        return None


class _ShardActor:
    """The worker as Ray Data builds it: its own errors travel back as rows."""

    def __init__(
        self, *, settings: WorkerSettings, task: ClipTask, monitor: Any, workers: int
    ) -> None:
        self._settings, self._task, self._monitor = settings, task, monitor
        self._workers = workers
        self._worker: ShardWorker | None = None
        self._loading = threading.Lock()
        self._reported_s: dict[int, float] = {}

    @errors_as_rows
    def __call__(self, block: pa.Table) -> pa.Table:
        # the model is loaded by the first call, because an error in a constructor has no row
        with self._loading:
            self._worker = self._worker or self._load()
        try:
            result = self._worker.run(block)
        except DeviceLost:
            os._exit(1)  # nothing works in this process any more; the ledger finds the clip
        row = {f.name: getattr(result, f.name) for f in fields(result)}
        row |= {name: json.dumps(row[name]) for name in _MAPPINGS}
        return pa.Table.from_pylist([row])

    def _load(self) -> ShardWorker:
        """The worker with its model loaded, unless loading it keeps killing workers."""
        self._require_same_output()
        if ray.get(self._monitor.loading.remote()) > _FAILED_STARTS * self._workers:
            raise RaysersError(
                "workers die while they load the model: give fewer --workers or more memory"
            )
        worker = ShardWorker(self._settings, self._task, self._report)
        self._monitor.loaded.remote()
        return worker

    def _report(self, shard: int, audio_s: float, statuses: dict[str, int]) -> None:
        """Report unless this shard was reported within the last second."""
        now_s = time.monotonic()
        if now_s - self._reported_s.get(shard, 0.0) >= 1.0:
            self._reported_s[shard] = now_s
            self._monitor.report.remote(shard, audio_s, statuses)

    def _require_same_output(self) -> None:
        record = load_record(self._settings.output)
        if record is None or record.run_id != self._settings.run_id:
            raise RaysersError(
                f"{platform.node()} does not see {self._settings.output}: give an --output that "
                "every node reaches, s3:// or a shared disk"
            )


def run_shards(
    blocks: Sequence[pa.Table],
    settings: WorkerSettings,
    task: ClipTask,
    placement: Placement,
    monitor: Any,
) -> Iterator[ShardResult]:
    """Score every block; results come as shards finish, in any order.

    Raises:
        RaysersError: what a worker raised on purpose (credentials, storage, writing).
        ray.exceptions.RayError: a bug in a worker.
    """
    pool = ray.data.ActorPoolStrategy(
        size=min(placement.workers, len(blocks)),
        max_tasks_in_flight_per_actor=SHARDS_AT_A_TIME,
        max_concurrent_calls_per_actor=SHARDS_AT_A_TIME,
        enable_true_multi_threading=True,
    )
    results = dataset_of(blocks).map_batches(
        _ShardActor,
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
        for row in raise_from_rows(batch).to_pylist():
            row |= {name: json.loads(row[name]) for name in _MAPPINGS}
            yield ShardResult(**{**row, "statuses": Counter(row["statuses"])})
