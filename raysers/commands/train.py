r"""Fine-tune a speech backbone for arousal, dominance and valence, on any number of workers.

    raysers train /corpora/MSP-Podcast --backbone w2v2-L-robust-12 \
        -o s3://bucket/models/msp-dim

The defaults are the paper's (Adam 1e-4, 5 epochs, batch 32, CCC loss, CNN frozen). On a small
machine: `raysers train emodb --recipe from-scratch --folds 5`. Rerunning the command resumes, and
one to four --workers give the same model.

Result: OUTPUT is a model folder for annotate, with a card, figures and the dev predictions.
"""

from __future__ import annotations

import sys

from raysers.cli import as_plain, command
from raysers.models.backbones import ASSETS
from raysers.run import Exit
from raysers.training.config import SHOWN, TrainingFlags
from raysers.training.dataset import TooManyFailed
from raysers.training.trainer import run_training


def train(flags: TrainingFlags) -> int:
    """Train what is left; returns the exit code, 3 for data of which too much cannot be used."""
    try:
        run_training(flags, as_plain(flags))
        return Exit.DONE
    except TooManyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.TOO_MANY_FAILED


main = command(
    TrainingFlags,
    train,
    __doc__ or "",
    positional="data",
    recipes=ASSETS / "recipes",
    shown=SHOWN,
)
