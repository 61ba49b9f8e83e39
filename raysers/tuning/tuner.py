"""A sweep from its flags to its trials: what there is to try, where, and how it goes on.

Every trial has its folder `OUTPUT/runs/<trial>` with its record; the sweep is what these records
say, so it goes on after any death without a trial lost or run twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from raysers.io import storage
from raysers.run import RunRecord
from raysers.training import checkpoint
from raysers.training.config import TrainingFlags, with_recipe
from raysers.training.dataset import Indexed
from raysers.tuning.flags import DEFAULT_TRIALS, TuningFlags
from raysers.tuning.points import Space, applied
from raysers.tuning.resources import TrialResources
from raysers.tuning.search import (
    GridSearch,
    Observation,
    OptunaSearch,
    RandomSearch,
    Search,
    grid_search,
)
from raysers.tuning.table import best_epoch, history_of, number_of, write_trials
from raysers.tuning.trial import TrainTrial
from raysers.tuning.trials import Piece, Progress, TrialRecord, run_pieces, stored
from raysers.tuning.values import coerce

#: Random trials before optuna judges: a quarter of all, within these bounds.
_START = (4, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A backbone: its name with a place that every process finds, and the recipe for its kind."""

    backbone: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that can begin or go on.

    Attributes:
        flags: with absolute paths.
        base: those of training, which trials start from.
        space: what is searched.
        search: decides the points.
        trials: how many there are to be.
        starts: by backbone as it is given, where it is and how it is trained.
        indexed: the data.
        settings: everything that decides the trials.
        earlier: the record of the run that is resumed, if any.
    """

    flags: TuningFlags
    base: TrainingFlags
    space: Space
    search: Search
    trials: int
    starts: Mapping[str, Start]
    indexed: Indexed
    settings: Mapping[str, Any]
    earlier: RunRecord | None

    @property
    def output(self) -> str:
        """The sweep's folder."""
        return self.flags.output

    def flags_of(self, number: int, point: Mapping[str, Any]) -> TrainingFlags:
        """Of the training of trial `number`.

        Raises:
            ConfigError: the values do not go together.
        """
        flags = applied(self.base, {**point, "output": trial_path(self.output, number)})
        start = self.starts[flags.backbone]
        return with_recipe(replace(flags, backbone=start.backbone), start.kind)

    @property
    def earlier_outcome(self) -> Mapping[str, Any]:
        """What run.json says of a sweep that was finished before."""
        return (self.earlier.outcome if self.earlier else None) or {}

    @property
    def most_epochs(self) -> int:
        """Epochs of the longest trial."""
        epochs = []
        for start in self.starts.values():
            for value in self.space.highest("epochs", self.base.epochs):
                epochs.append(with_recipe(replace(self.base, epochs=value), start.kind).epochs)
        return max(epochs)


