"""Tables that name clips: CSV or Parquet with `file`, optional `start`, `end` and labels.

Everything is read as the text it is, so speaker "03" stays "03"; audformat tables count, and their
`end` NaT means the end of the file.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raysers.data.times import TimeColumnError, to_durations
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
#: What else people call the file column.
_FILE_SYNONYMS = (
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
)
_DELIMITERS = ",;\t|"
_HEADER_BYTES = 2**20
_NULL_WORDS = ["", "nan", "NaN", "NaT", "None", "null", "<NA>"]
_BOM_UTF16 = (b"\xff\xfe", b"\xfe\xff")


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
