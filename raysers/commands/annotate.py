"""Arousal, dominance and valence for every clip of an audio archive.

    raysers annotate recordings/ -o emotions/
    raysers annotate s3://bucket/calls -o s3://bucket/emotions --model msp-dim

Rerun the command to resume. `--dry-run` estimates time and cost on this cluster, writes nothing.

Result: OUTPUT/annotations/part-*.parquet, one row per clip, whatever happened to the clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.annotation import AnnotateTask, write_turns
from raysers.cli import ClipJobFlags, command
from raysers.data.manifest import clips_of
from raysers.engine import progress
from raysers.engine.job import ClipJob
from raysers.engine.placement import io_threads
from raysers.engine.worker import score_stream
from raysers.errors import ConfigError
from raysers.run import Exit
from raysers.types import DIMENSIONS, Status

JOB = "annotate"
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AnnotateFlags(ClipJobFlags):
    """Flags of this job."""

    embeddings: bool = False
    """Also write the masked mean of the model's last layer."""
    sample: str = "100%"
    """Score this random share of what is left, such as 1%, and print what the rest will take; the
    same command without it continues."""
    check_dtype: int = 0
    """Score N clips in --dtype and by torch in fp32, print how far the scores part (and CCC where
    there are labels), write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if not 0 < self.share <= 1:
            raise ConfigError(f"--sample is {self.sample}: give a share such as 1%")
        if self.check_dtype < 0:
            raise ConfigError(f"--check-dtype is {self.check_dtype}: give a number of clips")

    @property
    def share(self) -> float:
        """`sample` as a number; nan when it is none."""
        text = self.sample.strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            return math.nan


def annotate(flags: AnnotateFlags) -> int:
    """Check, plan, score what is left, conclude; returns the exit code."""
    flags = replace(flags, dry_run=flags.dry_run or flags.check_dtype > 0)
    with ClipJob.open(flags, JOB, table=AnnotateTask.table) as job:
        job.prepare(
            AnnotateTask.load(
                flags.model,
                dtype=flags.dtype,
                max_padded_s=flags.max_padded_s,
                embeddings=flags.embeddings,
            )
        )
        if flags.check_dtype:
            return check_dtype(job, flags.check_dtype)
        if flags.dry_run:
            return job.estimate()
        code = job.execute(share=flags.share)
        write_turns(job.run.output, job.plan.clips, job.rows)
        return code


def check_dtype(job: ClipJob, clips: int) -> Exit:
    """Score clips in --dtype and by torch in fp32 on one worker, print how far the scores part.

    So many clips are spread evenly over the manifest; nothing is written.
    """
    # its pandas and scipy would cost every start half a second
    from raysers.evaluation.join import dimensions_of

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
) -> list[Scores]:
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


def deviations(chosen: Scores, reference: Scores, labels: Scores) -> dict[str, str]:
    """A line per dimension on absolute differences, and on CCC where labels allow one.

    Scores in the precision that is checked, those by torch in fp32, and labels, [clips, 3] each;
    NaN where there are none.
    """
    from raysers.evaluation.scores import ccc

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


main = command(AnnotateFlags, annotate, __doc__ or "", positional="input")
