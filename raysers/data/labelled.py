"""Labelled clips from speech-emotion corpora as distributed, tables, and finished manifests.

A corpus' module in `corpora` reads its label files and opens no audio. Labels are on 0..1 by the
ends of the rating scale, never by the smallest and largest label found. Headers are not read: of
clips that are not from a finished manifest the length is unknown, and the `clip_id` of a whole file
changes once its end is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data import corpora
from raysers.data.corpora import acted, audformat, spontaneous
from raysers.data.files import Row, csv_records, name_of, rows_to_table
from raysers.data.manifest import is_manifest, read_manifest
from raysers.data.readers import format_of
from raysers.data.sources import absolute_input, list_inputs
from raysers.data.splits import with_labels
from raysers.display import some
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.schemas import LABEL_FIELDS, MANIFEST, PARTS_OF_FILE
from raysers.types import DIMENSIONS, clip_id

#: Columns of all labelled clips.
SCHEMA = pa.schema([*MANIFEST, *LABEL_FIELDS])


class Corpus(NamedTuple):
    """A reader: `recognise` checks a few names, `read` gives rows and notes; both take a root."""

    recognise: Callable[[str], bool]
    read: Callable[[str], tuple[list[Row], list[str]]]


#: Readers by name, in the order in which layouts are recognised: a database comes before the
#: corpus whose files it may hold.
CORPORA: Mapping[str, Corpus] = {
    "audformat": Corpus(audformat.recognise, audformat.read),
    "msp-podcast": Corpus(spontaneous.recognise_podcast, spontaneous.read_podcast),
    "iemocap": Corpus(acted.recognise_iemocap, acted.read_iemocap),
    "cmu-mosi": Corpus(spontaneous.recognise_mosi, spontaneous.read_mosi),
    "emodb": Corpus(acted.recognise_emodb, acted.read_emodb),
}


def recognise(root: str) -> str | None:
    """The name of the corpus in the folder or prefix `root`, None when it is unknown."""
    return next((name for name, corpus in CORPORA.items() if corpus.recognise(root)), None)


def read_corpus(name: str, root: str) -> tuple[pa.Table, list[str]]:
    """The rows of the corpus `name` in `root`: the columns `OBJECTS` and its labels; and notes."""
    rows, notes = CORPORA[name].read(root)
    return rows_to_table(rows), notes


class Labelled(NamedTuple):
    """Labelled clips, of the schema `SCHEMA`; null is "not known", also for labels.

    `notes` are messages for the user. The first `finished` rows are from finished manifests: their
    headers have been read.
    """

    table: pa.Table
    notes: tuple[str, ...] = ()
    finished: int = 0


def read_labelled(
    uris: Sequence[str],
    *,
    corpus: str = "auto",
    emotion_map: str = "",
    speakers: str = "",
    flag: str = "--input",
) -> Labelled:
    """The clips of roots of corpora, manifests, tables and folders, with what is known of them.

    Finished manifests (and output folders that hold one) and tables are read as what they are,
    whatever `corpus` says.

    `corpus` names the reader of roots; `auto` recognises them by their layout, `none` takes them
    for plain audio. Missing dimensions are taken from the category by `emotion_map`, a name of
    `EMOTION_MAPS` or a YAML file. `speakers` is a CSV, see `_facts_in`. Errors name `flag`.
    Raises ConfigError: an input that cannot be used, a label off 0..1, an unknown corpus or map.
    """
    if corpus not in ("auto", "none", *CORPORA):
        raise ConfigError(f"--corpus {corpus}: choose auto, none, {', '.join(CORPORA)}")
    mapping = corpora.load_emotion_map(emotion_map) if emotion_map else None
    facts = _facts_in(speakers) if speakers else None
    notes: list[str] = []
    try:
        names = list(dict.fromkeys(map(absolute_input, uris)))
        finished = [uri for uri in names if is_manifest(uri)]
        tables = [_normalised(uri, read_manifest(uri), notes) for uri in finished]
        others = [uri for uri in names if uri not in finished]
        tables += [_normalised(uri, _listed(uri, corpus, notes), notes) for uri in others]
    except ConfigError as error:
        if not (text := str(error)).startswith("--input"):
            raise
        raise ConfigError(flag + text.removeprefix("--input")) from error
    if not tables:
        raise ConfigError(f"{flag} names nothing: give corpora, tables or manifests")
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    if facts is not None:
        table = _with_facts(table, facts, speakers, notes)
    notes += _of_two_sexes(table)
    if mapping is not None:
        table = _mapped(table, mapping, emotion_map, notes)
    return Labelled(
        table=table,
        notes=tuple(dict.fromkeys(notes)),
        finished=sum(map(len, tables[: len(finished)])),
    )


def _listed(uri: str, corpus: str, notes: list[str]) -> pa.Table:
    """Rows of one input that is no manifest."""
    is_root = storage.is_folder(uri)
    is_table = bool(format_of(uri)) or audformat.database_of(uri) is not None
    if not is_root and corpus in CORPORA and not is_table:
        list_inputs([uri])  # raises where nothing is there
        raise ConfigError(f"--corpus {corpus}: {uri} is a file: name the corpus' folder")
    name = corpus if is_root and corpus != "none" else None
    if name == "auto":
        name = recognise(uri)
    if name is not None:
        table, found = read_corpus(name, uri)
        notes += found
        return table
    batches = list(list_inputs([uri], notes=notes, databases=corpus != "none", files=False))
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    return pa.concat_tables(tables, promote_options="default")


_WORDS: Mapping[str, Callable[[str | None], str | None]] = {
    "sex": corpora.sex_of,
    "split": corpora.split_of,
    "speaker": corpora.speaker_of,
}


def _normalised(uri: str, table: pa.Table, notes: list[str]) -> pa.Table:
    """The rows with the schema `SCHEMA`, their terms and labels checked."""
    columns = {name: table[name] for name in table.column_names}
    for name, known in _WORDS.items():
        if name not in columns:
            continue
        coded = columns[name].combine_chunks().dictionary_encode()
        values = coded.dictionary.to_pylist()
        ours = [known(value) for value in values]
        pairs = zip(values, ours, strict=True)
        if lost := [repr(v) for v, our in pairs if our is None and v and v.strip()]:
            notes.append(f"{uri}: values of {name!r} that are not used: {some(lost)}")
        columns[name] = pa.chunked_array([pa.array(ours, pa.string()).take(coded.indices)])
    for name in DIMENSIONS:
        if name in columns:
            columns[name] = _label(uri, name, columns[name])
    if "clip_id" not in columns:
        names = ["start", "end", *(field.name for field in PARTS_OF_FILE)]
        none = pa.nulls(len(table), pa.int64())
        spans = (columns.get(n, none).cast(pa.int64()).to_pylist() for n in names)
        clips = zip(table["file"].to_pylist(), *spans, strict=True)
        columns["clip_id"] = pa.array([clip_id(file, s or 0, *end) for file, s, *end in clips])
    filled = [
        columns[field.name] if field.name in columns else pa.nulls(len(table), field.type)
        for field in SCHEMA
    ]
    found = pa.table(filled, names=SCHEMA.names).cast(SCHEMA)
    for field in PARTS_OF_FILE:
        if field.name in columns:
            found = found.append_column(field, columns[field.name])
    return found


def _label(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The labels, NaN as null; raises ConfigError where one is off the scale."""
    column = pc.if_else(pc.is_nan(column), None, column)
    values = column.to_numpy()
    bad = np.flatnonzero((values < 0) | (values > 1))
    if len(bad):
        row = int(bad[0])
        raise ConfigError(
            f"{uri}, row {row + 1}: {name} is {values[row]:g}, off the scale of 0 to 1: rescale it"
        )
    return column


