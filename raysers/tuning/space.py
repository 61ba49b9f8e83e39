"""The search space of a sweep: which flags of training vary between trials, over which values.

A space is data, never code: `loguniform(1e-5, 1e-3)` is parsed, not evaluated. A flag whose `when`
does not hold in a trial keeps the value of the command line.
"""

from __future__ import annotations

import itertools
import math
import re
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from raysers.cli import nearest
from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.training.config import FlagsT, TrainingFlags
from raysers.types import seed_of

#: A trial's values of the searched flags, by their underscored name.
Point = Mapping[str, Any]

_MAX_GRID_POINTS = 10_000
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
        "all trials learn from the same clips, give it on the command line",
    ),
}  # fmt: skip
#: Flags that can be searched, with their types.
SEARCHABLE: dict[str, Any] = {
    name: hint
    for name, hint in get_type_hints(TrainingFlags).items()
    if name in {f.name for f in fields(TrainingFlags)} - {*UNSEARCHABLE}
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
        edge = 0.5 if self.whole else 0.0  # every whole number has its own interval
        low, high = self.low - edge, self.high + edge
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(round(value) if self.whole else value, self.low), self.high)
        return int(value) if self.whole else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One flag of the space: its value as `written` in the file, and what is chosen from.

    `when` has, by another flag's name, the values of it with which this one is searched.
    """

    name: str
    written: Any
    values: Range | tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

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

    def listed(self) -> list[Any]:
        """Every value; raises ConfigError for a range without steps."""
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

    def point(self, value: Callable[[Parameter], Any]) -> dict[str, Any]:
        """The values of the flags whose condition holds."""
        point: dict[str, Any] = {}
        for flag in self.flags:
            if all(point.get(name) in values for name, values in flag.when.items()):
                point[flag.name] = value(flag)
        return point

    def random(self, seed: int, number: int) -> dict[str, Any]:
        """The random point of trial `number`: each value from seed, number and name alone."""

        def drawn(flag: Parameter) -> Any:
            names = (seed, number, flag.name)
            return flag.drawn(seed_of(*names, size_bytes=8, byteorder="little") % 2**56 / 2**56)

        return self.point(drawn)

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """Every point once, in an order of the seed, so that the first ones are spread out."""
        columns = [flag.listed() for flag in self.flags]
        if (count := math.prod(map(len, columns))) > _MAX_GRID_POINTS:
            raise ConfigError(
                f"--search grid: the space has {count:,} points, more than {_MAX_GRID_POINTS:,}: "
                "give fewer values, or --search random"
            )
        once: dict[str, dict[str, Any]] = {}
        names = [flag.name for flag in self.flags]
        for values in itertools.product(*columns):
            of = dict(zip(names, values, strict=True))
            point = self.point(lambda flag, of=of: of[flag.name])  # type: ignore[misc]
            once[repr(point)] = point
        points = list(once.values())
        return [points[i] for i in np.random.default_rng(seed).permutation(len(points))]

    def suggested(self, trial: Any) -> dict[str, Any]:
        """The point that an optuna trial suggests."""
        return self.point(lambda flag: flag.suggested(trial))

    def numbered(self, trial: Any) -> dict[str, Any]:
        """The configuration of an optuna trial: its `number` and `point`."""
        return {"number": trial.number, "point": self.suggested(trial)}

    def search(self, points: Sequence[Point], seed: int) -> Any:
        """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) after these points."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=0,
                multivariate=True,  # flags are not independent of each other
                group=True,  # conditions make spaces of different shape
                constant_liar=True,  # trials at work are not tried again next door
            )
        return OptunaSearch(
            space=self.numbered,  # which Tune pickles
            metric="score",
            mode="max",
            sampler=sampler,
            points_to_evaluate=[self.for_optuna(point) for point in points],
        )

    def for_optuna(self, point: Point) -> dict[str, Any]:
        """A point as the parameters of an optuna trial: the inverse of `suggested`."""
        return {
            f.name: point[f.name] if isinstance(f.values, Range) else f.values.index(point[f.name])
            for f in self.flags
            if f.name in point
        }


def read_space(uri: str, base: FlagsT) -> Space:
    """Read a space from a YAML file and check its values against the flags they would replace."""
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
            raise ConfigError(
                f"--space {uri}: {flag.name!r} is there twice, with underscores and with dashes"
            )
        flags[flag.name] = flag
    for flag in flags.values():
        _check(f"--space {uri}: key {flag.name!r}", flag, flags, base)
    if not any(isinstance(f.values, Range) or len(f.values) > 1 for f in flags.values()):
        raise ConfigError(f"--space {uri} leaves nothing to search: give a range, as in {_EXAMPLE}")
    return Space(flags=tuple(sorted(flags.values(), key=lambda f: (bool(f.when), f.name))))


def _underscored(key: object) -> str:
    return str(key).removeprefix("--").replace("-", "_")


