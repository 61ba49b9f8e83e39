"""Where the next trial of a sweep is: drawn at random, from a grid, or by what trials have shown.

A point depends on the seed, the trial's number and (for optuna) the trials that have ended, never
on who asked when.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from raysers.errors import ConfigError
from raysers.seeding import seed_of
from raysers.tuning.points import Point, Range, Space, active, grid

Kind = Literal["random", "grid", "optuna"]

#: A CCC below every other: what a trial that came to nothing is worth.
WORST = -1.0

#: Draws of a point whose values go together, before the space is to blame.
_MOST_DRAWS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a trial has shown.

    Attributes:
        point: its values.
        scores: by epoch, the best mean dev CCC so far.
        state: at work, ended as planned (or in a way that says it is worthless), or cut short.
    """

    point: Point
    scores: Mapping[int, float]
    state: Literal["running", "complete", "pruned"]


class Search(Protocol):
    """Decides the points of trials."""

    def point(self, number: int, shown: Sequence[Observation]) -> dict[str, Any]:
        """Of trial `number` (from 0), knowing what other trials have shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch:
    """Every flag of every trial is drawn by itself."""

    space: Space
    seed: int

    def point(self, number: int, shown: Sequence[Observation]) -> dict[str, Any]:
        """Of trial `number`, whatever others have shown."""
        return active(
            self.space,
            {
                flag.name: _drawn(flag.values, _share(self.seed, number, flag.name))
                for flag in self.space.flags
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSearch:
    """Every point once, in an order of the seed, so that the first ones are spread out."""

    points: Sequence[dict[str, Any]]

    def point(self, number: int, shown: Sequence[Observation]) -> dict[str, Any]:
        """Of trial `number`, whatever others have shown."""
        return self.points[number]


def grid_search(space: Space, seed: int) -> GridSearch:
    """Raises ConfigError as `grid`."""
    points = grid(space)
    order = np.random.default_rng(seed).permutation(len(points))
    return GridSearch(points=[points[i] for i in order])


@dataclass(slots=True, kw_only=True)
class OptunaSearch:
    """A random start, then optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    Every point has its own sampler, so a search goes on from records as if it had never
    been interrupted. It is drawn again while its values do not go together: `check` raises
    ConfigError for those.
    """

    space: Space
    seed: int
    start: int
    check: Callable[[Point], object] = bool
    _random: RandomSearch = field(init=False)

    def __post_init__(self) -> None:
        """Look for optuna.

        Raises:
            ConfigError: it is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "--search optuna needs the package optuna: pip install 'raysers[search]', or take "
                "--search random"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._random = RandomSearch(space=self.space, seed=self.seed)

    def point(self, number: int, shown: Sequence[Observation]) -> dict[str, Any]:
        """Of trial `number`, from what others have shown.

        Raises:
            ConfigError: no point was found whose values go together.
        """
        if number < self.start:
            return self._random.point(number, shown)
        refused: list[Observation] = []
        while True:
            draw = f"tpe {len(refused)}" if refused else "tpe"
            point = self._judged(number, [*shown, *refused], draw)
            try:
                self.check(point)
            except ConfigError as error:
                if len(refused) == _MOST_DRAWS:
                    raise ConfigError(
                        f"--space: trial {number}: no values that go together: {error}"
                    ) from error
                # worthless, so that the next draw is elsewhere
                refused.append(Observation(point=point, scores={}, state="complete"))
            else:
                return point

    def _judged(self, number: int, shown: Sequence[Observation], draw: str) -> dict[str, Any]:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=_seed(self.seed, number, draw) % 2**32,
                n_startup_trials=0,
                multivariate=True,  # flags are not independent of each other
                group=True,  # conditions make spaces of different shape
                constant_liar=True,  # trials at work are not tried again next door
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for one in shown:
                study.add_trial(self._past(one))
            return self._asked(study.ask())

    def _asked(self, trial: Any) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for flag in self.space.flags:
            if flag.applies(point):
                point[flag.name] = _suggested(trial, flag.name, flag.values)
        return point

    def _past(self, shown: Observation) -> Any:
        import optuna

        states = optuna.trial.TrialState
        state = {"running": states.RUNNING, "complete": states.COMPLETE, "pruned": states.PRUNED}
        point = {
            flag.name: _as_asked(flag.values, shown.point[flag.name])
            for flag in self.space.flags
            if flag.name in shown.point
        }
        kinds = {
            flag.name: _distribution(flag.values) for flag in self.space.flags if flag.name in point
        }
        best = max(shown.scores.values(), default=WORST)
        return optuna.trial.create_trial(
            state=state[shown.state],
            params=point,
            distributions=kinds,
            intermediate_values=dict(shown.scores),
            value=best if shown.state == "complete" else None,
        )


def _suggested(trial: Any, name: str, values: Range | tuple[Any, ...]) -> Any:
    if not isinstance(values, Range):
        return values[trial.suggest_categorical(name, tuple(range(len(values))))]
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _as_asked(values: Range | tuple[Any, ...], value: Any) -> Any:
    """Choices go by their number: optuna knows words and numbers only."""
    return value if isinstance(values, Range) else values.index(value)


def _distribution(values: Range | tuple[Any, ...]) -> Any:
    from optuna import distributions

    if not isinstance(values, Range):
        return distributions.CategoricalDistribution(tuple(range(len(values))))
    if values.whole:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)


def _drawn(values: Range | tuple[Any, ...], share: float) -> Any:
    if isinstance(values, Range):
        return values.at(share)
    return values[int(share * len(values))]


def _share(seed: int, number: int, name: str) -> float:
    """Uniform in [0, 1), from these three alone."""
    return _seed(seed, number, name) % 2**56 / 2**56


def _seed(seed: int, number: int, name: str) -> int:
    return seed_of(seed, number, name, size_bytes=8, byteorder="little")
