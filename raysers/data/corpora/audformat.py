"""Any audformat database folder: `db.yaml`, tables in Parquet or CSV, and media.

audformat reads CSV columns by their place in the YAML, so a CSV whose header has another order is
ambiguous and refused; Parquet is read by name. Tables in pickle are not read. Plain numbers in
`start` and `end` are nanoseconds, as in audformat, while tables of one's own are in seconds. Values
that audformat accepts silently (off the scale, labels no scheme defines) are refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raysers.data import files
from raysers.data.columnar import READ_FAILURES, TimeColumnError, to_durations
from raysers.data.corpora import common_name, sex_of, speaker_of, split_of
from raysers.display import some
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import parent, resolve, suffix_of
from raysers.types import DIMENSIONS

NAME = "audformat"

HEADER_FILE = "db.yaml"
#: Column or scheme names that mean one of our columns.
_ROLES = {
    **{name: name for name in (*DIMENSIONS, "emotion", "speaker", "sex", "language", "session")},
    **dict.fromkeys(("transcription", "transcript", "text"), "transcript"),
    "activation": "arousal",
    "gender": "sex",
}
_LABELS = (*DIMENSIONS, "emotion")
#: Tables of a consensus, by audformat's naming advice; where there are some, they are the labels.
_CONSENSUS = ".gold_standard"
#: Copies of a database's tables for another sensor than the microphone.
_NOT_SPEECH = ("laryngo.",)


class _Key(NamedTuple):
    """A clip: its file as the tables spell it, and start and end in ns; None for a whole file."""

    file: str
    start: int | None = None
    end: int | None = None


class _Scheme(NamedTuple):
    """Allowed values of a column (`labels` None: any), and the sex of labels that are speakers.

    `scale` is the lowest and the highest rating; the index of `misc_table` holds the labels.
    """

    name: str = ""
    scale: tuple[float, float] | None = None
    labels: frozenset[str] | None = None
    misc_table: str = ""
    sex_of: Mapping[str, str] = {}


class _Table(NamedTuple):
    """One table: `columns` maps names to schemes in YAML order, `roles` our names to columns."""

    name: str
    columns_of_index: tuple[str, ...]
    columns: Mapping[str, _Scheme]
    roles: Mapping[str, str]
    split: str | None

    @property
    def has_labels(self) -> bool:
        """Whether a column is a dimension or a category, so that its rows are clips."""
        return bool(set(_LABELS) & set(self.roles))


class _Header(NamedTuple):
    """A `db.yaml`; `misc` maps tables that are not about clips to their index and columns."""

    name: str
    language: str | None
    tables: Sequence[_Table]
    misc: Mapping[str, tuple[str, Sequence[str]]]
    schemes: Mapping[str, _Scheme]


def recognise(root: str) -> bool:
    """Whether `root` has a `db.yaml`."""
    return files.is_file(storage.join(root, HEADER_FILE))


def database_of(uri: str) -> tuple[str, str] | None:
    """The root and table (empty: all) of a database, its `db.yaml` or one of its table files."""
    name = uri.rpartition("/")[2]
    if name == HEADER_FILE:
        return parent(uri), ""
    if storage.is_folder(uri):
        return (uri, "") if recognise(uri) else None
    found = re.fullmatch(r"db\.(.+)\.(?:csv|parquet)", name)
    return (parent(uri), found[1]) if found and recognise(parent(uri)) else None


def read(root: str, only: str = "", *, labelled: bool = True) -> tuple[list[files.Row], list[str]]:
    """The clips of the database in `root`, its tables merged by file, start and end.

    Labels are rescaled by their scheme's minimum and maximum to 0..1. The clips are the rows of the
    table `only`, else of all tables with labels, else (if labels are not needed) of the segmented
    tables, or of all where there are none. Raises ConfigError: no such table, a table that is
    missing or in pickle, a column that is missing or out of place, a value its scheme does not
    allow, a clip in two splits, labels off 0..1 without a scheme that says how to rescale them.
    """
    header = _header(root)
    tables = [table for table in header.tables if not table.name.startswith(_NOT_SPEECH)]
    if only:
        chosen = [table for table in header.tables if table.name == only]
    else:
        rated = [table for table in tables if table.has_labels]
        chosen = [table for table in rated if table.name.endswith(_CONSENSUS)] or rated
        if not chosen and not labelled:
            chosen = [table for table in tables if "start" in table.columns_of_index] or tables
    if not chosen:
        wanted = repr(only) if only else f"with {', '.join(_LABELS)}"
        raise ConfigError(f"{storage.join(root, HEADER_FILE)}: no table {wanted}")
    sexes = _sexes(root, header)
    clips: dict[_Key, files.Row] = {}
    facts: dict[_Key, files.Row] = {}
    split_from: dict[_Key, str] = {}
    conflicts: Counter[str] = Counter()
    for table in [*chosen, *(other for other in tables if other not in chosen)]:
        if not (table in chosen or table.roles or table.split):
            continue
        for where, cells in _rows(root, table.name, table.columns_of_index, table.columns):
            key = _Key(cells["file"], cells.get("start"), cells.get("end"))
            row = (clips if table in chosen else facts).setdefault(key, {})
            for name, value in _values(where, table, cells, sexes).items():
                if table in chosen or name not in _LABELS:
                    differs = row.setdefault(name, value) != value
                    conflicts.update([name] if differs and table in chosen else [])
            if not table.split:
                continue
            if row.setdefault("split", table.split) != table.split and table in chosen:
                other = f"in {row['split']} in the table {split_from[key]!r}"
                raise ConfigError(
                    f"{where}: {key.file} is in {table.split} here and {other}: put the clips you "
                    "want into a separate table"
                )
            split_from.setdefault(key, table.name)
    rows = []
    for key, row in clips.items():
        whole = _Key(key.file)
        known = facts.get(whole, {})
        if key != whole:
            # transcript and labels of the whole file do not hold for this segment
            known = known | clips.get(whole, {})
            known = {n: v for n, v in known.items() if n not in (*_LABELS, "transcript")}
        named = {"file": resolve(root, key.file), "start": key.start, "end": key.end}
        of_all: files.Row = {"corpus": header.name, "language": header.language}
        rows.append(of_all | known | facts.get(key, {}) | row | named)
    kind = "labels" if any(table.has_labels for table in chosen) else "clips"
    notes = [f"{root}: {kind} from the tables: {some(table.name for table in chosen)}"]
    if conflicts:
        counts = ", ".join(f"{name} ({n:,})" for name, n in sorted(conflicts.items()))
        notes.append(f"{root}: tables differ in {counts}; the first table's values are used")
    return rows, notes


def _values(where: str, table: _Table, cells: files.Row, sexes: Mapping[str, str]) -> files.Row:
    """Our columns of one row, checked against their schemes; unknown values are left out."""
    row: files.Row = {}
    for role, column in table.roles.items():
        value, scheme = cells[column], table.columns[column]
        if role in DIMENSIONS:
            row[role] = _label(where, column, value, scheme)
            continue
        text = speaker_of(value)
        if text is not None and scheme.labels is not None and text not in scheme.labels:
            raise ConfigError(f"{where}: {column} is {text!r}, which is not in its scheme")
        if role == "sex":
            text = sex_of(text)
        row[role] = common_name(text) if role == "emotion" and text else text
    if speaker := row.get("speaker"):
        row.setdefault("sex", sexes.get(speaker))
    return {name: value for name, value in row.items() if value is not None}


def _label(where: str, column: str, value: Any, scheme: _Scheme) -> float | None:
    low, high = scheme.scale or (-math.inf, math.inf)
    rating = files.number(where, column, value, low, high)
    if rating is None or scheme.scale:
        return None if rating is None else (rating - low) / (high - low)
    if not 0 <= rating <= 1:
        raise ConfigError(
            f"{where}: {column} is {rating:g}, and its scheme has no minimum and maximum to "
            "rescale it to 0..1: add them to db.yaml"
        )
    return rating


def _sexes(root: str, header: _Header) -> dict[str, str]:
    """Sex by speaker, from the schemes' labels and the misc tables they are taken from."""
    found: dict[str, str] = {}
    for scheme in header.schemes.values():
        found |= scheme.sex_of
        level, columns = header.misc.get(scheme.misc_table, ("", ()))
        if not (named := {"gender", "sex"} & set(columns)):
            continue
        for _, cells in _rows(root, scheme.misc_table, (level,), columns):
            if sex := sex_of(cells[min(named)] and str(cells[min(named)])):
                found[speaker_of(cells[level]) or ""] = sex
    return found


