"""What a job tells people: what it has to do and will take, the live line, counts and speed.

Workers report how far each shard in work is; the driver reads it. Figures of a shard that is scored
twice replace each other, so nothing is counted double.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysers.display import visible
from raysers.types import Clip, Status

if TYPE_CHECKING:
    from raysers.engine.placement import Placement
    from raysers.engine.plan import Plan
    from raysers.engine.worker import ClipTask, ShardResult

#: Seconds between two lines when the output is not a terminal.
LINE_EVERY_S = 10.0

#: Audio seconds and rows by status, by shard.
Shards = dict[int, tuple[float, dict[str, int]]]

#: Clips that an estimate measures, in turns that each hold all lengths, and the wall seconds after
#: which no other turn begins.
_SAMPLE_CLIPS = 256
_TURNS = 8
_WARM_CLIPS = 4
_MEASURE_S = 10.0


class Monitor:
    """Actor that keeps, per shard in work, audio seconds and rows by status; and worker starts."""

    def __init__(self) -> None:
        self._shards: Shards = {}
        self._unfinished_starts = 0

    def report(self, shard: int, audio_s: float, statuses: dict[str, int]) -> None:
        """Replace what is known of `shard`."""
        self._shards[shard] = (audio_s, statuses)

    def finished(self, shard: int) -> None:
        """Its result is on the way to the driver."""
        self._shards.pop(shard, None)

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


@dataclass(slots=True)
class Totals:
    """How far the whole run is, in memory that does not grow with its shards."""

    #: Audio seconds that this run has to score, every variant counted, and rows it has to write.
    total_s: float = 0.0
    rows: int = 0
    #: Shards that are finished, and the sums and extremes of their results.
    shards: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    began_at: float = math.inf
    peak_bytes: int = 0
    #: What workers have reported of shards in work.
    in_work: Shards = field(default_factory=dict)
    #: On the monotonic clock; loading the model counts.
    began_s: float = field(default_factory=time.monotonic)

    def add(self, result: ShardResult) -> None:
        """Count a finished shard."""
        self.shards += 1
        self.in_work.pop(result.shard, None)
        for name in ("audio_s", "scored_s", "padded_s", "model_s", "wait_s", "decoded"):
            self.sums[name] += getattr(result, name)
        self.statuses.update(result.statuses)
        for name, (clips, file) in result.faults.items():
            self.faults[name] = self.faults.get(name, (0, ""))[0] + clips, file
        self.began_at = min(self.began_at, result.began_at)
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)

    def line(self) -> str:
        """One line: audio hours, x real time, time left, clips, failures by status."""
        elapsed_s = max(time.monotonic() - self.began_s, 1.0)
        in_work = list(self.in_work.values())
        if not in_work and not self.shards:
            return f"loading the model ({duration(elapsed_s)})"
        audio_s = self.sums["audio_s"] + sum(done_s for done_s, _ in in_work)
        statuses = sum((Counter(counts) for _, counts in in_work), self.statuses)
        speed = audio_s / elapsed_s
        text = f"{hours(audio_s)} of {hours(self.total_s)} audio | {speed:.1f} x real time"
        if speed:
            text += f" | {duration((self.total_s - audio_s) / speed)} left"
        return f"{text} | {statuses.total()}/{self.rows} clips" + failures_text(statuses)


@contextmanager
def live(totals: Totals, refresh: Callable[[], Shards | None]) -> Iterator[None]:
    """Show progress until the block ends: a live line on a terminal, else a line every 10 s.

    The caller updates `totals`; `refresh` gives what workers have reported, None where it cannot.
    """
    stop = threading.Event()
    console = Console(stderr=True)

    def show() -> None:
        with (
            Live(console=console, transient=True) if console.is_terminal else nullcontext() as view
        ):
            while not stop.wait(LINE_EVERY_S if view is None else 0.5):
                totals.in_work = refresh() or totals.in_work
                if view is None:
                    print(totals.line(), file=sys.stderr, flush=True)
                else:
                    view.update(Text(totals.line()))

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


class Estimate(NamedTuple):
    """Audio seconds of a plan, measured speed (x real time) and start of one worker."""

    audio_s: float
    speed: float
    start_s: float


def estimate(plan: Plan, task: ClipTask, placement: Placement, max_clip_s: float) -> Estimate:
    """Measure a real worker on clips spread evenly over the plan's lengths."""
    from raysers.engine.placement import io_threads

    parts = (part.filter(pc.equal(part["status"], str(Status.OK))) for part in plan.clips.parts())
    samples = [_over_lengths(part) for part in parts]
    sample = _over_lengths(pa.concat_tables(samples, promote_options="default"))
    threads = io_threads(plan.clips.last_part, placement)
    measure = (sample, task, max_clip_s, threads, placement.decode_processes)
    if placement.local:
        with ThreadPoolExecutor(1) as model_thread:
            speed, start_s = model_thread.submit(_measure, *measure).result()
    else:
        from raysers.engine import cluster

        speed, start_s = cluster.call_on_worker(placement, _measure, *measure)
    return Estimate(plan.todo_s() * len(task.variant_names), speed, start_s)


