"""Rows of an audformat database's tables, from Parquet by name or from CSV.

Plain numbers in `start` and `end` are nanoseconds here, as audformat reads them, while tables of
one's own are in seconds; fractions of them can only be a mistake and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysers.data.corpora import words
from raysers.data.corpora.audformat_header import MiscHeader, TableHeader
from raysers.data.corpora.files import csv_records, first_of, is_file, require
from raysers.data.tables import READ_FAILURES
from raysers.data.times import TimeColumnError, parse_ns, to_durations
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.uris import suffix_of

#: One row of a table: column names to plain values; times are ns or None.
Cells = dict[str, Any]

_INDEX = ("file",)
_SEGMENT_INDEX = ("file", "start", "end")


def read_table(root: str, table: TableHeader) -> Iterator[tuple[str, Cells]]:
    """("<uri>, row N" or ", line N", cells) of one table.

    Raises:
        ConfigError: no Parquet or CSV of the table, a column missing or out of place, a bad time.
    """
    index = _SEGMENT_INDEX if table.is_segmented else _INDEX
    uri = _place(root, table.name)
    for where, cells in _rows(uri, index, list(table.columns)):
        if not cells["file"]:
            raise ConfigError(f"{where}: no file name")
        yield where, cells


def read_misc(root: str, table: MiscHeader) -> Iterator[tuple[str, Cells]]:
    """(index, cells) of a misc table.

    Raises:
        ConfigError: as `read_table`.
    """
    for _, cells in _rows(_place(root, table.name), (table.level,), list(table.columns)):
        yield words.speaker_of(cells[table.level]) or "", cells


def _place(root: str, name: str) -> str:
    stem = f"db.{name}"
    uri = first_of(root, (f"{stem}.parquet", f"{stem}.csv"), is_file)
    if uri is not None:
        return uri
    if first_of(root, (f"{stem}.pkl",), is_file):
        raise ConfigError(
            f"{root}: {stem}.pkl is a pickle, which can run code and is not read: save the "
            'database with storage_format="parquet"'
        )
    raise ConfigError(f"{root}: db.yaml names the table {name!r}, but there is no {stem}.parquet")


def _rows(uri: str, index: Sequence[str], columns: list[str]) -> Iterator[tuple[str, Cells]]:
    read = _csv_rows if suffix_of(uri) == ".csv" else _parquet_rows
    return read(uri, index, columns)


def _csv_rows(uri: str, index: Sequence[str], columns: list[str]) -> Iterator[tuple[str, Cells]]:
    wanted = [*index, *columns]
    for where, record in csv_records(uri, wanted):
        # the header is the first thing read, so this is known at the first row
        if list(record) != wanted:
            raise ConfigError(
                f"{uri}: its columns are {', '.join(record)}, but db.yaml has them as "
                f"{', '.join(wanted)}, and audformat reads CSV by place: save it as Parquet"
            )
        cells: Cells = {name: text or None for name, text in record.items()}
        for name in ("start", "end"):
            if name in index:
                cells[name] = _csv_time(f"{where}: {name}", record[name])
        yield where, cells


def _csv_time(where: str, text: str) -> int | None:
    if text.replace(".", "", 1).isdigit():
        raise ConfigError(f"{where} is {text!r}: write a duration such as 0 days 00:00:01.5")
    try:
        return parse_ns(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _parquet_rows(
    uri: str, index: Sequence[str], columns: list[str]
) -> Iterator[tuple[str, Cells]]:
    wanted = [*index, *columns]
    try:
        file = pq.ParquetFile(storage.open_file(uri))
        require(uri, file.schema_arrow.names, wanted)
        table = file.read(columns=wanted)
    except READ_FAILURES as error:
        raise ConfigError(f"{uri} cannot be read as Parquet: {str(error)[:200]}") from error
    values = {
        name: _times(uri, name, table[name])
        if name in ("start", "end") and name in index
        else table[name].to_pylist()
        for name in wanted
    }
    for row, cells in enumerate(zip(*values.values(), strict=True), start=1):
        yield f"{uri}, row {row}", dict(zip(wanted, cells, strict=True))


def _times(uri: str, name: str, column: pa.ChunkedArray) -> list[int | None]:
    if pa.types.is_floating(column.type):
        raise ConfigError(
            f"{uri}: {name} holds fractions, which audformat takes for nanoseconds: store durations"
        )
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64()).cast(pa.duration("ns"))
    try:
        return list(to_durations(column).cast(pa.int64()).to_pylist())
    except TimeColumnError as error:
        raise ConfigError(f"{uri}, row {error.row + 1}: {name} {error}") from error
