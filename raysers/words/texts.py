"""Texts to speak: one a line, a table, a manifest, an output of `transcribe`, or a built-in set.

A text is kept as it is written, and so is every other column, for later analyses of the speech.
Only columns that would be mistaken for those of the spoken clip are renamed or left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from raysers.data.columnar import PARQUET_SUFFIXES, READ_FAILURES
from raysers.data.manifest import is_whole, manifest_parts
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage
from raysers.io.objects import suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import Status

#: Columns with the text; the first that a table has is used.
TEXT_COLUMNS = ("text", "transcript")
#: Columns about the clip a text was taken from, by their names beside the spoken one.
RENAMED = {"clip_id": "source_clip_id", "file": "source_file"}
#: Columns the spoken clips have themselves.
OWN = frozenset({*MANIFEST.names, "voice", "rate_wpm", "pitch", "tts", "run_id", "created_at"})

_LABELS = {field.name: field for field in LABEL_FIELDS if field.name != "transcript"}
_NO_VALUE = ("", "nan", "NaN", "None", "null", "<NA>")


def template_names() -> list[str]:
    """The built-in sets of sentences, sorted."""
    return sorted(path.name.removesuffix(".csv") for path in _templates().iterdir())


def template_texts(name: str) -> pa.Table:
    """The sentences of a built-in set.

    Columns: `text`, `sentiment`, and where known `template`, `word`, `slot`, `language`. Raises
    ConfigError: unknown name.
    """
    if name not in template_names():
        raise ConfigError(
            f"--templates {name}: choose {', '.join(template_names())}, or give a table of your "
            "own with --texts"
        )
    return _parse_csv(name, _templates().joinpath(f"{name}.csv").read_text("utf-8"))


def _templates() -> Any:
    return resources.files("raysers").joinpath("assets", "templates")


def read_texts(uri: str) -> tuple[pa.Table, list[str]]:
    """The texts of a file, table, manifest or output folder (column `text` and others), and notes.

    Blank lines and rows without a text are left out, and so are rows that repeat another one in
    every column. Of an output of `transcribe` the recognised texts are read. Raises ConfigError:
    nothing there, no column with texts, text that is not UTF-8, bad labels. CredentialsError,
    TransientStorageError: the store does not answer as it should.
    """
    uri = storage.absolute(uri)
    try:
        found = [_read(part) for part in _parts(uri)]
        table = pa.concat_tables(found, promote_options="default")
        recognised = recognised_texts(uri) if found[0].num_rows else {}
    except (ObjectMissing, ObjectForbidden) as error:
        raise ConfigError(f"--texts {uri}: {error}") from error
    except READ_FAILURES as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--texts {uri} cannot be read: {reason}") from error
    table = with_recognised(table, recognised, "transcript")
    names = table.column_names
    _check_names(uri, names)
    words = next(name for name in TEXT_COLUMNS if name in names)
    try:
        columns = {"text": table[words].cast(pa.string())}
    except pa.ArrowException as error:
        raise ConfigError(f"--texts {uri}: column {words!r} is not text: {error}") from error
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
    missing, repeated = len(read) - len(said), len(said) - len(fresh)
    notes = {
        f"columns not used: {', '.join(dropped)}": len(dropped),
        f"{missing:,} rows without a text are left out": missing,
        f"{repeated:,} rows that repeat another one are left out": repeated,
    }
    return fresh, [f"{uri}: {note}" for note, count in notes.items() if count]


def recognised_texts(uri: str, *, blank: bool = False) -> dict[str, str]:
    """Recognised text by clip id of an output of `transcribe`; nothing for anything else.

    Clips without speech are left out unless `blank` texts count.
    """
    if suffix_of(uri) or not storage.is_folder(uri):
        return {}
    parts = storage.list_parts(storage.join(uri, "transcripts"))
    columns = ["clip_id", "status", "text"]
    rows = [row for part in parts for row in _read(part.uri).select(columns).to_pylist()]
    good = [row for row in rows if row["status"] == str(Status.OK)]
    return {row["clip_id"]: row["text"] for row in good if blank or row["text"].strip()}


def with_recognised(table: pa.Table, texts: dict[str, str], column: str) -> pa.Table:
    """The table with recognised texts where `column` has none; they are looked up by `clip_id`."""
    if not texts:
        return table
    known = table[column].to_pylist() if column in table.column_names else [None] * len(table)
    ids = table["clip_id"].to_pylist()
    filled = [texts.get(i) if text is None else text for i, text in zip(ids, known, strict=True)]
    kept = table.drop_columns([column] if column in table.column_names else [])
    return kept.append_column(column, pa.array(filled, pa.string()))


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
    if not is_whole(parts):
        raise ConfigError(f"--texts {uri}: a folder without a whole manifest; name a file of texts")
    return parts


def _read(uri: str) -> pa.Table:
    suffix = suffix_of(uri)
    if suffix in PARQUET_SUFFIXES:
        with pq.ParquetFile(storage.open_file(uri)) as file:
            return file.read()
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--texts {uri} is not UTF-8 ({error}): save it as UTF-8") from error
    if suffix in (".csv", ".tsv"):
        return _parse_csv(uri, text)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return pa.table({"text": pa.array([line for line in lines if line.strip()], pa.string())})


def _parse_csv(uri: str, text: str) -> pa.Table:
    header = text.partition("\n")[0]
    delimiter = "\t" if suffix_of(uri) == ".tsv" else max(",;\t", key=header.count)
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


def _check_names(uri: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ConfigError(f"--texts {uri}: it has the column {twice[0]!r} more than once")
    if not set(TEXT_COLUMNS) & set(names):
        found = ", ".join(map(repr, names[:8])) or "no columns"
        raise ConfigError(f"--texts {uri} has no column 'text', only {found}")


def _carried(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column in a type every reader of manifests knows; None when there is no such type."""
    if field := _LABELS.get(name):
        numbers = pa.types.is_floating(field.type)
        if pa.types.is_string(column.type) and numbers:
            column = pc.if_else(pc.is_in(column, pa.array(_NO_VALUE)), None, column)
        try:
            column = column.cast(field.type, safe=not numbers)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--texts {uri}: column {field.name!r}: {reason}") from error
        return pc.if_else(pc.is_nan(column), None, column) if numbers else column
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    for known, ours in (
        (pa.types.is_string, pa.string()),
        (pa.types.is_large_string, pa.string()),
        (pa.types.is_boolean, pa.string()),
        (pa.types.is_integer, pa.int64()),
        (pa.types.is_floating, pa.float64()),
    ):
        if known(kind):
            return column.cast(kind).cast(ours)
    return None
