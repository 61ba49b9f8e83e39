"""Tables in Parquet (also with the audio inside, as Hugging Face writes it), SQLite and DuckDB.

And times as tables write them, in whole nanoseconds.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.objects import row_uri, suffix_of
from raysers.types import NS_PER_S

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
#: Errors of the readers on damaged or hostile files.
READ_FAILURES = (pa.ArrowException, OSError, ArithmeticError, UnicodeError)
#: Names of the column with the file, `file` first.
FILE_COLUMNS = (
    "file", "audio_filepath", "file_name", "filename", "filepath", "file_path", "wav_path", "path",
    "audio_path", "audio_file", "wav_file", "audio", "wav",
)  # fmt: skip

DATABASE_SUFFIXES = (".sqlite", ".sqlite3", ".db", ".duckdb")
_SQLITE_MAGIC = b"SQLite format 3\0"
#: A table of a few kilobytes may hold the same megabyte a million times.
_MAX_TABLE_BYTES = 2 * 2**30
_BATCH_ROWS = 2**16

#: Cells without a value, in lower case.
EMPTY_WORDS = ("", "nat", "nan", "none", "null", "<na>", "na", "n/a", "-")
#: A plain number of seconds or of the column's unit.
_NUMBER = re.compile(r"\+?((?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)\s*s?")
_TIME_MARKS = (":", "day", "p", "s", "m", "h")
#: A recording of more than eleven days is milliseconds, samples or nanoseconds by mistake.
_MAX_PLAIN_NS = 1_000_000 * NS_PER_S
_MAX_NS = 2**63 - 1
_TOO_LARGE = "is too large for seconds: divide it, or store the column as a duration"

Record = Mapping[str, Any]


class Source(NamedTuple):
    """An opened table: `read(wanted, most)` gives the first `most` rows (0: all) of columns."""

    names: list[str]
    read: Callable[[Sequence[str], int], pa.Table]


def of_records(records: Iterable[Record]) -> Source:
    """A table of mappings, its columns in the order of their first appearance."""
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row))

    def text(value: Any) -> str | None:
        if value is None or isinstance(value, bytes | list | dict):
            return None
        return str(value) or None

    def read(wanted: Sequence[str], most: int) -> pa.Table:
        part = rows[: most or None]
        columns = [pa.array([text(row.get(name)) for row in part], pa.string()) for name in wanted]
        return pa.table(columns, names=list(wanted))

    return Source(names, read)


def path_of(uri: str) -> str:
    """The file of a table in a database, `labels.db#clips`."""
    path, mark, _ = uri.rpartition("#")
    return path if mark and suffix_of(path) in DATABASE_SUFFIXES else uri


def open_parquet(uri: str, notes: list[str]) -> Source:
    """A Parquet table; a column of audio (a struct of bytes and path) is its column `file`."""
    schema = pq.ParquetFile(storage.open_file(uri)).schema_arrow
    structs = {f.name: f.type for f in schema if pa.types.is_struct(f.type)}
    sounds = [
        name
        for name, kind in structs.items()
        if {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    ]
    sound = "audio" if "audio" in sounds else sounds[0] if len(sounds) == 1 else ""
    names = list(schema.names)
    if sound:  # other columns of files hold paths of the machine that wrote the table
        names = ["file", *(name for name in names if name not in (sound, "file"))]

    def read(wanted: Sequence[str], most: int) -> pa.Table:
        plain = [name for name in wanted if name != "file" or not sound]
        columns = _plain_columns(uri, schema, plain, most) if plain else {}
        if sound and "file" in wanted:
            columns["file"] = _files_in_parquet(uri, sound, most)
        return pa.table({name: columns[name] for name in wanted})

    return Source(names, read)


def _plain_columns(
    uri: str, schema: pa.Schema, wanted: Sequence[str], most: int
) -> dict[str, pa.ChunkedArray]:
    # as dictionaries, texts take no more memory than the file spends on them
    texts = [name for name in wanted if pa.types.is_string(schema.field(name).type)]
    file = pq.ParquetFile(storage.open_file(uri), read_dictionary=texts)
    batches, rows, total_bytes = [], 0, 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(wanted)):
        total_bytes += sum(map(_plain_bytes, batch.columns))
        if total_bytes > _MAX_TABLE_BYTES:
            raise ConfigError(f"{uri} unpacks to more than {_MAX_TABLE_BYTES} bytes: split it")
        columns = [
            c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c
            for c in map(batch.column, wanted)
        ]
        batches.append(pa.table(columns, names=list(wanted)))
        rows += len(batch)
        if most and rows >= most:
            break
    if not batches:
        return {name: pa.chunked_array([], pa.null()) for name in wanted}
    table = pa.concat_tables(batches).slice(0, most or None)
    return dict(zip(wanted, table.columns, strict=True))


def _plain_bytes(column: pa.Array) -> int:
    """Bytes a column takes once its texts are spelled out."""
    row_bytes = 8 * len(column)  # even of nothing
    if not pa.types.is_dictionary(column.type) or not pa.types.is_string(column.type.value_type):
        return int(column.nbytes) + row_bytes
    lengths = pc.binary_length(column.dictionary)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + row_bytes


def _files_in_parquet(uri: str, sound: str, most: int) -> pa.ChunkedArray:
    """`<table>#<row>` where the audio is in the table, else the path given in its place."""
    file = pq.ParquetFile(storage.open_file(uri))
    rows = min(file.metadata.num_rows, most or file.metadata.num_rows)
    first = next(file.iter_batches(1, columns=[f"{sound}.bytes"]), None)
    if first is None or first.column(0).field("bytes")[0].as_py() is not None:
        return pa.chunked_array([pa.array([row_uri(uri, row) for row in range(rows)], pa.string())])
    found = file.read(columns=[f"{sound}.path"])[sound].combine_chunks().field("path")
    return pa.chunked_array([found.cast(pa.string()).slice(0, rows)])


def open_database(uri: str, notes: list[str]) -> Source:
    """The table of a SQLite or DuckDB file that has a column of files; `#name` chooses one."""
    path = path_of(uri)
    chosen = uri[len(path) + 1 :]

    def quoted(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    with closing(_connect(path)) as connection:

        def rows(query: str) -> tuple[list[str], list[Any]]:
            cursor = connection.execute(query)
            return [column[0] for column in cursor.description], cursor.fetchall()

        try:
            listed = rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")[1]
            tables = {name: rows(f"SELECT * FROM {quoted(name)} LIMIT 0")[0] for (name,) in listed}
            with_files = [
                t for t, names in tables.items() if {n.lower() for n in names} & set(FILE_COLUMNS)
            ]
            if not chosen and len(with_files) == 1:
                chosen = with_files[0]
            if chosen not in tables:
                named = ", ".join(with_files or tables) or "no table"
                raise ConfigError(f"{path} holds {named}: name a table of files as {path}#TABLE")
            names, found = rows(f"SELECT * FROM {quoted(chosen)}")
        except (sqlite3.Error, RuntimeError) as error:  # DuckDB's errors are RuntimeErrors
            raise ConfigError(f"{uri} cannot be read: {str(error).splitlines()[0]}") from error
    return of_records(dict(zip(names, row, strict=True)) for row in found)


def _connect(path: str) -> Any:
    """A database opened for reading."""
    if storage.read_range(path, 0, 16) == _SQLITE_MAGIC:
        if not storage.is_remote(path):
            return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
        connection = sqlite3.connect(":memory:")
        connection.deserialize(storage.read_bytes(path, max_bytes=_MAX_TABLE_BYTES))
        return connection
    if storage.is_remote(path):
        raise ConfigError(f"{path}: DuckDB files are read from local disks: copy it")
    try:
        import duckdb
    except ImportError:
        raise ConfigError(f"{path}: DuckDB files need: pip install duckdb") from None
    try:
        return duckdb.connect(path, read_only=True, config={"enable_external_access": "false"})
    except duckdb.Error as error:
        raise ConfigError(f"{path} is neither a SQLite nor a DuckDB file") from error


# times


class TimeColumnError(ValueError):
    """A value that is no time; `row` counts from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def parse_ns(text: str, unit_ns: int = NS_PER_S) -> int | None:
    """Nanoseconds of one written time; None for an empty one. `unit_ns` is what a number counts.

    Besides plain numbers it reads times such as `1:02.5` (minutes) or `01:02:03,250`, and what
    pandas reads as a timedelta, such as `0 days 00:00:01` or `PT1.5S`. Raises ValueError: not a
    time, or a negative one.

    >>> parse_ns("0 days 00:00:01.500000"), parse_ns("1:02.25"), parse_ns("1e-1"), parse_ns("NaT")
    (1500000000, 62250000000, 100000000, None)
    """
    text = text.strip()
    if text.lower() in EMPTY_WORDS:
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
    """A column of durations, numbers (of `unit_ns`) or strings (`parse_ns`) as duration[ns].

    Raises TimeColumnError: a value that is no time, or negative.
    """
    kind, most = column.type, _MAX_NS
    if pa.types.is_dictionary(kind):
        return to_durations(column.cast(kind.value_type), unit_ns)
    found: list[Any] = [None] * len(column)
    if pa.types.is_duration(kind):
        factor = {"s": NS_PER_S, "ms": 10**6, "us": 1000, "ns": 1}[kind.unit]
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
