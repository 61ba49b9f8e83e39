"""Measuring: fresh processes, alternating sides, medians, memory, and what machine it was.

Two sides are compared within one run, turn by turn, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything.

    Attributes:
        repeats: turns per side where a turn is short.
        feed_clips: files of the feed and steady benches.
        clips: EmoDB clips of the end-to-end bench.
        slow_repeats: turns of the slow sides of the end-to-end bench.
        layout_clips: EmoDB clips of the layout bench.
        training_clips: EmoDB clips a large network is trained on; small ones get more.
        skewed_clips: files of the skewed length distribution.
        rows: manifest rows to plan.
        objects: objects to list.
        window_hours: length of the recording in windows.
        bends: files bent at random.
        shards: shards of the soak.
        deaths: workers killed in it.
    """

    repeats: int
    feed_clips: int
    clips: int
    slow_repeats: int
    layout_clips: int
    training_clips: int
    skewed_clips: int
    rows: int
    objects: int
    window_hours: float
    bends: int
    shards: int
    deaths: int


SCALES = {
    "small": Scale(
        repeats=1, feed_clips=2_000, clips=24, slow_repeats=1, layout_clips=8,
        training_clips=16, skewed_clips=400, rows=50_000, objects=20_000, window_hours=0.5,
        bends=2_000, shards=300, deaths=3,
    ),
    "full": Scale(
        repeats=3, feed_clips=20_000, clips=535, slow_repeats=1, layout_clips=48,
        training_clips=96, skewed_clips=5_000, rows=1_000_000, objects=1_000_000, window_hours=2.0,
        bends=20_000, shards=10_000, deaths=40,
    ),
}  # fmt: skip


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fresh(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """`function(...)` in a new interpreter: own memory, own torch threads, own Ray."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args, **kwargs).result()


def alternate(
    sides: Mapping[str, Callable[[], Line]], repeats: Mapping[str, int]
) -> dict[str, Line]:
    """Per side the median of every figure over its repeats, the sides taking turns."""
    turns: dict[str, list[Line]] = {name: [] for name in sides}
    for turn in range(max(repeats.values())):
        for name, run in sides.items():
            if turn < repeats[name]:
                turns[name].append(run())
    return {name: medians(lines) for name, lines in turns.items()}


def medians(lines: list[Line]) -> Line:
    """The median of every number, by key; of anything else the first."""
    return {
        key: statistics.median(line[key] for line in lines) if _is_number(first) else first
        for key, first in lines[0].items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def rounded(line: Line) -> Line:
    """The line with four digits per number, as much as repeats reproduce."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}


def judged(line: Line, *, ratio: float, target: float, lower: bool = False) -> Line:
    """The line with its ratio, the target, and whether it is reached."""
    reached = ratio <= target if lower else ratio >= target
    return {**line, "ratio": ratio, "target": target, "reached": reached}


def machine() -> Line:
    """What the numbers depend on: CPU, cores, torch, number format."""
    import ray
    import torch

    from raysers.models.scorer import PRECISIONS, dtype_name

    device = device_name()
    return {
        "bench": "machine",
        "cpu": _cpu_model(),
        "cores": cores(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "ray": ray.__version__,
        "python": platform.python_version(),
        "dtype": str(PRECISIONS[dtype_name("auto", device)]).removeprefix("torch."),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def device_name() -> str:
    """`cuda` or `cpu`, as the jobs choose."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def rss_bytes(name: str = "VmRSS") -> int:
    """Resident memory of this process from Linux; `VmHWM` is the peak so far.

    Not getrusage: its peak includes that of the process this one was started from.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
