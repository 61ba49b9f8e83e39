"""The probe: spoken sentences, rated words and re-spoken clips, as tables and figures.

Sentences and clips are spoken by `synthesize` and scored by `annotate` in sub-folders of the
output, so rerunning the command makes tables and figures again without scoring anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import as_plain
from raysers.data.manifest import is_whole, manifest_parts, read_manifest
from raysers.display import Picture
from raysers.engine import output as parts
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.join import read_predictions
from raysers.evaluation.rows import Row
from raysers.io import storage
from raysers.run import Run
from raysers.types import DIMENSIONS
from raysers.words import figures, spoken
from raysers.words.flags import CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, ProbeFlags
from raysers.words.ratings import MOST, WORDS, transcribed_row, word_ratings, word_rows
from raysers.words.synthesize import JOB, TABLE, check
from raysers.words.texts import recognised_texts, with_recognised

#: Flags that change nothing in the tables.
_NOT_DECIDING = ("output", "workers", "max_failed", "dry_run")


class Scored(NamedTuple):
    """A model, its name in file names, and the annotation outputs with its scores."""

    model: str
    name: str
    sentences: str
    clips: str = ""
    respoken: str = ""


class Part(NamedTuple):
    """One part of the probe: rows of the metrics table, a table, pictures by name, notes."""

    rows: list[Row]
    table: pa.Table
    pictures: Mapping[str, Picture] = {}
    notes: Sequence[str] = ()


def settings_of(flags: ProbeFlags) -> dict[str, Any]:
    """What decides the tables, with the models' revisions; ConfigError for a wrong model."""
    tasks = [AnnotateTask.load(model, dtype=flags.dtype, max_padded_s=0) for model in flags.model]
    if len({task.model for task in tasks}) < len(tasks):
        raise ConfigError("--model has the same model twice")
    for name in ("torch", "transformers", "matplotlib"):  # first used when the run has begun
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    deciding = {k: v for k, v in as_plain(flags).items() if k not in _NOT_DECIDING}
    return {**deciding, "model_revisions": [task.revision for task in tasks]}


def planned_sentences(flags: ProbeFlags) -> pa.Table:
    """The sentences of known sentiment; ConfigError if they cannot be read, spoken or compared."""
    speech = flags.speech(sentences=True)
    with Run.open(JOB, speech.output, table=TABLE, dry_run=True) as run:
        table, _ = check(speech, run)
    if "sentiment" not in table.column_names:
        raise ConfigError(f"--texts {flags.texts} has no column 'sentiment' to compare by")
    spoken.check_sentiments(table["sentiment"].to_pylist())
    return table


def planned_clips(flags: ProbeFlags) -> tuple[pa.Table | None, list[str]]:
    """The clips of --data to probe, as an earlier run or `chosen_clips` takes them, and notes."""
    if not flags.data:
        return None, ["no --data: words of a corpus are not rated, no test set is spoken again"]
    figures.require_wordcloud()
    place = storage.join(flags.output, CORPUS)
    if is_whole(manifest_parts(place)):
        return read_manifest(place), []
    return chosen_clips(flags.data, flags.split, flags.limit)


def chosen_clips(
    data: Sequence[str], split: Sequence[str], limit: int = 0
) -> tuple[pa.Table, list[str]]:
    """The clips of a labelled corpus to probe, and notes.

    Without `split` those are the test splits, or all clips where there is none; of them the first
    `limit`, or all if that is 0. Raises ConfigError: the corpus cannot be read, has no such split,
    or no transcripts.
    """
    clips, notes = index_labelled(data, flag="--data")
    for uri in data:
        clips = with_recognised(clips, recognised_texts(uri), "transcript")
    known = sorted(set(clips["split"].to_pylist()) - {None})
    chosen = list(split) or [name for name in known if name.startswith("test")]
    if unknown := [name for name in chosen if name not in known]:
        has = f"no such split, but {', '.join(known)}" if known else "no splits"
        raise ConfigError(f"--split {unknown[0]}: the data have {has}")
    if chosen:
        clips = clips.filter(pc.is_in(clips["split"], pa.array(chosen)))
    clips = clips.slice(0, limit or None)
    if not len(transcribed(clips)):
        raise ConfigError(
            f"--data: none of the {len(clips):,} clips has a transcript: give a "
            "manifest or a table with the column transcript"
        )
    return clips, notes


def transcribed(clips: pa.Table) -> pa.Table:
    """The clips with a transcript that is not blank."""
    said = pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(clips["transcript"], "")))
    return clips.filter(pc.greater(said, 0))


def measure(
    flags: ProbeFlags, clips: pa.Table | None, models: Sequence[Scored], run_id: str
) -> dict[str, Part]:
    """All parts of the probe by name, from the scores in the sub-folders."""
    how = Bootstrap(draws=flags.bootstrap, seed=flags.seed)
    found = {"sentences": _sentences(flags, models, how, run_id)}
    if clips is not None:
        found["words"] = _words(clips, models, flags.least_occurrences, how, run_id)
        found["respoken"] = _respoken(flags.output, clips, models, how, run_id)
    return found


