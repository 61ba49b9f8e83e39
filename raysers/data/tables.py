"""Tables that name clips: CSV, TSV or Parquet with `file`, perhaps times and labels.

Text is read as it is, so speaker "03" stays "03"; audformat tables are accepted, and their `end`
NaT means the end of the file. A bare number is seconds (audformat itself would read it as
nanoseconds) unless the column's name says milliseconds; numbers too large for that are refused. No
row is left out without an error or a note that counts it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.data.files import delimited, named_files
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.uris import parent, suffix_of
from raysers.schemas import LABEL_FIELDS, OBJECTS
from raysers.types import NS_PER_S

Result = TypeVar("Result")

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv"}) | PARQUET_SUFFIXES
#: Errors of the readers on damaged or hostile files.
READ_FAILURES = (pa.ArrowException, OSError, ArithmeticError, UnicodeError)
#: A Parquet file of a few kilobytes may hold the same megabyte a million times.
_MAX_TABLE_BYTES = 2 * 2**30
_BATCH_ROWS = 2**16
_SHOWN = 5

_FIELDS = {field.name: field for field in (*OBJECTS, *LABEL_FIELDS)}
#: Other names of the file column.
_FILE_SYNONYMS = (
    "path", "filename", "file_name", "filepath", "file_path", "wav", "audio", "audio_path", "uri",
    "name", "segment",
)  # fmt: skip
_TIME_COLUMN = re.compile(
    r"(?P<role>start|begin|onset|offset|end|stop|duration|dur)[ _-]*(?:time|stamp)?[ _(\[-]*"
    r"(?P<unit>s|secs?|seconds?|ms|msecs?|milliseconds?|us|ns|samples?|frames?)?[)\]]?"
)
#: Nanoseconds by the beginning of a unit; samples are no time.
_UNITS = {"ms": 10**6, "mil": 10**6, "us": 1000, "ns": 1, "sa": 0, "fr": 0, "s": NS_PER_S}
_ROLE_OF = {"begin": "start", "onset": "start", "stop": "end", "dur": "duration"}
_EMPTY = ("", "nat", "nan", "none", "null", "<na>", "na", "n/a", "-")
_NS_PER_UNIT = {"s": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}
#: A plain number of seconds or of the column's unit.
_NUMBER = re.compile(r"\+?((?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)\s*s?")
_TIME_MARKS = (":", "day", "p", "s", "m", "h")
#: A recording of more than eleven days is milliseconds, samples or nanoseconds by mistake.
_MAX_PLAIN_NS = 1_000_000 * NS_PER_S
_MAX_NS = 2**63 - 1
_TOO_LARGE = "is too large for seconds: divide it, or store the column as a duration"

#: Our columns by the table's: its name, and the unit of plain numbers in ns (0: no time).
_Columns = Mapping[str, tuple[str, int]]


def table_columns(uri: str) -> list[str]:
    """Column names of a CSV or Parquet table, without reading its rows."""
    if suffix_of(uri) in PARQUET_SUFFIXES:
        file = _reading(uri, lambda: pq.ParquetFile(storage.open_file(uri)))
        return list(file.schema_arrow.names)
    return _reading(uri, lambda: delimited(uri, "file")[0])


def read_clip_table(parts: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """The clips of a table, in one or several parts: `OBJECTS` plus the label columns it has.

    Relative files are below the table's own folder. Other names of the time columns are understood
    in pairs (`begin` and `end_ms`, `onset` and `duration`); `gender` is `sex`. The second value
    holds notes for the user: columns that were not used, names that were corrected, labels
    outside 0..1.

    Raises:
        ConfigError: no `file` column, a bad time, label or name, clips that repeat, with table and
            row.
        StorageError: the table could not be read.
    """
    tables, notes = [], dict[str, None]()
    for uri in parts:
        found: list[str] = []
        tables.append(_reading(uri, partial(_clips, uri, found)))
        if len(parts) > 1:
            found = [note.replace(uri, parent(uri)) for note in found]
        notes.update(dict.fromkeys(found))
    clips = pa.concat_tables(tables, promote_options="default")
    _check_unique(parts[0] if len(parts) == 1 else parent(parts[0]), clips)
    return clips, list(notes)


def _clips(uri: str, notes: list[str]) -> pa.Table:
    read = _read_parquet if suffix_of(uri) in PARQUET_SUFFIXES else _read_csv
    columns, table = read(uri, notes)
    values: dict[str, Any] = {"file": named_files(uri, _strings(uri, table["file"], "file"), notes)}
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
        elif field.name in OBJECTS.names and field.name not in values:
            values[field.name] = pa.nulls(len(table), field.type)
    schema = pa.schema([field for name, field in _FIELDS.items() if name in values])
    clips = pa.table([values[name] for name in schema.names], schema=schema)
    _check_order(uri, clips)
    return clips


def _read_parquet(uri: str, notes: list[str]) -> tuple[_Columns, pa.Table]:
    schema = pq.ParquetFile(storage.open_file(uri)).schema_arrow
    columns = _columns(uri, schema.names, notes)
    wanted = [source for source, _ in columns.values()]
    # as dictionaries, texts take no more memory than the file spends on them
    texts = [name for name in wanted if pa.types.is_string(schema.field(name).type)]
    file = pq.ParquetFile(storage.open_file(uri), read_dictionary=texts)
    batches, total_bytes = [], 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
        total_bytes += sum(map(_plain_bytes, batch.columns))
        if total_bytes > _MAX_TABLE_BYTES:
            raise ConfigError(f"{uri} unpacks to more than {_MAX_TABLE_BYTES} bytes: split it")
        batches.append(
            pa.record_batch(
                [_plain(batch.column(source)) for source in wanted], names=list(columns)
            )
        )
    empty = pa.table({name: pa.nulls(0) for name in columns})
    return columns, pa.Table.from_batches(batches) if batches else empty


def _plain_bytes(column: pa.Array) -> int:
    """Bytes a column takes once its texts are spelled out."""
    row_bytes = 8 * len(column)  # even of nothing
    if not pa.types.is_dictionary(column.type) or not pa.types.is_string(column.type.value_type):
        return int(column.nbytes) + row_bytes
    lengths = pc.binary_length(column.dictionary)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + row_bytes


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _read_csv(uri: str, notes: list[str]) -> tuple[_Columns, pa.Table]:
    names, rows = delimited(uri, "file", notes)
    columns = _columns(uri, names, notes)
    places = [names.index(source) for source, _ in columns.values()]
    batches = []
    while batch := [
        [cells[place] or None for place in places] for _, cells in islice(rows, _BATCH_ROWS)
    ]:
        arrays = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        batches.append(pa.record_batch(arrays, names=list(columns)))
    schema = pa.schema([(name, pa.string()) for name in columns])
    return columns, pa.Table.from_batches(batches, schema)


def _columns(uri: str, names: Sequence[str], notes: list[str]) -> _Columns:
    """Which column of the table is which of ours.

    Raises:
        ConfigError: no `file`, a column twice, times of which only a part can be understood.
    """
    if "file" not in names:
        lowered = {name.strip().lower(): name for name in names}
        near = [lowered[word] for word in ("file", *_FILE_SYNONYMS) if word in lowered]
        near = near or difflib.get_close_matches("file", list(names), n=1)
        hint = f"; did you mean {near[0]!r}? Rename it to 'file'" if near else ""
        raise ConfigError(f"{uri} has no column 'file', only {', '.join(map(repr, names))}{hint}")
    found = {name: (name, 0) for name in names if name in _FIELDS and name not in ("start", "end")}
    if "sex" not in names:
        found |= dict.fromkeys(["sex"] * ("gender" in names), ("gender", 0))
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
        match = _TIME_COLUMN.fullmatch(name.strip().lower())
        if match is None:
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
                times[role] = to_durations(table[role], unit_ns).cast(pa.int64())
            except TimeColumnError as error:
                raise ConfigError(f"{uri}, row {error.row + 1}: {source} {error}") from error
    start, end, duration = times.values()
    if "duration" in columns and "end" in columns:
        start = pc.subtract(end, duration)
        bad = np.flatnonzero(pc.fill_null(pc.less(start, 0), False).to_numpy(zero_copy_only=False))
        if len(bad):
            raise ConfigError(f"{uri}, row {bad[0] + 1}: the duration is longer than the end")
    elif "duration" in columns:
        end = pc.add(pc.fill_null(start, 0), duration)
    return start.cast(pa.duration("ns")), end.cast(pa.duration("ns"))


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
        column = pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(_EMPTY, text.type)), None, text)
        if pa.types.is_floating(field.type):
            column = pc.replace_substring_regex(column, r"^([+-]?\d*),(\d+)$", r"\1.\2")
        numbers = pc.match_substring_regex(column, r"(?i)^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$")
        bad = np.flatnonzero(pc.fill_null(pc.invert(numbers), False).to_numpy())
        if len(bad):
            value = column[int(bad[0])].as_py()
            raise ConfigError(
                f"{uri}, row {bad[0] + 1}: {field.name} is {value!r}: write a number, or nothing"
            )
    try:
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{uri}: column {field.name!r}: {_first_line(error)}") from error


def _check_order(uri: str, clips: pa.Table) -> None:
    starts = pc.fill_null(clips["start"].cast(pa.int64()), 0)
    ends = clips["end"].cast(pa.int64())
    bad = np.flatnonzero(pc.fill_null(pc.less_equal(ends, starts), False).to_numpy())
    if len(bad):
        row = int(bad[0])
        raise ConfigError(
            f"{uri}, row {row + 1}: end {ends[row].as_py() / NS_PER_S:g} s is not after start "
            f"{starts[row].as_py() / NS_PER_S:g} s of {clips['file'][row].as_py()}"
        )


def _check_unique(uri: str, clips: pa.Table) -> None:
    """Names all rows that repeat a clip; `start` 0 and no start are the same."""
    keys = pa.table(
        {
            "file": clips["file"],
            "start": pc.fill_null(clips["start"].cast(pa.int64()), 0),
            "end": clips["end"].cast(pa.int64()),
            "row": pa.array(np.arange(1, len(clips) + 1)),
        }
    )
    grouped = keys.group_by(["file", "start", "end"]).aggregate([("row", "list"), ("row", "min")])
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
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} cannot be read as a table: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class TimeColumnError(ValueError):
    """A value that is no time; `row` counts from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def parse_ns(text: str, unit_ns: int = NS_PER_S) -> int | None:
    """Nanoseconds of one written time; None for an empty one.

    Args:
        text: a plain number, a time such as `1:02.5` (minutes) or `01:02:03,250`, or what pandas
            reads as a timedelta, such as `0 days 00:00:01` or `PT1.5S`.
        unit_ns: what a plain number counts.

    Raises:
        ValueError: not a time, or a negative one.

    >>> parse_ns("0 days 00:00:01.500000"), parse_ns("1:02.25"), parse_ns("1e-1"), parse_ns("NaT")
    (1500000000, 62250000000, 100000000, None)
    """
    text = text.strip()
    if text.lower() in _EMPTY:
        return None
    if found := _NUMBER.fullmatch(text):
        ns = round(float(found[1].replace(",", ".")) * unit_ns)
        if ns > _MAX_PLAIN_NS:
            raise ValueError(f"{text} {_TOO_LARGE}")
        return ns
    from pandas import Timedelta

    plain = text.replace(", ", " ").replace(",", ".")
    try:
        # pandas reads no minutes without hours, and joins numbers without units
        known = any(mark in plain.lower() for mark in _TIME_MARKS)
        time = Timedelta(f"0:{plain}" if plain.count(":") == 1 else plain) if known else None
        ns = -1 if time is None else time.as_unit("ns").value
    except (ValueError, OverflowError):
        ns = -1
    if ns < 0:
        raise ValueError(f"{text!r} is not a time of 0 seconds or more")
    return ns


