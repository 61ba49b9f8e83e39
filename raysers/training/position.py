"""How far a training is: everything besides tensors that a restarted worker has to know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Sums:
    """What adds up over the steps of an epoch."""

    loss: float = 0.0
    steps: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Mean over the steps; NaN before the first."""
        return self.loss / self.steps if self.steps else math.nan

    @property
    def audio_hours_per_s(self) -> float:
        """Audio hours processed in a second, over all workers together."""
        return self.audio_s / 3600 / self.wall_s if self.wall_s else 0.0


@dataclass(slots=True)
class TrainProgress:
    """Where a training stands.

    Attributes:
        step: steps done.
        epoch: epochs done.
        best: highest mean dev CCC so far, or UAR where no dimension is trained.
        waited: epochs since then.
        sums: of the epoch under way.
        history: records of the epochs done.
        failed: clips that could not be decoded, and why, by clip id.
        finished: the predictions of the stored model are written too.
    """

    step: int = 0
    epoch: int = 0
    best: float | None = None
    waited: int = 0
    sums: Sums = field(default_factory=Sums)
    history: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "sums": asdict(self.sums)}

    @classmethod
    def from_state_dict(cls, step: int, notes: Mapping[str, Any]) -> TrainProgress:
        """The position that `notes()` described."""
        return cls(**{**notes, "step": step, "sums": Sums(**notes["sums"])})

    def end_epoch(
        self,
        dev_ccc: Mapping[str, float] | None,
        dev_uar: float | None = None,
        *,
        lr: float,
        keep_last: bool,
    ) -> bool:
        """Close the epoch under way; returns whether its model is the one to keep.

        Args:
            dev_ccc: by dimension; None without dev clips or trained dimensions.
            dev_uar: of the emotion categories; None without dev clips or categories.
            lr: learning rate of its last step.
            keep_last: every epoch replaces the one before, however good.
        """
        self.epoch += 1
        mean = _mean(dev_ccc)
        uar = {} if dev_uar is None else {"dev_uar": _known(dev_uar)}
        score = uar.get("dev_uar") if dev_ccc is None else mean
        kept = keep_last or self.best is None or (score is not None and score > self.best)
        if score is not None and (self.best is None or score > self.best):
            self.best = score
        self.waited = 0 if kept else self.waited + 1
        self.history.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "train_loss": self.sums.mean_loss,
                "lr": lr,
                "dev_ccc": None if dev_ccc is None else {k: _known(v) for k, v in dev_ccc.items()},
                "dev_ccc_mean": mean,
                **uar,
                "kept": kept,
                "audio_s": round(self.sums.audio_s, 3),
                "wall_s": round(self.sums.wall_s, 3),
                "audio_hours_per_s": self.sums.audio_hours_per_s,
                "failed": len(self.failed),
            }
        )
        self.sums = Sums()
        return kept


def _mean(dev_ccc: Mapping[str, float] | None) -> float | None:
    """Mean over the dimensions where the CCC is defined, None where there is none."""
    known = [value for value in (dev_ccc or {}).values() if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
