"""Any audformat database folder: `db.yaml` with tables in Parquet or CSV, media beside them.

audformat itself takes CSV columns by their place in the YAML, so a CSV whose header has another
order means two things at once and is refused; Parquet is by name. Tables in pickle are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from raysers.data.corpora import words
from raysers.data.corpora.audformat_header import (
    HEADER_FILE,
    Header,
    Scheme,
    TableHeader,
    read_header,
)
from raysers.data.corpora.audformat_tables import Cells, read_misc, read_table
from raysers.data.corpora.emotions import common_name
from raysers.data.corpora.files import is_file, number
from raysers.data.corpora.rows import CorpusRows, Row, some, to_table
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.uris import resolve
from raysers.types import DIMENSIONS

NAME = "audformat"

#: Tables of a consensus, by audformat's naming advice; where there are some, they are the labels.
_CONSENSUS = ".gold_standard"
#: Copies of a database's tables for another sensor than the microphone.
_NOT_SPEECH = ("laryngo.",)
_INFINITY = float("inf")


class _Key(NamedTuple):
    """A clip: its file as the tables spell it, and start and end in ns; None for a whole file."""

    file: str
    start: int | None = None
    end: int | None = None


def recognise(root: str) -> bool:
    """Whether `root` has a `db.yaml`."""
    return is_file(storage.join(root, HEADER_FILE))


def read(root: str) -> CorpusRows:
    """The labelled clips of the database in `root`, its tables merged by file, start and end.

    Labels are rescaled by their scheme's minimum and maximum to 0..1.

    Raises:
        ConfigError: no table with labels, a table that is missing or in pickle, a column that is
            missing or in another place than the YAML says, a value its scheme does not allow, a
            clip in two splits, labels off 0..1 without a scheme that says how to rescale them.
    """
    header = read_header(root)
    tables = [table for table in header.tables if not table.name.startswith(_NOT_SPEECH)]
    labelled = [table for table in tables if table.has_labels]
    consensus = [table for table in labelled if table.name.endswith(_CONSENSUS)]
    if not labelled:
        columns = ", ".join((*DIMENSIONS, "emotion"))
        raise ConfigError(f"{storage.join(root, HEADER_FILE)}: no table with {columns}")
    merged = _Merged()
    sex_of = _sexes(root, header)
    for table in consensus or labelled:
        for where, key, cells in _rows(root, table):
            merged.add_clip(table, where, key, _values(where, table, cells, sex_of))
    for table in tables:
        used = table in (consensus or labelled)
        if (table.roles or table.split) and not used:
            for where, key, cells in _rows(root, table):
                merged.add_facts(key, _values(where, table, cells, sex_of), table.split)
    rows = [_row(root, header, key, row) for key, row in merged.rows()]
    names = some(table.name for table in consensus or labelled)
    notes = [f"{root}: labels from the tables: {names}"]
    if merged.conflicts:
        told = ", ".join(f"{name} ({count:,})" for name, count in sorted(merged.conflicts.items()))
        notes.append(f"{root}: tables differ in {told}; the first table's values stand")
    return CorpusRows(table=to_table(rows), notes=tuple(notes))


class _Merged:
    """The clips of the label tables, and facts about them and their files from all others."""

    def __init__(self) -> None:
        self._clips: dict[_Key, Row] = {}
        self._facts: dict[_Key, Row] = {}
        self._split_from: dict[_Key, str] = {}
        self.conflicts: Counter[str] = Counter()

    def add_clip(self, table: TableHeader, where: str, key: _Key, values: Row) -> None:
        """A row of a label table; its clip may be in one split only."""
        row = self._clips.setdefault(key, {})
        for name, value in values.items():
            if row.setdefault(name, value) != value:
                self.conflicts[name] += 1
        if table.split:
            if row.setdefault("split", table.split) != table.split:
                first = self._split_from[key]
                raise ConfigError(
                    f"{where}: {key.file} is in {table.split} here and in {row['split']} in the "
                    f"table {first!r}: put the clips you want into a table of your own"
                )
            self._split_from.setdefault(key, table.name)

    def add_facts(self, key: _Key, values: Row, split: str | None) -> None:
        """A row of any other table: never a label, never a clip of its own."""
        facts = {k: v for k, v in values.items() if k not in (*DIMENSIONS, "emotion")}
        known = self._facts.setdefault(key, {})
        for name, value in (facts | ({"split": split} if split else {})).items():
            known.setdefault(name, value)

    def rows(self) -> Iterator[tuple[_Key, Row]]:
        """Every clip, with what is known of it and of its file."""
        for key, row in self._clips.items():
            whole = _Key(key.file)
            known = self._facts.get(whole, {})
            if key != whole:
                # words of the whole file are not the words of this stretch, nor are its labels
                known = known | self._clips.get(whole, {})
                own = (*DIMENSIONS, "emotion", "transcript")
                known = {name: value for name, value in known.items() if name not in own}
            yield key, known | self._facts.get(key, {}) | row


def _rows(root: str, table: TableHeader) -> Iterator[tuple[str, _Key, Cells]]:
    for where, cells in read_table(root, table):
        yield where, _Key(cells["file"], cells.get("start"), cells.get("end")), cells


def _values(where: str, table: TableHeader, cells: Cells, sex_of: Mapping[str, str]) -> Row:
    """Our columns of one row, checked against their schemes; unknown values are left out."""
    row: Row = {}
    for role, column in table.roles.items():
        value, scheme = cells[column], table.columns[column]
        if role in DIMENSIONS:
            row[role] = _label(where, column, value, scheme)
            continue
        text = words.speaker_of(value)
        if text is not None and scheme.labels is not None and text not in scheme.labels:
            raise ConfigError(f"{where}: {column} is {text!r}, which its scheme does not know")
        row[role] = _in_our_words(role, text)
    if speaker := row.get("speaker"):
        row.setdefault("sex", sex_of.get(speaker))
    return {name: value for name, value in row.items() if value is not None}


def _in_our_words(role: str, text: str | None) -> str | None:
    if role == "sex":
        return words.sex_of(text)
    return common_name(text) if role == "emotion" and text else text


def _label(where: str, column: str, value: Any, scheme: Scheme) -> float | None:
    if scheme.low is None or scheme.high is None:
        rating = number(where, column, value, -_INFINITY, _INFINITY)
        if rating is not None and not 0 <= rating <= 1:
            raise ConfigError(
                f"{where}: {column} is {rating:g}, and its scheme has no minimum and maximum to "
                "rescale it to 0..1: add them to db.yaml"
            )
        return rating
    rating = number(where, column, value, scheme.low, scheme.high)
    return None if rating is None else (rating - scheme.low) / (scheme.high - scheme.low)


def _sexes(root: str, header: Header) -> dict[str, str]:
    """Sex by speaker, from the schemes' labels and the misc tables they are taken from."""
    found: dict[str, str] = {}
    for scheme in header.schemes.values():
        found |= scheme.sex_of
        table = header.misc_tables.get(scheme.misc_table)
        if table is None or not (columns := {"gender", "sex"} & set(table.columns)):
            continue
        column = min(columns)
        for index, cells in read_misc(root, table):
            sex = words.sex_of(cells[column] and str(cells[column]))
            found |= {index: sex} if sex else {}
    return found


def _row(root: str, header: Header, key: _Key, row: Row) -> Row:
    known = {"corpus": header.name, "language": header.language}
    place = {"file": resolve(root, key.file), "start": key.start, "end": key.end}
    return known | row | place