def _of_two_sexes(table: pa.Table) -> list[str]:
    corpus = pc.fill_null(table["corpus"], "")
    known = table.select(["speaker", "sex"]).append_column("corpus", corpus).drop_null()
    counted = known.group_by(["corpus", "speaker"]).aggregate([("sex", "count_distinct")])
    found = counted.filter(pc.greater(counted["sex_count_distinct"], 1))["speaker"].to_pylist()
    return [f"speakers who are female and male: {some(found)}"] if found else []


def _mapped(table: pa.Table, mapping: corpora.EmotionMap, name: str, notes: list[str]) -> pa.Table:
    """Missing dimensions taken from the category."""
    coded = table["emotion"].combine_chunks().dictionary_encode()
    names = [corpora.common_name(word) for word in coded.dictionary.to_pylist()]
    points = [mapping.get(word) for word in names]
    used = np.zeros(len(table), bool)
    for place, dimension in enumerate(DIMENSIONS):
        by_word = pa.array([p and p[place] for p in points], pa.float32())
        column = table[dimension]
        filled = pc.coalesce(column, by_word.take(coded.indices))
        used |= (pc.is_null(column).to_numpy() & pc.is_valid(filled).to_numpy()).astype(bool)
        table = with_labels(table, dimension, filled)
    kind = f"map {name}" if name in corpora.EMOTION_MAPS else name
    notes.append(f"{int(used.sum()):,} clips take labels from their category by the {kind}")
    if unknown := {w for w, point in zip(names, points, strict=True) if point is None}:
        notes.append(f"categories the {kind} does not have: {', '.join(sorted(unknown))}")
    return table


