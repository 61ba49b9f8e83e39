"""Texts to be spoken: a file with one a line, or a table with a column `text` or `transcript`.

A text is kept as it is written, and so is every other column, for later analyses of the speech.
Only columns that would be mistaken for those of the spoken clip are renamed or left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raysers.data.columnar import PARQUET_SUFFIXES, READ_FAILURES
from raysers.data.manifest import is_whole, manifest_parts
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage
from raysers.io.uris import suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST

#: What holds the words, the first that a table has.
TEXT_COLUMNS = ("text", "transcript")
#: Columns about the clip a text was taken from, by what they are called beside the spoken one.
RENAMED = {"clip_id": "source_clip_id", "file": "source_file"}
#: Columns the spoken clips have themselves.
OWN = frozenset({*MANIFEST.names, "voice", "rate_wpm", "pitch", "tts", "run_id", "created_at"})

_LABELS = {field.name: field for field in LABEL_FIELDS if field.name != "transcript"}
_NO_VALUE = ("", "nan", "NaN", "None", "null", "<NA>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What to say.

    Attributes:
        table: `text` and what else is known of each, one text a row.
        notes: what the user should hear, a line each.
    """

    table: pa.Table
    notes: tuple[str, ...] = ()


def read_texts(uri: str) -> Texts:
    """The texts of a file, table, manifest or output folder with one.

    Lines that are empty, and rows without a text, are left out; so are rows that repeat another
    one in every column.

    Raises:
        ConfigError: nothing there, no column with texts, text that is not UTF-8, bad labels.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    uri = storage.absolute(uri)
    try:
        found = [_read(part) for part in _parts(uri)]
    except (ObjectMissing, ObjectForbidden) as error:
        raise ConfigError(f"--texts {uri}: {error}") from error
    except READ_FAILURES as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--texts {uri} cannot be read: {reason}") from error
    try:
        table = pa.concat_tables(found, promote_options="default")
    except pa.ArrowException as error:
        raise ConfigError(f"--texts {uri}: its parts do not fit together: {error}") from error
    return _tidied(uri, table)


def fingerprint(table: pa.Table) -> str:
    """16 hex digits that change with any value, name or order of the table."""
    digest = hashlib.blake2b(digest_size=8)
    for name in table.column_names:
        digest.update(f"{name}\0{table[name].type}\0".encode())
        for value in table[name].to_pylist():
            # a length in front, so that no text can look like two
            text = repr(value).encode()
            digest.update(f"{len(text)}\0".encode() + text)
    return digest.hexdigest()


def without_repeats(table: pa.Table) -> pa.Table:
    """The first of the rows that are the same in every column."""
    columns = (table[name].to_pylist() for name in table.column_names)
    seen: dict[tuple[object, ...], int] = {}
    for row, values in enumerate(zip(*columns, strict=True)):
        seen.setdefault(values, row)
    return table if len(seen) == len(table) else table.take(pa.array(seen.values(), pa.int64()))


def _parts(uri: str) -> list[str]:
    if not storage.is_folder(uri):
        storage.stat(uri)
        return [uri]
    parts = manifest_parts(uri)
    if not parts:
        raise ConfigError(f"--texts {uri}: a folder without a manifest; name a file of texts")
    if not is_whole(parts):
        raise ConfigError(f"--texts {uri}: the manifest in it is incomplete: make it again")
    return parts


def _read(uri: str) -> pa.Table:
    suffix = suffix_of(uri)
    read = _READERS.get(suffix, _read_parquet if suffix in PARQUET_SUFFIXES else _read_lines)
    return read(uri)


def _read_lines(uri: str) -> pa.Table:
    lines = _utf8(uri).split("\n")
    texts = [line.removesuffix("\r") for line in lines]
    return pa.table({"text": pa.array([t for t in texts if t.strip()], pa.string())})


def _utf8(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--texts {uri} is not UTF-8 ({error}): save it as UTF-8") from error


def _read_csv(uri: str, delimiters: str = ",;\t") -> pa.Table:
    text = _utf8(uri)
    header = text.partition("\n")[0]
    delimiter = max(delimiters, key=header.count)
    names = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    _check_names(uri, names)
    return pacsv.read_csv(
        pa.py_buffer(text.encode()),
        read_options=pacsv.ReadOptions(use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            # texts as they are: speaker "03" stays "03", and the word "null" is a word
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _read_parquet(uri: str) -> pa.Table:
    with pq.ParquetFile(storage.open_file(uri)) as file:
        return file.read()


_READERS: Mapping[str, Callable[[str], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": lambda uri: _read_csv(uri, "\t"),
}


def _tidied(uri: str, table: pa.Table) -> Texts:
    names = table.column_names
    _check_names(uri, names)
    words = next(name for name in TEXT_COLUMNS if name in names)
    columns = {"text": _as_text(uri, table[words], words)}
    dropped = []
    for name in names:
        kept = RENAMED.get(name, name)
        if name == words or kept in OWN:
            continue
        # beside a column `text` it would be two transcripts of one clip
        column = None if name in TEXT_COLUMNS else _carried(uri, kept, table[name])
        if column is None:
            dropped.append(name)
        else:
            columns[kept] = column
    read = pa.table(columns)
    said = read.filter(pc.is_valid(read["text"]))
    fresh = without_repeats(said)
    if not len(fresh):
        raise ConfigError(f"--texts {uri}: none of its {len(read):,} rows has a text")
    return Texts(table=fresh, notes=tuple(_notes(uri, dropped, read, said, fresh)))


def _check_names(uri: str, names: Sequence[str]) -> None:
    if not set(TEXT_COLUMNS) & set(names):
        has = ", ".join(map(repr, names)) or "no columns"
        raise ConfigError(f"--texts {uri} has no column 'text', only {has}: rename one of them")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--texts {uri} has the column {twice[0]!r} more than once")


def _as_text(uri: str, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise ConfigError(f"--texts {uri}: column {name!r} is not text: {error}") from error


def _carried(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column in a type every reader of manifests knows; None when there is no such type."""
    kind = column.type
    if field := _LABELS.get(name):
        return _label(uri, field, column)
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    for known, ours in _CARRIED:
        if known(kind):
            return column.cast(ours)
    return None


_CARRIED: Sequence[tuple[Callable[[pa.DataType], bool], pa.DataType]] = (
    (pa.types.is_string, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_boolean, pa.string()),
    (pa.types.is_integer, pa.int64()),
    (pa.types.is_floating, pa.float64()),
)


def _label(uri: str, field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type) and pa.types.is_floating(field.type):
        column = pc.if_else(pc.is_in(column, pa.array(_NO_VALUE)), None, column)
    try:
        column = column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--texts {uri}: column {field.name!r}: {reason}") from error
    return pc.if_else(pc.is_nan(column), None, column) if field.type == pa.float32() else column


def _notes(
    uri: str, dropped: Sequence[str], read: pa.Table, said: pa.Table, fresh: pa.Table
) -> list[str]:
    missing, repeated = len(read) - len(said), len(said) - len(fresh)
    found = (
        (bool(dropped), f"columns not used: {', '.join(dropped)}"),
        (bool(missing), f"{missing:,} rows without a text are left out"),
        (bool(repeated), f"{repeated:,} rows that repeat another one are left out"),
    )
    return [f"{uri}: {text}" for is_so, text in found if is_so]
