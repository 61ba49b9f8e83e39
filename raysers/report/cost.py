"""What the runs cost: wall time, workers, devices, and audio hours per device hour.

A device hour is an hour in which a model had a device, added up over the workers; waiting for
audio and starting up are in the wall time only.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from raysers.report.evidence import ReportData, RunFacts
from raysers.report.parts import Cell, Exhibit, Grid, last_part, shown

_COLUMNS = (
    "run", "job", "status", "wall", "workers", "device", "audio, h", "audio h per device h",
)  # fmt: skip


def cost_exhibit(found: ReportData) -> Exhibit:
    """A line per run, and per cell of a study."""
    grids = [
        Grid(
            caption="Runs, in the order they were given",
            columns=_COLUMNS,
            rows=[_line(run) for run in found.runs],
        )
    ]
    if found.cells:
        grids.append(
            Grid(
                caption="Cells of the studies",
                columns=["cell", "study", *_COLUMNS[2:]],
                rows=[_cell(row) for row in found.cells],
            )
        )
    return Exhibit(
        key="cost",
        name="",
        title="What the runs cost",
        lead="Audio hours per device hour tell what a longer run will take; wall time includes "
        "starting up.",
        grids=grids,
    )


def speed(run: RunFacts) -> float:
    """Audio hours per device hour; NaN where the run does not say."""
    outcome = run.outcome
    audio_s, model_s = _number(outcome.get("audio_s")), _number(outcome.get("model_s"))
    if audio_s and model_s:
        return audio_s / model_s
    placement = _mapping(run.training.get("placement"))
    training_s = _number(outcome.get("training_s")) * (_number(placement.get("workers")) or 1)
    heard_s = _number(outcome.get("audio_hours")) * 3600
    return heard_s / training_s if heard_s and training_s else float("nan")


def audio_hours(run: RunFacts) -> float:
    """Audio that went through a model in the run's last part."""
    return _number(run.outcome.get("audio_s")) / 3600 or _number(run.outcome.get("audio_hours"))


def wall_s(run: RunFacts) -> float:
    """From start to end, with the earlier parts of a run that was resumed; NaN: not ended."""
    parts = [run.record, *run.record.get("history", ())]
    found = [_between(part) for part in parts if isinstance(part, Mapping)]
    known = [seconds for seconds in found if seconds is not None]
    return sum(known) if known else float("nan")


def _line(run: RunFacts) -> list[Cell]:
    # a training says it in its own record, a job over clips in its outcome
    placement = _mapping(run.training.get("placement")) or run.outcome
    config = _mapping(run.record.get("config"))
    workers = placement.get("workers") or config.get("workers") or 0
    return [
        last_part(run.folder),
        run.job,
        str(run.record.get("status", "")).replace("_", " "),
        duration(wall_s(run)),
        str(workers) if workers else "all there were",
        str(placement.get("device") or "–"),
        shown(audio_hours(run) or float("nan"), 2),
        shown(speed(run), 1),
    ]


def _cell(row: Mapping[str, Any]) -> list[Cell]:
    audio_s, wall = _number(row["audio_s"]), _number(row["wall_s"])
    device_s = wall * (_number(row["workers"]) or 1)
    return [
        row["cell"],
        row["study"],
        row["status"] + (f": {row['error']}" if row["error"] else ""),
        duration(wall or float("nan")),
        str(row["workers"] or "–"),
        row["device"] or "–",
        shown(audio_s / 3600 or float("nan"), 2),
        shown(audio_s / device_s if audio_s and device_s else float("nan"), 1),
    ]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.2), duration(42.4), duration(float("nan"))
    ('1:02:05 h', '42 s', '–')
    """
    if seconds != seconds:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d} h"


def _between(part: Mapping[str, Any]) -> float | None:
    try:
        started = datetime.fromisoformat(str(part.get("started_at")))
        ended = datetime.fromisoformat(str(part.get("finished_at")))
    except ValueError:
        return None
    return max((ended - started).total_seconds(), 0.0)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value == value else 0.0