def make_search(flags: TuningFlags, base: TrainingFlags, space: Space) -> tuple[Search, int]:
    """The search, and how many trials it is to make.

    Raises:
        ConfigError: the space is not for it, or a package is missing.
    """
    if flags.search == "grid":
        grid: GridSearch = grid_search(space, flags.seed)
        return grid, min(flags.trials or len(grid.points), len(grid.points))
    trials = flags.trials or DEFAULT_TRIALS
    if flags.search == "random":
        return RandomSearch(space=space, seed=flags.seed), trials
    start = min(max(trials // 4, _START[0]), _START[1])
    check = partial(applied, base)
    return OptunaSearch(space=space, seed=flags.seed, start=start, check=check), trials


def trial_name(number: int) -> str:
    """Its name, and that of its folder."""
    return f"trial-{number:04d}"


def trial_path(output: str, number: int) -> str:
    """Its folder."""
    return storage.join(output, "runs", trial_name(number))


def recorded_trials(output: str, trials: int) -> list[TrialRecord | None]:
    """What earlier runs have left of every trial, by number; of more than `trials`, if they had."""
    found = [stored(trial_path(output, number)) for number in range(trials)]
    while (more := stored(trial_path(output, len(found)))) is not None:
        found.append(more)
    return found


def is_left(sweep: Sweep) -> bool:
    """Whether there is anything to do for any trial."""
    known = recorded_trials(sweep.output, sweep.trials)
    return any(one is None or not one.is_final(sweep.flags.retries) for one in known)


def is_finished(sweep: Sweep) -> bool:
    """Whether an earlier run has done all of it, the tables and the best model too."""
    concluded = sweep.earlier is not None and "statuses" in (sweep.earlier.outcome or {})
    return concluded and not is_left(sweep)


def ended_trials(sweep: Sweep) -> list[TrialRecord]:
    """The trials that have a record, by number."""
    known = recorded_trials(sweep.output, sweep.trials)
    return [trial for trial in known if trial is not None]


def run_trials(sweep: Sweep, resources: TrialResources) -> list[TrialRecord]:
    """Run what is left on the connected cluster; the table is kept up to date.

    Raises:
        WriteError: the output cannot be written.
    """
    course = _SweepState(sweep, resources, recorded_trials(sweep.output, sweep.trials))
    progress = Progress(total=sweep.trials, at_once=resources.share.at_once, describe=describe)
    return run_pieces(
        course.pieces(),
        resources.share,
        total=sweep.trials,
        retries=sweep.flags.retries,
        scheduler=make_scheduler(sweep),
        progress=progress,
        on_ended=course.over,
    )


def make_scheduler(sweep: Sweep) -> TrialScheduler | None:
    """ASHA (Li et al. 2020) on the best mean dev CCC so far; None when it is off or has no room.

    At `grace`, `grace * reduction`, ... epochs a trial goes on only if it is among the best
    1/reduction of the trials that have come that far.
    """
    flags, last = sweep.flags, sweep.most_epochs - 1
    grace = flags.asha_grace or max(1, sweep.most_epochs // 10)
    if flags.asha == "off" or grace > last:
        return None
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=last,
        grace_period=grace,
        reduction_factor=flags.asha_reduction,
        stop_last_trials=False,  # a trial that reaches the end has its model scored and stored
    )


@dataclass(slots=True)
class _SweepState:
    """Draws the trials one after another, and keeps what they have shown."""

    sweep: Sweep
    resources: TrialResources
    known: Sequence[TrialRecord | None]
    points: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: dict[int, TrialRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with what earlier runs have left."""
        retries = self.sweep.flags.retries
        known = [one for one in self.known if one is not None and one.is_final(retries)]
        self.ended = {number_of(trial): trial for trial in known}

    def pieces(self) -> Iterator[Piece]:
        """A piece for every trial, in the order of their numbers."""
        for number, record in enumerate(self.known):
            if record is None:
                point = self.sweep.search.point(number, self._shown())
            else:
                point = _as_flags(record.notes["point"])
            self.points[number] = point
            flags = self.sweep.flags_of(number, point)
            yield Piece(
                name=trial_name(number),
                path=flags.output,
                call=TrainTrial(flags=flags, indexed=self.sweep.indexed, resources=self.resources),
                notes={"number": number, "point": point},
            )

    def over(self, trial: TrialRecord) -> None:
        """A trial has ended, now or in an earlier run."""
        self.ended[number_of(trial)] = trial
        if trial.status == "stopped":  # nothing will go on from its state
            checkpoint.clear(trial.path)
        if self.known[number_of(trial)] != trial:
            write_trials(list(self.ended.values()), self.sweep.space, self.sweep.output)

    def _shown(self) -> list[Observation]:
        return [_shown(point, self.ended.get(n)) for n, point in sorted(self.points.items())]


def _shown(point: Mapping[str, Any], trial: TrialRecord | None) -> Observation:
    if trial is None:
        return Observation(point=point, scores={}, state="running")
    scores: dict[int, float] = {}
    for epoch in history_of(trial):
        mean = epoch["dev_ccc_mean"]
        if mean is not None:
            scores[epoch["epoch"]] = max([mean, *scores.values()])
    # a failed one is the worst there is, so that its neighbours are not tried
    failed = trial.status == "failed"
    return Observation(
        point=point,
        scores={} if failed else scores,
        state="pruned" if trial.status == "stopped" and scores else "complete",
    )


def _as_flags(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as its record has it, turned into what the flags hold."""
    return {name: coerce("the trial's record", name, value) for name, value in point.items()}


def describe(trial: TrialRecord) -> str:
    """`dev CCC 0.512 at epoch 4 of 5, lr 0.00031, freeze cnn`."""
    best = best_epoch(trial)
    words = [f"{name.replace('_', '-')} {_short(v)}" for name, v in trial.notes["point"].items()]
    if best:
        epochs = len(history_of(trial))
        words.insert(0, f"dev CCC {best['dev_ccc_mean']:.3f} at epoch {best['epoch']} of {epochs}")
    return ", ".join(words)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
