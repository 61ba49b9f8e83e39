"""Our side: a task through a whole job, and through one worker outside of any job.

"Steady" runs from the moment the last worker has its model until the last part is on the disk; what
Ray needs to start and stop actors is in `wall_s` only.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from raysers.data.manifest import Manifest
from raysers.data.shards import ShardSource, plan_shards
from raysers.engine.feed import Decoded
from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from raysers.engine.placement import Placement, here
from raysers.engine.worker import (
    ClipModel,
    ClipTask,
    ShardWorker,
    WorkerSettings,
)
from raysers.errors import ClipError
from raysers.run import RunRecord, load_record, quiet_environment
from raysers.schemas import ANNOTATIONS
from tests.benchmarks.measure import Line

_SCORES = {"arousal": 0.5, "dominance": 0.5, "valence": 0.5}


@dataclass(frozen=True, kw_only=True)
class NullTask(ClipTask):
    """A model that costs nothing, so that everything else is measured."""

    max_padded_s: float

    @property
    def schema(self) -> pa.Schema:
        return ANNOTATIONS

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": "null"}

    def open(self) -> ClipModel:
        return NullModel(self.max_padded_s)


class NullModel:
    """The worker half of `NullTask`."""

    def __init__(self, max_padded_s: float) -> None:
        self.provenance = {"model": "null", "model_revision": "1"}
        self.max_padded_s = max_padded_s

    def score(
        self, signals: Sequence[np.ndarray], transcripts: Sequence[str | None]
    ) -> list[dict[str, Any] | ClipError]:
        return [_SCORES] * len(signals)


@dataclass(frozen=True, kw_only=True)
class WatchedTask(ClipTask):
    """Another task that leaves a stamp when a worker has its model, and keeps the model at hand."""

    task: ClipTask
    stamps: str
    opened: list[ClipModel] = field(default_factory=list)

    @property
    def schema(self) -> pa.Schema:
        return self.task.schema

    @property
    def settings(self) -> dict[str, Any]:
        return self.task.settings

    @property
    def variant_names(self) -> tuple[str, ...]:
        return self.task.variant_names

    @property
    def pads(self) -> bool:  # type: ignore[override]
        return self.task.pads

    @property
    def model_threads(self) -> int:
        return self.task.model_threads

    def variants(self, decoded: Decoded) -> list[Decoded]:
        return self.task.variants(decoded)

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        return replace(self, task=self.task.placed(placement, earlier))

    def open(self) -> ClipModel:
        self.opened.append(self.task.open())
        stamp(self.stamps)
        return self.opened[0]


def stamp(folder: str) -> None:
    """Leave a file whose time of change is now and whose content is this process's CPU seconds."""
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        file.write(f"{time.process_time()}")


def latest(folder: str | Path, pattern: str) -> float:
    """When the newest of the matching files was written, in seconds of the clock."""
    return max(path.stat().st_mtime for path in Path(folder).glob(pattern))


def start_ray() -> float:
    """Start Ray as the jobs do; returns the seconds it took."""
    from raysers.engine import cluster

    quiet_environment()
    began = time.perf_counter()
    cluster.connect()
    return time.perf_counter() - began


def run_task(
    manifest: pa.Table, task: ClipTask, *, workers: int | str = 0, decode_processes: int = 0
) -> Line:
    """Every clip of the manifest through a job. To be called in a fresh process.

    Args:
        manifest: the clips.
        task: what is done to them.
        workers: as of `--workers`; 0 starts a cluster, `local` does not.
        decode_processes: as of `--decode-processes`.
    """
    ray_s = 0.0 if workers == "local" else start_ray()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        (folder / "stamps").mkdir()
        output = str(folder / "out")
        flags = ClipJobFlags(
            input=(name,), output=output, workers=workers, decode_processes=decode_processes
        )
        began, began_cpu_s = time.perf_counter(), time.process_time()
        with ClipJob.open(flags, "bench", table=task.table) as job:
            job.prepare(WatchedTask(task=task, stamps=f"{name}/stamps"), manifest=manifest)
            job.execute()
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu_s
        record = load_record(output)
        assert record is not None
        assert record.outcome is not None
        outcome = record.outcome
        if outcome["statuses"] != {"ok": manifest.num_rows}:
            raise RuntimeError(f"{outcome['statuses']} of {manifest.num_rows} clips")
        loaded_at = latest(folder / "stamps", "*")
        line = {
            "placement": f"{job.placement.workers}x{job.placement.threads}",
            "shards": len(job.plan.shards),
            "audio_s": outcome["audio_s"],
            "steady_s": latest(folder / "out", f"{task.table}/*.parquet") - loaded_at,
            "wall_s": wall_s,
            "ray_s": ray_s,
            "model_s": outcome["model_s"],
            "wait_s": outcome["wait_s"],
            "padding_waste": outcome["padding_waste"],
        }
        if workers == "local":
            (loaded,) = (folder / "stamps").iterdir()
            cpu_s -= float(loaded.read_text()) - began_cpu_s
            line["cores_busy"] = cpu_s / (time.time() - loaded_at)
        return line


def run_model(
    manifest: pa.Table,
    model: str,
    *,
    workers: int | str = 0,
    max_padded_s: float = 0,
    dtype: str = "auto",
) -> Line:
    """Every clip through the annotation job's own task. To be called in a fresh process."""
    from raysers.annotation import AnnotateTask

    began = time.perf_counter()
    task = AnnotateTask.load(model, dtype=dtype, max_padded_s=max_padded_s)
    prepare_s = time.perf_counter() - began
    return {"prepare_s": prepare_s, **run_task(manifest, task, workers=workers)}


class WarmWorker:
    """One worker outside of any job, its model loaded once for several runs: only these are timed.

    Attributes:
        model: its model; the budget may be changed between runs.
    """

    def __init__(self, task: ClipTask, *, threads: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        placement = here(gpus=task.uses_gpus, threads=threads or None)
        settings = WorkerSettings(
            output=f"{self._folder.name}/out", run_id="bench", stamp="bench", retry=frozenset(),
            max_clip_s=600.0, io_threads=max(2, placement.threads),
        )  # fmt: skip
        watched = WatchedTask(task=task.placed(placement, None), stamps=self._folder.name)
        self._output, self._shards_in_flight = settings.output, placement.shards_in_flight
        self._worker = ShardWorker(settings, watched, lambda *_: None)
        (self.model,) = watched.opened

    def run(self, blocks: Sequence[pa.Table]) -> Line:
        """Score the blocks, as many at a time as in a job."""
        shutil.rmtree(self._output, ignore_errors=True)  # or the worker finds them finished
        began = time.perf_counter()
        with ThreadPoolExecutor(self._shards_in_flight) as pool:
            results = list(pool.map(self._worker.run, blocks))
        wall_s = time.perf_counter() - began
        names = ("audio_s", "scored_s", "padded_s", "decoded")
        totals = {name: sum(getattr(result, name) for result in results) for name in names}
        waste = 1 - totals["scored_s"] / totals["padded_s"]
        return {**totals, "wall_s": wall_s, "padding_waste": waste}


def blocks_of(manifest: pa.Table) -> list[pa.Table]:
    """The shards of a job over the manifest."""
    clips = Manifest.of(manifest)
    plan = plan_shards(clips, shard_s=1800.0)
    source = ShardSource(clips, plan)
    return [source.block(shard) for shard in range(len(plan))]