def _over_lengths(clips: pa.Table) -> pa.Table:
    """At most `_SAMPLE_CLIPS` of the clips, evenly over their lengths, shortest first."""
    picks = np.unique(np.linspace(0, max(len(clips) - 1, 0), _SAMPLE_CLIPS).astype(int))
    by_length = pc.sort_indices(clips["duration_s"]).to_numpy()
    return clips.take(by_length[picks[: len(clips)]])


def _measure(
    sample: pa.Table, task: ClipTask, max_clip_s: float, threads: int, processes: int
) -> tuple[float, float]:
    """Audio seconds per second of one warm worker, and the seconds it needed to start."""
    from raysers.data.manifest import clips_of
    from raysers.engine.worker import ahead_of, decoding, score_stream

    began = time.perf_counter()
    pool, variants = decoding(task, threads, processes)
    model = task.open()
    clips = clips_of(sample)
    as_in_a_job = {"max_clip_s": max_clip_s, "ahead_s": ahead_of(task)}
    with pool:

        def score(some: Sequence[Clip]) -> float:
            stream = score_stream(model, some, pool, variants=variants, **as_in_a_job)
            return sum(one.duration_s for one, _ in stream)

        # a first batch of each length warms the model up
        score(clips[::_TURNS][:_WARM_CLIPS])
        start_s = time.perf_counter() - began
        began, audio_s = time.perf_counter(), 0.0
        for turn in range(_TURNS):
            audio_s += score(clips[turn::_TURNS])
            if time.perf_counter() - began > _MEASURE_S:
                break
        return audio_s / (time.perf_counter() - began), start_s


def print_estimate(plan: Plan, guess: Estimate, placement: Placement, usd_per_hour: float) -> None:
    """The estimate for people."""
    device = "GPU" if placement.device == "cuda" else "CPU"
    each = placement.num_gpus or placement.num_cpus
    speed = guess.speed * placement.workers
    wall_s = guess.start_s + (guess.audio_s / speed if speed else 0.0)
    worker_hours = wall_s * placement.workers / 3600
    lines = {
        "clips": f"{plan.clips.num_rows:,}",
        "audio": hours(float(np.sum(plan.shards.seconds))),
        "bytes": f"{plan.clips.num_bytes / 1e9:.3f} GB",
        "shards": f"{len(plan.shards)} ({len(plan.todo)} to do)",
        "workers": f"{placement.workers} x {each:g} {device}",
        "measured speed": f"{guess.speed:.1f} x real time per worker",
        "wall time": f"{duration(wall_s)} (of it {guess.start_s:.0f} s to start)",
        f"{device} hours": f"{worker_hours * each:.2f}",
    }
    if usd_per_hour:
        lines["cost"] = f"${worker_hours * usd_per_hour:.2f}"
    print_pairs("estimate (nothing was written)", lines)


def sampled(plan: Plan, share: float) -> Plan:
    """The plan with a random share of its shards to do, at least one; the same ones every time."""
    number = max(1, round(share * len(plan.todo)))
    return replace(plan, todo=sorted(random.Random(plan.stamp).sample(plan.todo, number)))


