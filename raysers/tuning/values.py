"""Values of training's flags as a YAML file writes them, turned into what the flags hold.

YAML reads `1e-5` as a word (its number is `1.0e-5`), so numbers are also taken from words.
"""

from __future__ import annotations

import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raysers.errors import ConfigError
from raysers.training.config import TrainingFlags

_ONE_DATA = "all trials learn from the same clips, give it on the command line"

#: Flags that make no sense in a space, and why.
UNSEARCHABLE = {
    "output": "every trial has its folder below --output",
    "workers": "give --workers-per-trial on the command line",
    "track": "trials write TensorBoard files, the sweep is in its table",
    "max_restarts": "--retries of the sweep is for that",
    "keep": "trials are compared by their best epoch",
    **dict.fromkeys(
        ("data", "train", "dev", "corpus", "emotion_map", "speakers", "limit", "folds", "fold"),
        _ONE_DATA,
    ),
    **dict.fromkeys(("allow_leakage", "max_failed", "min_clip_s", "max_clip_s"), _ONE_DATA),
}

#: Flags that can be searched, with their types.
SEARCHABLE: dict[str, Any] = {
    f.name: get_type_hints(TrainingFlags)[f.name]
    for f in fields(TrainingFlags)
    if f.name not in UNSEARCHABLE
}


def settled_all(where: str, name: str, value: Any) -> tuple[Any, ...]:
    """The choices that `value` stands for: those of a list, else itself.

    Raises:
        ConfigError: as `settled`, or the list is empty.
    """
    is_tuple = any(get_origin(kind) is tuple for kind in _kinds(SEARCHABLE[name]))
    is_one = is_tuple and isinstance(value, list) and not any(isinstance(v, list) for v in value)
    if not isinstance(value, list) or is_one:
        return (coerce(where, name, value),)
    if not value:
        raise ConfigError(f"{where}: the list is empty: give at least one value")
    found = tuple(coerce(where, name, one) for one in value)
    if len(set(found)) < len(found):
        raise ConfigError(f"{where}: {value} has a value twice: write each once")
    return found


def coerce(where: str, name: str, value: Any) -> Any:
    """`value` as the flag `name` holds it.

    Raises:
        ConfigError: it is not of the flag's kind; `where` begins the line.
    """
    for kind in _kinds(SEARCHABLE[name]):
        found = _as_kind(kind, value)
        if found is not _NO:
            return found
    wanted = " or ".join(_told(kind) for kind in _kinds(SEARCHABLE[name]))
    raise ConfigError(f"{where}: {value!r} does not fit: give {wanted}")


def is_whole(name: str) -> bool:
    """Whether the flag `name` takes whole numbers and no others."""
    kinds = _kinds(SEARCHABLE[name])
    return int in kinds and float not in kinds


_NO = object()


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _as_kind(kind: Any, value: Any) -> Any:
    """The value, or `_NO`."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else _NO
    if get_origin(kind) is tuple:
        return _as_tuple(get_args(kind), value)
    if kind is types.NoneType:
        return None if value is None else _NO
    if kind is float:
        return _number(value)
    if kind is int:
        number = _number(value)
        return int(number) if number is not _NO and number.is_integer() else _NO
    return value if type(value) is kind else _NO


def _as_tuple(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _NO
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return _NO
    found = tuple(_as_kind(kind, one) for kind, one in zip(kinds, value, strict=True))
    return _NO if _NO in found else found


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _NO
    try:
        return float(value)
    except ValueError:
        return _NO


def _told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return "a list of numbers" if kinds[-1] is Ellipsis else f"a list of {len(kinds)} numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names.get(kind, "null")
