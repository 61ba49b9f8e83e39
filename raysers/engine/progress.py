"""Terminal output of a job: the live line while it runs, counts and speed at its end.

Workers report how far each shard is; the driver reads it. Figures of a shard that is scored twice
replace each other, so nothing is counted double.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysers.text import visible
from raysers.types import Status

#: Seconds between two lines when the output is not a terminal.
LINE_EVERY_S = 10.0

#: Audio seconds and rows by status, by shard.
Shards = dict[int, tuple[float, dict[str, int]]]


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


@dataclass(slots=True)
class Totals:
    """How far the whole run is."""

    #: Audio seconds that this run has to score, every variant counted, and rows it has to write.
    total_s: float
    rows: int
    #: Shards that are finished, and those that workers have reported on.
    finished: Shards = field(default_factory=dict)
    in_work: Shards = field(default_factory=dict)
    #: On the monotonic clock; loading the model counts.
    began_s: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """One line: audio hours, x real time, time left, clips, failures by status."""
        shards = {**self.in_work, **self.finished}
        elapsed_s = max(time.monotonic() - self.began_s, 1.0)
        if not shards:
            return f"loading the model ({duration(elapsed_s)})"
        audio_s = sum(done_s for done_s, _ in shards.values())
        statuses = sum((Counter(counts) for _, counts in shards.values()), Counter[str]())
        speed = audio_s / elapsed_s
        text = f"{hours(audio_s)} of {hours(self.total_s)} audio | {speed:.1f} x real time"
        if speed:
            text += f" | {duration((self.total_s - audio_s) / speed)} left"
        return f"{text} | {statuses.total()}/{self.rows} clips" + failures_text(statuses)


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
def live(totals: Totals, refresh: Callable[[], Shards | None]) -> Iterator[None]:
    """Show progress until the block ends: a live line on a terminal, else a line every 10 s.

    Args:
        totals: updated by the caller as shards finish.
        refresh: what workers have reported; None when it cannot be had just now.
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
    """Rows by status, then audio and speed, then where the rows are."""
    several = outcome["rows"] != outcome["clips"]
    print_statuses(outcome["statuses"], "rows" if several else "clips")
    print_line(f"{speed_line(outcome)}\nrows: {where}")


def print_manifest(clips: int, audio_s: float, where: str) -> None:
    """What a manifest holds and where it is."""
    print_line(f"{clips_and_audio(clips, audio_s)}\nmanifest: {where}")


def count_statuses(table: pa.Table) -> dict[str, int]:
    """Rows by status."""
    return {str(c["values"]): c["counts"] for c in pc.value_counts(table["status"]).to_pylist()}


def speed_line(outcome: Mapping[str, Any]) -> str:
    """`12.3 h of audio scored in 0:41:02 (18.0 x real time; 17.6 x with 0:52 of start-up), ...`.

    The first figure counts from the moment a model was loaded, the second from the command's start.
    """
    audio_s, wall_s, startup_s = outcome["audio_s"], outcome["wall_s"], outcome["startup_s"]
    if not audio_s:
        return "nothing was left to score"
    scoring_s = max(wall_s - startup_s, 1e-3)
    return (
        f"{hours(audio_s)} of audio scored in {duration(scoring_s)} "
        f"({audio_s / scoring_s:.1f} x real time; {audio_s / wall_s:.1f} x with "
        f"{duration(startup_s)} of start-up), padding waste {outcome['padding_waste']:.1%}"
    )


def clips_and_audio(clips: int, audio_s: float) -> str:
    """`535 clips, 24.8 min of audio`."""
    return f"{clips:,} clips, {hours(audio_s)} of audio"


def _console() -> Console:
    # soft_wrap keeps paths whole when another program reads the output
    return Console(soft_wrap=True, highlight=False, markup=False)
