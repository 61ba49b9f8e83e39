"""Do the models hear words? Ratings of words, sentences of known sentiment, a test set re-spoken.

    python jobs/probe.py --model msp-dim --output probed
    python jobs/probe.py --model trained trained-frozen --data s3://bucket/msp-podcast \
        --output s3://bucket/probed

Without --data only the sentences are spoken and scored. With it also the words of the transcripts
are rated, by the labels and by every model, and all of its test clips are spoken again by a
neutral voice. Costs as much as annotating the sentences, and the test clips twice, with each
model. The same command again resumes.
Result: OUTPUT/metrics, words, sentences, respoken (tables), and pictures of each (PNG and SVG).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from jobs import synthesize as synthesis
from jobs.annotate import AnnotateFlags, annotate
from jobs.synthesize import SynthesizeFlags
from raysers.annotate import AnnotateTask
from raysers.cli import Uris, as_plain, parse
from raysers.data.manifest import is_whole, manifest_parts, read_manifest, write_manifest
from raysers.engine import output as parts
from raysers.errors import ConfigError
from raysers.evaluation import runs, tables
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.predictions import read_predictions
from raysers.evaluation.rows import to_table
from raysers.io import storage
from raysers.models.tts_engine import NEUTRAL
from raysers.run import Exit, Run, absolute_output, quiet_environment, run_main
from raysers.words import probe as probing
from raysers.words.cloud import require_wordcloud
from raysers.words.probe import CLIPS, CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, Scored
from raysers.words.probe_summary import print_probe, reading_notes
from raysers.words.ratings import LEAST, MOST
from raysers.words.sentences import check_sentiments
from raysers.words.speaking import TABLE

JOB = "probe"
#: Flags that change nothing in the tables.
_NOT_DECIDING = ("output", "workers", "max_failed", "dry_run")


@dataclass(frozen=True, kw_only=True)
class ProbeFlags:
    """Flags of this job."""

    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Models to look at side by side, such as one that was fine-tuned and one that was not."""
    output: str
    """Folder or s3:// prefix for speech, scores, tables and pictures."""
    data: Uris = ()
    """Labelled corpus with transcripts: manifests, tables, corpus folders (jobs/index.py has
    --emotion-map for corpora with categories only)."""
    split: tuple[str, ...] = ()
    """Splits of --data; when left out, those for testing, or all clips when none is."""
    templates: tuple[str, ...] = ("this-is",)
    """Sentences of known sentiment, as jobs/synthesize.py takes them."""
    texts: str = ""
    """In place of --templates: a table with the columns text and sentiment."""
    tts: Literal["espeak", "command"] = "espeak"
    """What speaks: espeak-ng, or the program of --tts-command."""
    tts_command: str = ""
    """Program and arguments, as jobs/synthesize.py takes them."""
    voice: tuple[str, ...] = (NEUTRAL,)
    """Voices; each sentence and clip is spoken by all of them."""
    seed: int = 0
    """Of the bootstrap, and of random voices."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    least_occurrences: int = LEAST
    """How often a word must be said to be rated."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the models."""
    limit: int = 0
    """Only the first N sentences and the first N clips; 0 takes all."""
    workers: int = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print how much there is to speak and to score, and write nothing."""
    max_failed: float = 0.05
    """Highest share of failed rows of any step before the job ends with exit code 3."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        for good, message in (
            (bool(self.model), "--model is empty: give at least one model"),
            (len(set(self.model)) == len(self.model), "--model has the same model twice"),
            (bool(self.output), "--output is empty: give a folder or an s3:// prefix"),
            (
                not self.texts or self.templates == ProbeFlags.templates,
                "give either --texts or --templates",
            ),
            (
                bool(self.data) or not self.split,
                f"--split {' '.join(self.split)}: it chooses clips of --data, which is missing",
            ),
            (self.bootstrap >= 0, f"--bootstrap is {self.bootstrap}: give 0 (none) or more draws"),
            (
                self.least_occurrences >= 1,
                f"--least-occurrences is {self.least_occurrences}: give 1 or more",
            ),
        ):
            if not good:
                raise ConfigError(message)
        # limits, workers and voices are those of the jobs below
        self.speech(sentences=True).check()

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


def probe(flags: ProbeFlags) -> int:
    """Check everything, speak, score, measure, write, print; returns the exit code."""
    flags = _with_absolute_paths(flags)
    settings = {k: v for k, v in as_plain(flags).items() if k not in _NOT_DECIDING}
    with Run.open(JOB, flags.output, table="metrics", dry_run=flags.dry_run) as run:
        tasks = [
            AnnotateTask.load(model, dtype=flags.dtype, max_padded_s=0) for model in flags.model
        ]
        if len({task.model for task in tasks}) < len(tasks):
            raise ConfigError("--model has the same model twice")
        settings["model_revisions"] = [task.revision for task in tasks]
        run.refuse_other_settings(settings)
        sentences = _sentences(flags)
        clips, notes = _clips(flags)
        _print_plan(flags, len(sentences), clips)
        if flags.dry_run:
            return Exit.DONE
        run.begin(as_plain(flags), settings)
        code, models = _speak_and_score(flags, clips)
        found = _measure(flags, clips, models, run.run_id)
        rows = [row for part in found.values() for row in part.rows]
        parts.write_part(storage.join(run.output, runs.METRICS_PART), to_table(rows, run.run_id))
        pictures = probing.write(run.output, found)
        notes += [note for part in found.values() for note in part.notes]
        outcome = {"rows": len(rows), "pictures": pictures, "notes": notes}
        run.finish("done" if code == Exit.DONE else "done_with_failures", outcome)
    print_probe(rows, _words_to_print(found))
    tables.print_notes([*notes, *reading_notes(rows)])
    print(f"metrics: {storage.join(flags.output, 'metrics')}")
    print(f"pictures: {', '.join(pictures)}")
    return code


