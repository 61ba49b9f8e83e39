"""The probe: spoken sentences, rated words and re-spoken clips, as tables and figures.

Sentences and clips are spoken by `synthesize` and scored by `annotate` in sub-folders of the
output, so rerunning the command makes tables and figures again without scoring anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import Models, Output, Uris, as_plain, check_flags
from raysers.data.manifest import is_whole, manifest_parts, read_manifest
from raysers.display import Picture
from raysers.engine import output as parts
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.join import read_predictions
from raysers.evaluation.rows import Row
from raysers.io import storage
from raysers.models.tts import NEUTRAL
from raysers.run import Run
from raysers.types import DIMENSIONS
from raysers.words import figures, spoken
from raysers.words.ratings import LEAST, MOST, WORDS, transcribed_row, word_ratings, word_rows
from raysers.words.synthesize import JOB, TABLE, SynthesizeFlags, check
from raysers.words.texts import recognised_texts, with_recognised

#: Sub-folders of the output.
CORPUS, CLIPS = "corpus", "clips"
SENTENCES_SPOKEN, CLIPS_RESPOKEN = "synthesised/sentences", "synthesised/transcripts"
#: Flags that change nothing in the tables.
_NOT_DECIDING = ("output", "workers", "max_failed", "dry_run")


@dataclass(frozen=True, kw_only=True)
class ProbeFlags:
    """Flags of this job."""

    model: Models
    """Models to compare, such as one that was fine-tuned and one that was not."""
    output: Output
    """Folder or s3:// prefix for speech, scores, tables and pictures."""
    data: Uris = ()
    """Labelled corpus with transcripts: manifests, tables, corpus folders (`raysers index` has
    --emotion-map for corpora with categories only), or an output of `raysers transcribe`."""
    split: tuple[str, ...] = ()
    """Splits of --data; when left out, those for testing, or all clips when none is."""
    templates: tuple[str, ...] = ("this-is",)
    """Sentences of known sentiment, as `raysers synthesize` takes them."""
    texts: str = ""
    """In place of --templates: a table with the columns text and sentiment."""
    tts: Literal["espeak", "gtts", "command"] = "espeak"
    """Speech synthesizer, as `raysers synthesize` takes it."""
    tts_command: str = ""
    """Program and arguments, as `raysers synthesize` takes them."""
    voice: tuple[str, ...] = (NEUTRAL,)
    """Voices; each sentence and clip is spoken by all of them."""
    seed: int = 0
    """Of the bootstrap, and of random voices."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    least_occurrences: int = LEAST
    """Occurrences a word needs to be rated."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the models."""
    limit: int = 0
    """Only the first N sentences and the first N clips; 0 takes all."""
    workers: int | Literal["local"] = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none; `local` works in this
    process, without Ray."""
    dry_run: bool = False
    """Print how much there is to speak and to score, and write nothing."""
    max_failed: float = 0.05
    """Highest share of failed rows of any step before the job ends with exit code 3."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        own_texts = self.texts and self.templates != ProbeFlags.templates
        of_data = "also --data: it chooses clips of --data"
        least = self.least_occurrences
        check_flags(
            (bool(self.model), "--model", "empty", "at least one model"),
            (bool(self.output), "--output", "empty", "a folder or an s3:// prefix"),
            (not own_texts, "--texts", self.texts, "either this or --templates"),
            (not self.split or bool(self.data), "--split", " ".join(self.split), of_data),
            (self.bootstrap >= 0, "--bootstrap", self.bootstrap, "0 (none) or more draws"),
            (least >= 1, "--least-occurrences", least, "1 or more"),
        )
        self.speech(sentences=True).check()  # limit, workers and voices

    def speech(self, *, sentences: bool) -> SynthesizeFlags:
        """How the sentences, or else the transcripts of the clips, are spoken."""
        texts = self.texts if sentences else storage.join(self.output, CLIPS)
        return SynthesizeFlags(
            texts=texts,
            templates=() if texts else self.templates,
            output=storage.join(self.output, SENTENCES_SPOKEN if sentences else CLIPS_RESPOKEN),
            tts=self.tts,
            tts_command=self.tts_command,
            voice=self.voice,
            seed=self.seed,
            limit=self.limit if sentences else 0,
            workers=self.workers,
            dry_run=self.dry_run,
            max_failed=self.max_failed,
        )

    @property
    def sentences(self) -> str:
        """Name of the sentences in the tables."""
        named = self.texts.rpartition("/")[2].partition(".")[0]
        return named if self.texts else "+".join(self.templates)


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
