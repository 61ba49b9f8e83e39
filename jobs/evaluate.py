"""How good, how fair and how sure: predictions against labels, as the paper measures them.

    python jobs/evaluate.py --predictions ANNOTATED TRAINED --labels MANIFEST --output EVALUATED \
        --by sex

Instead of finished predictions, `--model M --input AUDIO` predicts first. Once predicted, 15,000
clips take seconds.
Result: EVALUATED/metrics/part-00000.parquet, one value a row with its 95 % interval; printed too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from jobs.annotate import AnnotateFlags, annotate
from raysers.annotate import AnnotateTask
from raysers.cli import Uris, as_plain, parse
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation import runs, tables
from raysers.evaluation.evaluate import Options
from raysers.evaluation.join import labelled_only
from raysers.evaluation.predictions import Predictions, read_predictions
from raysers.io import storage
from raysers.run import Exit, Run, absolute_output, quiet_environment, run_main

JOB = "evaluate"
#: Flags that change nothing in the rows.
_NOT_DECIDING = ("output", "workers", "max_failed")


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Flags of this job."""

    labels: Uris
    """Labelled clips: manifests, tables, corpus folders, audformat databases."""
    output: str
    """Folder or s3:// prefix for the metrics."""
    predictions: Uris = ()
    """Output folders of annotate or train; each is one model's."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [MODEL ...]")] = ()
    """Models to predict with first, into OUTPUT/predictions."""
    input: Uris = ()
    """What --model predicts: audio or manifests; default: the labelled data."""
    pool: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The predictions are one model's: the folds of a cross-validation, each clip once."""
    by: tuple[Literal["sex", "speaker", "language", "emotion", "split", "session"], ...] = ()
    """Also measure every value of these columns by itself."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    speaker_samples: int = 200
    """Per-speaker CCC: clips drawn of each speaker, who must have more than that."""
    in_domain: str = ""
    """Corpus the models were trained on, for the cross-corpus drop; default: msp-podcast."""
    seed: int = 0
    """Of the draws and of the random baseline."""
    corpus: str = "auto"
    """Layout of the labelled data, when it is not to be recognised by itself."""
    emotion_map: str = ""
    """Map from emotion categories to the dimensions (a name or YAML), for data without them."""
    speakers: str = ""
    """CSV with the `sex` of every `speaker` or `video`, for data that does not say."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of --model."""
    workers: int = 0
    """Model workers for --model; 0 uses every GPU, or every CPU when there is none."""
    max_failed: float = 0.05
    """Highest share of failed predictions before the job ends with exit code 3."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        rules = (
            (bool(self.labels), "--labels is empty: give labelled clips"),
            (bool(self.output), "--output is empty: give a folder or an s3:// prefix"),
            (
                bool(self.predictions or self.model),
                "nothing to evaluate: give --predictions FOLDER or --model MODEL",
            ),
            (
                bool(self.model) or not self.input,
                "--input is what --model predicts: give --model, or drop it",
            ),
            (
                not self.pool or len(self.predictions) + len(self.model) > 1,
                "--pool puts several predictions together: give more than one",
            ),
            (self.bootstrap >= 0, f"--bootstrap is {self.bootstrap}: give 0 (none) or more draws"),
            (
                self.speaker_samples >= 2,
                f"--speaker-samples is {self.speaker_samples}: give at least 2 clips",
            ),
            (self.workers >= 0, f"--workers is {self.workers}: give 0 (automatic) or more"),
            (
                0 <= self.max_failed <= 1,
                f"--max-failed is {self.max_failed}: give a share from 0 to 1",
            ),
        )
        for good, message in rules:
            if not good:
                raise ConfigError(message)


def evaluate(flags: EvaluateFlags) -> int:
    """Read, predict what is left to predict, measure, write, print; returns the exit code."""
    flags = _with_absolute_paths(flags)
    settings = {k: v for k, v in as_plain(flags).items() if k not in _NOT_DECIDING}
    with Run.open(JOB, flags.output, table="metrics") as run:
        run.refuse_other_settings(settings)
        labels = runs.read_labels(
            flags.labels,
            corpus=flags.corpus,
            emotion_map=flags.emotion_map,
            speakers=flags.speakers,
        )
        found = [read_predictions(uri) for uri in flags.predictions]
        report = None if flags.model else _measure(flags, labels, found)
        for model in flags.model:
            AnnotateTask.load(model, dtype=flags.dtype, max_padded_s=0)
        run.begin(as_plain(flags), settings)
        if report is None:
            found += [read_predictions(uri) for uri in _predict(flags, labels)]
            report = _measure(flags, labels, found)
        good = report.failed_share <= flags.max_failed
        runs.write(report, run, good=good)
    tables.print_coverage(report.coverage)
    tables.print_metrics(report.rows)
    tables.print_notes(report.notes)
    print(f"metrics: {storage.join(flags.output, 'metrics')}")
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def _with_absolute_paths(flags: EvaluateFlags) -> EvaluateFlags:
    flags.check()
    return replace(
        flags,
        labels=tuple(map(storage.absolute, flags.labels)),
        output=absolute_output(flags.output),
        predictions=tuple(map(storage.absolute, flags.predictions)),
        input=tuple(map(storage.absolute, flags.input)),
    )


def _predict(flags: EvaluateFlags, labels: runs.Labels) -> list[str]:
    """Annotate with every model; the folders of the predictions."""
    clips = flags.input or (_labelled_clips(flags, labels),)
    folders = []
    for model, name in runs.folder_names(flags.model).items():
        folders.append(storage.join(flags.output, "predictions", name))
        annotate(
            AnnotateFlags(
                input=clips,
                output=folders[-1],
                model=model,
                dtype=flags.dtype,
                workers=flags.workers,
                max_failed=flags.max_failed,
            )
        )
    return folders


def _labelled_clips(flags: EvaluateFlags, labels: runs.Labels) -> str:
    """A manifest of just the clips that have labels: a corpus has much else in its folders."""
    place = storage.join(flags.output, "clips")
    if not is_manifest(place) or _begins(read_manifest(place)) != _begins(labels.table):
        clips, _ = index_labelled(
            flags.labels,
            corpus=flags.corpus,
            emotion_map=flags.emotion_map,
            speakers=flags.speakers,
        )
        write_manifest(place, labelled_only(clips))
    return place


def _begins(table: pa.Table) -> list[tuple[str, int]]:
    """Where clips begin; where they end may not be known before their headers are read."""
    starts = pc.fill_null(table["start"].cast(pa.int64()), 0).to_pylist()
    return sorted(zip(table["file"].to_pylist(), starts, strict=True))


def _measure(
    flags: EvaluateFlags, labels: runs.Labels, found: Sequence[Predictions]
) -> runs.Report:
    options = Options(
        by=tuple(dict.fromkeys(flags.by)),
        draws=flags.bootstrap,
        seed=flags.seed,
        speaker_samples=flags.speaker_samples,
        in_domain=flags.in_domain,
    )
    return runs.measure(labels, found, options, pool=flags.pool)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: evaluate(parse(EvaluateFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
