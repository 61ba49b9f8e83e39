"""The search space of a sweep: which flags of training vary between trials, over which values.

A space is data, never code: `loguniform(1e-5, 1e-3)` is parsed, not evaluated. A flag whose `when`
does not hold in a trial keeps the value of the command line.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.seeding import seed_of
from raysers.training.config import FlagsT, TrainingFlags

#: A trial's values of the searched flags, by their underscored name.
Point = Mapping[str, Any]

_MAX_GRID_POINTS = 10_000
_ONE_DATA = "all trials learn from the same clips, give it on the command line"
#: Flags that make no sense in a space, and why.
UNSEARCHABLE = {
    "output": "every trial has its folder below --output",
    "workers": "give --workers-per-trial on the command line",
    "track": "trials write TensorBoard files, the sweep is in its table",
    "max_restarts": "--retries of the sweep is for that",
    "keep": "trials are compared by their best epoch",
    **dict.fromkeys(
        ("data", "train", "dev", "corpus", "emotion_map", "speakers", "limit", "folds", "fold",
         "allow_leakage", "max_failed", "min_clip_s", "max_clip_s"),
        _ONE_DATA,
    ),
}  # fmt: skip
#: Flags that can be searched, with their types.
SEARCHABLE: dict[str, Any] = {
    f.name: get_type_hints(TrainingFlags)[f.name]
    for f in fields(TrainingFlags)
    if f.name not in UNSEARCHABLE
}
_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\(([^()]*)\)\s*")
_SHAPES = ("uniform", "loguniform", "int", "logint")
_EXAMPLE = "lr: loguniform(1e-5, 1e-3)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones, or spread evenly by logarithm."""

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def at(self, share: float) -> float | int:
        """The value at `share` (0..1) of the way."""
        # every whole number has its own interval, the ends too
        edge = 0.5 if self.whole else 0.0
        low, high = self.low - edge, self.high + edge
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(round(value) if self.whole else value, self.low), self.high)
        return int(value) if self.whole else value


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

    def applies(self, point: Point) -> bool:
        """Whether its condition holds at a point that has the other flags."""
        return all(point.get(name) in values for name, values in self.when.items())

    def drawn(self, share: float) -> Any:
        """The value at `share` (0..1) of the way through the range or the choices."""
        if isinstance(self.values, Range):
            return self.values.at(share)
        return self.values[int(share * len(self.values))]

    def suggested(self, trial: Any) -> Any:
        """The value that an optuna trial suggests; choices go by their index."""
        values = self.values
        if not isinstance(values, Range):
            return values[trial.suggest_categorical(self.name, tuple(range(len(values))))]
        if values.whole:
            return trial.suggest_int(self.name, int(values.low), int(values.high), log=values.log)
        return trial.suggest_float(self.name, values.low, values.high, log=values.log)

    def for_optuna(self, value: Any) -> Any:
        """The inverse of `suggested`."""
        return value if isinstance(self.values, Range) else self.values.index(value)

    def listed(self) -> list[Any]:
        """Every value.

        Raises:
            ConfigError: a range without steps.
        """
        if not isinstance(self.values, Range):
            return list(self.values)
        if not self.values.whole or self.values.log:
            ends = ", ".join(f"{self.values.at(share):.3g}" for share in (0.0, 0.5, 1.0))
            raise ConfigError(
                f"--search grid: key {self.name!r} is a range without steps: list its values, as "
                f"[{ends}], or take --search random"
            )
        return list(range(int(self.values.low), int(self.values.high) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All searched flags, those that others depend on first."""

    flags: tuple[Parameter, ...]

    @property
    def names(self) -> list[str]:
        """Of the flags, sorted."""
        return sorted(flag.name for flag in self.flags)

    def written(self) -> dict[str, Any]:
        """As the file has it, for run.json."""
        return {flag.name: flag.written for flag in sorted(self.flags, key=lambda f: f.name)}

    def highest(self, name: str, otherwise: Any) -> tuple[Any, ...]:
        """Every value of a flag of choices, or the highest of a range; `otherwise` if unsearched.

        A flag with a condition can also have the value `otherwise`.
        """
        for flag in self.flags:
            if flag.name == name:
                found = flag.values
                values = (found.at(1.0),) if isinstance(found, Range) else found
                return values + ((otherwise,) if flag.when else ())
        return (otherwise,)

    def is_conditional(self, name: str) -> bool:
        """Whether a flag is searched in some trials only."""
        return any(flag.name == name and bool(flag.when) for flag in self.flags)

    def active(self, values: Point) -> dict[str, Any]:
        """Of a value for every flag, those whose condition holds."""
        point: dict[str, Any] = {}
        for flag in self.flags:
            if flag.applies(point):
                point[flag.name] = values[flag.name]
        return point

    def random(self, seed: int, number: int) -> dict[str, Any]:
        """The random point of trial `number`: each value from seed, number and name alone."""
        shares = {
            name: seed_of(seed, number, name, size_bytes=8, byteorder="little") % 2**56 / 2**56
            for name in self.names
        }
        return self.active({flag.name: flag.drawn(shares[flag.name]) for flag in self.flags})

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """Every point once, in an order of the seed, so that the first ones are spread out.

        Raises:
            ConfigError: a range without steps, or too many points.
        """
        columns = [flag.listed() for flag in self.flags]
        count = math.prod(map(len, columns))
        if count > _MAX_GRID_POINTS:
            raise ConfigError(
                f"--search grid: the space has {count:,} points, more than {_MAX_GRID_POINTS:,}: "
                "give fewer values, or --search random"
            )
        names = [flag.name for flag in self.flags]
        points = [
            self.active(dict(zip(names, values, strict=True)))
            for values in itertools.product(*columns)
        ]
        once = list({repr(point): point for point in points}.values())
        return [once[i] for i in np.random.default_rng(seed).permutation(len(once))]

    def suggested(self, trial: Any) -> dict[str, Any]:
        """The point that an optuna trial suggests."""
        point: dict[str, Any] = {}
        for flag in self.flags:
            if flag.applies(point):
                point[flag.name] = flag.suggested(trial)
        return point

    def for_optuna(self, point: Point) -> dict[str, Any]:
        """A point as the parameters of an optuna trial."""
        return {f.name: f.for_optuna(point[f.name]) for f in self.flags if f.name in point}


def read_space(uri: str, base: FlagsT) -> Space:
    """Read a space and check every value of it against the flags it would replace.

    Args:
        uri: a YAML file, local or s3://.
        base: the flags that the trials start from.

    Raises:
        ConfigError: one line with the key, what is wrong with it, and what to write instead.
    """
    try:
        document = load_yaml(uri)
    except ConfigError as error:
        raise ConfigError(f"--space {error}") from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"--space {uri} is no mapping of flags to values: write {_EXAMPLE}")
    flags: dict[str, Parameter] = {}
    for key, value in document.items():
        flag = _parameter(f"--space {uri}: key {str(key)!r}", _underscored(key), value)
        if flag.name in flags:
            both = "with underscores and with dashes"
            raise ConfigError(f"--space {uri}: {flag.name!r} is there twice, {both}")
        flags[flag.name] = flag
    for flag in flags.values():
        where = f"--space {uri}: key {flag.name!r}"
        _check_condition(where, flag, flags)
        _check_alone(where, flag, base)
    if not any(isinstance(f.values, Range) or len(f.values) > 1 for f in flags.values()):
        raise ConfigError(f"--space {uri} leaves nothing to search: give a range, as in {_EXAMPLE}")
    return Space(flags=tuple(sorted(flags.values(), key=lambda f: (bool(f.when), f.name))))


def _underscored(key: object) -> str:
    return str(key).removeprefix("--").replace("-", "_")


def _meant(name: str, known: Any, otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def _parameter(where: str, name: str, value: Any) -> Parameter:
    if name in UNSEARCHABLE:
        raise ConfigError(f"{where} cannot be searched: {UNSEARCHABLE[name]}")
    if name not in SEARCHABLE:
        hint = _meant(name, SEARCHABLE, "see raysers train --help")
        raise ConfigError(f"{where} is no flag of training: {hint}")
    values = value
    when: Mapping[Any, Any] = {}
    if isinstance(value, dict):
        if not set(value) <= {"values", "when"} or "values" not in value:
            raise ConfigError(
                f"{where}: a mapping has `values` and `when` and nothing else, as in "
                "{values: 'uniform(0, 0.3)', when: {freeze: cnn}} (in braces, ranges need quotes)"
            )
        values, when = value["values"], value.get("when") or {}
        if not isinstance(when, dict):
            raise ConfigError(f"{where}: `when` names other keys, as in when: {{freeze: cnn}}")
    conditions = {
        _underscored(k): tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()
    }
    call = _CALL.fullmatch(values) if isinstance(values, str) else None
    if call is None and isinstance(values, str) and "(" in values:
        raise ConfigError(f"{where}: {values!r} is neither a value nor a range: write {_EXAMPLE}")
    found = _range(where, name, call[1], call[2]) if call else _choices(where, name, values)
    return Parameter(name=name, written=value, values=found, when=conditions)


def _range(where: str, name: str, shape: str, inside: str) -> Range:
    if shape not in _SHAPES:
        hint = _meant(shape, _SHAPES, f"write one of {', '.join(_SHAPES)}").replace("'", "")
        raise ConfigError(f"{where}: {shape!r} is no kind of range: {hint}")
    try:
        low, high = (float(word) for word in inside.split(","))
    except ValueError:
        raise ConfigError(f"{where}: {shape} takes two numbers, as in {_EXAMPLE}") from None
    whole, log = shape in ("int", "logint"), shape.startswith("log")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{where}: {shape}({inside}) is no range: write the lower number first")
    if log and low <= 0:
        raise ConfigError(f"{where}: {shape} starts above 0, at {low:g} it has no logarithm")
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{where}: {shape} takes whole numbers, or write uniform({inside})")
    kinds = _kinds(SEARCHABLE[name])
    if not whole and int in kinds and float not in kinds:
        raise ConfigError(
            f"{where}: {shape}({inside}) has fractions, which do not fit: give a whole number, or "
            f"write {'logint' if log else 'int'}({inside})"
        )
    coerce(where, SEARCHABLE[name], low)
    return Range(low=low, high=high, whole=whole, log=log)


def _choices(where: str, name: str, value: Any) -> tuple[Any, ...]:
    """Those of a list, else the value itself; a flat list for a flag of lists is one value."""
    is_tuple = any(get_origin(kind) is tuple for kind in _kinds(SEARCHABLE[name]))
    is_one = is_tuple and isinstance(value, list) and not any(isinstance(v, list) for v in value)
    if not isinstance(value, list) or is_one:
        return (coerce(where, SEARCHABLE[name], value),)
    if not value:
        raise ConfigError(f"{where}: the list is empty: give at least one value")
    found = tuple(coerce(where, SEARCHABLE[name], one) for one in value)
    if len(set(found)) < len(found):
        raise ConfigError(f"{where}: {value} has a value twice: write each once")
    return found


def _check_condition(where: str, flag: Parameter, flags: Mapping[str, Parameter]) -> None:
    for other, wanted in flag.when.items():
        if other not in flags:
            hint = _meant(other, flags, "name a key of the same file")
            raise ConfigError(f"{where}: `when` asks for {other!r}, which is not searched: {hint}")
        known = flags[other]
        if known.when or isinstance(known.values, Range) or other == flag.name:
            raise ConfigError(f"{where}: `when`: {other!r} has to be a list without a `when`")
        for value in wanted:
            if value not in known.values:
                raise ConfigError(f"{where}: `when`: {other!r} is never {value!r}: see its list")


def _check_alone(where: str, flag: Parameter, base: FlagsT) -> None:
    found = flag.values
    for value in (found.at(0.0), found.at(1.0)) if isinstance(found, Range) else found:
        try:
            replace(base, **{flag.name: value}).check()
        except ConfigError as error:
            # with its condition it may be right: then the points themselves are checked
            own = str(error).startswith(f"--{flag.name.replace('_', '-')} is ")
            if own and not flag.when:
                raise ConfigError(f"{where}: {error}") from error


def coerce(where: str, hint: Any, value: Any) -> Any:
    """`value` as a flag of type `hint` holds it; YAML reads `1e-5` as a word: words may be numbers.

    Raises:
        ConfigError: it is of another kind; `where` begins the line.
    """
    for kind in _kinds(hint):
        found = _as_kind(kind, value)
        if found is not _NO:
            return found
    wanted = " or ".join(_told(kind) for kind in _kinds(hint))
    raise ConfigError(f"{where}: {value!r} does not fit: give {wanted}")


_NO = object()


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _as_kind(kind: Any, value: Any) -> Any:
    """The value, or `_NO`."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else _NO
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple):
            return _NO
        kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) != len(value):
            return _NO
        found = tuple(_as_kind(own, one) for own, one in zip(kinds, value, strict=True))
        return _NO if _NO in found else found
    if kind is types.NoneType:
        return None if value is None else _NO
    if kind in (int, float):
        try:
            number = float(value) if type(value) in (int, float, str) else math.nan
        except ValueError:
            return _NO
        if math.isnan(number):
            return _NO
        return number if kind is float else int(number) if number.is_integer() else _NO
    return value if type(value) is kind else _NO


def _told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        count = "a list of" if kinds[-1] is Ellipsis else f"a list of {len(kinds)}"
        return f"{count} {'numbers' if kinds[0] in (int, float) else 'words'}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names.get(kind, "null")