def _header(root: str) -> _Header:
    uri = storage.join(root, HEADER_FILE)
    document = files.load_yaml(uri)
    if not isinstance(document, dict) or not isinstance(document.get("tables"), dict):
        raise ConfigError(f"{uri} names no tables")
    schemes = {n: _scheme(f"{uri}: scheme {n!r}", n, s) for n, s in _items(document, "schemes")}
    splits = dict(_items(document, "splits"))
    misc = {}
    for name, raw in _items(document, "misc_tables"):
        levels = [level for level, _ in _items(raw, "levels")]
        columns = [column for column, _ in _items(raw, "columns")]
        misc[name] = (levels[0] if levels else name, columns)
    languages = document.get("languages")
    spoken = languages if isinstance(languages, list) else []
    language = str(spoken[0]) if len(spoken) == 1 else None
    name = str(document.get("name") or root.rpartition("/")[2])
    tables = [_table(uri, name, raw, schemes, splits) for name, raw in _items(document, "tables")]
    return _Header(name, language, tables, misc, schemes)


def _items(document: Any, key: str) -> list[tuple[str, Any]]:
    """Names and values of a mapping in the YAML; none for anything else."""
    found = document.get(key) if isinstance(document, dict) else None
    return [(str(k), v) for k, v in found.items()] if isinstance(found, dict) else []


