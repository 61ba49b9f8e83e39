"""Arousal, dominance and valence for every clip of an audio archive.

    raysers annotate recordings/ -o emotions/
    raysers annotate s3://bucket/calls -o s3://bucket/emotions --model msp-dim

Rerun the command to resume. `--dry-run` estimates time and cost on this cluster, writes nothing.

Result: OUTPUT/annotations/part-*.parquet, one row per clip, whatever happened to the clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from raysers.annotation import AnnotateTask, write_turns
from raysers.cli import ClipJobFlags, command
from raysers.engine.job import ClipJob
from raysers.errors import ConfigError

JOB = "annotate"


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
            # its pandas and scipy would cost every start half a second
            from raysers.evaluation.dtype_check import check_dtype

            return check_dtype(job, flags.check_dtype)
        if flags.dry_run:
            return job.estimate()
        code = job.execute(share=flags.share)
        write_turns(job.run.output, job.plan.clips, job.rows)
        return code


main = command(AnnotateFlags, annotate, __doc__ or "", positional="input")