def print_rest(
    plan: Plan, sample: Plan, done: Totals, placement: Placement, usd_per_hour: float
) -> None:
    """What scoring the rest of the plan takes at the speed of a sample that is done."""
    left_s = plan.todo_s() - sample.todo_s()
    wall_s = max(time.time() - done.began_at, 1e-3)
    audio_s = done.sums["audio_s"]
    at_work = min(placement.workers, done.shards)  # a small sample keeps few workers busy
    speed = audio_s / wall_s * placement.workers / at_work
    rest_s = left_s / speed if speed else 0.0
    found = {
        "sample": f"{done.shards} of {len(plan.todo)} shards, {hours(audio_s)} of audio",
        "speed": f"{speed:.1f} x real time with all workers",
        "rest": f"{hours(left_s)} of audio",
        "time": duration(rest_s),
    }
    if usd_per_hour:
        found["cost"] = f"{rest_s * placement.workers / 3600 * usd_per_hour:.2f} USD"
    print_pairs("what the rest takes, by this sample", found)
    print_line("the same command without --sample scores it")


def print_plan(job: str, begun: str, plan: Plan, max_clip_s: float, notes: Sequence[str]) -> None:
    """Print what a run has to do, and warnings; `begun` is when the run it resumes was started."""
    known = clips_and_audio(plan.clips.num_rows, plan.clips.audio_s)
    line = f"{job}: {known}, {len(plan.shards)} shards"
    if begun:
        line += (
            f"; resuming the run of {begun} with its list of clips, {len(plan.todo)} shards left"
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


def hours(seconds: float) -> str:
    """Audio time for people: `12.3 h`, `4.5 min` or `30 s`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def duration(seconds: float) -> str:
    """Wall time as `h:mm:ss` or `m:ss`."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    whole_hours, minutes = divmod(minutes, 60)
    return f"{whole_hours}:{minutes:02d}:{rest:02d}" if whole_hours else f"{minutes}:{rest:02d}"


def failures_text(statuses: Mapping[str, int]) -> str:
    """` | failed: missing 2, truncated 1`, or nothing when all are ok."""
    bad = sorted((n, s) for s, n in statuses.items() if s != Status.OK and n)
    texts = ", ".join(f"{status} {n}" for n, status in reversed(bad))
    return f" | failed: {texts}" if bad else ""


def clips_and_audio(clips: int, audio_s: float) -> str:
    """`535 clips, 24.8 min of audio`."""
    return f"{clips:,} clips, {hours(audio_s)} of audio"


def count_statuses(table: pa.Table) -> dict[str, int]:
    """Rows by status."""
    return {str(c["values"]): c["counts"] for c in pc.value_counts(table["status"]).to_pylist()}


def print_line(text: str) -> None:
    """One line of a job's output."""
    _console().print(text)


def print_warning(text: str) -> None:
    """A line that needs attention."""
    _console().print(visible(text), style="yellow")  # it may hold untrusted names


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values in two columns."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in pairs.items():
        table.add_row(name, str(value))
    _console().print(table)


def print_statuses(statuses: Mapping[str, int], of: str = "clips") -> None:
    """Clips (or what else is counted) by status, ok first, then the most frequent failure."""
    clips = sum(statuses.values())
    table = Table(box=None, pad_edge=False)
    table.add_column("status")
    table.add_column(of, justify="right")
    table.add_column("share", justify="right")
    for status, count in sorted(statuses.items(), key=lambda kv: (kv[0] != Status.OK, -kv[1])):
        style = "green" if status == Status.OK else "yellow"
        table.add_row(status, f"{count:,}", f"{count / clips:.1%}", style=style)
    _console().print(table)


def print_outcome(outcome: Mapping[str, Any], where: str) -> None:
    """Rows by status, audio and speed, where the rows are.

    The first speed counts from the moment a model was loaded, the second from the command's start.
    """
    several = outcome["rows"] != outcome["clips"]
    print_statuses(outcome["statuses"], "rows" if several else "clips")
    audio_s, wall_s, startup_s = outcome["audio_s"], outcome["wall_s"], outcome["startup_s"]
    scoring_s = max(wall_s - startup_s, 1e-3)
    line = (
        f"{hours(audio_s)} of audio scored in {duration(scoring_s)} "
        f"({audio_s / scoring_s:.1f} x real time; {audio_s / wall_s:.1f} x with "
        f"{duration(startup_s)} of start-up), padding waste {outcome['padding_waste']:.1%}"
    )
    print_line(f"{line if audio_s else 'nothing was left to score'}\nrows: {where}")


def print_manifest(clips: int, audio_s: float, where: str) -> None:
    """What a manifest holds and where it is."""
    print_line(f"{clips_and_audio(clips, audio_s)}\nmanifest: {where}")


def _console() -> Console:
    # soft_wrap keeps paths whole when another program reads the output
    return Console(soft_wrap=True, highlight=False, markup=False)
