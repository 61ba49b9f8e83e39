"""Do models react to words? Ratings of words, sentences of known sentiment, a re-spoken test set.

    raysers probe msp-dim -o probed
    raysers probe trained trained-frozen --data s3://bucket/podcast -o probed

Without --data only the sentences are spoken and scored. With it also the words of the transcripts
are rated, by the labels and by every model, and all of its test clips are spoken again by a
neutral voice. Costs as much as annotating the sentences, and the test clips twice, with each
model. Rerunning the command resumes.

Result: OUTPUT/metrics, words, sentences, respoken (tables), and pictures of each (PNG and SVG).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from raysers.cli import as_plain, command
from raysers.commands.annotate import AnnotateFlags, annotate
from raysers.commands.synthesize import synthesize
from raysers.data.manifest import is_whole, manifest_parts, write_manifest
from raysers.engine import output as parts
from raysers.evaluation.evaluate import folder_names
from raysers.evaluation.predictions import read_predictions
from raysers.evaluation.rows import (
    METRICS_PART,
    NAN,
    Row,
    number,
    print_notes,
    report_console,
    to_table,
)
from raysers.io import storage
from raysers.run import Exit, Run
from raysers.types import DIMENSIONS
from raysers.words import probe as probing
from raysers.words.probe import CLIPS, CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, ProbeFlags
from raysers.words.respoken import AGREEMENT, GROUP, ORIGINAL, RESPOKEN_CLIP
from raysers.words.sentiment import ser_tests_shift

JOB = "probe"
_PRINTED_WORDS = 10


def probe(flags: ProbeFlags) -> int:
    """Check everything, speak, score, measure, write, print; returns the exit code."""
    flags = flags.with_absolute_paths()
    with Run.open(JOB, flags.output, table="metrics", dry_run=flags.dry_run) as run:
        settings = probing.settings_of(flags)
        run.refuse_other_settings(settings)
        sentences = probing.planned_sentences(flags)
        clips, notes = probing.planned_clips(flags)
        _print_plan(flags, len(sentences), clips)
        if flags.dry_run:
            return Exit.DONE
        run.begin(as_plain(flags), settings)
        code, models = speak_and_score(flags, clips)
        found = probing.measure(flags, clips, models, run.run_id)
        rows = [row for part in found.values() for row in part.rows]
        parts.write_part(storage.join(run.output, METRICS_PART), to_table(rows, run.run_id))
        pictures = []
        for name, part in found.items():
            parts.write_part(storage.join(run.output, name, "part-00000.parquet"), part.table)
            notes += part.notes
            for picture, files in part.pictures.items():
                for suffix, content in files.items():
                    pictures.append(f"{picture}.{suffix}")
                    storage.write_atomic(storage.join(run.output, pictures[-1]), content)
        outcome = {"rows": len(rows), "pictures": pictures, "notes": notes}
        run.finish("done" if code == Exit.DONE else "done_with_failures", outcome)
    print_probe(rows, found["words"].table if "words" in found else None)
    print_notes([*notes, *_reading_notes(rows)])
    print(f"metrics: {storage.join(flags.output, 'metrics')}")
    print(f"pictures: {', '.join(pictures)}")
    return code


def speak_and_score(flags: ProbeFlags, clips: pa.Table | None) -> tuple[Exit, list[probing.Scored]]:
    """Every sub-folder, each by its own job; the worst exit code, and where the scores are."""
    codes = [synthesize(flags.speech(sentences=True))]
    speech = {"sentences": storage.join(flags.output, SENTENCES_SPOKEN)}
    if clips is not None:
        for name, manifest in ((CORPUS, clips), (CLIPS, probing.transcribed(clips))):
            place = storage.join(flags.output, name)
            if not is_whole(manifest_parts(place)):
                write_manifest(place, manifest)
        codes.append(synthesize(flags.speech(sentences=False)))
        speech |= {
            "clips": storage.join(flags.output, CLIPS),
            "respoken": storage.join(flags.output, CLIPS_RESPOKEN),
        }
    models = []
    for model, name in folder_names(flags.model).items():
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
        models.append(probing.Scored(model=known_as, name=name, **folders))
    return Exit(max(codes)), models


def _print_plan(flags: ProbeFlags, sentences: int, clips: pa.Table | None) -> None:
    models = "1 model" if len(flags.model) == 1 else f"{len(flags.model)} models"
    line = f"probe: {models}, {sentences:,} sentences"
    if clips is not None:
        said = len(probing.transcribed(clips))
        line += f", {said:,} clips with transcripts (of {len(clips):,})"
    print(line, flush=True)


def print_probe(rows: Sequence[Row], words: pa.Table | None) -> None:
    """Words of both sides, shifts by sentiment beside ser-tests', CCC after re-speaking."""
    if words is not None and len(words):
        mine = words.filter(pc.equal(words["source"], words["source"][0])).to_pylist()
        sides = [
            sorted((w for w in mine if w["side"] == side), key=lambda w: int(w["rank"]))
            for side in ("low", "high")
        ]
        heads = ("lowest", "valence [95 %]", "highest", "valence [95 %]")
        lines = [
            [cell for side in sides for cell in _word_cells(side[i : i + 1])]
            for i in range(min(_PRINTED_WORDS, max(map(len, sides))))
        ]
        _print("words by mean valence (occurrences)", heads, lines)
    heads = ("", *DIMENSIONS)
    for model in dict.fromkeys(row.model for row in rows if row.group in ("sentiment", "text")):
        found = {
            (r.metric, r.group_value, r.dimension): r
            for r in rows
            if r.model == model and r.group in ("sentiment", "text")
        }
        shown = [("sentiment_mean", s) for s in ("positive", "neutral", "negative")]
        shown += [
            ("mean_shift", f"{one} - {other}")
            for one, other in (("positive", "neutral"), ("negative", "neutral"),
                               ("positive", "negative"))
        ]  # fmt: skip
        lines = [[v, *(_cell(found.get((m, v, d))) for d in DIMENSIONS)] for m, v in shown]
        _print(f"{model}: scores by sentiment of the words [95 %]", heads, lines)
        lines = [
            [value, number(row.value), number(row.paper)]
            for (metric, value, dimension), row in found.items()
            if (metric, dimension) == ("sentence_score", "valence")
        ]
        _print("the paper's sentences", ("", "valence", "paper"), lines)
        lines = [
            [f"{s} - all"]
            + [
                text
                for d in DIMENSIONS
                for row in [found.get(("mean_shift", f"{s} - all", d))]
                for text in (number(row.value if row else NAN),
                             number(ser_tests_shift(s, d, model=model)))
            ]
            for s in ("positive", "neutral", "negative")
            if any(("mean_shift", f"{s} - all", d) in found for d in DIMENSIONS)
        ]  # fmt: skip
        beside = ("", *(head for d in DIMENSIONS for head in (d, "ser-tests")))
        _print("shift of the mean against all sentences", beside, lines)
    of = {ORIGINAL: "original, labels", RESPOKEN_CLIP: "re-spoken, labels"}
    of[AGREEMENT] = "re-spoken, original"
    ccc = [row for row in rows if row.group == GROUP and row.metric == "ccc"]
    for cell in dict.fromkeys((row.dataset, row.split) for row in ccc):
        keys = {
            (r.model, r.group_value, r.dimension): r for r in ccc if (r.dataset, r.split) == cell
        }
        lines = [
            [model, name, *(_cell(keys.get((model, value, d))) for d in DIMENSIONS)]
            for model in dict.fromkeys(key[0] for key in keys)
            for value, name in of.items()
        ]
        _print(f"{' '.join(cell)}, re-spoken: CCC [95 %]", ("model", "CCC of", *DIMENSIONS), lines)


