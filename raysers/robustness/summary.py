"""What a robustness run says at its end: metrics table, picture, tables in the terminal, audio.

All of it follows from the rows, so the same command on a finished output makes it again, with
another threshold if asked for.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile as sf

from raysers.data.manifest import clips_of
from raysers.engine import output as parts
from raysers.engine.feed import Decoded, decode_run
from raysers.engine.job import ClipJob
from raysers.engine.plan import Plan
from raysers.evaluation.join import dimensions_of
from raysers.evaluation.metrics import Floats
from raysers.evaluation.rows import Row, to_table
from raysers.evaluation.scores import Scores
from raysers.evaluation.tables import print_notes
from raysers.io import storage
from raysers.robustness.changes import Change, Comparison
from raysers.robustness.figure import robustness_figure
from raysers.robustness.measures import robustness_rows
from raysers.robustness.suites import CLEAN, HARD
from raysers.robustness.table import print_robustness, reading_notes
from raysers.robustness.task import Perturbed, RobustnessTask
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ, Status

METRICS_PART = "metrics/part-00000.parquet"
_COLUMNS = ("speaker", "sex", "language", "emotion", "corpus", "split")


def report(job: ClipJob, task: RobustnessTask, comparison: Comparison) -> list[Row]:
    """Compare the rows of the output, write metrics and picture, print the tables.

    Raises:
        WriteError: the output cannot be written.
    """
    output = job.run.output
    scores = read_scores(output, job.plan, task.variant_names)
    rows = robustness_rows(task.scoring.model, scores, changes_of(task.perturbed), comparison)
    parts.write_part(storage.join(output, METRICS_PART), to_table(rows, job.run.run_id))
    for suffix, data in robustness_figure(rows, task.scoring.model, comparison).items():
        storage.write_atomic(storage.join(output, f"robustness.{suffix}"), data)
    print_robustness(rows, task.scoring.model, comparison)
    names = [row.name for row in task.perturbed.rows]
    print_notes(list(reading_notes(rows, names, comparison, amr=task.needs_codec)))
    print(f"metrics: {storage.join(output, 'metrics')}")
    return rows


def changes_of(perturbed: Perturbed) -> list[Change]:
    """Every perturbation with its repeats, as the evaluation knows them."""
    return [
        Change(
            name=row.name,
            versions=tuple(perturbed.variants_of(row)),
            against=row.against,
            small=row.name not in HARD,
        )
        for row in perturbed.rows
    ]


def read_scores(output: str, plan: Plan, names: Sequence[str]) -> Scores:
    """Labels of the manifest and predictions by version, in the manifest's order.

    Raises:
        RaysersError: no part is there.
    """
    columns = ["clip_id", parts.VARIANT, *DIMENSIONS]
    table = parts.read_all(output, "robustness", len(plan.shards), columns)
    manifest = plan.manifest
    ids = manifest["clip_id"].combine_chunks()
    place = pc.index_in(table["clip_id"], value_set=ids).to_numpy()
    values = dimensions_of(table)
    version = pc.index_in(table[parts.VARIANT], value_set=pa.array(names)).to_numpy()
    predictions: dict[str, Floats] = {}
    for number, name in enumerate(names):
        mine = version == number
        predictions[name] = np.full((len(ids), 3), np.nan)
        predictions[name][place[mine]] = values[mine]
    return Scores(
        clip_id=ids.to_pylist(),
        truth=dimensions_of(manifest),
        predictions=predictions,
        columns={c: manifest[c].to_pylist() for c in _COLUMNS if c in manifest.column_names},
    )


def save_audio(job: ClipJob, perturbed: Perturbed, count: int) -> list[str]:
    """Write `count` perturbed clips, each beside the clip as it is, as 24-bit FLAC.

    The perturbations take turns, as far as they can be applied; the clips are a choice by their
    ids, so it is the same every time. A clip beyond full scale is turned down, and its name says
    by how much.

    Returns:
        The files of perturbed clips.

    Raises:
        WriteError: the output cannot be written.
    """
    picks = [name for name in perturbed.names if name != CLEAN]
    if not count or not picks:
        return []
    output, max_clip_s = job.run.output, job.flags.max_clip_s
    written: list[str] = []
    for clip in _shuffled(job.plan):
        by_name = _variants_of(clip, perturbed, max_clip_s)
        turn = len(written) % len(picks)
        turns = (by_name[name] for name in [*picks[turn:], *picks[:turn]])
        one = next((variant for variant in turns if variant.signal is not None), None)
        if one is None:
            continue
        stem = re.sub(r"[^\w.-]+", "_", one.clip.file.rpartition("/")[2])[:60]
        stem = f"{len(written) + 1:03d}_{stem}"
        _write_flac(output, f"{stem}_{CLEAN}", by_name[CLEAN])
        written.append(_write_flac(output, f"{stem}_{one.variant}", one))
        if len(written) == count:
            break
    print(f"audio: {storage.join(output, 'audio')} ({len(written)} clips and their originals)")
    return written


def _shuffled(plan: Plan) -> Iterator[pa.Table]:
    """Good clips one by one, in an order of their own."""
    good = plan.manifest.filter(pc.equal(plan.manifest["status"], str(Status.OK)))
    keys = [hashlib.blake2b(i.encode()).digest() for i in good["clip_id"].to_pylist()]
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        yield good.slice(row, 1)


def _variants_of(clip: pa.Table, perturbed: Perturbed, max_clip_s: float) -> dict[str, Decoded]:
    (decoded,) = decode_run(clips_of(clip), max_clip_s)
    return {one.variant: one for one in perturbed.of(decoded)}


def _write_flac(output: str, name: str, one: Decoded) -> str:
    signal = one.signal if one.signal is not None else np.zeros(0, np.float32)
    peak = float(np.abs(signal).max(initial=0.0))
    if peak > 1:
        down_db = 20 * np.log10(peak)
        signal, name = signal / peak, f"{name}_turned_down_{down_db:.1f}_dB"
    file = io.BytesIO()
    sf.write(file, signal, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_24")
    uri = storage.join(output, "audio", f"{name}.flac")
    storage.write_atomic(uri, file.getvalue())
    return uri
