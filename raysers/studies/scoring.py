"""A job over clips in the calling process: the same stage, shards, parts and record, no start.

A trial of a study scores a few thousand clips with the model it has just trained. Starting workers
for that would take longer than the scoring; the stage is the one of the engine, so the folder it
leaves is that of the job, which would go on with it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from raysers.annotate import AnnotateTask
from raysers.cli import ClipJobFlags
from raysers.engine import job as clipjob
from raysers.engine import plan as planning
from raysers.engine.cluster import Placement, io_threads
from raysers.engine.job import Ran, recorded
from raysers.engine.pipeline import ShardResult, shard_blocks
from raysers.engine.plan import Plan
from raysers.engine.versions import Versions
from raysers.engine.worker import ClipTask, ShardStage, StageSettings
from raysers.engine.worker_dtype import worker_dtype
from raysers.errors import RaysersError
from raysers.models.precision import dtype_name
from raysers.run import Exit, RunRecord
from raysers.training.session import Room
from raysers.tuning.resources import Seats

#: As `--max-clip-s` of the jobs.
MAX_CLIP_S = 600.0

#: One shard is scored while the next is decoded, as in the engine.
_AT_A_TIME = 2


def settled(
    task: AnnotateTask, room: Room, seats: Seats | None, earlier: RunRecord | None
) -> AnnotateTask:
    """The task with number format and threads of whoever will score.

    Raises:
        ConfigError: the number format is not for this device.
    """
    dtype = task.dtype
    if dtype == "auto" and earlier is not None:
        dtype = str(earlier.settings.get("dtype", dtype))
    placement = seats.placement if seats else None
    if dtype == "auto":
        dtype = worker_dtype(placement) if placement else dtype_name("auto", _device())
    return replace(task, dtype=dtype, threads=placement.threads if placement else room.threads)


def score(
    flags: ClipJobFlags,
    job: str,
    task: ClipTask,
    own: Mapping[str, Any],
    config: Mapping[str, Any],
    room: Room,
    seats: Seats | None = None,
    versions: Versions | None = None,
) -> tuple[Plan, RunRecord]:
    """Score what is left of a job's clips here, and conclude.

    With several workers a trial, these score, as those of the job do.

    Args:
        flags: of the job; its input are finished manifests.
        job: its name.
        task: settled.
        own: settings that decide the rows besides those all jobs share.
        config: the job's flags, for its record.
        room: of this process.
        seats: of the trials.
        versions: rows of a clip, where it has several.

    Raises:
        ConfigError, RefusedError: as the job.
        RaysersError: more clips failed than `--max-failed`.
    """
    earlier = planning.open_output(flags, job, task.table)
    settings = planning.row_settings(flags, {**own, "max_clip_s": MAX_CLIP_S})
    plan = planning.make_plan(flags, task.table, settings, earlier)
    record = clipjob.start(flags, job, plan, config, task)
    if seats is not None and seats.placement is not None:
        ran = clipjob.run_plan(flags, plan, task, seats.placement, record, MAX_CLIP_S, versions)
    else:
        with recorded(record, flags.output):
            ran = _run(flags, plan, task, record, room, versions)
    code = clipjob.conclude(flags, plan, task.table, record, ran, versions)
    if code != Exit.DONE:
        raise RaysersError(f"too many clips have no scores: see {flags.output}")
    return plan, record


def _run(
    flags: ClipJobFlags,
    plan: Plan,
    task: ClipTask,
    record: RunRecord,
    room: Room,
    versions: Versions | None,
) -> Ran:
    ran, started = Ran(), time.perf_counter()
    if plan.todo:
        gpus = 1.0 if _device() == "cuda" else 0.0
        here = Placement(workers=1, num_cpus=room.threads, num_gpus=gpus)
        settings = StageSettings(
            output=flags.output,
            run_id=record.run_id,
            redo=frozenset(),
            whole=True,
            max_clip_s=MAX_CLIP_S,
            io_threads=io_threads(plan.manifest, here),
            versions=versions,
        )
        stage = ShardStage(settings, task, _tell_nobody)
        blocks = shard_blocks(plan.manifest, plan.shards, plan.todo)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            for summary in pool.map(stage, blocks):
                ran.add(_result(summary.to_pylist()[0]))
    ran.wall_s = time.perf_counter() - started
    return ran


def _result(row: dict[str, Any]) -> ShardResult:
    statuses = Counter(json.loads(row.pop("statuses")))
    return ShardResult(**row, statuses=statuses)


def _tell_nobody(shard: int, audio_s: float, statuses: dict[str, int]) -> None:
    """There is no live line."""


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
