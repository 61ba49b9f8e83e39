"""Our side: a task through the shard engine on a Ray of its own, timed.

"Steady" runs from the moment the last worker has its model until the last part is on the disk; what
Ray needs to start and stop actors is in `wall_s` only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysers.cli import ClipJobFlags
from raysers.data.shards import plan_shards
from raysers.engine.worker import ClipTask, ClipWorker, StageSettings
from raysers.errors import ClipError
from raysers.schemas import ANNOTATIONS
from tests.benchmarks.measure import Line

_SCORES = {"arousal": 0.5, "dominance": 0.5, "valence": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class NullTask:
    """A model that costs nothing, so that everything else is measured."""

    max_padded_s: float
    table: str = "annotations"

    @property
    def schema(self) -> pa.Schema:
        return ANNOTATIONS

    def open(self) -> NullWorker:
        return NullWorker(self.max_padded_s)


class NullWorker:
    """The worker half of `NullTask`."""

    schema = ANNOTATIONS

    def __init__(self, max_padded_s: float) -> None:
        self.provenance = {"model": "null", "model_revision": "1"}
        self.max_padded_s = max_padded_s

    def score(self, signals: Sequence[np.ndarray]) -> list[dict[str, Any] | ClipError]:
        return [_SCORES] * len(signals)


@dataclass(frozen=True, slots=True, kw_only=True)
class StampedTask:
    """Another task that leaves a file when a worker has its model."""

    task: ClipTask
    stamps: str

    @property
    def table(self) -> str:
        return self.task.table

    @property
    def schema(self) -> pa.Schema:
        return self.task.schema

    def open(self) -> ClipWorker:
        worker = self.task.open()
        stamp(self.stamps)
        return worker


def stamp(folder: str) -> None:
    """Leave a file whose time of change is now."""
    tempfile.NamedTemporaryFile(dir=folder, delete=False).close()


def latest(folder: str | Path, pattern: str) -> float:
    """When the newest of the matching files was written, in seconds of the clock."""
    return max(path.stat().st_mtime for path in Path(folder).glob(pattern))


def start_ray() -> float:
    """Start Ray as the jobs do; returns the seconds it took."""
    from raysers.engine import cluster
    from raysers.run import quiet_environment

    quiet_environment()
    began = time.perf_counter()
    cluster.connect()
    return time.perf_counter() - began


def stage_settings(output: str, threads: int) -> StageSettings:
    """Settings of a stage that works outside of Ray."""
    return StageSettings(
        output=output,
        run_id="bench",
        redo=frozenset(),
        whole=True,
        max_clip_s=600.0,
        io_threads=max(2, threads),
    )


def run_task(manifest: pa.Table, task: ClipTask, *, workers: int = 0) -> Line:
    """Every clip of the manifest through the engine. To be called in a fresh process."""
    from raysers.engine import cluster

    ray_s = start_ray()
    with tempfile.TemporaryDirectory() as folder:
        return {"ray_s": ray_s, **_run(manifest, task, cluster.place(workers), Path(folder))}


def run_model(manifest: pa.Table, model: str, *, workers: int = 0, max_padded_s: float = 0) -> Line:
    """Every clip through the annotation job's own task. To be called in a fresh process."""
    from raysers import annotate
    from raysers.engine import cluster

    began = time.perf_counter()
    task = annotate.prepare(model, dtype="auto", max_padded_s=max_padded_s, embeddings=False)
    prepare_s = time.perf_counter() - began
    ray_s = start_ray()
    placement = cluster.place(workers)
    task = annotate.placed(task, placement, None)
    with tempfile.TemporaryDirectory() as folder:
        times = _run(manifest, task, placement, Path(folder))
    return {"prepare_s": prepare_s, "ray_s": ray_s, **times}


def _run(manifest: pa.Table, task: ClipTask, placement: Any, folder: Path) -> Line:
    from raysers.engine import job
    from raysers.engine.plan import Plan
    from raysers.run import new_record

    (folder / "stamps").mkdir()
    (folder / "out").mkdir()
    flags = ClipJobFlags(input=("bench",), output=str(folder / "out"))
    shards = plan_shards(manifest, shard_s=flags.shard_s)
    todo = list(range(len(shards)))
    plan = Plan(manifest=manifest, shards=shards, todo=todo, earlier=None, settings={})
    stamped = StampedTask(task=task, stamps=str(folder / "stamps"))
    record = replace(new_record("bench", {}, {}, None), run_id="bench")
    record.save(flags.output)
    ran = job.run_plan(flags, plan, stamped, placement, record, 600.0)
    if ran.decoded != manifest.num_rows:
        raise RuntimeError(f"{ran.decoded} of {manifest.num_rows} clips were decoded")
    steady_s = latest(folder / "out", "annotations/*.parquet") - latest(folder / "stamps", "*")
    return {
        "placement": f"{placement.workers}x{placement.threads}",
        "shards": len(shards),
        "audio_s": ran.audio_s,
        "steady_s": steady_s,
        "wall_s": ran.wall_s,
        "model_s": ran.model_s,
        "wait_s": ran.wait_s,
        "padding_waste": 1 - ran.audio_s / ran.padded_s,
    }
