r"""Emotion from audio and text: heads on a frozen speech and a frozen text model.

    raysers fuse train /corpora/MSP-Podcast --model s3://bucket/msp-dim \
        --text-model bert-base-uncased --asr moonshine -o s3://bucket/msp-fused
    raysers fuse predict s3://bucket/calls --fusion s3://bucket/msp-fused \
        -o s3://bucket/calls-fused

Each clip is decoded once; the encoders' vectors are kept in OUTPUT/features, and
heads train on them in seconds. Transcripts of the data are used where it has
them. `--recipe paper` trains the heads as the paper does. Rerunning the command
resumes.

Result: train leaves a fusion with card, figures and predictions, and ends with a
line on whether text helps; predict leaves OUTPUT/annotations/part-*.parquet with
texts and scores of all heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysers.cli import as_plain, command
from raysers.engine.job import ClipJob
from raysers.errors import ConfigError
from raysers.models.backbones import ASSETS
from raysers.run import Exit, run_main
from raysers.words.fuse_train import FuseTrainFlags, train
from raysers.words.fusion import FusePredictFlags, FusionTask, prediction_task, require_words

PREDICT_JOB = "fuse-predict"


def predict(flags: FusePredictFlags) -> int:
    """Check, plan, score what is left, conclude; returns the exit code."""
    with ClipJob.open(flags, PREDICT_JOB, table=FusionTask.table) as job:
        task = prediction_task(flags)
        job.prepare(task)
        if task.asr is None:
            require_words(job.plan.manifest)
        if flags.dry_run:
            return job.estimate()
        return job.execute({k: v for k, v in as_plain(job.flags).items() if k != "model"})


#: By command: its flags, the job, the field of words without a flag, folders of results, recipes.
_COMMANDS: Mapping[str, tuple[type[Any], Callable[[Any], int], str, str, Path | None]] = {
    "train": (FuseTrainFlags, train, "data", "fusion", ASSETS / "recipes" / "fusion"),
    "predict": (FusePredictFlags, predict, "input", "emotions", None),
}


def main(argv: Sequence[str] | None = None, *, prog: str | None = None, output: str = "") -> int:
    """Run the command that `argv` names first; see `cli.Main`."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in _COMMANDS:
        flags, job, positional, place, recipes = _COMMANDS[name]
        run = command(flags, job, __doc__ or "", positional=positional, recipes=recipes)
        return run(rest, prog=prog and f"{prog} {name}", output=output and place)
    return run_main(lambda: _no_command(name))


def _no_command(name: str) -> int:
    if name in ("-h", "--help"):
        print(f"{__doc__}\nHelp on a command: fuse {{{','.join(_COMMANDS)}}} --help")
        return Exit.DONE
    raise ConfigError(f"{name!r} is no command of fuse: give {' or '.join(_COMMANDS)}")
