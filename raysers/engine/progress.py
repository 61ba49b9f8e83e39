"""What a person sees while a job runs: audio hours, speed, time left, failures by status.

Workers tell a small actor how far each shard is; the driver only reads it. Figures of a shard that
is worked on twice replace each other, so nothing is counted double.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from raysers.types import Status

#: Seconds between two lines when the output is not a terminal.
LINE_EVERY_S = 10.0


class Monitor:
    """Keeps, per shard in work, audio seconds and clips by status; and how worker starts went."""

    def __init__(self) -> None:
        self._shards: dict[int, tuple[float, dict[str, int]]] = {}
        self._failed_starts = 0

    def report(self, shard: int, audio_s: float, statuses: dict[str, int]) -> None:
        """Replace what is known of `shard`."""
        self._shards[shard] = (audio_s, statuses)

    def loading(self) -> int:
        """A worker begins to load its model; returns how many such starts never came to an end."""
        self._failed_starts += 1
        return self._failed_starts - 1

    def loaded(self) -> None:
        """That worker has its model."""
        self._failed_starts -= 1

    def snapshot(self) -> dict[int, tuple[float, dict[str, int]]]:
        """Everything, by shard."""
        return dict(self._shards)


class ThrottledReport:
    """Sends a worker's figures to the monitor, at most about once a second per shard."""

    def __init__(self, monitor: Any, every_s: float = 1.0) -> None:
        self._monitor = monitor
        self._every_s = every_s
        self._last_s: dict[int, float] = {}

    def __call__(self, shard: int, audio_s: float, statuses: dict[str, int]) -> None:
        """Report unless this shard was reported a moment ago."""
        if time.monotonic() - self._last_s.get(shard, 0.0) >= self._every_s:
            self._last_s[shard] = time.monotonic()
            self._monitor.report.remote(shard, audio_s, statuses)


@dataclass(slots=True)
class Totals:
    """How far the whole run is.

    Attributes:
        total_s: audio seconds this run has to do.
        clips: clips it has to do.
        finished: per finished shard, audio seconds and clips by status.
        in_work: the same of shards that workers have told about.
        began_s: when the run began, on the monotonic clock; loading the model counts.
    """

    total_s: float
    clips: int
    finished: dict[int, tuple[float, dict[str, int]]] = field(default_factory=dict)
    in_work: dict[int, tuple[float, dict[str, int]]] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """One line: audio hours, x real time, time left, clips, failures by status."""
        shards = {**self.in_work, **self.finished}
        elapsed_s = max(time.monotonic() - self.began_s, 1.0)
        if not shards:
            return f"loading the model ({duration(elapsed_s)})"
        audio_s = sum(done_s for done_s, _ in shards.values())
        statuses: Counter[str] = Counter()
        for _, counts in shards.values():
            statuses.update(counts)
        speed = audio_s / elapsed_s
        text = f"{hours(audio_s)} of {hours(self.total_s)} audio | {speed:.1f} x real time"
        if speed:
            text += f" | {duration((self.total_s - audio_s) / speed)} left"
        return f"{text} | {statuses.total()}/{self.clips} clips" + failures_text(statuses)


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
    if not bad:
        return ""
    return " | failed: " + ", ".join(f"{status} {n}" for n, status in reversed(bad))


@contextmanager
def live(totals: Totals, monitor: Any) -> Iterator[None]:
    """Show progress until the block ends: a live line on a terminal, else a line every 10 s."""
    stop = threading.Event()
    console = Console(stderr=True)
    show = _on_terminal if console.is_terminal else _in_log
    thread = threading.Thread(target=show, args=(totals, monitor, stop, console), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _refresh(totals: Totals, monitor: Any) -> None:
    # progress is a courtesy: the run itself reports what matters
    with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
        totals.in_work = ray.get(monitor.snapshot.remote(), timeout=5)


def _on_terminal(totals: Totals, monitor: Any, stop: threading.Event, console: Console) -> None:
    with Live(console=console, refresh_per_second=4, transient=True) as view:
        while not stop.wait(0.5):
            _refresh(totals, monitor)
            view.update(Text(totals.line()))


def _in_log(totals: Totals, monitor: Any, stop: threading.Event, _: Console) -> None:
    while not stop.wait(LINE_EVERY_S):
        _refresh(totals, monitor)
        print(totals.line(), file=sys.stderr, flush=True)
