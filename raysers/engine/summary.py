"""What a job prints: its plan, and at the end what came of every clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from raysers.engine.plan import Plan
from raysers.engine.progress import duration, hours
from raysers.text import visible
from raysers.types import Status


def print_plan(job: str, plan: Plan) -> None:
    """One line before the work starts: clips, audio, shards, and what is resumed."""
    line = f"{job}: {_clips_and_audio(plan.manifest)}, {len(plan.shards)} shards"
    if plan.earlier is not None:
        line += (
            f"; resuming the run of {plan.earlier.started_at} with its list of clips, "
            f"{len(plan.todo)} shards left"
        )
    _console().print(line)


def warn_of_long_clips(plan: Plan, max_clip_s: float) -> None:
    """Say before the work how many clips will not be scored for their length."""
    too_long = pc.sum(pc.greater(plan.manifest["duration_s"], max_clip_s)).as_py() or 0
    if too_long:
        print_warning(
            f"{too_long:,} clips are longer than --max-clip-s {max_clip_s:g} and will be too_long: "
            "--segment window cuts recordings into clips"
        )


def print_versions(versions: Sequence[str], left_out: Sequence[str]) -> None:
    """How many versions of every clip are scored, and which were not asked for in full."""
    console = _console()
    console.print(f"{len(versions)} versions of every clip: {', '.join(versions)}")
    if left_out:
        print_warning(f"left out, for want of recordings: {', '.join(left_out)}")


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """Names and values in two columns."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in pairs.items():
        table.add_row(name, str(value))
    _console().print(table)


def print_warning(text: str) -> None:
    """A line that wants attention."""
    _console().print(visible(text), style="yellow")  # it may name what strangers named


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
    """Clips by status, then audio and speed, then where the rows are."""
    several = outcome["rows"] != outcome["clips"]
    print_statuses(outcome["statuses"], "rows" if several else "clips")
    console = _console()
    console.print(speed_line(outcome))
    console.print(f"rows: {where}")


def print_manifest(manifest: pa.Table, where: str) -> None:
    """What a manifest holds and where it is."""
    _console().print(f"{_clips_and_audio(manifest)}\nmanifest: {where}")


def count_statuses(table: pa.Table) -> dict[str, int]:
    """Rows by status."""
    return {str(c["values"]): c["counts"] for c in pc.value_counts(table["status"]).to_pylist()}


def speed_line(outcome: Mapping[str, Any]) -> str:
    """`12.3 h of audio in 0:41:02 (18.0 x real time), padding waste 1.2%`."""
    audio_s, wall_s = outcome["audio_s"], outcome["wall_s"]
    if not audio_s:
        return "nothing was left to score"
    return (
        f"{hours(audio_s)} of audio in {duration(wall_s)} "
        f"({audio_s / wall_s:.1f} x real time), padding waste {outcome['padding_waste']:.1%}"
    )


def _clips_and_audio(manifest: pa.Table) -> str:
    audio_s = pc.sum(manifest["duration_s"]).as_py() or 0.0
    return f"{manifest.num_rows:,} clips, {hours(audio_s)} of audio"


def _console() -> Console:
    # soft_wrap keeps paths whole when another program reads the output
    return Console(soft_wrap=True, highlight=False, markup=False)
