"""Tables in Parquet (also with the audio inside, as Hugging Face writes it), SQLite and DuckDB."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.uris import row_uri, suffix_of

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
DATABASE_SUFFIXES = (".sqlite", ".sqlite3", ".db", ".duckdb")
#: Errors of the readers on damaged or hostile files.
READ_FAILURES = (pa.ArrowException, OSError, ArithmeticError, UnicodeError)

#: Names of the column with the file, `file` first.
FILE_COLUMNS = (
    "file", "audio_filepath", "file_name", "filename", "filepath", "file_path", "wav_path", "path",
    "audio_path", "audio_file", "wav_file", "audio", "wav",
)  # fmt: skip

#: A table of a few kilobytes may hold the same megabyte a million times.
_MAX_TABLE_BYTES = 2 * 2**30
_BATCH_ROWS = 2**16
_SQLITE_MAGIC = b"SQLite format 3\0"

Record = Mapping[str, Any]


class Source(NamedTuple):
    """An opened table: `read(wanted, most)` gives the first `most` rows (0: all) of columns."""

    names: list[str]
    read: Callable[[Sequence[str], int], pa.Table]


def of_records(records: Iterable[Record]) -> Source:
    """A table of mappings, its columns in the order of their first appearance."""
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row))

    def read(wanted: Sequence[str], most: int) -> pa.Table:
        part = rows[: most or None]
        columns = [pa.array([_text(row.get(name)) for row in part], pa.string()) for name in wanted]
        return pa.table(columns, names=list(wanted))

    return Source(names, read)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return None if isinstance(value, (bytes, list, dict)) else str(value)


def path_of(uri: str) -> str:
    """The file of a table in a database, `labels.db#clips`."""
    path, mark, _ = uri.rpartition("#")
    return path if mark and suffix_of(path) in DATABASE_SUFFIXES else uri


def open_parquet(uri: str, notes: list[str]) -> Source:
    """A Parquet table; a column of audio (a struct of bytes and path) is its column `file`."""
    schema = pq.ParquetFile(storage.open_file(uri)).schema_arrow
    sounds = [field.name for field in schema if _is_audio(field.type)]
    sound = "audio" if "audio" in sounds else sounds[0] if len(sounds) == 1 else ""
    names = list(schema.names)
    if sound:  # what else names files are paths on the machine that made the table
        names = ["file", *(name for name in names if name not in (sound, "file"))]

    def read(wanted: Sequence[str], most: int) -> pa.Table:
        plain = [name for name in wanted if name != "file" or not sound]
        columns = dict(_plain_columns(uri, schema, plain, most)) if plain else {}
        if sound and "file" in wanted:
            columns["file"] = _files_in_parquet(uri, sound, most)
        return pa.table({name: columns[name] for name in wanted})

    return Source(names, read)


def _is_audio(kind: pa.DataType) -> bool:
    fields = (
        {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else ()
    )
    return "bytes" in fields and "path" in fields


def _plain_columns(
    uri: str, schema: pa.Schema, wanted: Sequence[str], most: int
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    # as dictionaries, texts take no more memory than the file spends on them
    texts = [name for name in wanted if pa.types.is_string(schema.field(name).type)]
    file = pq.ParquetFile(storage.open_file(uri), read_dictionary=texts)
    chunks: dict[str, list[pa.Array]] = {name: [] for name in wanted}
    rows = total_bytes = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(wanted)):
        total_bytes += sum(map(_plain_bytes, batch.columns))
        if total_bytes > _MAX_TABLE_BYTES:
            raise ConfigError(f"{uri} unpacks to more than {_MAX_TABLE_BYTES} bytes: split it")
        for name in wanted:
            column = batch.column(name)
            coded = pa.types.is_dictionary(column.type)
            chunks[name].append(column.cast(column.type.value_type) if coded else column)
        rows += len(batch)
        if most and rows >= most:
            break
    for name, found in chunks.items():
        column = pa.chunked_array(found, None if found else pa.null())
        yield name, column.slice(0, most) if most else column


def _plain_bytes(column: pa.Array) -> int:
    """Bytes a column takes once its texts are spelled out."""
    row_bytes = 8 * len(column)  # even of nothing
    if not pa.types.is_dictionary(column.type) or not pa.types.is_string(column.type.value_type):
        return int(column.nbytes) + row_bytes
    lengths = pc.binary_length(column.dictionary)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + row_bytes


def _files_in_parquet(uri: str, sound: str, most: int) -> pa.ChunkedArray:
    """`<table>#<row>` where the audio is in the table, else the path that stands in its place."""
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
    with closing(_connect(path)) as connection:

        def rows(query: str) -> tuple[list[str], list[Any]]:
            cursor = connection.execute(query)
            return [column[0] for column in cursor.description], cursor.fetchall()

        try:
            listed = rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")[1]
            tables = {name: rows(f"SELECT * FROM {_quoted(name)} LIMIT 0")[0] for (name,) in listed}
            with_files = [
                t for t, names in tables.items() if {n.lower() for n in names} & set(FILE_COLUMNS)
            ]
            if not chosen and len(with_files) == 1:
                chosen = with_files[0]
            if chosen not in tables:
                named = ", ".join(with_files or tables) or "no table"
                raise ConfigError(f"{path} holds {named}: name a table of files as {path}#TABLE")
            names, found = rows(f"SELECT * FROM {_quoted(chosen)}")
        except (sqlite3.Error, RuntimeError) as error:  # DuckDB's errors are RuntimeErrors
            raise ConfigError(f"{uri} cannot be read: {str(error).splitlines()[0]}") from error
    return of_records(dict(zip(names, row, strict=True)) for row in found)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _connect(path: str) -> Any:
    """A database opened for reading.

    Raises:
        ConfigError: not a database, the package is missing, or a DuckDB file in a bucket.
    """
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
