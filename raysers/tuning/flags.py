"""Flags of sweeps and of studies, apart from what runs them, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raysers.training.config import Rule, Ruled, TrainingFlags


@dataclass(frozen=True, kw_only=True)
class TrialFlags(Ruled):
    """Many trainings on one cluster."""

    workers_per_trial: int = 1
    """Workers of each training; one trains without Ray Train, which saves its start."""
    max_concurrent: int = 0
    """Trainings at once; 0: as many as the cluster has room for."""
    retries: int = 1
    """How often one may fail before it is recorded as failed and the others continue. The same
    command again tries those whose process died, or that had no hub, package or disk."""
    usd_per_hour: float = 0.0
    """With --dry-run: price of the place (CPUs or GPUs) of one training per hour."""
    dry_run: bool = False
    """Print what there is to do with a measured estimate of time and cost, and write nothing."""

    def rules(self) -> Iterator[Rule]:
        """Of these flags."""
        for name in ("max_concurrent", "retries", "usd_per_hour"):
            yield getattr(self, name) >= 0, "--" + name.replace("_", "-"), "0 or more"
        yield self.workers_per_trial >= 1, "--workers-per-trial", "1 or more"


@dataclass(frozen=True, kw_only=True)
class TuningFlags(TrialFlags, TrainingFlags):
    """All flags of the tune job; those of training are where its trials start from."""

    space: str
    """YAML file, local or s3://, with the flags to search: `lr: loguniform(1e-5, 1e-3)`."""
    trials: int = 0
    """Trainings to make; 0: 20, and every point of a grid. A larger number later continues here."""
    search: Literal["random", "grid", "optuna"] = "random"
    """Where to look: anywhere, at every point, or where good ones were (raysers[search])."""
    asha: Literal["on", "off"] = "on"
    """Stop trials early whose dev CCC is not among the best at their age (ASHA)."""
    asha_grace: int = 0
    """Epochs every trial gets before it may be stopped; 0: a tenth of all, at least 1."""
    asha_reduction: float = 3.0
    """One in this many trials goes on at every stop; the stops are as far apart in epochs."""
    max_failed_trials: float = 0.25
    """Highest share of failed trials before the job ends with exit code 3."""
    seed: int = 0
    """Decides the points, and as in training all else that is random in each trial."""

    def rules(self) -> Iterator[Rule]:
        """Those of training first."""
        yield from TrainingFlags.rules(self)
        yield bool(self.space), "--space", "a YAML file with the flags to search"
        yield self.workers == 0, "--workers", "--workers-per-trial and --max-concurrent instead"
        yield self.track == "none", "--track", "none: a sweep is in its table, its trials in theirs"
        yield self.keep == "best", "--keep", "best: trials are compared by their best epoch"
        yield self.trials >= 0, "--trials", "0 or more"
        yield self.asha_grace >= 0, "--asha-grace", "0 or more"
        yield self.asha_reduction > 1, "--asha-reduction", "more than 1, or --asha off"
        share = 0 <= self.max_failed_trials <= 1
        yield share, "--max-failed-trials", "a share from 0 to 1"
        yield from TrialFlags.rules(self)
