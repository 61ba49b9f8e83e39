"""The tables and pictures of the probe: spoken sentences, rated words, re-spoken clips.

The clips' scores are outputs of the annotation job in sub-folders; here they are only read, so the
same command makes tables and pictures again without scoring anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.data.manifest import is_whole, manifest_parts, read_manifest, write_manifest
from raysers.engine import output as parts
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.predictions import read_predictions
from raysers.evaluation.rows import Row, to_table
from raysers.evaluation.runs import METRICS_PART
from raysers.io import storage
from raysers.plotting import Picture
from raysers.run import Run
from raysers.types import DIMENSIONS
from raysers.words import synthesis_flags
from raysers.words.cloud import require_wordcloud, word_cloud
from raysers.words.probe_flags import CLIPS, CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, ProbeFlags
from raysers.words.ratings import MOST, WORDS, transcribed_row, word_ratings, word_rows
from raysers.words.respoken import respoken_rows
from raysers.words.respoken_figure import ccc_figure, distribution_figure
from raysers.words.sentence_pairs import RESPOKEN, respoken_pairs
from raysers.words.sentences import SENTENCES, check_sentiments
from raysers.words.sentiment import sentiment_rows
from raysers.words.sentiment_figure import sentiment_figure
from raysers.words.speaking import TABLE
from raysers.words.word_chart import word_chart

_LABELS = "labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One model and the outputs of the annotation job with its scores.

    Attributes:
        model: as it stands in the rows.
        name: in the names of files.
        sentences: scores of `SENTENCES_SPOKEN`.
        clips: scores of `CLIPS`; empty without a corpus.
        respoken: scores of `CLIPS_RESPOKEN`; empty without a corpus.
    """

    model: str
    name: str
    sentences: str
    clips: str = ""
    respoken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the probe: rows of the metrics table, a table, pictures by name."""

    rows: list[Row]
    table: pa.Table
    pictures: Mapping[str, Picture]
    notes: tuple[str, ...] = ()


def settings_of(flags: ProbeFlags) -> dict[str, Any]:
    """What decides the tables, with the models' revisions.

    Raises:
        ConfigError, CheckpointError: a model is not there, twice there, or cannot be trusted.
    """
    tasks = [AnnotateTask.load(model, dtype=flags.dtype, max_padded_s=0) for model in flags.model]
    if len({task.model for task in tasks}) < len(tasks):
        raise ConfigError("--model has the same model twice")
    return {**flags.settings, "model_revisions": [task.revision for task in tasks]}


def planned_sentences(flags: ProbeFlags) -> pa.Table:
    """The sentences of known sentiment, once everything about their synthesis is checked.

    Raises:
        ConfigError: they cannot be read, spoken or compared.
    """
    speech = flags.speech(sentences=True)
    with Run.open(synthesis_flags.JOB, speech.output, table=TABLE, dry_run=True) as run:
        table = synthesis_flags.check(speech, run).table
    if "sentiment" not in table.column_names:
        raise ConfigError(f"--texts {flags.texts} has no column 'sentiment' to compare by")
    check_sentiments(table["sentiment"].to_pylist())
    return table


def planned_clips(flags: ProbeFlags) -> tuple[pa.Table | None, list[str]]:
    """The clips of --data that the probe is about, as an earlier run chose them or anew, and notes.

    Raises:
        ConfigError: as `chosen_clips`.
    """
    if not flags.data:
        return None, ["no --data: words of a corpus are not rated, no test set is spoken again"]
    require_wordcloud()
    place = storage.join(flags.output, CORPUS)
    if is_whole(manifest_parts(place)):
        return read_manifest(place), []
    return chosen_clips(flags.data, flags.split, flags.limit)


def print_plan(flags: ProbeFlags, sentences: int, clips: pa.Table | None) -> None:
    """How much there is to speak and score, in one line."""
    models = "1 model" if len(flags.model) == 1 else f"{len(flags.model)} models"
    line = f"probe: {models}, {sentences:,} sentences"
    if clips is not None:
        line += f", {len(transcribed(clips)):,} clips with transcripts (of {len(clips):,})"
    print(line, flush=True)


def write_clips(output: str, clips: pa.Table) -> None:
    """Write the manifests of the clips, and of the transcribed ones, unless they are there."""
    for name, manifest in ((CORPUS, clips), (CLIPS, transcribed(clips))):
        place = storage.join(output, name)
        if not is_whole(manifest_parts(place)):
            write_manifest(place, manifest)


def chosen_clips(
    data: Sequence[str], split: Sequence[str], limit: int = 0
) -> tuple[pa.Table, list[str]]:
    """The clips of a labelled corpus the probe is about, on the connected cluster, and notes.

    Without `split` those are the test splits, or all clips where there is none;
    of them the first `limit`, or all if that is 0.

    Raises:
        ConfigError: the corpus cannot be read, has no such split, or no transcripts.
    """
    clips, notes = index_labelled(data)
    known = sorted(set(clips["split"].to_pylist()) - {None})
    wanted = list(split) or [name for name in known if name.startswith("test")]
    if unknown := [name for name in wanted if name not in known]:
        has = ", ".join(known) or "none"
        raise ConfigError(f"--split {unknown[0]}: the data have no such split, but {has}")
    if wanted:
        clips = clips.filter(pc.is_in(clips["split"], pa.array(wanted)))
    clips = clips.slice(0, limit or None)
    if not len(transcribed(clips)):
        raise ConfigError(
            f"--data: none of the {len(clips):,} clips has a transcript: give a "
            "manifest or a table with the column transcript"
        )
    return clips, notes


def transcribed(clips: pa.Table) -> pa.Table:
    """The clips whose words are known."""
    said = pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(clips["transcript"], "")))
    return clips.filter(pc.greater(said, 0))


def dataset_of(clips: pa.Table) -> tuple[str, str]:
    """Corpus and split of the clips as the metrics table names them."""
    corpora = sorted(set(clips["corpus"].to_pylist()) - {None, ""})
    splits = sorted(set(clips["split"].to_pylist()) - {None, ""})
    return "+".join(corpora), splits[0] if len(splits) == 1 else "all"


def measure(
    flags: ProbeFlags, clips: pa.Table | None, models: Sequence[Scored], run_id: str
) -> dict[str, Part]:
    """All parts of the probe by name, from the scores in the sub-folders."""
    how = Bootstrap(draws=flags.bootstrap, seed=flags.seed)
    found = {
        "sentences": sentences(
            flags.output, models, dataset=flags.sentences, how=how, run_id=run_id
        )
    }
    if clips is not None:
        found["words"] = words(
            clips, models, least=flags.least_occurrences, most=MOST, how=how, run_id=run_id
        )
        found["respoken"] = respoken(flags.output, clips, models, how=how, run_id=run_id)
    return found


def words_to_print(found: Mapping[str, Part]) -> pa.Table | None:
    """The words as the labels rate them; as the first model does where there are no labels."""
    rated = found["words"].table if "words" in found else None
    if rated is None or not len(rated):
        return None
    return rated.filter(pc.equal(rated["source"], rated["source"][0]))


def sentences(
    output: str, models: Sequence[Scored], *, dataset: str, how: Bootstrap, run_id: str
) -> Part:
    """Scores of the spoken sentences by their sentiment (Figure 10b).

    Args:
        output: the probe's.
        models: with the scores of the sentences.
        dataset: name of the sentences.
        how: draws and seed of the intervals.
        run_id: named in the table.
    """
    spoken = _spoken(storage.join(output, SENTENCES_SPOKEN))
    texts, voices = spoken["transcript"], pa.array(_voices(spoken), pa.string())
    tables = []
    for one in models:
        scored = _joined(spoken, _scores(one.sentences))
        columns = {name: scored[name] for name in scored.column_names}
        columns |= {"text": texts, "voice": voices}
        columns |= {
            "model": _repeated(one.model, len(scored)),
            "run_id": _repeated(run_id, len(scored)),
        }
        nothing = pa.nulls(len(scored))
        filled = [columns.get(f.name, nothing).cast(f.type) for f in SENTENCES]
        tables.append(pa.table(filled, schema=SENTENCES))
    table = pa.concat_tables(tables)
    rows = sentiment_rows(table, dataset=dataset, bootstrap=how)
    return Part(rows=rows, table=table, pictures={"sentiment": sentiment_figure(table, rows)})


def words(
    clips: pa.Table,
    models: Sequence[Scored],
    *,
    least: int,
    most: int,
    how: Bootstrap,
    run_id: str,
) -> Part:
    """The words of the corpus as its labels rate them, and as every model does (Figure 10a).

    Args:
        clips: of `chosen_clips`.
        models: with the scores of the transcribed ones.
        least: occurrences a word needs.
        most: words at each end that are shown.
        how: draws and seed of the intervals.
        run_id: named in the table.
    """
    dataset, split = dataset_of(clips)
    said = transcribed(clips)
    about = said.select(["clip_id", "transcript", "speaker"])
    rated = {(one.model, one.name): _joined(about, _scores(one.clips)) for one in models}
    notes: list[str] = []
    if said["valence"].null_count < len(said):
        rated = {(_LABELS, _LABELS): said.drop_columns(["status"]), **rated}
    else:
        notes.append("words: no clip with a transcript has a valence label; only models rate them")
    rows, tables = [transcribed_row(clips, dataset=dataset, split=split)], []
    pictures: dict[str, Picture] = {}
    for (source, name), table in rated.items():
        try:
            found = word_ratings(
                table, source=source, least=least, most=most, bootstrap=how, run_id=run_id
            )
        except ConfigError as error:  # nothing to rate: no word, or no score
            notes.append(f"words by {source}: {error}")
            continue
        rows += word_rows(found, dataset=dataset, split=split)
        tables.append(found)
        if not len(found):
            notes.append(f"words: none is said {least} times or more (--least-occurrences)")
        pictures |= {f"words-{name}": word_cloud(found), f"word-means-{name}": word_chart(found)}
    table = pa.concat_tables([WORDS.empty_table(), *tables])
    return Part(rows=rows, table=table, pictures=pictures, notes=tuple(dict.fromkeys(notes)))


def respoken(
    output: str, clips: pa.Table, models: Sequence[Scored], *, how: Bootstrap, run_id: str
) -> Part:
    """Scores of the re-spoken clips beside those of the originals and the labels (10c, 11).

    Args:
        output: the probe's.
        clips: of `chosen_clips`.
        models: with the scores of the transcribed clips, and of the same words spoken again.
        how: draws and seed of the intervals.
        run_id: named in the table.
    """
    spoken = _spoken(storage.join(output, CLIPS_RESPOKEN))
    ids = (spoken[name].to_pylist() for name in ("clip_id", "source_clip_id"))
    try:
        pairs = respoken_pairs(
            clips,
            {one.model: _scores(one.clips) for one in models},
            {one.model: _scores(one.respoken) for one in models},
            dict(zip(*ids, strict=True)),
        )
    except ConfigError as error:  # all clips of one side failed; their rows say why
        return Part(rows=[], table=RESPOKEN.empty_table(), pictures={}, notes=(str(error),))
    rows = respoken_rows(pairs, how)
    pictures = {
        "respoken-distribution": distribution_figure(pairs, rows),
        "respoken-ccc": ccc_figure(rows),
    }
    return Part(rows=rows, table=pairs.table(run_id), pictures=pictures)


def write(run: Run, rows: Sequence[Row], found: Mapping[str, Part]) -> list[str]:
    """Write metrics, tables and pictures; returns the names of the pictures.

    Raises:
        WriteError: the output cannot be written.
    """
    output, written = run.output, []
    parts.write_part(storage.join(output, METRICS_PART), to_table(rows, run.run_id))
    for name, part in found.items():
        parts.write_part(storage.join(output, name, "part-00000.parquet"), part.table)
        for picture, files in part.pictures.items():
            for suffix, data in files.items():
                storage.write_atomic(storage.join(output, f"{picture}.{suffix}"), data)
                written.append(f"{picture}.{suffix}")
    return written


def _scores(folder: str) -> pa.Table:
    wanted = ["clip_id", "status", *DIMENSIONS]
    return read_predictions(folder).table.select(wanted)


def _joined(clips: pa.Table, scores: pa.Table) -> pa.Table:
    """The clips with their scores, in the clips' order; every one has a row."""
    place = pc.index_in(clips["clip_id"], value_set=scores["clip_id"].combine_chunks())
    found = scores.select(["status", *DIMENSIONS]).take(place)
    kept = clips.select([name for name in clips.column_names if name not in found.column_names])
    for name in found.column_names:
        kept = kept.append_column(name, found[name])
    return kept


def _spoken(folder: str) -> pa.Table:
    """The manifest of a synthesis, with what it carries beyond a manifest's own columns."""
    found = [parts.read_part(uri) for uri in manifest_parts(folder)]
    if not found or None in found:
        raise RaysersError(f"{folder} has no manifest: was it removed?")
    return pa.concat_tables(found)


def _voices(spoken: pa.Table) -> list[str | None]:
    """Voice with its rate and pitch: what sentences have to share to be compared."""
    columns = (spoken[name].to_pylist() for name in ("voice", "rate_wpm", "pitch"))
    variants = zip(*columns, strict=True)
    return [" ".join(str(part) for part in how if part is not None) or None for how in variants]


def _repeated(value: str, rows: int) -> pa.Array:
    return pa.array([value] * rows, pa.string())
