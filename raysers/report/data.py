"""The data page of an archive: hours, failures with examples, distributions, timelines.

Quantiles are read from histograms, so that an archive of any size takes the same memory.
"""

from __future__ import annotations

import math
from typing import Any

from raysers.plotting import short
from raysers.report.archive import LEVEL_RANGE_DB, Archive, Timeline, hours_by_status
from raysers.report.archive_figure import levels_chart, scores_chart, timeline_chart
from raysers.report.evidence import ArchiveFacts, ReportData
from raysers.report.parts import Cell, Chart, Exhibit, Grid, last_part, shown
from raysers.types import DIMENSIONS

_MOST_ROWS = 200
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def archive_exhibits(found: ReportData) -> list[Exhibit]:
    """A data page for every archive: hours, failures, distributions, timelines."""
    return [_archive(number, facts) for number, facts in enumerate(found.archives, 1)]


def _archive(number: int, facts: ArchiveFacts) -> Exhibit:
    archive = facts.archive
    key = f"archive-{number}"
    charts = [_scores(key, archive), _levels(key, archive)]
    charts += [_timeline(f"{key}-recording-{i}", line) for i, line in enumerate(facts.timelines)]
    share = archive.failed / archive.clips if archive.clips else 0.0
    return Exhibit(
        key=key,
        name="",
        title=f"{last_part(facts.folder)}: {archive.clips:,} clips, {archive.hours:,.2f} h",
        lead=f"Scored by {facts.model or 'an unnamed model'}. {archive.failed:,} of "
        f"{archive.clips:,} clips ({share:.1%}) have no scores; {archive.clipped:,} reach full "
        "scale.",
        grids=[_statuses(archive)],
        charts=[chart for chart in charts if chart is not None],
    )


def _statuses(archive: Archive) -> Grid:
    rows: list[list[Cell]] = []
    for status, hours in hours_by_status(archive).items():
        count = archive.rows[status]
        examples = archive.examples.get(status, {})
        said = "; ".join(f"{last_part(file)}: {error}" for error, file in examples.items())
        rows.append([status, count, f"{count / archive.clips:.1%}", f"{hours:,.2f}", said or "–"])
    return Grid(
        caption="What became of the clips",
        columns=["status", "clips", "share", "hours", "for example"],
        rows=rows,
    )


def _scores(key: str, archive: Archive) -> Chart | None:
    picture = scores_chart(archive)
    if not picture:
        return None
    rows: list[list[Cell]] = []
    for number, dimension in enumerate(DIMENSIONS):
        mean, sd = archive.mean_and_sd(number)
        cells = [shown(_quantile(archive.scores[number], q), 2) for q in _QUANTILES]
        rows.append([dimension, shown(mean), shown(sd), *cells])
    columns = ["dimension", "mean", "sd", "5 %", "25 %", "median", "75 %", "95 %"]
    said = "; ".join(f"{row[0]} mean {row[1]}, standard deviation {row[2]}" for row in rows)
    return Chart(
        key=f"{key}-scores",
        title="How the scores are distributed",
        alt=f"Histograms of the scores: {said}.",
        picture=picture,
        grid=Grid(caption="Quantiles to the width of a bin (.02)", columns=columns, rows=rows),
        narrow=scores_chart(archive, narrow=True),
    )


def _levels(key: str, archive: Archive) -> Chart | None:
    picture = levels_chart(archive)
    if not picture:
        return None
    low, high = LEVEL_RANGE_DB
    cells = [shown(low + (high - low) * _quantile(archive.levels, q), 1) for q in _QUANTILES]
    columns = ["level, dB re full scale", "5 %", "25 %", "median", "75 %", "95 %"]
    return Chart(
        key=f"{key}-levels",
        title="How loud the clips are",
        alt=f"Histogram of the level; the median is {cells[2]} dB re full scale.",
        picture=picture,
        grid=Grid(
            caption="Quantiles to the width of a bin (1.2 dB)",
            columns=columns,
            rows=[["clips", *cells]],
        ),
        narrow=levels_chart(archive, narrow=True),
    )


def _quantile(counts: Any, share: float) -> float:
    """The quantile of a histogram, within its bins evenly spread, as a share of its range."""
    total, sought, passed = float(sum(counts)), share * float(sum(counts)), 0.0
    for number, count in enumerate(counts):
        if count and passed + count >= sought:
            return (number + (sought - passed) / float(count)) / len(counts)
        passed += float(count)
    return 1.0 if total else math.nan


def _timeline(key: str, line: Timeline) -> Chart | None:
    picture = timeline_chart(line)
    if not picture:
        return None
    rows: list[list[Cell]] = [
        [f"{start:,.1f} to {end:,.1f}", *(shown(float(v), 2) for v in values)]
        for start, end, values in zip(line.start_s, line.end_s, line.scores, strict=True)
    ]
    name = short(last_part(line.file), 60)
    minutes = float(line.end_s.max()) / 60
    return Chart(
        key=key,
        title=f"Along {name}",
        alt=f"Scores of {len(rows)} windows over the {minutes:.1f} minutes of {name}.",
        picture=picture,
        grid=Grid(
            caption=f"Windows of {name}",
            columns=["seconds", *DIMENSIONS],
            rows=rows[:_MOST_ROWS],
            left_out=max(0, len(rows) - _MOST_ROWS),
        ),
        narrow=timeline_chart(line, narrow=True),
    )