class _Facts(NamedTuple):
    """Speakers and sexes in a CSV; those of files are by name, with the end of the path."""

    files: dict[str, list[tuple[str, Row]]]
    sessions: dict[str, Row]
    speakers: dict[str, Row]


def _facts_in(uri: str) -> _Facts:
    """What a CSV says of speakers.

    It has `sex`, and `speaker`, `video` (or `session`) or `file` (the end of a clip's path) to find
    the clips by; with a file or a video it may name the `speaker` as well. It overrules the corpus
    where it says something, and an empty cell says nothing. Raises ConfigError: no column to find
    clips by, no other column, an unknown sex.
    """
    facts = _Facts({}, {}, {})
    keys = ("file", "video", "session", "speaker")
    for where, record in csv_records(uri, ()):
        if not set(keys) & set(record):
            raise ConfigError(
                f"--speakers {uri} has no column {' or '.join(keys)}, only {', '.join(record)}"
            )
        if len(record) == 1:
            raise ConfigError(f"--speakers {uri} has no column besides: add sex")
        word = record.get("sex") or record.get("gender") or ""
        sex = corpora.sex_of(word)
        fact = {"speaker": corpora.speaker_of(record.get("speaker")), "sex": sex}
        if word and sex is None:
            raise ConfigError(f"--speakers {where}: sex is {word!r}: write female or male")
        if file := record.get("file"):
            facts.files.setdefault(name_of(file), []).append((f"/{file.lstrip('/')}", fact))
        elif session := record.get("video") or record.get("session"):
            facts.sessions[session] = fact
        elif fact["speaker"]:
            facts.speakers[fact["speaker"]] = fact
    return facts


def _with_facts(table: pa.Table, facts: _Facts, uri: str, notes: list[str]) -> pa.Table:
    """The rows with the speakers and sexes of the CSV `uri`; a note counts them."""
    rows, count = table.select(["file", "session", "speaker", "sex"]).to_pylist(), 0
    for row in rows:
        file = row["file"]
        named = facts.files.get(name_of(file), ())
        fact = next((fact for end, fact in named if f"/{file}".endswith(end)), {})
        fact = fact or facts.sessions.get(row["session"] or "", {})
        row["speaker"] = fact.get("speaker") or row["speaker"]
        known = facts.speakers.get(row["speaker"], {})
        row["sex"] = fact.get("sex") or known.get("sex") or row["sex"]
        count += bool(fact or known)
    notes.append(f"--speakers {uri} is about {count:,} of {len(table):,} clips")
    for name in ("speaker", "sex"):
        table = with_labels(table, name, pa.array([row[name] for row in rows], pa.string()))
    return table
