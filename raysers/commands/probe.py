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

import pyarrow as pa

from raysers.cli import as_plain, command
from raysers.commands.evaluate import predict
from raysers.commands.synthesize import synthesize
from raysers.data.manifest import is_whole, manifest_parts, write_manifest
from raysers.engine import output as parts
from raysers.evaluation.evaluate import folder_names
from raysers.evaluation.predictions import read_predictions
from raysers.evaluation.rows import (
    METRICS_PART,
    Row,
    bounded,
    number,
    print_notes,
    print_table,
    to_table,
)
from raysers.io import storage
from raysers.run import Exit, Run, with_absolute_paths
from raysers.types import DIMENSIONS
from raysers.words import probe as probing
from raysers.words.probe import CLIPS, CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, ProbeFlags
from raysers.words.respoken import GROUP

JOB = "probe"
#: What is printed: group, metrics, title of the table; and how many lines of either end of it.
_PRINTED = (
    ("word", ("word_mean",), "words by mean valence"),
    ("sentiment", ("sentiment_mean", "mean_shift"), "scores by sentiment of the words"),
    ("text", ("sentence_score",), "the paper's sentences"),
    (GROUP, ("ccc",), "CCC of original and re-spoken clips"),
)
_ENDS = 10


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
    print_probe(rows)
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
            codes.append(predict(flags, model, (place,), folders[what]))
        known_as = read_predictions(folders["sentences"]).model
        models.append(probing.Scored(model=known_as, name=name, **folders))
    return Exit(max(codes)), models


def print_probe(rows: Sequence[Row]) -> None:
    """Words of both ends, scores by sentiment, the paper's sentences, CCC after re-speaking."""
    for group, metrics, title in _PRINTED:
        own = [row for row in rows if row.group == group and row.metric in metrics]
        for key in dict.fromkeys((row.model, row.dataset, row.split) for row in own):
            cells: dict[str, dict[str, str]] = {}
            for row in own:
                if (row.model, row.dataset, row.split) == key:
                    cells.setdefault(row.group_value, {})[row.dimension] = bounded(row)
                    if row.paper == row.paper:
                        cells[row.group_value][row.dimension] += f" (paper {number(row.paper)})"
            lines = [[name, *(of.get(d, "-") for d in DIMENSIONS)] for name, of in cells.items()]
            lines = lines if len(lines) <= 2 * _ENDS else lines[:_ENDS] + lines[-_ENDS:]
            print_table(f"{' '.join(filter(None, key))}: {title}", ("", *DIMENSIONS), lines)


main = command(ProbeFlags, probe, __doc__ or "", positional="model")
