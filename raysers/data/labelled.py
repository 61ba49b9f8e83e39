"""Labelled clips from whatever holds them: corpora, tables of one's own, finished manifests.

Headers are not read here: of clips that are not from a finished manifest the length is unknown, and
the `clip_id` of a whole file changes once its end is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora import (
    CORPORA,
    EMOTION_MAPS,
    EmotionMap,
    common_name,
    load_emotion_map,
    words,
)
from raysers.data.corpora import recognise as recognise_corpus
from raysers.data.corpora.rows import some
from raysers.data.corpora.speakers import Speakers
from raysers.data.manifest import is_manifest, read_manifest
from raysers.data.sources import ListingNotes, list_inputs
from raysers.data.tables import TABLE_SUFFIXES
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.io.uris import suffix_of
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import DIMENSIONS, clip_id

#: Columns of every result.
SCHEMA = pa.schema([*MANIFEST, *LABEL_FIELDS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Labelled clips.

    Attributes:
        table: schema `SCHEMA`; null is "not known", also for labels.
        notes: what the user should hear, a line each.
        finished: how many rows, the first ones, are from finished manifests: their headers have
            been read.
    """

    table: pa.Table
    notes: tuple[str, ...] = ()
    finished: int = 0


def read_labelled(
    uris: Sequence[str], *, corpus: str = "auto", emotion_map: str = "", speakers: str = ""
) -> Labelled:
    """The clips of all `uris` with what is known of them.

    Finished manifests (and output folders that hold one) and tables are read as what they are,
    whatever `corpus` says.

    Args:
        uris: roots of corpora, manifests, tables, folders or prefixes of audio.
        corpus: name of a reader for the roots; `auto` recognises them by their layout; `none`
            takes them for plain audio.
        emotion_map: where a dimension is missing, take it from the category by this map: a name of
            `EMOTION_MAPS` or a YAML file; empty for none.
        speakers: CSV about speakers, see `Speakers`; empty for none.

    Raises:
        ConfigError: an input that cannot be used, a label off 0..1, an unknown corpus or map.
    """
    if corpus not in ("auto", "none", *CORPORA):
        raise ConfigError(f"--corpus {corpus}: choose auto, none, {', '.join(CORPORA)}")
    mapping = load_emotion_map(emotion_map) if emotion_map else None
    facts = Speakers.read(speakers) if speakers else None
    names = list(dict.fromkeys(map(storage.absolute, uris)))
    finished = [uri for uri in names if is_manifest(uri)]
    notes: list[str] = []
    tables = [_normalised(uri, read_manifest(uri), notes) for uri in finished]
    others = [uri for uri in names if uri not in finished]
    tables += [_normalised(uri, _listed(uri, corpus, notes), notes) for uri in others]
    if not tables:
        raise ConfigError("--input names nothing: give corpora, tables or manifests")
    table = pa.concat_tables(tables).combine_chunks()
    if facts is not None:
        table = facts.applied(table)
        notes.append(facts.note(table))
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
    if not is_root and corpus in CORPORA and suffix_of(uri) not in TABLE_SUFFIXES:
        list_inputs([uri])  # says so when nothing is there
        raise ConfigError(f"--corpus {corpus}: {uri} is a file: name the corpus' folder")
    name = corpus if is_root and corpus != "none" else None
    if name == "auto":
        name = recognise_corpus(uri)
    if name is not None:
        found = CORPORA[name].read(uri)
        notes += found.notes
        return found.table
    listing = ListingNotes()
    batches = list(list_inputs([uri], notes=listing))
    notes += listing.warnings
    return pa.concat_tables(
        [pa.Table.from_batches([batch]) for batch in batches], promote_options="default"
    )


def _normalised(uri: str, table: pa.Table, notes: list[str]) -> pa.Table:
    """The rows with the schema `SCHEMA`, their words and labels checked."""
    columns = {name: table[name] for name in table.column_names}
    for name, known in _WORDS.items():
        if name in columns:
            columns[name] = _reworded(uri, name, columns[name], known, notes)
    for name in DIMENSIONS:
        if name in columns:
            columns[name] = _label(uri, name, columns[name])
    if "clip_id" not in columns:
        spans = (table[n].cast(pa.int64()).to_pylist() for n in ("start", "end"))
        clips = zip(table["file"].to_pylist(), *spans, strict=True)
        columns["clip_id"] = pa.array([clip_id(file, s or 0, end) for file, s, end in clips])
    filled = [
        columns[field.name] if field.name in columns else pa.nulls(len(table), field.type)
        for field in SCHEMA
    ]
    return pa.table(filled, names=SCHEMA.names).cast(SCHEMA)


_WORDS: Mapping[str, Callable[[str | None], str | None]] = {
    "sex": words.sex_of,
    "split": words.split_of,
    "speaker": words.speaker_of,
}


def _reworded(
    uri: str,
    name: str,
    column: pa.ChunkedArray,
    known: Callable[[str | None], str | None],
    notes: list[str],
) -> pa.ChunkedArray:
    """The column in our words; each different word is looked at once."""
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    ours = [known(value) for value in values]
    pairs = zip(values, ours, strict=True)
    if lost := [repr(value) for value, our in pairs if our is None and value and value.strip()]:
        notes.append(f"{uri}: values of {name!r} that are not used: {some(lost)}")
    return pa.chunked_array([pa.array(ours, pa.string()).take(coded.indices)])


def _label(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The labels, NaN as null.

    Raises:
        ConfigError: one is off the scale.
    """
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
    """A note when a speaker is said to be a woman and a man, as nobody should be judged by both."""
    corpus = pc.fill_null(table["corpus"], "")
    known = table.select(["speaker", "sex"]).append_column("corpus", corpus).drop_null()
    counted = known.group_by(["corpus", "speaker"]).aggregate([("sex", "count_distinct")])
    found = counted.filter(pc.greater(counted["sex_count_distinct"], 1))["speaker"].to_pylist()
    return [f"speakers who are female and male: {some(found)}"] if found else []


def _mapped(table: pa.Table, mapping: EmotionMap, name: str, notes: list[str]) -> pa.Table:
    """Dimensions that are missing, by the category."""
    coded = table["emotion"].combine_chunks().dictionary_encode()
    emotions = [common_name(word) for word in coded.dictionary.to_pylist()]
    points = [mapping.get(word) for word in emotions]
    used = np.zeros(len(table), bool)
    for place, dimension in enumerate(DIMENSIONS):
        by_word = pa.array([p and p[place] for p in points], pa.float32())
        column = table[dimension]
        filled = pc.coalesce(column, by_word.take(coded.indices))
        used |= (pc.is_null(column).to_numpy() & pc.is_valid(filled).to_numpy()).astype(bool)
        table = table.set_column(
            table.schema.get_field_index(dimension), SCHEMA.field(dimension), filled
        )
    kind = f"map {name}" if name in EMOTION_MAPS else name
    notes.append(f"{int(used.sum()):,} clips take labels from their category by the {kind}")
    if unknown := {w for w, point in zip(emotions, points, strict=True) if point is None}:
        notes.append(f"categories the {kind} does not have: {', '.join(sorted(unknown))}")
    return table
