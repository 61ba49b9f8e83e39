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

from collections.abc import Sequence
from itertools import islice, zip_longest
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
from raysers.run import Exit, Run, with_absolute_paths
from raysers.text import one_line
from raysers.types import DIMENSIONS
from raysers.words import probe as probing
from raysers.words.probe import CLIPS, CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, ProbeFlags
from raysers.words.respoken import AGREEMENT, GROUP, ORIGINAL, RESPOKEN_CLIP

JOB = "probe"
_PRINTED_WORDS = 10


def probe(flags: ProbeFlags) -> int:
    """Check everything, speak, score, measure, write, print; returns the exit code."""
    flags = with_absolute_paths(flags, "data", "texts")
    with Run.open(JOB, flags.output, table="metrics", dry_run=flags.dry_run) as run:
        settings = probing.settings_of(flags)
        run.refuse_other_settings(settings)
        sentences = probing.planned_sentences(flags)
        clips, notes = probing.planned_clips(flags)
        line = f"probe: models: {len(flags.model)}, sentences: {len(sentences):,}"
        if clips is not None:
            said = len(probing.transcribed(clips))
            line += f", clips with transcripts: {said:,} (of {len(clips):,})"
        print(line, flush=True)
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
    print_notes(notes)
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


def print_probe(rows: Sequence[Row], words: pa.Table | None) -> None:
    """Words of both sides, scores by sentiment, the paper's sentences, CCC after re-speaking."""
    if words is not None and len(words):
        mine = words.filter(pc.equal(words["source"], words["source"][0])).to_pylist()
        sides = [
            sorted((w for w in mine if w["side"] == side), key=lambda w: int(w["rank"]))
            for side in ("low", "high")
        ]
        lines = [
            [cell for word in pair for cell in _word_cells(word)]
            for pair in islice(zip_longest(*sides), _PRINTED_WORDS)
        ]
        heads = ("lowest", "valence [95 %]", "highest", "valence [95 %]")
        _print("words by mean valence (occurrences)", heads, lines)
    names = ("positive", "neutral", "negative")
    wanted = [("sentiment_mean", name) for name in names]
    shifts = ("positive - neutral", "negative - neutral", "positive - negative")
    wanted += [("mean_shift", shift) for shift in shifts]
    wanted += [("mean_shift", f"{name} - all") for name in names]
    for model in dict.fromkeys(row.model for row in rows if row.group == "sentiment"):
        own = [row for row in rows if row.model == model]
        found = {(r.metric, r.group_value, r.dimension): r for r in own if r.group == "sentiment"}
        lines = [[of, *(_cell(found.get((m, of, d))) for d in DIMENSIONS)] for m, of in wanted]
        _print(f"{model}: scores by sentiment of the words [95 %]", ("", *DIMENSIONS), lines)
        lines = [
            [row.group_value, number(row.value), number(row.paper)]
            for row in own
            if (row.metric, row.dimension) == ("sentence_score", "valence")
        ]
        _print("the paper's sentences", ("", "valence", "paper"), lines)
    of = {ORIGINAL: "original, labels", RESPOKEN_CLIP: "re-spoken, labels"}
    of[AGREEMENT] = "re-spoken, original"
    ccc = [row for row in rows if row.group == GROUP and row.metric == "ccc"]
    for cell in dict.fromkeys((row.dataset, row.split) for row in ccc):
        mine = [row for row in ccc if (row.dataset, row.split) == cell]
        keys = {(row.model, row.group_value, row.dimension): row for row in mine}
        lines = [
            [model, name, *(_cell(keys.get((model, value, d))) for d in DIMENSIONS)]
            for model in dict.fromkeys(key[0] for key in keys)
            for value, name in of.items()
        ]
        _print(f"{' '.join(cell)}, re-spoken: CCC [95 %]", ("model", "CCC of", *DIMENSIONS), lines)


def _print(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table with its title; lines without any figure are left out."""
    shown = [line for line in lines if set(line[1:]) - {"-", ""}]
    if not shown:
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, head in enumerate(heads):
        left = i == 0 or head in ("highest", "CCC of")
        table.add_column(head, justify="left" if left else "right", no_wrap=True)
    for line in shown:
        table.add_row(*map(one_line, line))
    report_console().print(table)


def _word_cells(word: dict[str, Any] | None) -> tuple[str, str]:
    if word is None:
        return "", ""
    values = [NAN if word[k] is None else word[k] for k in ("valence", "ci_low", "ci_high")]
    return f"{word['word']} ({word['occurrences']:,})", _bounded(*values)


def _cell(row: Row | None) -> str:
    return "-" if row is None else _bounded(row.value, row.ci_low, row.ci_high)


def _bounded(value: float, low: float, high: float) -> str:
    return number(value) + ("" if np.isnan(low) else f" [{number(low)}, {number(high)}]")


main = command(ProbeFlags, probe, __doc__ or "", positional="model")
