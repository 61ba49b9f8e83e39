"""Clips from tables: which column means what, times, labels, names, and what is refused.

Text is read as it is, so speaker "03" stays "03"; audformat tables are accepted, and their `end`
NaT means the end of the file. A bare number is seconds (audformat itself would read it as
nanoseconds) unless the column's name says milliseconds; numbers too large for that are refused. No
row is left out without an error or a note that counts it.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data import columnar
from raysers.data.files import is_file
from raysers.data.readers import STDIN, format_of, open_table
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import is_remote, parent, resolve, row_of, tar_uri_of
from raysers.schemas import LABEL_FIELDS, OBJECTS, PARTS_OF_FILE
from raysers.types import NS_PER_S

Result = TypeVar("Result")

_SHOWN = 5
#: Rows looked at before all of them, to see whether a table's files are there.
_LOOKED_AT = 20

_FIELDS = {field.name: field for field in (*OBJECTS, *LABEL_FIELDS, *PARTS_OF_FILE)}
_TIME_COLUMN = re.compile(
    r"(?P<role>start|begin|onset|offset|end|stop|duration|dur)[ _-]*(?:time|stamp)?[ _(\[-]*"
    r"(?P<unit>s|secs?|seconds?|ms|msecs?|milliseconds?|us|ns|samples?|frames?)?[)\]]?"
)
#: Nanoseconds by the beginning of a unit; samples are no time.
_UNITS = {"ms": 10**6, "mil": 10**6, "us": 1000, "ns": 1, "sa": 0, "fr": 0, "s": NS_PER_S}
_ROLE_OF = {"begin": "start", "onset": "start", "stop": "end", "dur": "duration"}
#: Our columns by the table's: its name, and the unit of plain numbers in ns (0: no time).
_Columns = Mapping[str, tuple[str, int]]


def table_columns(uri: str) -> list[str]:
    """Column names of a table."""
    return _reading(uri, lambda: open_table(uri, [])).names


def read_clip_table(parts: Sequence[str], homes: Sequence[str] = ()) -> tuple[pa.Table, list[str]]:
    """The clips of a table, in one or several parts: `OBJECTS` plus the label columns it has.

    Relative files are below the table's own folder. Other names of the time columns are understood
    in pairs (`begin` and `end_ms`, `onset` and `duration`); `gender` is `sex`. The recordings of an
    RTTM are also looked for below `homes`. The second value holds notes for the user: columns that
    were not used, names that were corrected, labels outside 0..1. Raises ConfigError: no column of
    files, a bad time, label or name, clips that repeat, with table and row. StorageError: the table
    could not be read.
    """
    tables, notes = [], dict[str, None]()
    for uri in parts:
        found: list[str] = []
        tables.append(_reading(uri, partial(_clips, uri, found, homes)))
        if len(parts) > 1:
            found = [note.replace(uri, parent(uri)) for note in found]
        notes.update(dict.fromkeys(found))
    clips = pa.concat_tables(tables, promote_options="default")
    _check_unique(parts[0] if len(parts) == 1 else parent(parts[0]), clips)
    return clips, list(notes)


def refuse_missing(uri: str) -> None:
    """Raises ConfigError where all files of a table are relative and none of them is there."""

    def files(most: int) -> list[str]:
        table = open_table(uri, [])
        source = _columns(uri, table.names, [])["file"][0]
        cells = [cell for cell in table.read([source], most)[source].to_pylist() if cell]
        if any(os.path.isabs(cell) or "://" in cell or row_of(cell) for cell in map(str, cells)):
            return []
        return _named_files(uri, pa.chunked_array([pa.array(cells, pa.string())]), [])

    if format_of(uri) == ".rttm":
        return  # its recordings are found by name
    found: list[str] = []
    for most in (_LOOKED_AT, 0):
        if len(found) in (0, _LOOKED_AT):
            found = _reading(uri, partial(files, most))
        if not found or any(is_file(tar_uri_of(file)) or is_file(file) for file in found):
            return
    first, home = found[0], _home(uri)
    here = os.path.abspath(first.removeprefix(f"{home}/"))
    hint = f" (there is {here})" if os.path.exists(here) and here != first else ""
    raise ConfigError(
        f"{uri}: none of its {len(found):,} files is there; looked for {first}{hint}: names are "
        "relative to the table's folder, so move it or write absolute names"
    )


def _home(uri: str) -> str:
    """The folder that relative names of a table are below."""
    return os.getcwd() if uri == STDIN else parent(uri)


def _clips(uri: str, notes: list[str], homes: Sequence[str]) -> pa.Table:
    source = open_table(uri, notes, homes)
    columns = _columns(uri, source.names, notes)
    used = list(dict.fromkeys(name for name, _ in columns.values()))
    read = source.read(used, 0)
    table = pa.table({ours: read[theirs] for ours, (theirs, _) in columns.items()})
    files = _named_files(uri, _strings(uri, table["file"], "file"), notes)
    values: dict[str, Any] = {"file": pa.array(files, pa.string())}
    values["start"], values["end"] = _times(uri, columns, table)
    for field in _FIELDS.values():
        if field.name in table.column_names and field.name not in values:
            column = values[field.name] = _cast(uri, table[field.name], field)
            if pa.types.is_floating(field.type):
                low, high = pc.min_max(column).as_py().values()
                if low is not None and not 0 <= low <= high <= 1:
                    notes.append(
                        f"{uri}: {field.name} reaches from {low:g} to {high:g}; labels are read as "
                        "0..1, rescale them"
                    )
        elif field.name == "etag" and files and row_of(files[0]):  # the table's own version
            values[field.name] = pa.array([storage.stat(uri).etag] * len(files), pa.string())
        elif field.name in OBJECTS.names and field.name not in values:
            values[field.name] = pa.nulls(len(table), field.type)
    schema = pa.schema([field for name, field in _FIELDS.items() if name in values])
    clips = pa.table([values[name] for name in schema.names], schema=schema)
    starts, ends = (clips[name].cast(pa.int64()) for name in ("start", "end"))
    starts = pc.fill_null(starts, 0)
    if (row := _first_row(pc.less_equal(ends, starts))) is not None:
        start_s, end_s = (column[row].as_py() / NS_PER_S for column in (starts, ends))
        raise ConfigError(
            f"{uri}, row {row + 1}: end {end_s:g} s is not after start {start_s:g} s of "
            f"{files[row]}"
        )
    return clips


def _first_row(mask: pa.ChunkedArray | pa.Array) -> int | None:
    """The first row where `mask` is true; nulls are not."""
    found = pc.index(mask, True).as_py()
    return None if found < 0 else int(found)


def _columns(uri: str, names: Sequence[str], notes: list[str]) -> _Columns:
    """Our columns by those of the table; ConfigError where they are ambiguous."""
    files = [name for name in names if name.lower() in columnar.FILE_COLUMNS]
    files = [name for name in files if name == "file"] or files
    if not files:
        near = difflib.get_close_matches("file", names, n=1)
        hint = f"; did you mean {near[0]!r}? Rename it to 'file'" if near else ""
        raise ConfigError(f"{uri} has no column 'file', only {', '.join(map(repr, names))}{hint}")
    if len(set(files)) > 1:
        told = ", ".join(map(repr, files))
        raise ConfigError(f"{uri}: several columns may be the file: {told}: rename one to 'file'")
    if files[0] != "file":
        notes.append(f"{uri}: {files[0]!r} is read as the column 'file'")
    found = {name: (name, 0) for name in names if name in _FIELDS and name not in ("start", "end")}
    found["file"] = (files[0], 0)
    if "sex" not in names and "gender" in names:
        found["sex"] = ("gender", 0)
    found |= _time_columns(uri, names)
    used = [source for source, _ in found.values()]
    if repeated := sorted({name for name in names if name in used and names.count(name) > 1}):
        raise ConfigError(f"{uri} has the column {repeated[0]!r} more than once")
    if unused := [name for name in names if name and name not in used]:
        notes.append(f"{uri}: columns not used: {', '.join(unused)}")
    return found


def _time_columns(uri: str, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """`start` and `end`, `start` and `duration`, or one of them alone; the names decide."""
    roles: dict[str, list[tuple[str, int]]] = {}
    for name in names:
        if (match := _TIME_COLUMN.fullmatch(name.strip().lower())) is None:
            continue
        unit = match["unit"] or "s"
        unit_ns = next(ns for start, ns in _UNITS.items() if unit.startswith(start))
        roles.setdefault(_ROLE_OF.get(match["role"], match["role"]), []).append((name, unit_ns))
    if "start" in names and "end" in names:  # a pair, whatever else there is
        return {name: (name, NS_PER_S) for name in ("start", "end")}
    if offset := roles.pop("offset", []):  # beside an onset it is the end, else the start
        roles.setdefault("end" if "start" in roles else "start", []).extend(offset)
    if "start" not in roles and "end" not in roles:
        return {}  # a duration alone is the length of the file
    if "start" in roles and "end" in roles:
        roles.pop("duration", None)
    for role, columns in roles.items():
        told = ", ".join(repr(name) for name, _ in columns)
        if len(columns) > 1:
            raise ConfigError(f"{uri}: several columns may be the {role}: {told}: keep one")
        if not columns[0][1]:
            raise ConfigError(f"{uri}: {told} counts samples: store seconds in {role!r}")
    return {role: columns[0] for role, columns in roles.items()}


def _times(uri: str, columns: _Columns, table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """`start` and `end` of every row, duration[ns]."""
    times = dict.fromkeys(("start", "end", "duration"), pa.nulls(len(table), pa.int64()))
    for role in times:
        if role in columns and role in table.column_names:
            source, unit_ns = columns[role]
            try:
                times[role] = columnar.to_durations(table[role], unit_ns).cast(pa.int64())
            except columnar.TimeColumnError as error:
                raise ConfigError(f"{uri}, row {error.row + 1}: {source} {error}") from error
    start, end, duration = times.values()
    if "duration" in columns and "end" in columns:
        start = pc.subtract(end, duration)
        if (row := _first_row(pc.less(start, 0))) is not None:
            raise ConfigError(f"{uri}, row {row + 1}: the duration is longer than the end")
    elif "duration" in columns:
        end = pc.add(pc.fill_null(start, 0), duration)
    return start.cast(pa.duration("ns")), end.cast(pa.duration("ns"))


def _named_files(uri: str, cells: pa.ChunkedArray, notes: list[str]) -> list[str]:
    """Absolute file names of a table's cells; relative ones are below the table's own folder.

    A name with outer blanks or quotes, Windows separators or accents is taken as written where
    that exists, else in the tidied spelling, and the notes count how many are. On S3 the first such
    name settles the spelling of all.
    """
    folder, corrected, settled = _home(uri), 0, -1
    files: list[str] = []
    for row, cell in enumerate(cells.to_pylist(), start=1):
        where = f"{uri}, row {row}"
        if not cell or not cell.strip():
            raise ConfigError(f"{where}: no file name")
        if any(mark in cell for mark in "\0\r\n"):
            raise ConfigError(f"{where}: the file name holds a control character: correct it")
        if re.match(r"[A-Za-z]:[\\/](?!/)", cell):
            fix = "write it relative to the table"
            raise ConfigError(f"{where}: {cell!r} is a path of a Windows drive: {fix}")
        tidy = cell.strip()
        if len(tidy) > 2 and tidy[0] == tidy[-1] == '"':
            tidy = tidy[1:-1].replace('""', '"')
        tidy = tidy if "/" in tidy else tidy.replace("\\", "/")
        spellings = [cell, tidy]
        if not cell.isascii():
            spellings += [unicodedata.normalize(form, tidy) for form in ("NFC", "NFD")]
        try:
            names = list(dict.fromkeys(resolve(folder, spelling) for spelling in spellings))
            chosen = names[0]
            if len(names) > 1:
                existing = (name for name in names if is_file(name))
                if settled >= 0:
                    chosen = names[min(settled, len(names) - 1)]
                else:
                    chosen = next(existing, resolve(folder, tidy))
                settled = names.index(chosen) if is_remote(chosen) else -1
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        corrected += chosen != names[0]
        files.append(chosen)
    if corrected:
        kinds = "blanks, quotes, separators or accents"
        notes.append(f"{uri}: file names read with other {kinds}: {corrected:,}")
    return files


def _strings(uri: str, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{uri}: column {name!r} is not text: {_first_line(error)}") from error
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise ConfigError(f"{uri}: column {name!r} of type {column.type} is not text") from None


def _cast(uri: str, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if pa.types.is_string(field.type):
        return _strings(uri, column, field.name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        says_nothing = pc.is_in(pc.utf8_lower(text), pa.array(columnar.EMPTY_WORDS, text.type))
        column = pc.if_else(says_nothing, None, text)
        if pa.types.is_floating(field.type):
            column = pc.replace_substring_regex(column, r"^([+-]?\d*),(\d+)$", r"\1.\2")
        numbers = pc.match_substring_regex(column, r"(?i)^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$")
        if (row := _first_row(pc.invert(numbers))) is not None:
            told = f"{field.name} is {column[row].as_py()!r}"
            raise ConfigError(f"{uri}, row {row + 1}: {told}: write a number, or nothing")
    try:
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{uri}: column {field.name!r}: {_first_line(error)}") from error


def _check_unique(uri: str, clips: pa.Table) -> None:
    """Names all rows that repeat a clip; `start` 0 and no start are the same."""
    names = ("file", "start", "end", *(field.name for field in PARTS_OF_FILE))
    keys = clips.select([name for name in names if name in clips.schema.names])
    keys = keys.set_column(1, "start", pc.fill_null(clips["start"].cast(pa.int64()), 0))
    rows = keys.append_column("row", pa.array(np.arange(1, len(clips) + 1)))
    grouped = rows.group_by(keys.column_names).aggregate([("row", "list"), ("row", "min")])
    if len(grouped) == len(clips):
        return
    repeated = grouped.filter(pc.greater(pc.list_value_length(grouped["row_list"]), 1))
    repeated = repeated.sort_by("row_min").select(["file", "row_list"]).to_pylist()
    told = [
        f"rows {', '.join(map(str, rows[:-1]))} and {rows[-1]} are the same clip of {one['file']}"
        for one in repeated
        if (rows := sorted(one["row_list"]))
    ]
    more = f"; and {len(told) - _SHOWN:,} more clips" if len(told) > _SHOWN else ""
    raise ConfigError(f"{uri}: {'; '.join(told[:_SHOWN])}{more}: keep one row of each clip")


def _reading(uri: str, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except columnar.READ_FAILURES as error:
        raise ConfigError(f"{uri} cannot be read as a table: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
