"""Flags of a sweep: those of training, which its trials start from, and how to search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from raysers.errors import ConfigError
from raysers.training.config import TrainingFlags

#: Trials without --trials, but for grids, which have an end of their own.
DEFAULT_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class TuningFlags(TrainingFlags):
    """All flags of the tune job; those of training are where its trials start from."""

    space: str
    """YAML file, local or s3://, with the flags to search: `lr: loguniform(1e-5, 1e-3)`."""
    trials: int = 0
    """Trainings to make; 0: 20, and every point of a grid. More of them later go on from here."""
    search: Literal["random", "grid", "optuna"] = "random"
    """Where to look: anywhere, at every point, or where good ones were (raysers[search])."""
    asha: Literal["on", "off"] = "on"
    """Stop trials early whose dev CCC is not among the best at their age (ASHA)."""
    asha_grace: int = 0
    """Epochs every trial gets before it may be stopped; 0: a tenth of all, at least 1."""
    asha_reduction: float = 3.0
    """One in this many trials goes on at every stop; the stops are as far apart in epochs."""
    workers_per_trial: int = 1
    """Training workers of each trial; one trains without Ray Train, which saves its start."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the cluster has room for."""
    retries: int = 1
    """How often a trial may fail before it is recorded as failed and the others go on. The same
    command again tries those whose process died, or that had no hub, package or disk."""
    max_failed_trials: float = 0.25
    """Highest share of failed trials before the job ends with exit code 3."""
    usd_per_hour: float = 0.0
    """With --dry-run: price of one trial's place (CPUs or GPUs) per hour."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the trials with a measured estimate of time and cost, and write nothing."""
    seed: int = 0
    """Decides the points, and as in training all else that is random in each trial."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        for good, flag, wanted in _rules(self):
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                raise ConfigError(f"{flag} is {value}: give {wanted}")


def _rules(flags: TuningFlags) -> Iterator[tuple[bool, str, str]]:
    """(holds, flag, what to give instead)."""
    yield bool(flags.space), "--space", "a YAML file with the flags to search"
    yield flags.workers == 0, "--workers", "--workers-per-trial and --max-concurrent instead"
    yield flags.track == "none", "--track", "none: a sweep is in its table, its trials in theirs"
    yield flags.keep == "best", "--keep", "best: trials are compared by their best epoch"
    for name in ("trials", "asha_grace", "max_concurrent", "retries", "usd_per_hour"):
        yield getattr(flags, name) >= 0, "--" + name.replace("_", "-"), "0 or more"
    yield flags.workers_per_trial >= 1, "--workers-per-trial", "1 or more"
    yield flags.asha_reduction > 1, "--asha-reduction", "more than 1, or --asha off"
    share = 0 <= flags.max_failed_trials <= 1
    yield share, "--max-failed-trials", "a share from 0 to 1"


def training_flags(flags: TuningFlags, output: str, **changes: Any) -> TrainingFlags:
    """Those of training, for the folder `output`."""
    own = {f.name: getattr(flags, f.name) for f in fields(TrainingFlags)}
    return TrainingFlags(**{**own, "output": output, **changes})
