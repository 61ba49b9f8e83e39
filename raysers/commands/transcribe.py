r"""Transcripts of all clips of an audio archive.

    raysers transcribe s3://bucket/calls -o s3://bucket/calls-text \
        --asr facebook/wav2vec2-base-960h

Without `--asr` it is `moonshine`: English, small, and it needs no download. Rerunning the command
resumes. Where the manifest has transcripts, the word error rate is printed and stored.

Result: OUTPUT/transcripts/part-*.parquet, one row per clip; clips without speech have empty text.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysers.cli import ClipJobFlags, Hidden, as_plain, command
from raysers.engine.job import ClipJob
from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.rows import print_notes
from raysers.io import storage
from raysers.models.asr import DEFAULT_ASR
from raysers.words.transcribe import TranscribeTask, print_word_errors, score_words

JOB = "transcribe"


@dataclass(frozen=True, kw_only=True)
class TranscribeFlags(ClipJobFlags):
    """Flags of this job."""

    model: Hidden = ""
    asr: str = DEFAULT_ASR
    """moonshine (offline), or a hub id, folder or s3:// prefix of any CTC or speech-to-text model
    that transformers loads."""
    language: str = ""
    """Language of all clips (en, de, ...) for a multilingual Whisper, or auto for that of each
    clip; it becomes a column."""
    timestamps: bool = False
    """Also write every word with its start and end (CTC models, Whisper with alignment heads)."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        if self.model:
            raise ConfigError(f"--model {self.model}: give the recogniser with --asr")


def transcribe(flags: TranscribeFlags) -> int:
    """Check, plan, recognise what is left, conclude; returns the exit code."""
    with ClipJob.open(flags, JOB, table=TranscribeTask.table) as job:
        job.prepare(
            TranscribeTask.load(
                flags.asr,
                dtype=flags.dtype,
                max_padded_s=flags.max_padded_s,
                language=flags.language,
                timestamps=flags.timestamps,
            )
        )
        if flags.dry_run:
            return job.estimate()
        code = job.execute({k: v for k, v in as_plain(job.flags).items() if k != "model"})
        errors = score_words(job, Bootstrap())
        if errors is not None:
            rows, notes = errors
            print_word_errors(rows)
            print_notes(notes)
            print(f"metrics: {storage.join(job.run.output, 'metrics')}")
        return code


main = command(TranscribeFlags, transcribe, __doc__ or "", positional="input")