def _scheme(where: str, name: str, raw: Any) -> _Scheme:
    about = raw if isinstance(raw, dict) else {}
    low, high, labels = (about.get(key) for key in ("minimum", "maximum", "labels"))
    scale = None
    # a scale of anything but numbers, or with one end, is none
    if isinstance(low, int | float) and isinstance(high, int | float):
        if not low < high:
            raise ConfigError(f"{where} reaches from {low} to {high}")
        scale = float(low), float(high)
    sexes = {}
    for label, facts in _items(about, "labels"):  # labels: {03: {gender: male}}
        word = (facts.get("gender") or facts.get("sex")) if isinstance(facts, dict) else None
        if sex := sex_of(word and str(word)):
            sexes[label] = sex
    known = frozenset(map(str, labels)) if isinstance(labels, list | dict) else None
    misc_table = labels if isinstance(labels, str) else ""
    return _Scheme(name, scale, known, misc_table, sexes)


def _table(
    uri: str, name: str, raw: Any, schemes: Mapping[str, _Scheme], splits: Mapping[str, Any]
) -> _Table:
    about = raw if isinstance(raw, dict) else {}
    columns: dict[str, _Scheme] = {}
    for column, details in _items(about, "columns"):
        scheme = details.get("scheme_id") if isinstance(details, dict) else None
        if scheme is not None and str(scheme) not in schemes:
            raise ConfigError(f"{uri}: table {name!r} names the scheme {scheme!r}, not defined")
        columns[column] = schemes[str(scheme)] if scheme is not None else _Scheme()
    split_id = about.get("split_id")
    if split_id is not None:  # its own name or its type, else a part of the table's name
        facts = splits.get(str(split_id))
        kind = facts.get("type") if isinstance(facts, dict) else None
        split = split_of(str(split_id)) or split_of(kind and str(kind))
    else:
        split = next(filter(None, map(split_of, name.split("."))), None)
    index = ("file", "start", "end") if about.get("type") == "segmented" else ("file",)
    return _Table(name, index, columns, _roles(uri, name, columns), split)


