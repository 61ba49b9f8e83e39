"""Commands that analyse models and their outputs: evaluate, robustness, probe and report.

What they run takes a second to import, so that `--help` and mistakes do not wait for it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raysers.annotation import AnnotateTask
from raysers.cli import Output, Uris, as_plain, check_flags
from raysers.commands import command
from raysers.commands.archive import AnnotateFlags, annotate
from raysers.commands.speech import synthesize
from raysers.data.manifest import is_whole, manifest_parts, write_manifest
from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.engine.progress import print_line
from raysers.errors import ConfigError
from raysers.evaluation.flags import EvaluateFlags
from raysers.io import storage
from raysers.robustness.task import RobustnessFlags, RobustnessTask, save_audio
from raysers.run import Exit, Run, with_absolute_paths
from raysers.types import DIMENSIONS
from raysers.words.flags import CLIPS, CLIPS_RESPOKEN, CORPUS, SENTENCES_SPOKEN, ProbeFlags

if TYPE_CHECKING:
    import pyarrow as pa

    from raysers.evaluation.rows import Row
    from raysers.words.probe import Scored


def _folder_names(models: Sequence[str]) -> dict[str, str]:
    """By model, the name of the folder for its predictions: readable, and no other model's."""
    last = {m: re.sub(r"[^\w.-]+", "-", m.rstrip("/").rpartition("/")[2]) for m in models}
    shared = Counter(last.values())

    def digest(model: str) -> str:
        return hashlib.blake2b(model.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()

    return {m: name if shared[name] == 1 else f"{name}-{digest(m)}" for m, name in last.items()}


@command("predictions")
def evaluate(flags: EvaluateFlags) -> int:
    """Evaluate predictions against labels as the paper does: correctness, fairness, intervals.

        raysers evaluate ANNOTATED TRAINED --labels MANIFEST -o EVALUATED --by sex

    Instead of finished predictions, `--model M --input AUDIO` predicts first. The evaluation
    of 15,000 predicted clips takes seconds.

    Result: EVALUATED/metrics/part-00000.parquet, one value a row with its 95 % interval, and
    EVALUATED/tests, the pass-or-fail tests of ser-tests with their thresholds; printed too.
    """
    from raysers.evaluation.evaluate import (
        labelled_clips,
        measure,
        print_coverage,
        read_labels,
        write,
    )
    from raysers.evaluation.join import read_predictions
    from raysers.evaluation.published import print_tests
    from raysers.evaluation.rows import print_metrics, print_notes

    places = ("labels", "predictions", "input", "speakers", "emotion_map")
    flags = with_absolute_paths(flags, *places)
    with Run.open("evaluate", flags.output, table="metrics") as run:
        run.refuse_other_settings(flags.settings)
        found = [read_predictions(uri) for uri in dict.fromkeys(flags.predictions)]
        tasks = [AnnotateTask.load(m, dtype=flags.dtype, max_padded_s=0) for m in flags.model]
        emotions = any(one.has_categories for one in found)
        emotions = emotions or any(task.outputs.categories for task in tasks)
        labels = read_labels(flags, emotions=emotions)
        report = None if flags.model else measure(flags, labels, found)
        run.begin(as_plain(flags), flags.settings)
        if report is None:
            clips = flags.input or (labelled_clips(flags, labels[0], emotions=emotions),)
            for model, name in _folder_names(flags.model).items():
                place = storage.join(flags.output, "predictions", name)
                predict(flags, model, clips, place)
                found.append(read_predictions(place))
            report = measure(flags, labels, found)
        good = report.failed_share <= flags.max_failed
        write(report, run, good=good)
    print_coverage(report.coverage)
    print_metrics(report.rows)
    print_tests(report.tests)
    print_notes(report.notes)
    print(f"metrics: {storage.join(flags.output, 'metrics')}")
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def predict(
    flags: EvaluateFlags | ProbeFlags, model: str, clips: tuple[str, ...], output: str
) -> int:
    """Annotate with a model and the flags of another command; returns the exit code."""
    return annotate.run(
        AnnotateFlags(
            input=clips,
            output=output,
            model=model,
            dtype=flags.dtype,
            workers=flags.workers,
            max_failed=flags.max_failed,
        )
    )


@command("input")
def robustness(flags: RobustnessFlags) -> int:
    r"""How much a model's scores change when its input is changed in ways that should not matter.

        raysers robustness s3://bucket/calls -o s3://bucket/calls-robustness \
            --model msp-dim --suite small

    Every clip is decoded once; the clip and its perturbed variants are scored in the same batches.
    Takes about as long as `raysers annotate`, times the number of perturbations plus one.
    Rerunning the command resumes.

    Result: OUTPUT/robustness/part-*.parquet, one row per clip and perturbation; the share of clips
    left unchanged in OUTPUT/metrics and OUTPUT/robustness.png.
    """
    from raysers.robustness import summary

    with ClipJob.open(flags, "robustness", table=RobustnessTask.table) as job:
        task = RobustnessTask.load(flags, job.run.earlier)
        job.prepare(task)
        names = ", ".join(task.variant_names)
        print_line(f"{len(task.variant_names)} variants of every clip: {names}")
        if flags.dry_run:
            return job.estimate()
        code = job.execute()
        summary.report(job, task, flags)
        save_audio(job, task.perturbed, flags.save_audio)
        return code


#: What is printed: group, metrics, title of the table; and how many lines of either end of it.
_PRINTED = (
    ("word", ("word_mean",), "words by mean valence"),
    ("sentiment", ("sentiment_mean", "mean_shift"), "scores by sentiment of the words"),
    ("text", ("sentence_score",), "the paper's sentences"),
    ("speech", ("ccc",), "CCC of original and re-spoken clips"),
)
_ENDS = 10


@command("model")
def probe(flags: ProbeFlags) -> int:
    """Do models react to words? Ratings of words, sentences of known sentiment, a re-spoken set.

        raysers probe msp-dim -o probed
        raysers probe trained trained-frozen --data s3://bucket/podcast -o probed

    Without --data only the sentences are spoken and scored. With it also the words of the
    transcripts are rated, by the labels and by every model, and all of its test clips are
    spoken again by a neutral voice. Costs as much as annotating the sentences, and the test
    clips twice, with each model. Rerunning the command resumes.

    Result: OUTPUT/metrics, words, sentences, respoken (tables), and pictures of each (PNG and SVG).
    """
    from raysers.evaluation.rows import METRICS_PART, print_notes, to_table
    from raysers.words import probe as probing

    flags = with_absolute_paths(flags, "data", "texts")
    with Run.open("probe", flags.output, table="metrics", dry_run=flags.dry_run) as run:
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


def speak_and_score(flags: ProbeFlags, clips: pa.Table | None) -> tuple[Exit, list[Scored]]:
    """Every sub-folder, each by its own job; the worst exit code, and where the scores are."""
    from raysers.evaluation.join import read_predictions
    from raysers.words.probe import Scored, transcribed

    codes = [synthesize.run(flags.speech(sentences=True))]
    speech = {"sentences": storage.join(flags.output, SENTENCES_SPOKEN)}
    if clips is not None:
        for name, manifest in ((CORPUS, clips), (CLIPS, transcribed(clips))):
            place = storage.join(flags.output, name)
            if not is_whole(manifest_parts(place)):
                write_manifest(place, manifest)
        codes.append(synthesize.run(flags.speech(sentences=False)))
        speech |= {
            "clips": storage.join(flags.output, CLIPS),
            "respoken": storage.join(flags.output, CLIPS_RESPOKEN),
        }
    models = []
    for model, name in _folder_names(flags.model).items():
        folders = {what: storage.join(flags.output, "scores", name, what) for what in speech}
        for what, place in speech.items():
            codes.append(predict(flags, model, (place,), folders[what]))
        known_as = read_predictions(folders["sentences"]).model
        models.append(Scored(model=known_as, name=name, **folders))
    return Exit(max(codes)), models


def print_probe(rows: Sequence[Row]) -> None:
    """Words of both ends, scores by sentiment, the paper's sentences, CCC after re-speaking."""
    from raysers.evaluation.rows import bounded, number, print_table

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


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Flags of this job."""

    runs: Uris
    """Output folders of the other jobs; each is known by its run.json."""
    output: Output
    """Folder or s3:// prefix for the page and its figures."""
    audio: Literal["copy", "link", "none"] = "copy"
    """Audio of the clips to listen to: short excerpts beside the page, links to the files, none."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        check_flags(
            (bool(self.runs), "--runs", "empty", "the output folders of other jobs"),
            (bool(self.output), "--output", "empty", "a folder or an s3:// prefix"),
        )


@command("runs")
def report(flags: ReportFlags) -> int:
    """Tables and figures of any runs as one page that works from a disk.

        raysers report ANNOTATED -o REPORT          your archive, with clips to play
        raysers report EVALUATED ROBUSTNESS STUDY -o REPORT

    Seconds; a map of embeddings takes some more. Needs no cluster; an archive of a million
    clips takes under a minute and 2 GB. The page names missing data, with the command that
    produces it.

    Result: REPORT/index.html, its figures in REPORT/figures as SVG and PNG; of archives excerpts of
    audio in REPORT/audio, and REPORT/rate.csv, a table of clips to rate by hand.
    """
    from raysers.report.evidence import read_evidence
    from raysers.report.report import PAGE, write_report

    flags = with_absolute_paths(flags, "runs")
    runs, output = flags.runs, flags.output
    if output in runs:
        raise ConfigError(f"--output {output} is one of --runs: choose another folder")
    settings = {"runs": list(runs)}
    with Run.open("report", output) as run:
        run.refuse_other_settings(settings)
        found = read_evidence(runs)
        run.begin(as_plain(flags), settings)
        names, missing = write_report(found, output, flags.audio)
        outcome = {
            "runs": len(runs),
            "figures": names,
            "missing": [f"{one.name}: {one.why}" for one in missing],
        }
        run.finish("done", outcome)
    if missing:
        print(f"not in these runs: {', '.join(one.name for one in missing)} (the page says how)")
    print(f"report: {storage.join(output, PAGE)}")
    return Exit.DONE
