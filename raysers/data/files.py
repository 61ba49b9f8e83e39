"""Text files from strangers, by line, as CSV or as YAML, and the audio beside them.

Every message about a file names its line, because such files are corrected in an editor.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raysers.errors import ConfigError, ObjectMissing
from raysers.io import storage
from raysers.io.uris import ObjectInfo

#: One row before it becomes Arrow: column names to values; absent ones are null, times are in ns.
Row = dict[str, Any]

_READ_THREADS = 32
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
    """Files below `folder`, sorted by name; with `direct`, those in the folder itself only.

    Empty when there is no such folder. Hidden files (`._x.wav` of archives made on a Mac) are left
    out.
    """
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


def name_of(uri: str) -> str:
    """The last part of a path."""
    return uri.rpartition("/")[2]


def stem_of(uri: str) -> str:
    """The last part of a path without its suffix."""
    return name_of(uri).rpartition(".")[0]


def text_of(uri: str) -> str:
    """A text file in UTF-8, or Latin-1 where it is not valid UTF-8."""
    data = storage.read_bytes(uri)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def lines_of(uri: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a text file; empty lines are left out."""
    for number, line in enumerate(text_of(uri).splitlines(), start=1):
        if line.strip():
            yield number, line


def texts_of(uris: Sequence[str]) -> list[str]:
    """Many small text files, read in parallel, blanks folded."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return [" ".join(text.split()) for text in pool.map(text_of, uris)]


def csv_records(uri: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """("<uri>, line N", record by column name) of a CSV with a header.

    Raises:
        ConfigError: a column of `needed` is missing, a line has more or fewer cells than the
            header, or it is no CSV.
    """
    reader = csv.reader(io.StringIO(text_of(uri), newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        require(uri, header, needed)
        for cells in reader:
            if not cells:
                continue
            where = f"{uri}, line {reader.line_num}"
            if len(cells) != len(header):
                raise ConfigError(f"{where}: {len(cells)} cells under {len(header)} column names")
            yield where, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise ConfigError(f"{uri}, line {reader.line_num}: {error}") from error


def require(uri: str, names: Collection[str], needed: Sequence[str]) -> None:
    """Raises ConfigError naming the first of `needed` that is not among the columns `names`."""
    if missing := [name for name in needed if name not in names]:
        raise ConfigError(
            f"{uri} has no column {missing[0]!r}, only {', '.join(map(repr, names)) or 'nothing'}"
        )


def number(where: str, name: str, text: object, low: float, high: float) -> float | None:
    """A label between `low` and `high`, None for an empty one.

    Raises:
        ConfigError: no number, or one off the scale; the message begins with `where`.
    """
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
