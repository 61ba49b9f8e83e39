"""Emotion from sound and words: heads on a speech model and a text model, both frozen.

    python jobs/fuse.py train --data /corpora/MSP-Podcast --model s3://bucket/models/msp-dim \
        --text-model bert-base-uncased --asr moonshine --output s3://bucket/models/msp-fused
    python jobs/fuse.py predict --input s3://bucket/calls --fusion s3://bucket/models/msp-fused \
        --output s3://bucket/calls-fused

Each clip is decoded once; the encoders' vectors are kept in OUTPUT/features, and heads train on
them in seconds. Transcripts of the data are used where it has them. The same command again resumes.
Result: train leaves a fusion with card, figures and predictions; predict leaves
OUTPUT/annotations/part-*.parquet with the words and the scores of all three heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysers.cli import as_plain, parse
from raysers.data.manifest import write_manifest
from raysers.engine.job import ClipJob
from raysers.engine.progress import print_warning
from raysers.errors import ConfigError
from raysers.evaluation.tables import print_metrics, print_notes
from raysers.io import storage
from raysers.run import Exit, Run, quiet_environment, run_main
from raysers.words import (
    fusion_data,
    fusion_features,
    fusion_flags,
    fusion_heads,
    fusion_parts,
    fusion_plan,
    fusion_results,
)
from raysers.words.fusion_flags import FusePredictFlags, FuseTrainFlags
from raysers.words.fusion_task import FeaturesTask, FusionTask

TRAIN_JOB = fusion_features.TRAIN_JOB
PREDICT_JOB = "fuse-predict"


def train(flags: FuseTrainFlags) -> int:
    """Check, get every clip's vectors, train the heads, evaluate them; returns the exit code."""
    flags = fusion_flags.with_absolute_paths(flags)
    clips = flags.clip_flags(fusion_features.folder(flags))
    with (
        Run.open(TRAIN_JOB, flags.output, dry_run=flags.dry_run) as run,
        ClipJob.open(clips, fusion_features.JOB, table=FeaturesTask.table) as features,
    ):
        plan = fusion_plan.make(flags, run, features)
        if run.earlier is not None and run.earlier.status == "done" and not features.plan.todo:
            print(f"finished already: {run.output}")
            return Exit.DONE
        if flags.dry_run:
            return features.estimate()
        if run.earlier is None:
            write_manifest(storage.join(run.output, "manifest"), plan.data.table)
        record = run.begin(as_plain(flags), plan.settings)
        code = fusion_features.make(features)
        if code != Exit.DONE:
            error = f"too many clips have no vectors: see {features.run.output}"
            run.finish("failed", {"error": error})
            return code
        vectors = fusion_features.read(features)
        trained = fusion_heads.train_heads(vectors, flags.head, features.placement)
        result = fusion_results.write(flags, plan.task, plan.data, vectors, trained, record)
        run.finish("done", result.outcome)
    print_metrics(result.rows)
    print_notes(result.notes)
    print(f"fusion: {flags.output}")
    return Exit.DONE


def predict(flags: FusePredictFlags) -> int:
    """Check, plan, score what is left, conclude; returns the exit code."""
    with ClipJob.open(flags, PREDICT_JOB, table=FusionTask.table) as job:
        task = fusion_plan.prediction_task(flags)
        job.prepare(task)
        if task.words.asr is None:
            fusion_data.require_words(job.plan.manifest)
        if flags.dry_run:
            return job.estimate()
        code = job.execute({k: v for k, v in as_plain(job.flags).items() if k != "model"})
        texts = job.rows(["text"])["text"].drop_null().to_pylist()
        if note := fusion_parts.cut_note(task.words, texts):
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
