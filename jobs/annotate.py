"""Arousal, dominance and valence for every clip of an audio archive.

    python jobs/annotate.py --input s3://bucket/calls --output s3://bucket/calls-emotion \
        --model msp-dim

The same command again resumes. What it would take on this cluster: add `--dry-run`.
Result: OUTPUT/annotations/part-*.parquet, one row per clip, whatever happened to the clip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from raysers import annotate as annotation
from raysers.cli import ClipJobFlags, as_plain, parse
from raysers.engine import cluster, estimate, job, summary
from raysers.engine import plan as planning
from raysers.errors import ConfigError
from raysers.run import Exit, quiet_environment, run_main

JOB = "annotate"


@dataclass(frozen=True, kw_only=True)
class AnnotateFlags(ClipJobFlags):
    """Flags of this job."""

    embeddings: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write the masked mean of the model's last layer."""
    max_clip_s: float = 600.0
    """Longer clips are `too_long` instead of scored; cut recordings with --segment window."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if not self.max_clip_s > 0:
            raise ConfigError(f"--max-clip-s is {self.max_clip_s}: give a length above 0 seconds")


def annotate(flags: AnnotateFlags) -> int:
    """Check, plan, run what is left, conclude; returns the exit code."""
    flags = planning.anchored(flags)
    with planning.before_writing():
        earlier = planning.open_output(flags, JOB, "annotations")
        task = annotation.prepare(
            flags.model,
            dtype=flags.dtype,
            max_padded_s=flags.max_padded_s,
            embeddings=flags.embeddings,
        )
        cluster.connect()
        placement = cluster.place(flags.workers)
        task = annotation.placed(task, placement, earlier)
        own = {**task.settings, "max_clip_s": flags.max_clip_s}
        plan = planning.make_plan(flags, task.table, planning.row_settings(flags, own), earlier)
    summary.print_plan(JOB, plan)
    summary.warn_of_long_clips(plan, flags.max_clip_s)
    if task.has_random_weights:
        summary.print_warning(f"{task.model} has random weights: its scores mean nothing")
    if flags.dry_run:
        guess = estimate.estimate(plan, task, placement, flags.max_clip_s)
        lines = estimate.rows(plan, guess, placement, flags.usd_per_hour)
        summary.print_pairs("estimate (nothing was written)", lines)
        return Exit.DONE
    record = job.start(flags, JOB, plan, as_plain(flags), task)
    ran = job.run_plan(flags, plan, task, placement, record, flags.max_clip_s)
    return job.conclude(flags, plan, task.table, record, ran)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: annotate(parse(AnnotateFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