def _roles(uri: str, table: str, columns: Mapping[str, _Scheme]) -> dict[str, str]:
    """The column of each role: the one of that name, else the only one whose scheme has it."""
    roles: dict[str, str] = {}
    for column in columns:
        if role := _ROLES.get(column.lower()):
            roles.setdefault(role, column)
    named = set(roles)
    for column, scheme in columns.items():
        role = _ROLES.get(scheme.name.lower())
        if role is None or role in named or column in roles.values():
            continue
        if role in DIMENSIONS and role in roles:
            raise ConfigError(
                f"{uri}: table {table!r} has several columns of {role} ({roles[role]}, {column}): "
                f"call the one to use {role!r}"
            )
        roles.setdefault(role, column)
    return roles


def _rows(
    root: str, table: str, index: Sequence[str], columns: Sequence[str] | Mapping[str, _Scheme]
) -> Iterator[tuple[str, files.Row]]:
    """("<uri>, row N" or ", line N", cells) of one table; times are ns or None."""
    stem, wanted = f"db.{table}", [*index, *columns]
    uri = files.first_of(root, (f"{stem}.parquet", f"{stem}.csv"), files.is_file)
    if uri is None and files.first_of(root, (f"{stem}.pkl",), files.is_file):
        fix = 'save the database with storage_format="parquet"'
        raise ConfigError(
            f"{root}: {stem}.pkl is a pickle, which can run code and is not read: {fix}"
        )
    if uri is None:
        raise ConfigError(
            f"{root}: db.yaml names the table {table!r}, but there is no {stem}.parquet"
        )
    read = _csv_columns if suffix_of(uri) == ".csv" else _parquet_columns
    places, cells = read(uri, wanted)
    for name in index[1:]:
        cells[name] = _times(name, places, cells[name])
    for where, *row in zip(places, *(cells[name].to_pylist() for name in wanted), strict=True):
        if "file" in index and not row[0]:
            raise ConfigError(f"{where}: no file name")
        yield where, dict(zip(wanted, row, strict=True))


def _csv_columns(uri: str, wanted: list[str]) -> tuple[list[str], dict[str, pa.ChunkedArray]]:
    records = list(files.csv_records(uri, wanted))
    if records and list(records[0][1]) != wanted:
        found = ", ".join(records[0][1])
        raise ConfigError(
            f"{uri}: its columns are {found}, but db.yaml has them as {', '.join(wanted)}, and "
            "audformat reads CSV by place: save it as Parquet"
        )
    texts = {name: [record[name] or None for _, record in records] for name in wanted}
    columns = {name: pa.chunked_array([text], pa.string()) for name, text in texts.items()}
    return [where for where, _ in records], columns


def _parquet_columns(uri: str, wanted: list[str]) -> tuple[list[str], dict[str, pa.ChunkedArray]]:
    try:
        file = pq.ParquetFile(storage.open_file(uri))
        files.require(uri, file.schema_arrow.names, wanted)
        table = file.read(columns=wanted)
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} cannot be read as Parquet: {str(error)[:200]}") from error
    places = [f"{uri}, row {row}" for row in range(1, len(table) + 1)]
    return places, {name: table[name] for name in wanted}


def _times(name: str, places: Sequence[str], column: pa.ChunkedArray) -> pa.Array:
    """Whole nanoseconds; `places` name the rows in messages."""
    if pa.types.is_floating(column.type) and len(column):
        fault = "holds fractions, which audformat takes for nanoseconds: store durations"
        raise ConfigError(f"{places[0]}: {name} {fault}")
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64()).cast(pa.duration("ns"))
    texts = column.to_pylist() if pa.types.is_string(column.type) else ()
    for where, text in zip(places, texts, strict=False):
        if text and text.replace(".", "", 1).isdigit():
            fix = "write a duration such as 0 days 00:00:01.5"
            raise ConfigError(f"{where}: {name} is {text!r}: {fix}")
    try:
        return to_durations(column).cast(pa.int64())
    except TimeColumnError as error:
        raise ConfigError(f"{places[error.row]}: {name} {error}") from error
