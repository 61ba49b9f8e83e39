"""Untrusted text files, by line, as CSV or as YAML, and listings of audio.

Every message about a file names its line, because such files are corrected in an editor.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import yaml

from raysers.errors import ConfigError, ObjectMissing, StorageError
from raysers.io import storage
from raysers.io.objects import ObjectInfo, suffix_of
from raysers.schemas import LABEL_FIELDS, OBJECTS

_READABLE = (
    "wav wave wavex bwf rf64 w64 flac ogg oga opus mp3 mp2 aiff aif aifc au snd caf sph nist "
    "voc avr paf pvf svx 8svx wve sds htk sf ircam"
)
#: Audio that libsndfile cannot read: decoded with the extra `av`, or `unsupported` rows.
_OTHERS = (
    "m4a m4b aac wma wmv asf amr 3gp 3g2 webm mka mkv mp4 mov avi flv ac3 ape wv tta spx raw pcm "
    "gsm vox"
)
AUDIO_SUFFIXES = frozenset(f".{name}" for name in f"{_READABLE} {_OTHERS}".split())

#: One row before it becomes Arrow: column names to values; absent ones are null, times are in ns.
Row = dict[str, Any]

_BLOCK_BYTES = 2**20
_BOM_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DELIMITERS = ",;\t|"
_MAX_TABLE_BYTES = 2 * 2**30
_MAX_CELL_CHARS = 2**24
_MAX_HEADER_BYTES = 2**22
_MAX_NAME_CHARS = 1000
_MAX_YAML_BYTES = 4 * 2**20
_MAX_YAML_VALUES = 200_000
_MAX_YAML_DEPTH = 50
_NO_NUMBER = frozenset({"", "nan", "none", "null", "na"})


def is_file(uri: str) -> bool:
    """Whether a file or object of exactly this name exists."""
    try:
        storage.stat(uri)
    except ObjectMissing:
        return False
    return True


def first_of(
    root: str, names: Sequence[str], there: Callable[[str], bool] = storage.is_folder
) -> str | None:
    """The first of `names` below `root` that exists, None when none does."""
    return next((uri for name in names if there(uri := storage.join(root, name))), None)


def objects_below(
    folder: str, suffixes: Collection[str] | None, *, direct: bool = False
) -> list[ObjectInfo]:
    """Files below `folder` (`direct`: in it), sorted by name; none if there is no such folder."""
    try:
        found = list(storage.list_objects(folder, suffixes=suffixes))
    except ObjectMissing:
        return []
    if direct:
        home = storage.absolute(folder)
        found = [info for info in found if storage.parent(info.uri) == home]
    for info in found:
        if not info.uri.isascii() and info.uri.encode("utf-8", "replace").decode() != info.uri:
            shown = info.uri.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(f"{shown}: the file name is not valid UTF-8: rename it")
    return sorted(found, key=lambda info: info.uri)


def of_file(info: ObjectInfo) -> Row:
    """The columns that name a listed file."""
    return {"file": info.uri, "num_bytes": info.num_bytes, "etag": info.etag}


def rows_to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows with the columns `OBJECTS` and those of the labels that any row has."""
    values = {f: [row.get(f.name) for row in rows] for f in (*OBJECTS, *LABEL_FIELDS)}
    known = [f for f in values if f in OBJECTS or any(v is not None for v in values[f])]
    return pa.table([pa.array(values[f], f.type) for f in known], schema=pa.schema(known))


def name_of(uri: str) -> str:
    """The last part of a path."""
    return uri.rpartition("/")[2]


def stem_of(uri: str) -> str:
    """The last part of a path without its suffix."""
    return name_of(uri).rpartition(".")[0]


def text_of(uri: str, data: bytes | None = None) -> str:
    """A text file (or its `data`) in UTF-8, UTF-16 with a byte order mark, or Windows-1252."""
    data = storage.read_bytes(uri) if data is None else data
    return data.decode(_encoding(uri, data))


