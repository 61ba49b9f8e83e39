"""The search space of a sweep: which flags of training are tried with which values.

A space is data, never code: `loguniform(1e-5, 1e-3)` is recognised by its shape, not evaluated. A
flag whose `when` does not hold in a trial keeps the value of the command line.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.training.config import FlagsT
from raysers.tuning.points import Parameter, Range, Space
from raysers.tuning.values import SEARCHABLE, UNSEARCHABLE, coerce, is_whole, settled_all

_CALL = re.compile(r"\s*([A-Za-z_]+)\s*\(([^()]*)\)\s*")
_SHAPES = ("uniform", "loguniform", "int", "logint")
_EXAMPLE = "lr: loguniform(1e-5, 1e-3)"


def read_space(uri: str, base: FlagsT) -> Space:
    """Read a space and check every value of it against the flags it would replace.

    Args:
        uri: a YAML file, local or s3://.
        base: the flags that the trials start from.

    Raises:
        ConfigError: one line with the key, what is wrong with it, and what to write instead.
    """
    document = _document(uri)
    flags = [_searched(uri, str(key), value) for key, value in document.items()]
    for name in (names := [flag.name for flag in flags]):
        if names.count(name) > 1:
            raise ConfigError(f"--space {uri}: {name!r} is there twice, as {name} and with dashes")
    by_name = {flag.name: flag for flag in flags}
    for flag in flags:
        _check_condition(uri, flag, by_name)
        for value in _ends(flag):
            _check_alone(uri, flag, value, base)
    ordered = sorted(flags, key=lambda flag: (bool(flag.when), flag.name))
    space = Space(flags=tuple(ordered))
    if not any(flag.varies for flag in ordered):
        raise ConfigError(f"--space {uri} leaves nothing to search: give a range, as in {_EXAMPLE}")
    return space


def _document(uri: str) -> Mapping[Any, Any]:
    try:
        document = load_yaml(uri)
    except ConfigError as error:
        raise ConfigError(f"--space {error}") from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"--space {uri} is no mapping of flags to values: write {_EXAMPLE}")
    return document


def _searched(uri: str, key: str, value: Any) -> Parameter:
    name = key.removeprefix("--").replace("-", "_")
    where = f"--space {uri}: key {key!r}"
    if name in UNSEARCHABLE:
        raise ConfigError(f"{where} cannot be searched: {UNSEARCHABLE[name]}")
    if name not in SEARCHABLE:
        near = difflib.get_close_matches(name, SEARCHABLE, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see raysers train --help"
        raise ConfigError(f"{where} is no flag of training: {hint}")
    when: Mapping[str, Any] = {}
    values = value
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
        str(other).removeprefix("--").replace("-", "_"): (
            tuple(wanted) if isinstance(wanted, list) else (wanted,)
        )
        for other, wanted in when.items()
    }
    return Parameter(name=name, written=value, values=_values(where, name, values), when=conditions)


def _values(where: str, name: str, value: Any) -> Range | tuple[Any, ...]:
    call = _CALL.fullmatch(value) if isinstance(value, str) else None
    if call is not None:
        return _range(where, name, call[1], call[2])
    if isinstance(value, str) and "(" in value:
        raise ConfigError(f"{where}: {value!r} is neither a value nor a range: write {_EXAMPLE}")
    return settled_all(where, name, value)


def _range(where: str, name: str, shape: str, inside: str) -> Range:
    if shape not in _SHAPES:
        near = difflib.get_close_matches(shape, _SHAPES, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(_SHAPES)}"
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
    if not whole and is_whole(name):
        raise ConfigError(
            f"{where}: {shape}({inside}) has fractions, which do not fit: give a whole number, or "
            f"write {'logint' if log else 'int'}({inside})"
        )
    found = Range(low=low, high=high, whole=whole, log=log)
    for value in (found.at(0.0), found.at(1.0), found.at(0.37)):
        coerce(where, name, value)
    return found


def _check_condition(uri: str, flag: Parameter, by_name: Mapping[str, Parameter]) -> None:
    for other, wanted in flag.when.items():
        where = f"--space {uri}: key {flag.name!r}: `when`"
        if other not in by_name:
            near = difflib.get_close_matches(other, by_name, 1)
            hint = f"did you mean {near[0]!r}?" if near else "name a key of the same file"
            raise ConfigError(f"{where} asks for {other!r}, which is not searched: {hint}")
        known = by_name[other]
        if known.when or isinstance(known.values, Range) or other == flag.name:
            raise ConfigError(f"{where}: {other!r} has to be a list without a `when`")
        for value in wanted:
            if value not in known.values:
                raise ConfigError(f"{where}: {other!r} is never {value!r}: see its list")


def _ends(flag: Parameter) -> Sequence[Any]:
    if isinstance(flag.values, Range):
        return [flag.values.at(0.0), flag.values.at(1.0)]
    return flag.values


def _check_alone(uri: str, flag: Parameter, value: Any, base: FlagsT) -> None:
    try:
        replace(base, **{flag.name: value}).check()
    except ConfigError as error:
        # with its condition it may be right: then the points themselves are checked
        own = str(error).startswith(f"--{flag.name.replace('_', '-')} is ")
        if own and not flag.when:
            raise ConfigError(f"--space {uri}: key {flag.name!r}: {error}") from error
