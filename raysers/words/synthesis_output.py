"""The output of a synthesis: its record, and a manifest like any other, with all that is known.

The manifest has one row per sound file that was asked for, also for those that could not be made,
so a job that takes it as input carries their status on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.sorting import sort_manifest
from raysers.engine import ledger, progress
from raysers.engine import output as parts
from raysers.errors import RaysersError
from raysers.io import storage
from raysers.run import Exit, Run
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import Status
from raysers.words.speaking import MANNER_FIELDS, SPEECH, TABLE

_ROWS_PER_PART = 100_000
_LABELS = {field.name: field for field in LABEL_FIELDS}
_MEANINGS = {
    "sentiment": "sentiment of what is said",
    "template": "pattern the text was made from",
    "word": "word in it that carries the sentiment",
    "slot": "what else fills the template",
    "source_clip_id": "clip the text was taken from",
    "source_file": "file the text was taken from",
}


def write_header(output: str, plan: pa.Table, about: str) -> None:
    """Write `db.yaml`, which comes before any sound.

    Raises:
        WriteError: the output cannot be written.
    """
    schemas = {"manifest": manifest_schema(plan), TABLE: SPEECH}
    parts.write_header(output, schemas, description=f"speech made from {about}")


def manifest_schema(plan: pa.Table) -> pa.Schema:
    """Columns of the manifest: those of all manifests, then what was carried from the texts."""
    carried = {"transcript": _LABELS["transcript"]}
    for field in plan.schema:
        name = "transcript" if field.name == "text" else field.name
        if name not in MANIFEST.names:
            meaning = {"meaning": _MEANINGS.get(name, name)}
            carried[name] = _LABELS.get(name) or field.with_metadata(field.metadata or meaning)
    manner = {field.name: field for field in MANNER_FIELDS}
    return pa.schema([*MANIFEST, *(carried | manner).values()])


def conclude(run: Run, plan: pa.Table, shards: int, *, wall_s: float, max_failed: float) -> Exit:
    """Check that every text is one row, write the manifest and how it ended, print it.

    Raises:
        RaysersError: rows are missing or too many.
    """
    output = run.output
    speech = parts.read_all(output, TABLE, shards, MANIFEST.names)
    if speech["file"].to_pylist() != plan["file"].to_pylist():
        raise RaysersError(
            f"{output} does not match its texts: {len(plan):,} sounds but {len(speech):,} rows. "
            f"Its parts were changed from outside: delete the folder {TABLE} and run the same "
            "command"
        )
    schema = manifest_schema(plan)
    columns = {name: speech[name] for name in MANIFEST.names}
    columns |= {
        n: plan["text" if n == "transcript" else n] for n in schema.names if n not in columns
    }
    manifest = pa.table(
        [columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )
    _write(storage.join(output, "manifest"), sort_manifest(manifest))
    ledger.tidy(output)
    return _finish(run, manifest, wall_s=wall_s, max_failed=max_failed)


def _write(uri: str, table: pa.Table) -> None:
    """Parts of 100,000 rows, the first one last: without it a manifest counts as unfinished."""
    starts = range(0, len(table), _ROWS_PER_PART)
    for number, start in reversed(list(enumerate(starts))):
        rows = table.slice(start, _ROWS_PER_PART)
        parts.write_part(storage.join(uri, f"part-{number:05d}.parquet"), rows)


def _finish(run: Run, manifest: pa.Table, *, wall_s: float, max_failed: float) -> Exit:
    statuses = progress.count_statuses(manifest)
    failed = 1 - statuses.get(Status.OK, 0) / len(manifest)
    outcome: Mapping[str, Any] = {
        "clips": len(manifest),
        "statuses": statuses,
        "failed_share": round(failed, 6),
        "audio_s": round(pc.sum(manifest["duration_s"]).as_py() or 0.0, 3),
        "wall_s": round(wall_s, 3),
    }
    good = failed <= max_failed
    run.finish("done" if good else "done_with_failures", outcome)
    progress.print_statuses(statuses)
    progress.print_manifest(len(manifest), outcome["audio_s"], run.output)
    if not good:
        progress.print_warning(
            f"{failed:.1%} of the texts were not spoken, more than --max-failed {max_failed:g} "
            "allows: see the columns status and error; --retry STATUS speaks such texts again"
        )
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def notes(texts: int, plan: pa.Table, shards: int, left: Sequence[pa.Table]) -> str:
    """One line before the work: how much there is, and how much of it is left."""
    todo = sum(map(len, left))
    line = f"{texts:,} texts, {len(plan):,} sound files in {shards} shards"
    return line if todo == len(plan) else f"{line}; {todo:,} left"