def _encoding(uri: str, data: bytes) -> str:
    if data.startswith(_BOM_UTF16):
        return "utf-16"
    for encoding in ("utf-8-sig", "cp1252"):
        decoder, done = codecs.getincrementaldecoder(encoding)(), 0
        try:
            while done < len(data):
                decoder.decode(data[done : done + _BLOCK_BYTES])
                done += _BLOCK_BYTES
            decoder.decode(b"", final=True)
            return encoding
        except UnicodeDecodeError as error:
            place = min(done + error.start, len(data))
    line = data.count(b"\n", 0, place) + 1
    raise ConfigError(f"{uri}, line {line}: neither UTF-8 nor Windows-1252: save it as UTF-8")


def lines_of(uri: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a text file; empty lines are left out."""
    for number, line in enumerate(text_of(uri).splitlines(), start=1):
        if line.strip():
            yield number, line


def delimited(
    uri: str,
    keys: Sequence[str] = (),
    notes: list[str] | None = None,
    *,
    data: bytes | None = None,
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Column names, and (line, cells) of every row, of a CSV or TSV; cells are as written.

    The delimiter is the one under which the header has one of the columns `keys`, in any case;
    without keys, a comma. A table with tabs has no quotes, unless its header has. Rows whose cells
    are all empty are left out and counted in `notes`. `data` are the bytes, when they are at hand.
    Raises ConfigError: empty; more than 2 GiB, 16 MiB in a cell or 1,000 characters in a column
    name; a row with more or fewer cells than the header; a quote that is not closed, or that is
    closed so late that its cell holds whole rows. The message names the line.
    """
    data = storage.read_bytes(uri, max_bytes=_MAX_TABLE_BYTES) if data is None else data
    encoding, notes = _encoding(uri, data), [] if notes is None else notes
    if encoding == "cp1252":
        notes.append(f"{uri} is not UTF-8, read as Windows-1252")
    head = data[:_MAX_HEADER_BYTES].decode(encoding, errors="replace").lstrip("\ufeff\r\n")
    if not head.strip():
        raise ConfigError(f"{uri} is empty: it needs a header line with at least 'file'")
    first = head.splitlines()[0]
    delimiter = "\t" if ".tsv" in uri.lower()[-7:] else ","
    for mark in _DELIMITERS if keys else ():
        names = [name.strip().strip('"').lower() for name in first.split(mark)]
        if len(names) > 1 and not set(keys).isdisjoint(names):
            delimiter = mark
            break
    csv.field_size_limit(_MAX_CELL_CHARS)
    reader = csv.reader(
        _lines(uri, io.TextIOWrapper(io.BytesIO(data), encoding, newline="")),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" and first[0] != '"' else csv.QUOTE_MINIMAL,
        strict=True,
    )
    rows = _rows(uri, reader)
    names = [name.strip() for name in next(rows)[1]]
    if longest := max((len(name) for name in names if len(name) > _MAX_NAME_CHARS), default=0):
        raise ConfigError(
            f"{uri} cannot be read as a table: a column name of {longest:,} characters"
        )
    place = next((i for i, name in enumerate(names) if name.lower() in keys), -1)

    def checked() -> Iterator[tuple[int, list[str]]]:
        empty = 0
        for line, cells in rows:
            if not any(map(str.strip, cells)):
                empty += 1
                continue
            if len(cells) != len(names):
                fault = f"{len(cells)} cells under {len(names)} column names"
                raise ConfigError(f"{uri}, line {line}: {fault}")
            for cell in cells:
                if ("\n" in cell or "\r" in cell) and _holds_rows(cell, cells, place, delimiter):
                    fix = "close its quote, or write a quote within quotes twice"
                    raise ConfigError(
                        f"{uri}, line {line}: the cell {cell[:20]!r}... goes on over whole rows: "
                        f"{fix}"
                    )
            yield line, cells
        if empty:
            notes.append(f"{uri}: empty rows left out: {empty:,}")

    return names, checked()


def _lines(uri: str, text: io.TextIOWrapper) -> Iterator[str]:
    for number in itertools.count(1):
        if not (line := text.readline(_MAX_CELL_CHARS)):
            return
        if len(line) == _MAX_CELL_CHARS:
            raise ConfigError(f"{uri}, line {number}: longer than {_MAX_CELL_CHARS:,} characters")
        yield line


def _rows(uri: str, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """(line of its start, cells) of each row that is no empty line."""
    cells: list[str] | None = []
    while cells is not None:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            fix = "write a quote within quotes twice, and close what is opened"
            raise ConfigError(f"{uri}, line {line}: {error}: {fix}") from error
        if cells:
            yield line, cells


def _holds_rows(cell: str, cells: list[str], place: int, delimiter: str) -> bool:
    """Whether a line within `cell` may be a row; the cell at `place` names a file."""
    if len(cells) == 1 or cell is cells[place]:
        return True
    # of a row that was opened within the cell the last column may be cut off
    inner = (line.split(delimiter) for line in cell.splitlines()[1:])
    suffix = suffix_of(cells[place].strip()) if place >= 0 else ""
    return any(
        len(found) == len(cells) and (not suffix or suffix_of(found[place].strip(' "')) == suffix)
        for found in inner
    )


def csv_records(uri: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """("<uri>, line N", record by column name) of a CSV with the columns `needed`, stripped."""
    names, rows = delimited(uri)
    require(uri, names, needed)
    for line, cells in rows:
        yield f"{uri}, line {line}", dict(zip(names, map(str.strip, cells), strict=True))


def load_yaml(uri: str) -> Any:
    """The document of a YAML (or JSON) file; ConfigError as `parse_yaml`, with the file."""
    try:
        return parse_yaml(storage.read_bytes(uri, max_bytes=_MAX_YAML_BYTES).decode("utf-8-sig"))
    except (StorageError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{uri} cannot be read: {str(error).splitlines()[0]}") from error


def parse_yaml(text: str) -> Any:
    """The plain values in `text`, in time and memory proportional to its length.

    Raises ConfigError: more than 4 MiB, no YAML, a tag, more than 50 levels of nesting, or aliases
    that expand to more than 200,000 values. Names the line, not the file.
    """
    if len(text) > _MAX_YAML_BYTES:
        raise ConfigError(f"more than {_MAX_YAML_BYTES:,} bytes")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_expansion(yaml.parse(text, loader))
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}{problem}") from error
    except (ValueError, ArithmeticError) as error:  # impossible dates and numbers
        raise ConfigError(str(error).splitlines()[0]) from error


def _check_expansion(events: Iterator[Any]) -> None:
    """Counts values and levels with every alias expanded, before anything is built."""
    total = 0
    known: dict[str | None, tuple[int, int]] = {}  # values and levels of what an anchor names
    open_collections: list[tuple[int, str | None]] = []  # values before it, and its anchor
    levels = [0]  # in each of them
    for event in events:
        values, depth, line = 0, 0, event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in known:
                raise ConfigError(f"line {line}: *{event.anchor} has no value yet")
            values, depth = known[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((total, event.anchor))
            levels.append(0)
        elif isinstance(event, yaml.CollectionEndEvent):
            before, anchor = open_collections.pop()
            values, depth = 1, levels.pop() + 1
            known[anchor] = total + 1 - before, depth
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
            known[event.anchor] = 1, 0
        total += values
        levels[-1] = max(levels[-1], depth)
        if total > _MAX_YAML_VALUES or len(levels) + depth > _MAX_YAML_DEPTH:
            raise ConfigError(
                f"line {line}: more than {_MAX_YAML_VALUES:,} values or {_MAX_YAML_DEPTH} levels"
            )


def require(uri: str, names: Collection[str], needed: Sequence[str]) -> None:
    """Raises ConfigError naming the first of `needed` that is not among the columns `names`."""
    if missing := [name for name in needed if name not in names]:
        raise ConfigError(
            f"{uri} has no column {missing[0]!r}, only {', '.join(map(repr, names)) or 'nothing'}"
        )


def number(where: str, name: str, text: object, low: float, high: float) -> float | None:
    """A label between `low` and `high`, None for an empty one; ConfigError off the scale."""
    if text is None or str(text).strip().lower() in _NO_NUMBER:
        return None
    try:
        value = float(str(text))
    except ValueError:
        raise ConfigError(f"{where}: {name} is {text!r}, not a number") from None
    if math.isnan(value):
        return None
    if not low <= value <= high:
        raise ConfigError(f"{where}: {name} is {value:g}, off its scale of {low:g} to {high:g}")
    return value
