"""What a run would take, measured: a few real clips through the real model on a real worker."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.manifest import clips_of
from raysers.engine.feed import AHEAD_S, decode_ahead, micro_batches
from raysers.engine.plan import Placement, Plan, io_threads
from raysers.engine.progress import clips_and_audio, duration, hours, print_line, print_warning
from raysers.engine.worker import ClipModel, ClipTask, ShardResult, ahead_s, score_clips
from raysers.run import Run
from raysers.types import Clip, Status

#: Clips measured, and the wall seconds after which measuring stops.
_SAMPLE_CLIPS = 256
_LENGTHS_IN_TURN = 8
_WARM_CLIPS = 4
_MEASURE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Measured speed of one worker and what follows for the whole plan."""

    audio_s: float
    speed: float
    start_s: float
    workers: int

    @property
    def wall_s(self) -> float:
        """Seconds the run would take."""
        return self.start_s + (self.audio_s / (self.speed * self.workers) if self.speed else 0.0)

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together."""
        return self.wall_s * self.workers / 3600


def estimate(plan: Plan, task: ClipTask, placement: Placement, max_clip_s: float) -> Estimate:
    """Measure one worker on clips spread evenly over the plan's lengths."""
    parts = (part.filter(pc.equal(part["status"], str(Status.OK))) for part in plan.clips.parts())
    samples = [_over_lengths(part) for part in parts]
    sample = _over_lengths(pa.concat_tables(samples, promote_options="default"))
    # short and long ones in turn, so that stopping early still measures all lengths
    turns = [np.arange(i, len(sample), _LENGTHS_IN_TURN) for i in range(_LENGTHS_IN_TURN)]
    sample = sample.take(np.concatenate(turns))
    measure = (sample, task, max_clip_s, io_threads(plan.clips.last_part, placement))
    if placement.local:
        with ThreadPoolExecutor(1) as model_thread:
            speed, start_s = model_thread.submit(_measure, *measure).result()
    else:
        from raysers.engine import cluster

        speed, start_s = cluster.call_on_worker(placement, _measure, *measure)
    audio_s = plan.todo_s() * len(task.variant_names)
    return Estimate(audio_s=audio_s, speed=speed, start_s=start_s, workers=placement.workers)


def _over_lengths(clips: pa.Table) -> pa.Table:
    """At most `_SAMPLE_CLIPS` of the clips, evenly over their lengths, shortest first."""
    picks = np.unique(np.linspace(0, max(len(clips) - 1, 0), _SAMPLE_CLIPS).astype(int))
    by_length = pc.sort_indices(clips["duration_s"]).to_numpy()
    return clips.take(by_length[picks[: len(clips)]])


def _measure(
    sample: pa.Table, task: ClipTask, max_clip_s: float, io_threads: int
) -> tuple[float, float]:
    """Audio seconds per second of one warm worker, and the seconds it needed to start."""
    began = time.perf_counter()
    model = task.open()
    clips = clips_of(sample)
    if not clips:
        return 0.0, time.perf_counter() - began
    with ThreadPoolExecutor(io_threads) as pool:
        for part in _turns(clips)[:1]:  # a first batch of each length warms the model up
            _score(model, task, part[:_WARM_CLIPS], pool, max_clip_s)
        start_s = time.perf_counter() - began
        began, audio_s = time.perf_counter(), 0.0
        for part in _turns(clips):
            audio_s += _score(model, task, part, pool, max_clip_s)
            if time.perf_counter() - began > _MEASURE_S:
                break
        return audio_s / (time.perf_counter() - began), start_s


def _turns(clips: list[Clip]) -> list[list[Clip]]:
    size = -(-len(clips) // _LENGTHS_IN_TURN)
    return [clips[i : i + size] for i in range(0, len(clips), size)]


def _score(
    model: ClipModel, task: ClipTask, clips: list[Clip], pool: Executor, max_clip_s: float
) -> float:
    feed = decode_ahead(
        clips,
        pool,
        max_clip_s=max_clip_s,
        ahead_s=ahead_s(AHEAD_S, task),
        variants=task.variants,
    )
    audio_s = 0.0
    for batch in micro_batches(feed, model.max_padded_s):
        score_clips(model, [one for one in batch if one.signal is not None])
        audio_s += sum(d.duration_s for d in batch)
    return audio_s


def rows(
    plan: Plan, guess: Estimate, placement: Placement, usd_per_hour: float
) -> Mapping[str, Any]:
    """The estimate as lines for people."""
    device = "GPU" if placement.device == "cuda" else "CPU"
    lines = {
        "clips": f"{plan.clips.num_rows:,}",
        "audio": hours(float(np.sum(plan.shards.seconds))),
        "bytes": f"{plan.clips.num_bytes / 1e9:.3f} GB",
        "shards": f"{len(plan.shards)} ({len(plan.todo)} to do)",
        "workers": f"{placement.workers} x {placement.num_gpus or placement.num_cpus:g} {device}",
        "measured speed": f"{guess.speed:.1f} x real time per worker",
        "wall time": f"{duration(guess.wall_s)} (of it {guess.start_s:.0f} s to start)",
        f"{device} hours": f"{guess.worker_hours * (placement.num_gpus or placement.num_cpus):.2f}",
    }
    if usd_per_hour:
        lines["cost"] = f"${guess.worker_hours * usd_per_hour:.2f}"
    return lines


def sampled(plan: Plan, share: float) -> Plan:
    """The plan with a random share of its shards to do, at least one; the same ones every time."""
    number = max(1, round(share * len(plan.todo)))
    return replace(plan, todo=sorted(random.Random(plan.stamp).sample(plan.todo, number)))


def rest(
    plan: Plan, done: Sequence[ShardResult], placement: Placement, usd_per_hour: float
) -> dict[str, str]:
    """What scoring the rest of the plan takes at the speed of the shards that are done."""
    left_s = float(np.sum(plan.shards.seconds[list({*plan.todo} - {one.shard for one in done})]))
    wall_s = max(time.time() - min(one.began_at for one in done), 1e-3)
    audio_s = sum(one.audio_s for one in done)
    at_work = min(placement.workers, len(done))  # a small sample keeps few workers busy
    speed = audio_s / wall_s * placement.workers / at_work
    rest_s = left_s / speed if speed else 0.0
    found = {
        "sample": f"{len(done)} of {len(plan.todo)} shards, {hours(audio_s)} of audio",
        "speed": f"{speed:.1f} x real time with all workers",
        "rest": f"{hours(left_s)} of audio",
        "time": duration(rest_s),
    }
    if usd_per_hour:
        found["cost"] = f"{rest_s * placement.workers / 3600 * usd_per_hour:.2f} USD"
    return found


def print_plan(run: Run, plan: Plan, max_clip_s: float, notes: Sequence[str]) -> None:
    """Print what the run has to do, and warnings before it starts."""
    known = clips_and_audio(plan.clips.num_rows, plan.clips.audio_s)
    line = f"{run.job}: {known}, {len(plan.shards)} shards"
    if run.earlier is not None:
        line += (
            f"; resuming the run of {run.earlier.started_at} with its list of clips, "
            f"{len(plan.todo)} shards left"
        )
    print_line(line)
    lengths = (part["duration_s"] for part in plan.clips.parts(["duration_s"]))
    too_long = sum(pc.sum(pc.greater(one, max_clip_s)).as_py() or 0 for one in lengths)
    if too_long:
        print_warning(
            f"{too_long:,} clips are longer than --max-clip-s {max_clip_s:g} and "
            "will be too_long: --segment window cuts recordings into clips"
        )
    for note in notes:
        print_warning(note)
