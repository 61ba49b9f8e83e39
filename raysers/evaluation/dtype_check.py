"""What a precision costs: clips scored in it and by torch in fp32, and how far the scores part."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.data.manifest import clips_of
from raysers.engine import progress
from raysers.engine.job import ClipJob
from raysers.engine.placement import io_threads
from raysers.engine.worker import score_stream
from raysers.errors import ConfigError
from raysers.evaluation.join import dimensions_of
from raysers.evaluation.metrics import Floats, ccc
from raysers.run import Exit
from raysers.types import DIMENSIONS, Status


def check_dtype(job: ClipJob, clips: int) -> Exit:
    """Score so many clips of an annotation both ways on one worker and print the deviations.

    They are spread evenly over the manifest; nothing is written. Raises ConfigError: no clip can be
    scored both ways.
    """
    task, manifest = job.task, job.plan.manifest
    assert isinstance(task, AnnotateTask)
    good = manifest.filter(pc.equal(manifest["status"], str(Status.OK)))
    places = np.linspace(0, max(good.num_rows - 1, 0), clips).round().astype(int)
    sample = good.take(np.unique(places)) if good.num_rows else good
    exact = replace(task, dtype="fp32", backend="torch")
    arguments = (sample, (task, exact), job.flags.max_clip_s, io_threads(sample, job.placement))
    if job.placement.local:
        chosen, reference = score_with(*arguments)
    else:
        from raysers.engine import cluster

        chosen, reference = cluster.call_on_worker(job.placement, score_with, *arguments)
    both = np.isfinite(chosen) & np.isfinite(reference)
    if not both.any():
        raise ConfigError(f"--check-dtype {clips}: no clip could be scored")
    progress.print_line(
        f"{task.dtype} ({task.backend}) against fp32 (torch), {both.any(1).sum()} clips"
        " (nothing was written)"
    )
    for name, line in deviations(chosen, reference, dimensions_of(sample)).items():
        progress.print_line(f"{name:9}  {line}")
    return Exit.DONE


def score_with(
    sample: pa.Table, tasks: tuple[AnnotateTask, ...], max_clip_s: float, threads: int
) -> list[Floats]:
    """Per task the scores [clips, 3] of the sample; NaN where a clip or dimension has none."""
    found = []
    for task in tasks:
        model = task.open()
        rows: dict[str, Mapping[str, float]] = {}
        with ThreadPoolExecutor(threads) as pool:
            clips = clips_of(sample)
            for one, row in score_stream(model, clips, pool, max_clip_s=max_clip_s):
                rows[one.clip.clip_id] = row if isinstance(row, dict) else {}
        ids = sample["clip_id"].to_pylist()
        scores = [[rows.get(i, {}).get(name, np.nan) for name in DIMENSIONS] for i in ids]
        found.append(np.array(scores, np.float64).reshape(-1, len(DIMENSIONS)))
    return found


def deviations(chosen: Floats, reference: Floats, labels: Floats) -> dict[str, str]:
    """A line per dimension on absolute differences, and on CCC where labels allow one.

    Scores in the precision that is checked, those by torch in fp32, and labels, [clips, 3] each;
    NaN where there are none.
    """
    lines = {}
    for place, name in enumerate(DIMENSIONS):
        new, old, truth = chosen[:, place], reference[:, place], labels[:, place]
        there = np.isfinite(new) & np.isfinite(old)
        if not there.any():
            continue
        moved = np.abs(new - old)[there]
        line = f"mean {moved.mean():.5f}, p95 {np.percentile(moved, 95):.5f}, max {moved.max():.5f}"
        there &= np.isfinite(truth)
        before, after = (ccc(truth[there], scores[there]) for scores in (old, new))
        if np.isfinite(before) and np.isfinite(after):
            line += f"; CCC {before:.4f} to {after:.4f} ({after - before:+.4f})"
        lines[name] = line
    return lines