def _sentences(flags: ProbeFlags, models: Sequence[Scored], how: Bootstrap, run_id: str) -> Part:
    """Scores of the spoken sentences by their sentiment (Figure 10b)."""
    speech = _spoken(storage.join(flags.output, SENTENCES_SPOKEN))
    columns = (speech[name].to_pylist() for name in ("voice", "rate_wpm", "pitch"))
    # voice with its rate and pitch: what sentences have to share to be compared
    variants = [" ".join(str(p) for p in v if p is not None) for v in zip(*columns, strict=True)]
    own = {"text": speech["transcript"], "voice": pa.array([v or None for v in variants])}
    tables = []
    for one in models:
        scored = _with_scores(speech, _scores(one.sentences))
        known = {name: scored[name] for name in scored.column_names} | own
        known |= {"model": pa.array([one.model] * len(scored))}
        known |= {"run_id": pa.array([run_id] * len(scored), pa.string())}
        filled = [known.get(f.name, pa.nulls(len(scored))).cast(f.type) for f in spoken.SENTENCES]
        tables.append(pa.table(filled, schema=spoken.SENTENCES))
    table = pa.concat_tables(tables)
    rows = spoken.sentiment_rows(table, dataset=flags.sentences, bootstrap=how)
    picture = figures.sentiment_figure(table, rows)
    return Part(rows=rows, table=table, pictures={"sentiment": picture})


def _words(
    clips: pa.Table, models: Sequence[Scored], least: int, how: Bootstrap, run_id: str
) -> Part:
    """Words of the corpus as its labels and every model rate them (Figure 10a)."""
    corpora, splits = (sorted(set(clips[n].to_pylist()) - {None, ""}) for n in ("corpus", "split"))
    subset = {"dataset": "+".join(corpora), "split": splits[0] if len(splits) == 1 else "all"}
    said = transcribed(clips)
    about = said.select(["clip_id", "transcript", "speaker"])
    rated = {(one.model, one.name): _with_scores(about, _scores(one.clips)) for one in models}
    notes: list[str] = []
    if said["valence"].null_count < len(said):
        rated = {("labels", "labels"): said.drop_columns(["status"]), **rated}
    else:
        notes.append("words: no clip with a transcript has a valence label; only models rate them")
    rows, tables = [transcribed_row(clips, **subset)], [WORDS.empty_table()]
    pictures: dict[str, Picture] = {}
    for (source, name), table in rated.items():
        try:
            found = word_ratings(
                table, source=source, least=least, most=MOST, bootstrap=how, run_id=run_id
            )
        except ConfigError as error:  # nothing to rate: no word, or no score
            notes.append(f"words by {source}: {error}")
            continue
        rows += word_rows(found, **subset)
        tables.append(found)
        if not len(found):
            notes.append(f"words: none occurs {least} times or more (--least-occurrences)")
        pictures[f"words-{name}"] = figures.word_cloud(found)
    notes = list(dict.fromkeys(notes))
    return Part(rows=rows, table=pa.concat_tables(tables), pictures=pictures, notes=notes)


def _respoken(
    output: str, clips: pa.Table, models: Sequence[Scored], how: Bootstrap, run_id: str
) -> Part:
    """Scores of the re-spoken clips beside those of the originals and the labels (10c, 11)."""
    speech = _spoken(storage.join(output, CLIPS_RESPOKEN))
    ids = (speech[name].to_pylist() for name in ("clip_id", "source_clip_id"))
    try:
        table = spoken.respoken_table(
            clips,
            {one.model: _scores(one.clips) for one in models},
            {one.model: _scores(one.respoken) for one in models},
            dict(zip(*ids, strict=True)),
            run_id,
        )
    except ConfigError as error:  # all clips of one side failed; their rows say why
        return Part(rows=[], table=spoken.RESPOKEN.empty_table(), notes=(str(error),))
    rows = spoken.respoken_rows(table, clips, how)
    pictures = {
        "respoken-distribution": figures.distribution_figure(table, rows),
        "respoken-ccc": figures.ccc_figure(rows),
    }
    return Part(rows=rows, table=table, pictures=pictures)


def _scores(folder: str) -> pa.Table:
    return read_predictions(folder).table.select(["clip_id", "status", *DIMENSIONS])


def _with_scores(clips: pa.Table, scores: pa.Table) -> pa.Table:
    """The clips with their scores, in the clips' order; every one has a row."""
    place = pc.index_in(clips["clip_id"], value_set=scores["clip_id"].combine_chunks())
    found = scores.select(["status", *DIMENSIONS]).take(place)
    kept = clips.select([name for name in clips.column_names if name not in found.column_names])
    for name in found.column_names:
        kept = kept.append_column(name, found[name])
    return kept


def _spoken(folder: str) -> pa.Table:
    """The manifest of a synthesis, with the columns beyond a manifest's own."""
    found = [parts.read_part(uri) for uri in manifest_parts(folder)]
    if not found or None in found:
        raise RaysersError(f"{folder} has no manifest: was it removed?")
    return pa.concat_tables(found)
