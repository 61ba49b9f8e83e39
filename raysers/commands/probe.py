"""Do models react to words? Ratings of words, sentences of known sentiment, a re-spoken test set.

    raysers probe msp-dim -o probed
    raysers probe trained trained-frozen --data s3://bucket/msp-podcast -o probed

Without --data only the sentences are spoken and scored. With it also the words of the transcripts
are rated, by the labels and by every model, and all of its test clips are spoken again by a
neutral voice. Costs as much as annotating the sentences, and the test clips twice, with each
model. Rerunning the command resumes.

Result: OUTPUT/metrics, words, sentences, respoken (tables), and pictures of each (PNG and SVG).
"""

from __future__ import annotations

import pyarrow as pa

from raysers.cli import as_plain, command
from raysers.commands.annotate import AnnotateFlags, annotate
from raysers.commands.synthesize import synthesize
from raysers.evaluation import runs, tables
from raysers.evaluation.predictions import read_predictions
from raysers.io import storage
from raysers.run import Exit, Run
from raysers.words import probe as probing
from raysers.words.probe_flags import CLIPS, CLIPS_RESPOKEN, SENTENCES_SPOKEN, ProbeFlags
from raysers.words.probe_summary import print_probe, reading_notes

JOB = "probe"


def probe(flags: ProbeFlags) -> int:
    """Check everything, speak, score, measure, write, print; returns the exit code."""
    flags = flags.with_absolute_paths()
    with Run.open(JOB, flags.output, table="metrics", dry_run=flags.dry_run) as run:
        settings = probing.settings_of(flags)
        run.refuse_other_settings(settings)
        sentences = probing.planned_sentences(flags)
        clips, notes = probing.planned_clips(flags)
        probing.print_plan(flags, len(sentences), clips)
        if flags.dry_run:
            return Exit.DONE
        run.begin(as_plain(flags), settings)
        code, models = speak_and_score(flags, clips)
        found = probing.measure(flags, clips, models, run.run_id)
        rows = [row for part in found.values() for row in part.rows]
        pictures = probing.write(run, rows, found)
        notes += [note for part in found.values() for note in part.notes]
        outcome = {"rows": len(rows), "pictures": pictures, "notes": notes}
        run.finish("done" if code == Exit.DONE else "done_with_failures", outcome)
    print_probe(rows, probing.words_to_print(found))
    tables.print_notes([*notes, *reading_notes(rows)])
    print(f"metrics: {storage.join(flags.output, 'metrics')}")
    print(f"pictures: {', '.join(pictures)}")
    return code


def speak_and_score(flags: ProbeFlags, clips: pa.Table | None) -> tuple[Exit, list[probing.Scored]]:
    """Every sub-folder, each by its own job; the worst exit code, and where the scores are."""
    codes = [synthesize(flags.speech(sentences=True))]
    speech = {"sentences": storage.join(flags.output, SENTENCES_SPOKEN)}
    if clips is not None:
        probing.write_clips(flags.output, clips)
        codes.append(synthesize(flags.speech(sentences=False)))
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
        models.append(probing.Scored(model=known_as, name=name, **folders))
    return Exit(max(codes)), models


main = command(ProbeFlags, probe, __doc__ or "", positional="model")
