"""A search space, and the points in it: which values its flags can have, alone and together.

A flag whose `when` does not hold at a point is not part of it, and keeps the command line's value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysers.errors import ConfigError
from raysers.training.config import FlagsT

#: More points than this are a mistake in the space.
_MOST_POINTS = 10_000

#: A trial's values of the searched flags, by their underscored name.
Point = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones, or spread evenly by logarithm."""

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def at(self, share: float) -> float | int:
        """The value at `share` (0..1) of the way."""
        if not self.whole:
            low, high = self._scale(self.low), self._scale(self.high)
            value = low + share * (high - low)
            return min(max(math.exp(value) if self.log else value, self.low), self.high)
        # every whole number has its own interval, the ends too
        low, high = self._scale(self.low - 0.5), self._scale(self.high + 0.5)
        value = low + share * (high - low)
        return int(min(max(round(math.exp(value) if self.log else value), self.low), self.high))

    def _scale(self, value: float) -> float:
        return math.log(value) if self.log else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One flag of the space.

    Attributes:
        name: of the flag, underscored.
        written: its value as the file has it, for records.
        values: what is chosen from: a Range, or the choices.
        when: by another flag's name, the values of it with which this one is searched.
    """

    name: str
    written: Any
    values: Range | tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return isinstance(self.values, Range) or len(self.values) > 1

    def applies(self, point: Point) -> bool:
        """Whether its condition holds at a point that has the other flags."""
        return all(point.get(name) in values for name, values in self.when.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All searched flags, those that others depend on first."""

    flags: tuple[Parameter, ...]

    @property
    def names(self) -> list[str]:
        """Of the flags."""
        return [flag.name for flag in self.flags]

    def written(self) -> dict[str, Any]:
        """As the file has it, for run.json."""
        return {flag.name: flag.written for flag in sorted(self.flags, key=lambda f: f.name)}

    def choices(self, name: str, otherwise: Any) -> tuple[Any, ...]:
        """Every value that a flag of few values can have in a trial."""
        for flag in self.flags:
            if flag.name == name and not isinstance(flag.values, Range):
                return flag.values + ((otherwise,) if flag.when else ())
        return (otherwise,)

    def is_conditional(self, name: str) -> bool:
        """Whether a flag is searched in some trials only."""
        return any(flag.name == name and bool(flag.when) for flag in self.flags)

    def highest(self, name: str, otherwise: Any) -> tuple[Any, ...]:
        """The most that a flag of numbers can be in a trial, or all it can be."""
        for flag in self.flags:
            if flag.name == name and isinstance(flag.values, Range):
                return (flag.values.at(1.0),) + ((otherwise,) if flag.when else ())
        return self.choices(name, otherwise)


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point of a space without continuous ranges, each once, in the order of the file.

    Raises:
        ConfigError: a range has no end of values, or there are too many points.
    """
    columns = [_listed(flag) for flag in space.flags]
    count = math.prod(map(len, columns))
    if count > _MOST_POINTS:
        raise ConfigError(
            f"--search grid: the space has {count:,} points, more than {_MOST_POINTS:,}: give "
            "fewer values, or --search random"
        )
    points: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*columns):
        point = active(space, dict(zip(space.names, values, strict=True)))
        points.setdefault(repr(point), point)
    return list(points.values())


def active(space: Space, values: Point) -> dict[str, Any]:
    """Of a value for every flag, those whose condition holds."""
    point: dict[str, Any] = {}
    for flag in space.flags:
        if flag.applies(point):
            point[flag.name] = values[flag.name]
    return point


def applied(base: FlagsT, point: Point) -> FlagsT:
    """The flags of a trial.

    Raises:
        ConfigError: the values do not go together.
    """
    flags = replace(base, **point)
    flags.check()
    return flags


def _listed(flag: Parameter) -> list[Any]:
    if not isinstance(flag.values, Range):
        return list(flag.values)
    if not flag.values.whole or flag.values.log:
        ends = [f"{flag.values.at(share):.3g}" for share in (0.0, 0.5, 1.0)]
        raise ConfigError(
            f"--search grid: key {flag.name!r} is a range without steps: list its values, as "
            f"[{', '.join(ends)}], or take --search random"
        )
    return list(range(int(flag.values.low), int(flag.values.high) + 1))


def checked(base: FlagsT, points: Sequence[Point]) -> Iterator[FlagsT]:
    """The flags of every point.

    Raises:
        ConfigError: those of one do not go together; the line says which.
    """
    for number, point in enumerate(points):
        try:
            yield applied(base, point)
        except ConfigError as error:
            raise ConfigError(f"--space: trial {number} ({dict(point)}): {error}") from error
