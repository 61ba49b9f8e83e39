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

from raysers.cli import ClipJobFlags, as_plain, parse
from raysers.engine import cluster, estimate, job, output, progress
from raysers.engine import plan as planning
from raysers.errors import ConfigError
from raysers.evaluation.tables import print_metrics, print_notes
from raysers.run import Exit, finished, quiet_environment, run_main
from raysers.words import (
    fusion_data,
    fusion_features,
    fusion_flags,
    fusion_heads,
    fusion_parts,
    fusion_plan,
    fusion_results,
    fusion_task,
)
from raysers.words.fusion_flags import FusePredictFlags, FuseTrainFlags
from raysers.words.fusion_task import FusionTask

TRAIN_JOB = fusion_features.TRAIN_JOB
PREDICT_JOB = "fuse-predict"


def train(flags: FuseTrainFlags) -> int:
    """Check, get every clip's vectors, train the heads, judge them; returns the exit code."""
    with planning.before_writing():
        flags = fusion_flags.anchored(flags)
        plan = fusion_plan.make(flags, TRAIN_JOB)
    config = as_plain(flags)  # anchored: other commands look for the vectors where it says
    if plan.is_done:
        print(f"finished already: {flags.output}")
        return Exit.DONE
    _warn_of_random_weights(plan.task)
    clips = flags.clip_flags(plan.features_at)
    if flags.dry_run:
        return _print_estimate(clips, plan.features, plan.task, plan.placement, flags.max_clip_s)
    record = fusion_plan.begin(plan, flags.output, TRAIN_JOB, config)
    with job.recorded(record, flags.output):
        code = fusion_features.make(clips, plan.features, plan.task, plan.placement, flags)
        if code == Exit.DONE:
            features = fusion_features.read(plan.features_at, plan.features, plan.task)
            trained = fusion_heads.train_heads(features, flags.head, plan.placement)
            result = fusion_results.write(flags, plan.task, plan.data, features, trained, record)
    if code != Exit.DONE:
        failed = {"error": f"too many clips have no vectors: see {plan.features_at}"}
        finished(record, "failed", failed).save(flags.output)
        return code
    finished(record, "done", result.outcome).save(flags.output)
    print_metrics(result.rows)
    print_notes(result.notes)
    print(f"fusion: {flags.output}")
    return Exit.DONE


def predict(flags: FusePredictFlags) -> int:
    """Check, plan, run what is left, conclude; returns the exit code."""
    flags = planning.anchored(flags)
    with planning.before_writing():
        task = fusion_plan.prediction_task(flags)
        earlier = planning.open_output(flags, PREDICT_JOB, task.table)
        cluster.connect()
        placement = cluster.place(flags.workers)
        task = fusion_task.placed(task, placement, earlier)
        own = {**task.settings, "max_clip_s": flags.max_clip_s}
        plan = planning.make_plan(flags, task.table, planning.row_settings(flags, own), earlier)
        if task.words.asr is None:
            fusion_data.require_words(plan.manifest)
    progress.print_plan("fuse", plan)
    summary.warn_of_long_clips(plan, flags.max_clip_s)
    _warn_of_random_weights(task)
    if flags.dry_run:
        return _print_estimate(flags, plan, task, placement, flags.max_clip_s)
    config = {name: value for name, value in as_plain(flags).items() if name != "model"}
    record = job.start(flags, PREDICT_JOB, plan, config, task)
    ran = job.run_plan(flags, plan, task, placement, record, flags.max_clip_s)
    code = job.conclude(flags, plan, task.table, record, ran)
    texts = output.read_all(flags.output, task.table, len(plan.shards), ["text"])["text"]
    if note := fusion_parts.cut_note(task.words, texts.drop_null().to_pylist()):
        progress.print_warning(note)
    return code


def _warn_of_random_weights(task: FusionTask) -> None:
    if task.has_random_weights:
        progress.print_warning(f"{task.sound.model} has random weights: its scores mean nothing")


def _print_estimate(
    flags: ClipJobFlags,
    plan: planning.Plan,
    task: FusionTask,
    placement: cluster.Placement,
    max_clip_s: float,
) -> int:
    guess = estimate.estimate(plan, task, placement, max_clip_s)
    lines = estimate.rows(plan, guess, placement, flags.usd_per_hour)
    progress.print_pairs("estimate (nothing was written)", lines)
    return Exit.DONE


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
