"""The transcripts of a finished run against those of its manifest, where it has some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.rows import Row, to_table
from raysers.evaluation.runs import METRICS_PART
from raysers.io import storage
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
