"""An evaluation from labels and predictions to its output folder.

The output is small and made in one go: the same command again replaces it, another one is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.labelled import read_labelled
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.engine import output as parts
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation.evaluate import assess, datasets
from raysers.evaluation.flags import EvaluateFlags
from raysers.evaluation.join import Coverage, join, labelled_only
from raysers.evaluation.predictions import Predictions, backbones, leaking, merged, pooled
from raysers.evaluation.rows import Row, to_table
from raysers.io import storage
from raysers.run import Run
from raysers.types import DIMENSIONS

METRICS_PART = "metrics/part-00000.parquet"


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
    """All an evaluation found: rows of the metrics table, notes, and every model's coverage."""

    rows: list[Row]
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
    table = labelled_only(read.table, emotions=emotions)
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
    return Report(rows=rows, notes=[*labels.notes, *own, *notes], coverage=coverage)


def write(report: Report, run: Run, *, good: bool) -> None:
    """Write the metrics table of a run that has begun, and end the run.

    Raises:
        WriteError: the output cannot be written.
    """
    table = to_table(report.rows, run.run_id)
    parts.write_part(storage.join(run.output, METRICS_PART), table)
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
