"""A sweep on Ray Tune: one training a trial, early stopping by ASHA, points from optuna.

Every trial has its folder `OUTPUT/runs/<trial>`; the sweep is what their records say, so it resumes
after any crash, takes more trials later, and can be moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from raysers.cli import as_plain
from raysers.training import checkpoint
from raysers.training.config import TrainingFlags
from raysers.training.loop import TrainingStopped
from raysers.training.progress import Epoch
from raysers.training.trainer import run_training
from raysers.tuning.plan import Sweep, left, make_scheduler, recorded, told, trial_path
from raysers.tuning.resources import TrialResources
from raysers.tuning.space import Point, Space
from raysers.tuning.trials import WORST, Report, Trial, TrialRecord, run_trials

#: What of an epoch's record is kept in the trial's.
_KEPT = ("epoch", "step", "train_loss", "dev_ccc", "dev_ccc_mean", "audio_s", "wall_s")


def make_search(sweep: Sweep, known: int) -> Any:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) after the known points.

    Args:
        sweep: whose points are tried first.
        known: of them, how many have been tried before; decides what is drawn next.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=sweep.flags.seed + 1000 * known,
            n_startup_trials=0,
            multivariate=True,  # flags are not independent of each other
            group=True,  # conditions make spaces of different shape
            constant_liar=True,  # trials at work are not tried again next door
        )
    return OptunaSearch(
        space=partial(_suggested, sweep.space),  # which Tune pickles
        metric="score",
        mode="max",
        sampler=sampler,
        points_to_evaluate=[sweep.space.for_optuna(point) for point in sweep.points],
    )


def _suggested(space: Space, trial: Any) -> dict[str, Any]:
    return {"number": trial.number, "point": space.suggested(trial)}


def run_sweep(
    sweep: Sweep, resources: TrialResources, on_ended: Callable[[list[TrialRecord]], None]
) -> list[TrialRecord]:
    """Run what is left on the connected cluster.

    Args:
        sweep: of the trials.
        resources: for them.
        on_ended: called with all records so far when a trial has ended.

    Returns:
        How every trial ended, by number.
    """
    records = recorded(sweep.flags.output, sweep.trials)
    known = {trial_path(sweep.flags.output, n): r for n, r in enumerate(records) if r is not None}

    def ended(record: TrialRecord) -> None:
        known[record.path] = record
        on_ended([known[path] for path in sorted(known)])

    def make(config: Mapping[str, Any]) -> Trial:
        number = config["number"]
        point = config["point"] if "point" in config else sweep.points[number]
        flags = replace(sweep.base, **point, output=trial_path(sweep.flags.output, number))
        call = TrainTrial(sweep=sweep, number=number, point=point, resources=resources)
        notes = {"number": number, "point": point}
        return Trial(name=f"trial-{number:04d}", path=flags.output, call=call, notes=notes)

    numbers, scheduler = left(sweep), make_scheduler(sweep)
    if numbers:
        is_optuna = sweep.flags.search == "optuna"
        run_trials(
            make,
            # ASHA compares the epochs of trials that ended before too
            list(range(sweep.trials)) if scheduler else numbers,
            resources,
            total=sweep.trials,
            retries=sweep.flags.retries,
            search=make_search(sweep, len(known)) if is_optuna else None,
            scheduler=scheduler,
            describe=describe,
            on_ended=ended,
        )
    return [one for one in recorded(sweep.flags.output, sweep.trials) if one is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTrial:
    """The call of a trial: a training that reports its epochs."""

    sweep: Sweep
    number: int
    point: Point
    resources: TrialResources

    def __call__(self, report: Report) -> dict[str, Any]:
        """Train, or read what was trained.

        Raises:
            TrainingStopped: the scheduler did; nothing will resume, so the state is removed.
        """
        flags, best = self.sweep.flags_of(self.number, self.point), WORST
        last: dict[str, Any] = {}

        def on_epoch(record: Epoch) -> None:
            nonlocal best, last
            mean = record["dev_ccc_mean"]
            best = max(best, WORST if mean is None else mean)
            last = {"score": best, **{name: record[name] for name in _KEPT}}
            if record["epoch"] < flags.epochs:  # after the last one the model is written first
                report(last)
                last = {}

        try:
            outcome = run_training(
                flags,
                as_plain(flags),
                on_epoch=on_epoch,
                in_process=self.resources.placement is None,
                local=self.resources.local,
                placement=self.resources.placement,
                indexed=self.sweep.indexed,
                command=command_of(flags),
            )
        except TrainingStopped:
            checkpoint.clear(flags.output)
            raise
        if not outcome.trained:  # its process died between the model and the record
            for record in outcome.history:
                on_epoch(record)
        if last:
            report(last)
        return {}


def command_of(flags: TrainingFlags) -> list[str]:
    """The command of the train job that gives the same model.

    >>> command_of(TrainingFlags(output="/out", data=("/corpus",), lr=0.001))
    ['raysers', 'train', '--data', '/corpus', '--lr', '0.001', '--output', '/out']
    """
    words = ["raysers", "train"]
    for flag in fields(TrainingFlags):
        value = getattr(flags, flag.name)
        if value == flag.default:
            continue
        words.append("--" + flag.name.replace("_", "-"))
        if not isinstance(value, bool):
            words += map(str, value if isinstance(value, tuple) else (value,))
    return words


def best_epoch(trial: TrialRecord) -> Epoch | None:
    """The epoch a trial is judged by: the first one with its highest mean dev CCC."""
    known = [epoch for epoch in trial.history if epoch["dev_ccc_mean"] is not None]
    return max(known, key=lambda epoch: epoch["dev_ccc_mean"], default=None)


def describe(trial: TrialRecord) -> str:
    """`dev CCC 0.512 at epoch 4 of 5, lr 0.00031, freeze cnn`."""
    words = told(trial.notes["point"])
    if best := best_epoch(trial):
        where = f"at epoch {best['epoch']} of {len(trial.history)}"
        words = f"dev CCC {best['dev_ccc_mean']:.3f} {where}, {words}"
    return words
