"""What was said in every clip of an audio archive.

    python jobs/transcribe.py --input s3://bucket/calls --output s3://bucket/calls-text \
        --asr facebook/wav2vec2-base-960h

Without `--asr` it is `moonshine`: English, small, and it needs no download. The same command again
resumes. Where the manifest has transcripts, the word error rate is printed and stored.
Result: OUTPUT/transcripts/part-*.parquet, one row per clip; clips without speech have empty text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from raysers.cli import ClipJobFlags, as_plain, parse
from raysers.engine import cluster, estimate, job, progress
from raysers.engine import plan as planning
from raysers.errors import ConfigError
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.tables import print_notes
from raysers.io import storage
from raysers.models.asr import DEFAULT_ASR
from raysers.run import Exit, quiet_environment, run_main
from raysers.words import transcribe as transcription
from raysers.words import transcript_scores
from raysers.words.word_table import print_word_errors

JOB = "transcribe"


@dataclass(frozen=True, kw_only=True)
class TranscribeFlags(ClipJobFlags):
    """Flags of this job."""

    model: Annotated[str, tyro.conf.Suppress] = ""
    asr: str = DEFAULT_ASR
    """moonshine (offline), or a hub id, folder or s3:// prefix of a Whisper model, or of a CTC
    model of wav2vec2, HuBERT, WavLM or data2vec-audio."""
    max_clip_s: float = 600.0
    """Longer clips are `too_long`; cut recordings with --segment window or vad."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if not self.max_clip_s > 0:
            raise ConfigError(f"--max-clip-s is {self.max_clip_s}: give a length above 0 seconds")


def transcribe(flags: TranscribeFlags) -> int:
    """Check, plan, run what is left, conclude; returns the exit code."""
    flags = planning.anchored(flags)
    with planning.before_writing():
        earlier = planning.open_output(flags, JOB, "transcripts")
        task = transcription.prepare(flags.asr, dtype=flags.dtype, max_padded_s=flags.max_padded_s)
        cluster.connect()
        placement = transcription.place(task, flags.workers)
        task = transcription.placed(task, placement, earlier)
        own = {**task.settings, "max_clip_s": flags.max_clip_s}
        plan = planning.make_plan(flags, task.table, planning.row_settings(flags, own), earlier)
    progress.print_plan(JOB, plan)
    summary.warn_of_long_clips(plan, flags.max_clip_s)
    if flags.dry_run:
        guess = estimate.estimate(plan, task, placement, flags.max_clip_s)
        lines = estimate.rows(plan, guess, placement, flags.usd_per_hour)
        progress.print_pairs("estimate (nothing was written)", lines)
        return Exit.DONE
    config = {name: value for name, value in as_plain(flags).items() if name != "model"}
    record = job.start(flags, JOB, plan, config, task)
    ran = job.run_plan(flags, plan, task, placement, record, flags.max_clip_s)
    code = job.conclude(flags, plan, task.table, record, ran)
    errors = transcript_scores.score(plan, flags.output, task.table, task.asr, Bootstrap())
    if errors is not None:
        print_word_errors(errors.rows)
        print_notes(errors.notes)
        print(f"metrics: {storage.join(flags.output, 'metrics')}")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: transcribe(parse(TranscribeFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
