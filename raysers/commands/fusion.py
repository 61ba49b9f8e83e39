"""The two commands of fuse: train, and predict; what they run takes seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from raysers.cli import as_plain
from raysers.commands import Command, command
from raysers.engine.job import ClipJob
from raysers.errors import ConfigError
from raysers.models.backbones import ASSETS
from raysers.run import Exit, run_main
from raysers.words.flags import FusePredictFlags, FuseTrainFlags

_FUSE = r"""Emotion from audio and text: heads on a frozen speech and a frozen text model.

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


@command("input", about=_FUSE)
def fuse_predict(flags: FusePredictFlags) -> int:
    """Check, plan, score what is left, conclude; returns the exit code."""
    from raysers.words.fusion import FusionTask, prediction_task, require_words

    with ClipJob.open(flags, "fuse-predict", table=FusionTask.table) as job:
        task = prediction_task(flags)
        job.prepare(task)
        if task.asr is None:
            require_words(job.plan.manifest)
        if flags.dry_run:
            return job.estimate()
        return job.execute({k: v for k, v in as_plain(job.flags).items() if k != "model"})


@command("data", about=_FUSE, recipes=ASSETS / "recipes" / "fusion")
def fuse_train(flags: FuseTrainFlags) -> int:
    """See `words.fuse_train.train`."""
    from raysers.words.fuse_train import train

    return train(flags)


#: By the word after fuse: its command, and the folder of the results.
FUSE: Mapping[str, tuple[Command[Any], str]] = {
    "train": (fuse_train, "fusion"),
    "predict": (fuse_predict, "emotions"),
}


def fuse(argv: Sequence[str] | None = None, *, prog: str = "", output: str = "") -> int:
    """Run the command that `argv` names first; see `commands.Command`."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in FUSE:
        run, place = FUSE[name]
        return run(rest, prog=prog and f"{prog} {name}", output=output and place)

    def no_command() -> int:
        if name in ("-h", "--help"):
            print(f"{_FUSE}\nHelp on a command: fuse {{{','.join(FUSE)}}} --help")
            return Exit.DONE
        raise ConfigError(f"{name!r} is no command of fuse: give {' or '.join(FUSE)}")

    return run_main(no_command)
