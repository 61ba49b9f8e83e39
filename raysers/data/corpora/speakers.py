"""Who speaks and of which sex, from a table the user gives for corpora that do not say.

The table overrules the corpus where it says something, and says nothing where a cell is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from raysers.data.corpora import words
from raysers.data.corpora.files import csv_records, name_of
from raysers.errors import ConfigError
from raysers.schemas import LABEL_FIELDS

#: Columns that say which clips a row is about, the closest first; a video is a session.
_KEYS = ("file", "video", "session", "speaker")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fact:
    """One row: the end of the files it is about (empty: any), and what it says of them."""

    file: str
    speaker: str | None
    sex: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speakers:
    """A table with `sex`, and `speaker`, `video` (or `session`) or `file` to find the clips by.

    With a file or a video it may name the `speaker` as well. A file is the end of a clip's path.
    """

    uri: str
    by_file: Mapping[str, list[_Fact]]
    by_session: Mapping[str, _Fact]
    by_speaker: Mapping[str, _Fact]

    @classmethod
    def read(cls, uri: str) -> Speakers:
        """The table at `uri`.

        Raises:
            ConfigError: no column to find clips by, nothing to say of them, an unknown sex.
        """
        by_file: dict[str, list[_Fact]] = {}
        by_session: dict[str, _Fact] = {}
        by_speaker: dict[str, _Fact] = {}
        for where, record in csv_records(uri, ()):
            _check_columns(uri, record)
            word = record.get("sex") or record.get("gender") or ""
            sex, speaker = words.sex_of(word), words.speaker_of(record.get("speaker"))
            if word and sex is None:
                raise ConfigError(f"--speakers {where}: sex is {word!r}: write female or male")
            fact = _Fact(file=record.get("file", ""), speaker=speaker, sex=sex)
            session = record.get("video") or record.get("session")
            if fact.file:
                by_file.setdefault(name_of(fact.file), []).append(fact)
            elif session:
                by_session[session] = fact
            elif speaker:
                by_speaker[speaker] = fact
        return cls(uri=uri, by_file=by_file, by_session=by_session, by_speaker=by_speaker)

    def applied(self, table: pa.Table) -> pa.Table:
        """The rows with the speakers and sexes that this table knows."""
        speakers, sexes = table["speaker"].to_pylist(), table["sex"].to_pylist()
        places = zip(table["file"].to_pylist(), table["session"].to_pylist(), strict=True)
        for row, (file, session) in enumerate(places):
            fact = self._about(file, session)
            speakers[row] = (fact and fact.speaker) or speakers[row]
            known = self.by_speaker.get(speakers[row])
            sexes[row] = (fact and fact.sex) or (known and known.sex) or sexes[row]
        for name, values in (("speaker", speakers), ("sex", sexes)):
            place = table.schema.get_field_index(name)
            field = next(field for field in LABEL_FIELDS if field.name == name)
            table = table.set_column(place, field, pa.array(values, pa.string()))
        return table

    def note(self, table: pa.Table) -> str:
        """How many rows of a table that it was applied to this one is about."""
        columns = (table[name].to_pylist() for name in ("file", "session", "speaker"))
        met = sum(
            self._about(file, session) is not None or speaker in self.by_speaker
            for file, session, speaker in zip(*columns, strict=True)
        )
        return f"--speakers {self.uri} is about {met:,} of {len(table):,} clips"

    def _about(self, file: str, session: str | None) -> _Fact | None:
        named = self.by_file.get(name_of(file), ())
        found = (fact for fact in named if f"/{file}".endswith("/" + fact.file.lstrip("/")))
        return next(found, None) or self.by_session.get(session or "")


def _check_columns(uri: str, record: Mapping[str, str]) -> None:
    columns = ", ".join(record)
    if not set(_KEYS) & set(record):
        raise ConfigError(f"--speakers {uri} has no column {' or '.join(_KEYS)}, only {columns}")
    if not {"sex", "gender"} & set(record) and list(record) in ([key] for key in _KEYS):
        raise ConfigError(f"--speakers {uri} says nothing of its clips: add a column sex")
