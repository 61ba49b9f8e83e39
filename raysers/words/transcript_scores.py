"""The transcripts of a finished run against those of its manifest, where it has some.

Names come from manifests, so they are printed with control characters and marks of direction as
blanks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.rows import Row, to_table
from raysers.evaluation.runs import METRICS_PART
from raysers.evaluation.tables import report_console
from raysers.io import storage
from raysers.text import one_line
from raysers.types import Status
from raysers.words.word_errors import GROUPS, Transcribed, overall, word_error_rows

#: What the clips of a word error rate may be grouped by, or drawn by.
_COLUMNS = ("corpus", "split", "speaker", *GROUPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordErrors:
    """Rows of the metrics table, and what the user should know about them."""

    rows: list[Row]
    notes: list[str]


def score(job: ClipJob, bootstrap: Bootstrap) -> WordErrors | None:
    """Word errors of a finished run; None when its manifest has no transcripts.

    The metrics table is written and the rates are added to `run.json`.

    Raises:
        RaysersError: rows or record are gone.
        WriteError: the table cannot be written.
    """
    manifest = job.plan.manifest
    if "transcript" not in manifest.column_names or not _known(manifest).num_rows:
        return None
    record = job.run.record
    assert record is not None, "score before execute"
    found = _transcribed(_known(manifest), job.rows(["clip_id", "status", "text"]))
    rows = word_error_rows(str(record.settings["asr"]), found, bootstrap)
    metrics = storage.join(job.run.output, METRICS_PART)
    parts.write_part(metrics, to_table(rows, record.run_id))
    outcome = {**(record.outcome or {}), "word_errors": overall(rows)}
    job.run.finish(record.status, outcome)
    return WordErrors(rows=rows, notes=list(_notes(found)))


def _known(manifest: pa.Table) -> pa.Table:
    """Clips whose words are known; an empty transcript means no speech."""
    return manifest.filter(pc.is_valid(manifest["transcript"]))


def _transcribed(manifest: pa.Table, rows: pa.Table) -> Transcribed:
    good = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    texts = dict(zip(good["clip_id"].to_pylist(), good["text"].to_pylist(), strict=True))
    ids = manifest["clip_id"].to_pylist()
    return Transcribed(
        clip_id=ids,
        said=manifest["transcript"].to_pylist(),
        recognised=[texts.get(clip) for clip in ids],
        columns={n: manifest[n].to_pylist() for n in _COLUMNS if n in manifest.column_names},
    )


def _notes(found: Transcribed) -> Iterator[str]:
    if lost := sum(text is None for text in found.recognised):
        yield f"{lost:,} clips with a transcript were not recognised and do not count"
    if silent := sum(not said.strip() for said in found.said):
        yield f"{silent:,} clips have an empty transcript: every word recognised there is an error"
    speakers = {name for name in found.columns.get("speaker", ()) if name}
    if len(speakers) < 2:
        yield (
            "fewer than two speakers are known, so clips were resampled and the intervals may be "
            "too narrow"
        )


_MOST_LINES = 24
_HEADS = ("clips", "words", "WER", "CER", "substituted", "deleted", "inserted")


def print_word_errors(rows: Sequence[Row], console: Console | None = None) -> None:
    """A line for every cell: rates in percent, with 95 % intervals where there are some."""
    console = console or report_console()
    table = Table(title="word and character errors", title_justify="left", box=None, pad_edge=False)
    table.add_column("", overflow="fold", max_width=32)
    for head in _HEADS:
        table.add_column(head, justify="right")
    cells = [list(group) for _, group in groupby(rows, key=_cell)]
    for cell in cells[:_MOST_LINES]:
        table.add_row(_name(cell[0]), f"{cell[0].n:,}", *_figures(cell))
    console.print(table)
    if len(cells) > _MOST_LINES:
        console.print(f"{len(cells) - _MOST_LINES:,} more groups are on disk", style="dim")


def _cell(row: Row) -> tuple[str, str, str, str]:
    return row.dataset, row.split, row.group, row.group_value


def _name(row: Row) -> str:
    split = "" if row.split == "all" else row.split
    group = f"{row.group} {row.group_value}" if row.group else ""
    return one_line(" ".join(filter(None, (row.dataset, split, group))))


def _figures(cell: Iterable[Row]) -> list[str]:
    by_metric = {row.metric: row for row in cell}
    rates = [by_metric[name] for name in ("wer", "cer")]
    parts = [by_metric[name] for name in ("substitutions", "deletions", "insertions")]
    return [
        f"{by_metric['words'].value:,.0f}",
        *(_percent(row.value) + _interval(row) for row in rates),
        *(_percent(row.value) for row in parts),
    ]


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"


def _interval(row: Row) -> str:
    if row.ci_low != row.ci_low:
        return ""
    return f" [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]"
