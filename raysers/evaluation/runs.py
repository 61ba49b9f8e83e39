"""An evaluation from flags, labels and predictions to its output folder.

The output is small and made in one go: the same command again replaces it, another one is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import Models, Output, Uris, as_plain
from raysers.data.labelled import read_labelled
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.engine import output as parts
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation import suite
from raysers.evaluation.evaluate import Options, assess, datasets
from raysers.evaluation.join import Coverage, join, labelled_only, with_dataset_names
from raysers.evaluation.predictions import (
    Predictions,
    backbones,
    leaking,
    merged,
    pooled,
    with_training_clips,
)
from raysers.evaluation.rows import Row, to_table
from raysers.io import storage
from raysers.run import Run, absolute_output
from raysers.types import DIMENSIONS

METRICS_PART = "metrics/part-00000.parquet"
#: Flags that change nothing in the rows.
_NOT_DECIDING = ("output", "workers", "max_failed")


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Flags of this job."""

    labels: Uris
    """Labelled clips: manifests, tables, corpus folders, audformat databases."""
    output: Output
    """Folder or s3:// prefix for the metrics."""
    predictions: Uris = ()
    """Output folders of annotate or train; each is one model's."""
    model: Models = ()
    """Models to predict with first, into OUTPUT/predictions."""
    input: Uris = ()
    """What --model predicts: audio or manifests; default: the labelled data."""
    pool: bool = False
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
    """Precision of --model."""
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

    def with_absolute_paths(self) -> EvaluateFlags:
        """The flags, checked, with absolute paths.

        Raises:
            ConfigError: a flag has an impossible value.
        """
        self.check()
        return replace(
            self,
            labels=tuple(map(storage.absolute, self.labels)),
            output=absolute_output(self.output),
            predictions=tuple(map(storage.absolute, self.predictions)),
            input=tuple(map(storage.absolute, self.input)),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that decide the rows."""
        return {k: v for k, v in as_plain(self).items() if k not in _NOT_DECIDING}

    @property
    def options(self) -> Options:
        """What to measure."""
        return Options(
            by=tuple(dict.fromkeys(self.by)),
            draws=self.bootstrap,
            seed=self.seed,
            speaker_samples=self.speaker_samples,
            in_domain=self.in_domain,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labelled clips, and what the user should know about them.

    With `emotions` a clip may have a category alone.
    """

    table: pa.Table
    notes: list[str]
    emotions: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All an evaluation found: rows of the metrics table, tests, notes, every model's coverage."""

    rows: list[Row]
    tests: pd.DataFrame
    notes: list[str]
    coverage: Mapping[str, Coverage]

    @property
    def failed_share(self) -> float:
        """Share of failed predictions of the model with the most."""
        return max(found.failed_share for found in self.coverage.values())


def read_labels(flags: EvaluateFlags, *, emotions: bool) -> Labels:
    """The labelled clips of manifests, tables and corpora.

    Args:
        flags: of the evaluation.
        emotions: whether some model predicts emotion categories, so that these are labels too.

    Raises:
        ConfigError: they cannot be read, or no clip has a label.
    """
    read = read_labelled(
        flags.labels,
        corpus=flags.corpus,
        emotion_map=flags.emotion_map,
        speakers=flags.speakers,
    )
    table = with_dataset_names(labelled_only(read.table, emotions=emotions))
    if not len(table):
        names = ", ".join((*DIMENSIONS, "emotion") if emotions else DIMENSIONS)
        raise ConfigError(
            f"--labels {' '.join(flags.labels)}: none of its {len(read.table):,} clips has a label "
            f"for {names}: give labelled clips (or --emotion-map for categories)"
        )
    if twice := len(table) - pc.count_distinct(table["clip_id"]).as_py():
        raise ConfigError(f"--labels: {twice:,} clips are labelled twice: give each source once")
    return Labels(table=table, notes=list(read.notes), emotions=emotions)


def labelled_clips(flags: EvaluateFlags, labels: Labels) -> str:
    """A manifest, below the output, of just the clips that have labels; written once."""
    place = storage.join(flags.output, "clips")
    if not is_manifest(place) or _starts(read_manifest(place)) != _starts(labels.table):
        clips, _ = index_labelled(
            flags.labels,
            corpus=flags.corpus,
            emotion_map=flags.emotion_map,
            speakers=flags.speakers,
        )
        write_manifest(place, labelled_only(clips, emotions=labels.emotions))
    return place


def _starts(table: pa.Table) -> list[tuple[str, int]]:
    """Where clips start; where they end may be unknown until their headers are read."""
    starts = pc.fill_null(table["start"].cast(pa.int64()), 0).to_pylist()
    return sorted(zip(table["file"].to_pylist(), starts, strict=True))


def measure(flags: EvaluateFlags, labels: Labels, found: Sequence[Predictions]) -> Report:
    """Join labels and predictions by folder, and measure.

    Raises:
        ConfigError: predictions and labels do not fit together.
    """
    options = flags.options
    found = [with_training_clips(one) for one in found]
    models = pooled(found) if flags.pool else merged(found)
    scores, coverage = join(labels.table, {one.model: one.table for one in models})
    known = datasets(scores)
    if not known:
        raise ConfigError("--predictions: no labelled clip has scores: see their column status")
    if options.in_domain and options.in_domain not in known:
        raise ConfigError(f"--in-domain {options.in_domain}: the clips are of {', '.join(known)}")
    if unknown := [name for name in options.by if not any(scores.column(name))]:
        raise ConfigError(f"--by {' '.join(unknown)}: the labels do not say it of any clip")
    rows, notes = assess(scores, replace(options, backbones=backbones(models)))
    own = [note for one in models for note in one.notes] + leaking(models)
    own += [
        f"{one.model} has random weights: its scores mean nothing"
        for one in models
        if one.model.startswith("random:")
    ]
    own += [
        f"{model}: no file is where the labels say; taken for their folder: {', '.join(one.moved)}"
        for model, one in coverage.items()
        if one.moved
    ]
    tests = suite.correctness_and_fairness(scores, rows)
    return Report(rows=rows, tests=tests, notes=[*labels.notes, *own, *notes], coverage=coverage)


def write(report: Report, run: Run, *, good: bool) -> None:
    """Write the metrics table of a run that has begun, and end the run.

    Raises:
        WriteError: the output cannot be written.
    """
    table = to_table(report.rows, run.run_id)
    parts.write_part(storage.join(run.output, METRICS_PART), table)
    tests = suite.to_tests(report.tests, run.run_id)
    parts.write_part(storage.join(run.output, suite.TESTS_PART), tests)
    outcome = {
        "rows": len(report.rows),
        "models": {name: asdict(found) for name, found in report.coverage.items()},
        "notes": report.notes,
    }
    run.finish("done" if good else "done_with_failures", outcome)


def folder_names(models: Sequence[str]) -> dict[str, str]:
    """By model, the name of the folder for its predictions: readable, and no other model's."""
    last = {m: re.sub(r"[^\w.-]+", "-", m.rstrip("/").rpartition("/")[2]) for m in models}
    shared = Counter(last.values())
    return {
        model: name if shared[name] == 1 else f"{name}-{_digest(model)}"
        for model, name in last.items()
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