def to_durations(column: pa.ChunkedArray, unit_ns: int = NS_PER_S) -> pa.Array:
    """A column of times as duration[ns], empty values as null.

    Takes durations of any unit, numbers (of `unit_ns`) and strings (`parse_ns`).

    Raises:
        TimeColumnError: a value that is no time, or negative.
    """
    kind, most = column.type, _MAX_NS
    if pa.types.is_dictionary(kind):
        return to_durations(column.cast(kind.value_type), unit_ns)
    found: list[Any] = [None] * len(column)
    if pa.types.is_duration(kind):
        factor = _NS_PER_UNIT[kind.unit]
        found = [v if v is None else v * factor for v in column.cast(pa.int64()).to_pylist()]
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        most = _MAX_PLAIN_NS
        seconds = column.cast(pa.float64(), safe=False).to_pylist()
        found = [None if v is None or math.isnan(v) else v * unit_ns for v in seconds]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        for row, text in enumerate(column.to_pylist()):
            try:
                found[row] = None if text is None else parse_ns(text, unit_ns)
            except ValueError as error:
                raise TimeColumnError(row, str(error)) from error
    elif not pa.types.is_null(kind):
        raise TimeColumnError(0, f"columns of type {kind} are not times: use seconds or durations")
    for row, ns in enumerate(found):
        if ns is not None and not 0 <= ns <= most:
            fault = "is negative" if ns < 0 else _TOO_LARGE
            raise TimeColumnError(row, f"{ns / NS_PER_S:g} s {fault}")
    whole = pa.array([ns if ns is None else round(ns) for ns in found], pa.int64())
    return whole.cast(pa.duration("ns"))