def _with_absolute_paths(flags: ProbeFlags) -> ProbeFlags:
    flags.check()
    return replace(
        flags,
        output=absolute_output(flags.output),
        data=tuple(map(storage.absolute, flags.data)),
        texts=storage.absolute(flags.texts) if flags.texts else "",
    )


def _sentences(flags: ProbeFlags) -> pa.Table:
    """The sentences of known sentiment, once everything about their synthesis is checked."""
    asked = flags.speech(sentences=True)
    with Run.open(synthesis.JOB, asked.output, table=TABLE, dry_run=True) as run:
        table = synthesis.check(asked, run).read.table
    if "sentiment" not in table.column_names:
        raise ConfigError(f"--texts {flags.texts} has no column 'sentiment' to compare by")
    check_sentiments(table["sentiment"].to_pylist())
    return table


def _clips(flags: ProbeFlags) -> tuple[pa.Table | None, list[str]]:
    """The clips of --data that the probe is about: as an earlier run chose them, or anew."""
    if not flags.data:
        return None, ["no --data: words of a corpus are not rated, no test set is spoken again"]
    require_wordcloud()
    place = storage.join(flags.output, CORPUS)
    if is_whole(manifest_parts(place)):
        return read_manifest(place), []
    return probing.chosen_clips(flags.data, flags.split, flags.limit)


def _print_plan(flags: ProbeFlags, sentences: int, clips: pa.Table | None) -> None:
    models = "1 model" if len(flags.model) == 1 else f"{len(flags.model)} models"
    line = f"{JOB}: {models}, {sentences:,} sentences"
    if clips is not None:
        said = len(probing.transcribed(clips))
        line += f", {said:,} clips with transcripts (of {len(clips):,})"
    print(line, flush=True)


def _speak_and_score(flags: ProbeFlags, clips: pa.Table | None) -> tuple[Exit, list[Scored]]:
    """Every sub-folder, each by its own job; the worst exit code, and where the scores are."""
    codes = [synthesis.synthesize(flags.speech(sentences=True))]
    speech = {"sentences": storage.join(flags.output, SENTENCES_SPOKEN)}
    if clips is not None:
        for name, manifest in ((CORPUS, clips), (CLIPS, probing.transcribed(clips))):
            place = storage.join(flags.output, name)
            if not is_whole(manifest_parts(place)):
                write_manifest(place, manifest)
        codes.append(synthesis.synthesize(flags.speech(sentences=False)))
        speech |= {
            "clips": storage.join(flags.output, CLIPS),
            "respoken": storage.join(flags.output, CLIPS_RESPOKEN),
        }
    models = []
    for model, name in runs.folder_names(flags.model).items():
        folders = {what: storage.join(flags.output, "scores", name, what) for what in speech}
        for what, place in speech.items():
            scoring = AnnotateFlags(
                input=(place,),
                output=folders[what],
                model=model,
                dtype=flags.dtype,
                workers=flags.workers,
                max_failed=flags.max_failed,
            )
            codes.append(annotate(scoring))
        known_as = read_predictions(folders["sentences"]).model
        models.append(Scored(model=known_as, name=name, **folders))
    return Exit(max(codes)), models


def _measure(
    flags: ProbeFlags, clips: pa.Table | None, models: Sequence[Scored], run_id: str
) -> dict[str, probing.Part]:
    how = Bootstrap(draws=flags.bootstrap, seed=flags.seed)
    dataset = (
        flags.texts.rpartition("/")[2].partition(".")[0]
        if flags.texts
        else "+".join(flags.templates)
    )
    found = {
        "sentences": probing.sentences(
            flags.output, models, dataset=dataset, how=how, run_id=run_id
        )
    }
    if clips is None:
        return found
    found["words"] = probing.words(
        clips, models, least=flags.least_occurrences, most=MOST, how=how, run_id=run_id
    )
    found["respoken"] = probing.respoken(flags.output, clips, models, how=how, run_id=run_id)
    return found


def _words_to_print(found: Mapping[str, probing.Part]) -> pa.Table | None:
    """The words as the labels rate them; as the first model does where there are no labels."""
    words = found["words"].table if "words" in found else None
    if words is None or not len(words):
        return None
    return words.filter(pc.equal(words["source"], words["source"][0]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: probe(parse(ProbeFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
