"""Emotion from audio and text: heads on a speech model and a text model, both frozen.

    python jobs/fuse.py train --data /corpora/MSP-Podcast --model s3://bucket/models/msp-dim \
        --text-model bert-base-uncased --asr moonshine --output s3://bucket/models/msp-fused
    python jobs/fuse.py predict --input s3://bucket/calls --fusion s3://bucket/models/msp-fused \
        --output s3://bucket/calls-fused

Each clip is decoded once; the encoders' vectors are kept in OUTPUT/features, and heads train on
them in seconds. Transcripts of the data are used where it has them. Rerunning the command resumes.
Result: train leaves a fusion with card, figures and predictions; predict leaves
OUTPUT/annotations/part-*.parquet with the words and the scores of all three heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysers.cli import as_plain, parse
from raysers.engine.job import ClipJob
from raysers.engine.progress import print_warning
from raysers.errors import ConfigError
from raysers.run import Exit, quiet_environment, run_main
from raysers.words.fuse import prediction_task, train
from raysers.words.fusion_data import require_words
from raysers.words.fusion_flags import FusePredictFlags, FuseTrainFlags
from raysers.words.fusion_parts import cut_note
from raysers.words.fusion_task import FusionTask

PREDICT_JOB = "fuse-predict"


def predict(flags: FusePredictFlags) -> int:
    """Check, plan, score what is left, conclude; returns the exit code."""
    with ClipJob.open(flags, PREDICT_JOB, table=FusionTask.table) as job:
        task = prediction_task(flags)
        job.prepare(task)
        if task.words.asr is None:
            require_words(job.plan.manifest)
        if flags.dry_run:
            return job.estimate()
        code = job.execute({k: v for k, v in as_plain(job.flags).items() if k != "model"})
        texts = job.rows(["text"])["text"].drop_null().to_pylist()
        if note := cut_note(task.words, texts):
            print_warning(note)
        return code


_COMMANDS: Mapping[str, tuple[type[Any], Callable[[Any], int]]] = {
    "train": (FuseTrainFlags, train),
    "predict": (FusePredictFlags, predict),
}


def _run(arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(f"{__doc__}\nHelp on a command: fuse.py {{{','.join(_COMMANDS)}}} --help")
        return Exit.DONE
    if command not in _COMMANDS:
        raise ConfigError(f"{command!r} is no command of fuse: give {' or '.join(_COMMANDS)}")
    flags, call = _COMMANDS[command]
    return call(parse(flags, arguments[1:], description=__doc__ or ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
