r"""Speech from texts, as clips with a manifest that every other job takes.

    raysers synthesize --templates this-is -o spoken
    raysers synthesize sentences.csv --voice random -o s3://bucket/spoken
    raysers synthesize sentences.csv -o spoken --tts-command \
        'piper --model en.onnx --input-file {text_file} --output-file {output}'

A short sentence takes espeak-ng about 8 ms of CPU. Rerunning the command resumes.

Result: OUTPUT/audio/*.wav and OUTPUT/manifest, one row per text, voice, rate and pitch, with the
text as `transcript` and every other column of the texts beside it.
"""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import as_plain, command
from raysers.data.sorting import sort_manifest
from raysers.engine import output as parts
from raysers.engine import progress
from raysers.errors import RaysersError
from raysers.io import marks, storage
from raysers.run import Exit, Run, with_absolute_paths
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import Status
from raysers.words import synthesize as synthesis
from raysers.words.synthesize import JOB, MANNER_FIELDS, SPEECH, TABLE, SynthesizeFlags, check

_MEANINGS = {
    "sentiment": "sentiment of what is said",
    "template": "pattern the text was made from",
    "word": "word in it that carries the sentiment",
    "slot": "what else fills the template",
    "source_clip_id": "clip the text was taken from",
    "source_file": "file the text was taken from",
}
_ROWS_PER_PART = 100_000


def synthesize(flags: SynthesizeFlags) -> int:
    """Read, plan, speak what is left, conclude; returns the exit code."""
    flags = with_absolute_paths(flags)
    with Run.open(JOB, flags.output, table=TABLE, dry_run=flags.dry_run) as run:
        table, notes = check(flags, run)
        pool = synthesis.worker_pool(flags.workers)
        plan = synthesis.utterances(table, flags, run.output)
        blocks = synthesis.shard_blocks(plan)
        again = frozenset(map(str, flags.retry))
        left = synthesis.shards_left(run.output, blocks, again)
        for note in notes:
            progress.print_warning(note)
        line = f"{JOB}: {len(table):,} texts, {len(plan):,} sound files, {len(blocks)} shards"
        todo = sum(map(len, left))
        print(line if todo == len(plan) else f"{line}; {todo:,} left", flush=True)
        if flags.dry_run:
            return Exit.DONE
        started_s = time.perf_counter()
        about = f"speech made from {flags.texts or ', '.join(flags.templates)}"
        schemas = {"manifest": manifest_schema(plan), TABLE: SPEECH}
        parts.write_header(run.output, schemas, description=about)
        run.begin(as_plain(flags), flags.settings(table))
        speaker = {
            "engine": flags.engine,
            "output": run.output,
            "run_id": run.run_id,
            "audio_format": flags.audio_format,
            "redo": again,
            "resumed": run.earlier is not None,
        }
        synthesis.run_shards(left, speaker, pool)
        wall_s = time.perf_counter() - started_s
        return conclude(run, plan, len(blocks), wall_s=wall_s, max_failed=flags.max_failed)


def manifest_schema(plan: pa.Table) -> pa.Schema:
    """Columns of the manifest: those of all manifests, then what was carried from the texts."""
    labels = {field.name: field for field in LABEL_FIELDS}
    carried = {"transcript": labels["transcript"]}
    for field in plan.schema:
        name = "transcript" if field.name == "text" else field.name
        if name not in MANIFEST.names:
            meaning = {"meaning": _MEANINGS.get(name, name)}
            carried[name] = labels.get(name) or field.with_metadata(field.metadata or meaning)
    return pa.schema([*MANIFEST, *(carried | {f.name: f for f in MANNER_FIELDS}).values()])


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
    known = {name: plan[name] for name in plan.column_names} | {"transcript": plan["text"]}
    known |= {name: speech[name] for name in MANIFEST.names}
    columns = [known[field.name].cast(field.type) for field in schema]
    manifest = sort_manifest(pa.table(columns, schema=schema))
    # the first part last: without it a manifest counts as unfinished
    for number, start in reversed(list(enumerate(range(0, len(manifest), _ROWS_PER_PART)))):
        part = storage.join(output, "manifest", f"part-{number:05d}.parquet")
        parts.write_part(part, manifest.slice(start, _ROWS_PER_PART))
    marks.tidy(output)
    statuses = progress.count_statuses(manifest)
    failed = 1 - statuses.get(Status.OK, 0) / len(manifest)
    audio_s = round(pc.sum(manifest["duration_s"]).as_py() or 0.0, 3)
    outcome = {
        "clips": len(manifest),
        "statuses": statuses,
        "failed_share": round(failed, 6),
        "audio_s": audio_s,
        "wall_s": round(wall_s, 3),
    }
    good = failed <= max_failed
    run.finish("done" if good else "done_with_failures", outcome)
    progress.print_statuses(statuses)
    progress.print_manifest(len(manifest), audio_s, output)
    if not good:
        progress.print_warning(
            f"{failed:.1%} of the texts were not spoken, more than --max-failed {max_failed:g} "
            "allows: see the columns status and error; --retry STATUS speaks such texts again"
        )
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


main = command(SynthesizeFlags, synthesize, __doc__ or "", positional="texts")
