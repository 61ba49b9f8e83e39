"""Tables that name clips: CSV or Parquet with `file`, optional `start`, `end` and labels.

Text is read as it is, so speaker "03" stays "03"; audformat tables are accepted, and their `end`
NaT means the end of the file. A bare number of `start` and `end` is seconds (audformat itself would
read it as nanoseconds), so numbers too large to be seconds are refused.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.uris import parent, resolve, suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST, OBJECTS
from raysers.types import NS_PER_S

Result = TypeVar("Result")

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv"}) | PARQUET_SUFFIXES

#: What the readers raise on damaged or hostile files.
READ_FAILURES = (pa.ArrowException, OSError, csv.Error, ArithmeticError, UnicodeError)
#: A Parquet file of a few kilobytes may hold the same megabyte a million times.
_MAX_TABLE_BYTES = 2 * 2**30
_BATCH_ROWS = 2**16

_KNOWN = {field.name: field for field in (*MANIFEST, *LABEL_FIELDS)}
#: Other names of the file column.
_FILE_SYNONYMS = [
    "path",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "wav",
    "audio",
    "audio_path",
    "uri",
    "name",
    "segment",
]
_DELIMITERS = ",;\t|"
_HEADER_BYTES = 2**20
_NULL_WORDS = ["", "nan", "NaN", "NaT", "None", "null", "<NA>"]
_BOM_UTF16 = (b"\xff\xfe", b"\xfe\xff")

_EMPTY = frozenset({"", "nat", "nan", "none", "null", "<na>"})
_SECONDS = r"(?P<s>\d+)(?:[.,](?P<fraction>\d*))?"
_FORMS = (
    # 1.5 or 1.5s
    re.compile(_SECONDS + r"\s*s?$"),
    # 0 days 00:00:01.500000 or 01:02:03,250 or 1:02.5
    re.compile(r"(?:(?P<d>\d+)\s*days?,?\s*\+?)?(?:(?P<h>\d+):)?(?P<m>\d+):" + _SECONDS + "$"),
    re.compile(r"(?P<d>\d+)\s*days?$"),
    # PT1.5S or P0DT0H1M2.5S
    re.compile(
        rf"P(?=T?\d)(?:(?P<d>\d+)D)?(?:T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:{_SECONDS}S)?)?$",
        re.IGNORECASE,
    ),
)
_SECONDS_PER = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
#: A recording of more than eleven days is milliseconds, samples or nanoseconds by mistake.
_MAX_PLAIN_S = 1_000_000
_TOO_LARGE = "is too large for seconds: divide it, or store the column as a duration"
_FRACTION_DIGITS = 9
_MAX_NS = 2**63 - 1
_NS_PER_UNIT = {"s": NS_PER_S, "ms": 1_000_000, "us": 1000, "ns": 1}


def table_columns(uri: str) -> list[str]:
    """Column names of a CSV or Parquet table, without reading its rows."""
    if suffix_of(uri) in PARQUET_SUFFIXES:
        return list(_reading(uri, lambda: pq.ParquetFile(_opened(uri)).schema_arrow.names))
    return _csv_header(uri)[0]


def read_clip_table(parts: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """The clips of a table, in one or several parts: `OBJECTS` plus the label columns it has.

    Relative files are below the table's own folder. The second value names what the user should
    know: columns that were not used, labels outside 0..1.

    Raises:
        ConfigError: no `file` column, a bad time, label or duplicate, with table and row.
        StorageError: the table could not be read.
    """
    tables, notes = [], dict[str, None]()
    for uri in parts:
        names, table = _read(uri)
        tables.append(_reading(uri, partial(_clips, uri, table)))
        notes.update(dict.fromkeys(_notes(parent(uri) if len(parts) > 1 else uri, names, table)))
    clips = pa.concat_tables(tables, promote_options="default")
    _check_unique(parts[0] if len(parts) == 1 else parent(parts[0]), clips)
    return clips, list(notes)


def _clips(uri: str, table: pa.Table) -> pa.Table:
    columns: dict[str, Any] = {"file": _files(uri, table["file"])}
    for name in ("start", "end"):
        columns[name] = _times(uri, table, name)
    for field in [*list(OBJECTS)[len(columns) :], *LABEL_FIELDS]:
        if field.name in table.column_names:
            columns[field.name] = _cast(uri, table[field.name], field)
        elif field.name in OBJECTS.names:
            columns[field.name] = pa.nulls(len(table), field.type)
    labels = [field for field in LABEL_FIELDS if field.name in columns]
    clips = pa.table(columns, schema=pa.schema([*OBJECTS, *labels]))
    _check_order(uri, clips)
    return clips


def _read(uri: str) -> tuple[list[str], pa.Table]:
    """Names of all columns, and the columns known here."""
    read = _read_parquet if suffix_of(uri) in PARQUET_SUFFIXES else _read_csv
    return _reading(uri, lambda: read(uri))


def _read_parquet(uri: str) -> tuple[list[str], pa.Table]:
    schema = pq.ParquetFile(_opened(uri)).schema_arrow
    _check_columns(uri, schema.names)
    wanted = [name for name in schema.names if name in _KNOWN]
    # as dictionaries, texts take no more memory than the file spends on them
    texts = [n for n in wanted if pa.types.is_string(schema.field(n).type)]
    file = pq.ParquetFile(_opened(uri), read_dictionary=texts)
    batches, total_bytes = [], 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
        total_bytes += sum(map(_plain_bytes, batch.columns))
        if total_bytes > _MAX_TABLE_BYTES:
            raise ConfigError(f"{uri} unpacks to more than {_MAX_TABLE_BYTES} bytes: split it")
        batches.append(pa.record_batch([_plain(column) for column in batch.columns], wanted))
    empty = pa.table({name: pa.nulls(0) for name in wanted})
    return schema.names, pa.Table.from_batches(batches) if batches else empty


def _plain_bytes(column: pa.Array) -> int:
    """Bytes a column takes once its texts are spelled out."""
    row_bytes = 8 * len(column)  # even of nothing
    if not _is_text(column.type):
        return int(column.nbytes) + row_bytes
    lengths = pc.binary_length(column.dictionary)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + row_bytes


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(column.type.value_type) if _is_text(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    text = pa.types.is_dictionary(kind) and kind.value_type
    return bool(text) and pa.types.is_string(text)


def _read_csv(uri: str) -> tuple[list[str], pa.Table]:
    names, delimiter, encoding = _csv_header(uri)
    _check_columns(uri, names)
    table = pacsv.read_csv(
        _opened(uri),
        read_options=pacsv.ReadOptions(encoding=encoding, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            include_columns=[name for name in names if name in _KNOWN],
            column_types=dict.fromkeys(_KNOWN, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return names, table


def _csv_header(uri: str) -> tuple[list[str], str, str]:
    """(column names, delimiter, encoding) of a CSV."""
    head = storage.read_range(uri, 0, _HEADER_BYTES)
    encoding = "utf16" if head.startswith(_BOM_UTF16) else "utf8"
    # the cut may go through a character
    text = head.decode("utf-16" if encoding == "utf16" else "utf-8-sig", errors="replace")
    if not text.strip():
        raise ConfigError(f"{uri} is empty: it needs a header line with at least 'file'")
    rows = (next(csv.reader(io.StringIO(text), delimiter=d), []) for d in _DELIMITERS)
    found = dict(zip(_DELIMITERS, rows, strict=True))
    default = "\t" if suffix_of(uri) == ".tsv" else ","
    best = next((d for d, names in found.items() if "file" in names and len(names) > 1), default)
    return found[best], best, encoding


def _reading(uri: str, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} cannot be read as a table: {_first_line(error)}") from error


def _opened(uri: str) -> Any:
    return storage.open_file(uri)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_columns(uri: str, names: Sequence[str]) -> None:
    if "file" not in names:
        lowered = {name.strip().lower(): name for name in names}
        near = [lowered[word] for word in ("file", *_FILE_SYNONYMS) if word in lowered]
        near = near or difflib.get_close_matches("file", list(names), n=1)
        hint = f"; did you mean {near[0]!r}? Rename it to 'file'" if near else ""
        raise ConfigError(f"{uri} has no column 'file', only {', '.join(map(repr, names))}{hint}")
    repeated = sorted({n for n in names if n in _KNOWN and list(names).count(n) > 1})
    if repeated:
        raise ConfigError(f"{uri} has the column {repeated[0]!r} more than once")


def _files(uri: str, column: pa.ChunkedArray) -> pa.Array:
    folder = parent(uri)
    files: list[str] = []
    for row, file in enumerate(_strings(uri, column, "file").to_pylist()):
        if not file:
            raise ConfigError(f"{uri}, row {row + 1}: no file name")
        files.append(resolve(folder, file))
    return pa.array(files, pa.string())


def _times(uri: str, table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table), pa.duration("ns"))
    try:
        return to_durations(table[name])
    except TimeColumnError as error:
        raise ConfigError(f"{uri}, row {error.row + 1}: {name} {error}") from error


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
        column = pc.if_else(pc.is_in(text, pa.array(_NULL_WORDS, text.type)), None, text)
    try:
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{uri}: column {field.name!r}: {_first_line(error)}") from error


def _check_order(uri: str, clips: pa.Table) -> None:
    starts = pc.fill_null(clips["start"].cast(pa.int64()), 0)
    bad = pc.fill_null(pc.less_equal(clips["end"].cast(pa.int64()), starts), False)
    rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    if len(rows):
        row = int(rows[0])
        start_s, end_s = (
            pc.fill_null(clips[name].cast(pa.int64()), 0)[row].as_py() / NS_PER_S
            for name in ("start", "end")
        )
        raise ConfigError(
            f"{uri}, row {row + 1}: end {end_s:g} s is not after start {start_s:g} s of "
            f"{clips['file'][row].as_py()}"
        )


def _check_unique(uri: str, clips: pa.Table) -> None:
    """A clip has one identity: `start` 0 and no start are the same."""
    keys = pa.table(
        {
            "file": clips["file"],
            "start": pc.fill_null(clips["start"].cast(pa.int64()), 0),
            "end": clips["end"].cast(pa.int64()),
            "row": pa.array(np.arange(len(clips))),
        }
    )
    grouped = keys.group_by(["file", "start", "end"]).aggregate([("row", "min"), ("row", "max")])
    if len(grouped) == len(clips):
        return
    rows = grouped.filter(pc.not_equal(grouped["row_min"], grouped["row_max"]))
    first, last = rows["row_min"][0].as_py(), rows["row_max"][0].as_py()
    raise ConfigError(
        f"{uri}: rows {first + 1} and {last + 1} are the same clip of {clips['file'][first]}: "
        "remove one"
    )


def _notes(name: str, columns: Sequence[str], table: pa.Table) -> list[str]:
    notes = []
    if unused := [column for column in columns if column not in _KNOWN]:
        notes.append(f"{name}: columns not used: {', '.join(unused)}")
    for field in LABEL_FIELDS:
        if field.name in table.column_names and pa.types.is_floating(field.type):
            low, high = pc.min_max(_cast(name, table[field.name], field)).as_py().values()
            if low is not None and not 0 <= low <= high <= 1:
                notes.append(
                    f"{name}: {field.name} reaches from {low:g} to {high:g}; labels are read as "
                    "0..1, rescale them"
                )
    return notes


class TimeColumnError(ValueError):
    """A value that is no time; `row` counts from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def parse_ns(text: str) -> int | None:
    """Nanoseconds of one written time; None for an empty one.

    Raises:
        ValueError: not a time, or a negative one.

    >>> parse_ns("0 days 00:00:01.500000"), parse_ns("1:02.25"), parse_ns("1e-1"), parse_ns("NaT")
    (1500000000, 62250000000, 100000000, None)
    """
    text = text.strip()
    if text.lower() in _EMPTY:
        return None
    found = next((match for form in _FORMS if (match := form.match(text))), None)
    if found is None:
        return _float_ns(text)
    parts = found.groupdict()
    whole_s = sum(int(parts[unit]) * s for unit, s in _SECONDS_PER.items() if parts.get(unit))
    if whole_s > (_MAX_PLAIN_S if found.re is _FORMS[0] else _MAX_NS // NS_PER_S - 1):
        raise ValueError(f"{text} {_TOO_LARGE}")
    digits = (parts.get("fraction") or "")[:_FRACTION_DIGITS]
    return whole_s * NS_PER_S + int(digits.ljust(_FRACTION_DIGITS, "0"))


def _float_ns(text: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_PLAIN_S:
        raise ValueError(f"{text!r} is not a time of 0 seconds or more")
    return round(seconds * NS_PER_S)


def to_durations(column: pa.ChunkedArray) -> pa.Array:
    """A column of times as duration[ns], empty values as null.

    Takes durations of any unit, numbers (seconds) and strings (`parse_ns`).

    Raises:
        TimeColumnError: a value that is no time, or negative.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_duration(kind):
        values = _from_durations(column)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = _from_seconds(column)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = _from_strings(column)
    elif pa.types.is_null(kind):
        values = pa.nulls(len(column), pa.int64())
    else:
        raise TimeColumnError(0, f"columns of type {kind} are not times: use seconds or durations")
    negative = np.flatnonzero(np.asarray(pc.fill_null(pc.less(values, 0), False)))
    if len(negative):
        row = int(negative[0])
        raise TimeColumnError(row, f"{values[row].as_py() / NS_PER_S} s is negative")
    return values.cast(pa.duration("ns"))


def _from_durations(column: pa.ChunkedArray) -> pa.Array:
    values, factor = _whole(column).cast(pa.int64()), _NS_PER_UNIT[column.type.unit]
    most = _MAX_NS // factor
    within = pc.fill_null(pc.and_(pc.less_equal(values, most), pc.greater(values, -most)), True)
    large = np.flatnonzero(~within.to_numpy(zero_copy_only=False))
    if len(large):
        row = int(large[0])
        raise TimeColumnError(row, f"{values[row].as_py()} {column.type.unit} is too long a time")
    return pc.multiply(values, factor)


def _from_seconds(column: pa.ChunkedArray) -> pa.Array:
    seconds = _whole(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    large = np.flatnonzero(seconds > _MAX_PLAIN_S)
    if len(large):
        raise TimeColumnError(int(large[0]), f"{seconds[large[0]]:g} {_TOO_LARGE}")
    empty = np.isnan(seconds)
    ns = np.rint(np.where(empty, 0.0, seconds) * NS_PER_S).astype(np.int64)
    return pa.array(ns, mask=empty)


def _from_strings(column: pa.ChunkedArray) -> pa.Array:
    values: list[int | None] = []
    for row, text in enumerate(column.to_pylist()):
        try:
            values.append(None if text is None else parse_ns(text))
        except ValueError as error:
            raise TimeColumnError(row, str(error)) from error
    return pa.array(values, pa.int64())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