def _parameter(where: str, name: str, written: Any) -> Parameter:
    if name in UNSEARCHABLE:
        raise ConfigError(f"{where} cannot be searched: {UNSEARCHABLE[name]}")
    if name not in SEARCHABLE:
        hint = nearest(name, SEARCHABLE) or "see raysers train --help"
        raise ConfigError(f"{where} is no flag of training: {hint}")
    values: Any = written
    when: dict[Any, Any] = {}
    if isinstance(written, dict):
        values, when = written.get("values"), written.get("when") or {}
        if not set(written) <= {"values", "when"} or "values" not in written:
            raise ConfigError(
                f"{where}: a mapping has `values` and `when` and nothing else, as in "
                "{values: 'uniform(0, 0.3)', when: {freeze: cnn}} (in braces, ranges need quotes)"
            )
        if not isinstance(when, dict):
            raise ConfigError(f"{where}: `when` names other keys, as in when: {{freeze: cnn}}")
    when = {_underscored(k): tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    call = _CALL.fullmatch(values) if isinstance(values, str) else None
    if call is None and isinstance(values, str) and "(" in values:
        raise ConfigError(f"{where}: {values!r} is neither a value nor a range: write {_EXAMPLE}")
    found = _range(where, name, call[1], call[2]) if call else _choices(where, name, values)
    return Parameter(name=name, written=written, values=found, when=when)


def _range(where: str, name: str, shape: str, inside: str) -> Range:
    if shape not in _SHAPES:
        hint = nearest(shape, _SHAPES).replace("'", "") or f"write one of {', '.join(_SHAPES)}"
        raise ConfigError(f"{where}: {shape!r} is no kind of range: {hint}")
    try:
        low, high = (float(word) for word in inside.split(","))
    except ValueError:
        raise ConfigError(f"{where}: {shape} takes two numbers, as in {_EXAMPLE}") from None
    whole, log = shape in ("int", "logint"), shape.startswith("log")
    kinds = _kinds(SEARCHABLE[name])
    for good, message in (
        (math.isfinite(low) and math.isfinite(high) and low < high,
         f"{shape}({inside}) is no range: write the lower number first"),
        (not log or low > 0, f"{shape} starts above 0, at {low:g} it has no logarithm"),
        (not whole or (low.is_integer() and high.is_integer()),
         f"{shape} takes whole numbers, or write uniform({inside})"),
        (whole or int not in kinds or float in kinds,
         f"{shape}({inside}) has fractions, which do not fit: give a whole number, or write "
         f"{'logint' if log else 'int'}({inside})"),
    ):  # fmt: skip
        if not good:
            raise ConfigError(f"{where}: {message}")
    coerce(where, SEARCHABLE[name], low)
    return Range(low=low, high=high, whole=whole, log=log)


def _choices(where: str, name: str, value: Any) -> tuple[Any, ...]:
    """Those of a list, else the value itself; a flat list for a flag of lists is one value."""
    is_tuple = any(get_origin(kind) is tuple for kind in _kinds(SEARCHABLE[name]))
    is_one = is_tuple and isinstance(value, list) and not any(isinstance(v, list) for v in value)
    if not isinstance(value, list) or is_one:
        value = [value]
    if not value:
        raise ConfigError(f"{where}: the list is empty: give at least one value")
    found = tuple(coerce(where, SEARCHABLE[name], one) for one in value)
    if len(set(found)) < len(found):
        raise ConfigError(f"{where}: {value} has a value twice: write each once")
    return found


def _check(where: str, flag: Parameter, flags: Mapping[str, Parameter], base: FlagsT) -> None:
    """Check a flag's condition, and each of its values alone."""
    for other, wanted in flag.when.items():
        if other not in flags:
            hint = nearest(other, flags) or "name a key of the same file"
            raise ConfigError(f"{where}: `when` asks for {other!r}, which is not searched: {hint}")
        known = flags[other].values
        if flags[other].when or isinstance(known, Range) or other == flag.name:
            raise ConfigError(f"{where}: `when`: {other!r} has to be a list without a `when`")
        if never := [value for value in wanted if value not in known]:
            raise ConfigError(f"{where}: `when`: {other!r} is never {never[0]!r}: see its list")
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
    """`value` as a flag of type `hint` holds it; YAML reads `1e-5` as a word, which may be one."""
    for kind in _kinds(hint):
        if (found := _as_kind(kind, value)) is not _NO:
            return found
    wanted = " or ".join(_described(kind) for kind in _kinds(hint))
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
        found = tuple(map(_as_kind, kinds, value))
        return _NO if _NO in found else found
    if kind in (int, float):
        try:
            number = float(value) if type(value) in (int, float, str) else math.nan
        except ValueError:
            return _NO
        whole = number.is_integer()  # NaN is not
        return number if kind is float and math.isfinite(number) else int(number) if whole else _NO
    return value if type(value) is kind else _NO


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        count = "a list of" if kinds[-1] is Ellipsis else f"a list of {len(kinds)}"
        return f"{count} {'numbers' if kinds[0] in (int, float) else 'words'}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names.get(kind, "null")
