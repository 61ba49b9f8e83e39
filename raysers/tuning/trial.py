"""One trial of a sweep: a training that tells how good it is after every epoch.

What it reports is the best mean dev CCC so far, because that epoch's model is what it would leave.
So the best trial of a sweep is never one that was stopped: some trial that went on was as good.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from raysers.cli import as_plain
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed
from raysers.training.progress import Epoch
from raysers.training.trainer import run_training
from raysers.tuning.resources import TrialResources
from raysers.tuning.search import WORST
from raysers.tuning.trials import Report

#: What of an epoch's record is kept in the trial's.
_KEPT = ("epoch", "train_loss", "dev_ccc", "dev_ccc_mean", "audio_s", "wall_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTrial:
    """The call of a trial, for `trials.Piece`.

    Attributes:
        flags: of the training, the recipe filled in.
        indexed: its data.
        resources: where it trains.
    """

    flags: TrainingFlags
    indexed: Indexed
    resources: TrialResources

    def __call__(self, report: Report) -> dict[str, Any]:
        """Train; returns the epochs and how fast they went."""
        best = WORST

        def on_epoch(record: Epoch) -> None:
            nonlocal best
            mean = record["dev_ccc_mean"]
            best = max(best, WORST if mean is None else mean)
            if record["epoch"] < self.flags.epochs:  # after the last nothing is left to stop
                report({"score": best, **_kept(record)})

        outcome = run_training(
            self.flags,
            as_plain(self.flags),
            on_epoch=on_epoch,
            in_process=self.resources.placement is None,
            local=self.resources.local,
            placement=self.resources.placement,
            indexed=self.indexed,
            command=command_of(self.flags),
        )
        return {"history": [_kept(record) for record in outcome.history]}


def _kept(record: Epoch) -> dict[str, Any]:
    return {name: record[name] for name in _KEPT}


def command_of(flags: TrainingFlags) -> list[str]:
    """The command of the train job that gives the same model.

    >>> command_of(TrainingFlags(output="/out", data=("/corpus",), lr=0.001))
    ['raysers', 'train', '--data', '/corpus', '--lr', '0.001', '--output', '/out']
    """
    words = ["raysers", "train"]
    for field in fields(TrainingFlags):
        value = getattr(flags, field.name)
        if value == field.default:
            continue
        words.append("--" + field.name.replace("_", "-"))
        if not isinstance(value, bool):
            words += map(str, value if isinstance(value, tuple) else (value,))
    return words
