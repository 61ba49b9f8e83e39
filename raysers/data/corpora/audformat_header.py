"""The `db.yaml` of an audformat database: its schemes, tables and splits.

Files of a database are taken literally, as audformat does; what it would pass over in silence
(values off the scale, labels no scheme knows) is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from raysers.data.corpora import words
from raysers.data.corpora.files import text_of
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.types import DIMENSIONS

HEADER_FILE = "db.yaml"

#: Column or scheme names that mean one of our columns.
_ROLES = {
    **{name: name for name in DIMENSIONS},
    "activation": "arousal",
    "emotion": "emotion",
    "speaker": "speaker",
    "gender": "sex",
    "sex": "sex",
    "language": "language",
    "transcription": "transcript",
    "transcript": "transcript",
    "text": "transcript",
    "session": "session",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What values a column may have.

    `low` and `high` are NaN-free and both or neither given; `labels` None allows any value;
    `misc_table` names the table whose index holds the labels; `sex_of` maps labels that are
    speakers to their sex.
    """

    name: str = ""
    low: float | None = None
    high: float | None = None
    labels: frozenset[str] | None = None
    misc_table: str = ""
    sex_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHeader:
    """One table: `columns` names to schemes in YAML order, `roles` the columns that we use."""

    name: str
    is_segmented: bool
    columns: Mapping[str, Scheme]
    roles: Mapping[str, str]
    split: str | None

    @property
    def has_labels(self) -> bool:
        """Whether a column is a dimension or a category, so that its rows are clips."""
        return any(role in (*DIMENSIONS, "emotion") for role in self.roles)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiscHeader:
    """A table that is not about clips: the name of its (first) index level, and its columns."""

    name: str
    level: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A database: its name, its language if it is one, tables, misc tables, schemes."""

    name: str
    language: str | None
    tables: tuple[TableHeader, ...]
    misc_tables: Mapping[str, MiscHeader]
    schemes: Mapping[str, Scheme]


def read_header(root: str) -> Header:
    """The header in `root`.

    Raises:
        ConfigError: no YAML, no tables, or a table with a scheme that is not defined.
    """
    uri = storage.join(root, HEADER_FILE)
    try:
        document = yaml.safe_load(text_of(uri))
    except yaml.YAMLError as error:
        raise ConfigError(f"{uri} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict) or not isinstance(document.get("tables"), dict):
        raise ConfigError(f"{uri} names no tables")
    schemes = {str(n): _scheme(uri, str(n), s) for n, s in _mapping(document, "schemes").items()}
    splits = _mapping(document, "splits")
    tables = _mapping(document, "tables").items()
    misc_tables = _mapping(document, "misc_tables").items()
    languages = document.get("languages")
    spoken = languages if isinstance(languages, list) else []
    return Header(
        name=str(document.get("name") or root.rpartition("/")[2]),
        language=str(spoken[0]) if len(spoken) == 1 else None,
        tables=tuple(_table(uri, str(n), t, schemes, splits) for n, t in tables),
        misc_tables={str(name): _misc(str(name), raw) for name, raw in misc_tables},
        schemes=schemes,
    )


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _scheme(uri: str, name: str, raw: Any) -> Scheme:
    about = raw if isinstance(raw, dict) else {}
    low, high = _ends(f"{uri}: scheme {name!r}", about.get("minimum"), about.get("maximum"))
    labels = about.get("labels")
    known = None
    if isinstance(labels, list | dict):
        known = frozenset(str(label) for label in labels)
    return Scheme(
        name=name,
        low=low,
        high=high,
        labels=known,
        misc_table=labels if isinstance(labels, str) else "",
        sex_of=_sexes(labels) if isinstance(labels, dict) else {},
    )


def _ends(where: str, low: Any, high: Any) -> tuple[float | None, float | None]:
    """Both ends of a scale of numbers; a scale of anything else, or with one end, has none."""
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None, None
    if not low < high:
        raise ConfigError(f"{where} reaches from {low} to {high}")
    return float(low), float(high)


def _misc(name: str, raw: Any) -> MiscHeader:
    about = raw if isinstance(raw, dict) else {}
    levels = [str(level) for level in _mapping(about, "levels")]
    columns = tuple(str(column) for column in _mapping(about, "columns"))
    return MiscHeader(name=name, level=levels[0] if levels else name, columns=columns)


def _sexes(labels: Mapping[Any, Any]) -> dict[str, str]:
    """Sexes that a scheme gives beside its labels: `labels: {03: {gender: male}}`."""
    found: dict[str, str] = {}
    for label, about in labels.items():
        word = (about.get("gender") or about.get("sex")) if isinstance(about, dict) else None
        if sex := words.sex_of(word and str(word)):
            found[str(label)] = sex
    return found


def _table(
    uri: str,
    name: str,
    raw: Any,
    schemes: Mapping[str, Scheme],
    splits: Mapping[str, Any],
) -> TableHeader:
    about = raw if isinstance(raw, dict) else {}
    columns: dict[str, Scheme] = {}
    for column, details in _mapping(about, "columns").items():
        scheme = details.get("scheme_id") if isinstance(details, dict) else None
        if scheme is not None and str(scheme) not in schemes:
            raise ConfigError(f"{uri}: table {name!r} names the scheme {scheme!r}, not defined")
        columns[str(column)] = schemes[str(scheme)] if scheme is not None else Scheme()
    return TableHeader(
        name=name,
        is_segmented=about.get("type") == "segmented",
        columns=columns,
        roles=_roles(uri, name, columns),
        split=_split(name, about.get("split_id"), splits),
    )


def _roles(uri: str, table: str, columns: Mapping[str, Scheme]) -> dict[str, str]:
    """The column of each role: the one called so, else the one whose scheme is.

    Raises:
        ConfigError: several columns are ratings of a dimension and none is called after it.
    """
    roles: dict[str, str] = {}
    for column in columns:
        if role := _ROLES.get(column.lower()):
            roles.setdefault(role, column)
    named = set(roles)
    for column, meaning in columns.items():
        role = _ROLES.get(meaning.name.lower())
        if role is None or role in named or column in roles.values():
            continue
        if role in DIMENSIONS and role in roles:
            raise ConfigError(
                f"{uri}: table {table!r} has several columns of {role} ({roles[role]}, {column}): "
                f"call the one to use {role!r}"
            )
        roles.setdefault(role, column)
    return roles


def _split(table: str, split_id: Any, splits: Mapping[str, Any]) -> str | None:
    """The split of a table: its `split_id`'s type, or a part of its own name."""
    if split_id is not None:
        about = splits.get(str(split_id))
        kind = about.get("type") if isinstance(about, dict) else None
        return words.split_of(str(split_id)) or words.split_of(kind and str(kind))
    named = (words.split_of(part) for part in table.split("."))
    return next((split for split in named if split), None)