def _reading_notes(rows: Sequence[Row]) -> Iterator[str]:
    """How to read the figures, and the published ones beside them."""
    groups = {row.group for row in rows}
    if "word" in groups:
        yield "words: a word counts as often as it occurs; intervals resample speakers"
    if "sentiment" in groups:
        yield "sentiment: intervals resample words, and templates and voices if there are several"
        yield "ser-tests: English sentences in its voices, scores rounded to 2 decimals"
    if "text" in groups:
        yield "paper: its w2v2-L-robust with 24 layers and another synthetic voice"
    if GROUP in groups:
        yield "re-spoken: the labels are of the original speech, the voice is neutral"


def _print(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table with its title; lines without any figure are left out."""
    shown = [line for line in lines if set(line[1:]) - {"-", ""}]
    if not shown:
        return
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        left = i == 0 or head in ("highest", "CCC of")
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for line in shown:
        table.add_row(*line)
    console = report_console()
    console.print(title, style="italic")
    console.print(table)
    console.print()


def _word_cells(found: Sequence[dict[str, Any]]) -> tuple[str, str]:
    if not found:
        return "", ""
    word = found[0]
    values = [NAN if word[k] is None else word[k] for k in ("valence", "ci_low", "ci_high")]
    return f"{word['word']} ({word['occurrences']:,})", _bounded(*values)


def _cell(row: Row | None) -> str:
    return "-" if row is None else _bounded(row.value, row.ci_low, row.ci_high)


def _bounded(value: float, low: float, high: float) -> str:
    return number(value) + ("" if np.isnan(low) else f" [{number(low)}, {number(high)}]")


main = command(ProbeFlags, probe, __doc__ or "", positional="model")
