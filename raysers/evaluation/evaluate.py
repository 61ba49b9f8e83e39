"""An evaluation from flags, labels and predictions to its output folder.

The output is small and made in one go: the same command again replaces it, another one is refused.
The random baseline is measured as one more model, but not compared: differences, speakers and
cross-corpus drops are about the models themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora import speaker_of
from raysers.data.files import csv_records
from raysers.data.labelled import read_labelled
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.data.splits import identities
from raysers.display import model_names
from raysers.engine import output as parts
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap, interval_notes
from raysers.evaluation.correctness import (
    category_notes,
    category_rows,
    comparison_rows,
    constant_notes,
    correctness_rows,
    drop_rows,
    fairness_rows,
    speaker_rows,
)
from raysers.evaluation.flags import EvaluateFlags
from raysers.evaluation.join import (
    COLUMNS,
    TRAINED_ON,
    Coverage,
    Predictions,
    document_of,
    join,
    merged,
    pooled,
)
from raysers.evaluation.published import TESTS_PART, correctness_and_fairness, to_tests, with_paper
from raysers.evaluation.rows import METRICS_PART, WIDTH, Row, print_table, to_table
from raysers.evaluation.scores import (
    Scores,
    base_subsets,
    labelled_only,
    subsets,
    with_baseline,
    with_dataset_names,
)
from raysers.io import storage
from raysers.models.backbones import ASSETS, EMBEDDED, TRAINED_FILES
from raysers.run import Run
from raysers.schemas import parts_of_file
from raysers.types import DIMENSIONS, Status

#: The paper's own corpus, where no other is named as home.
_HOME = "msp-podcast"


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


def read_labels(flags: EvaluateFlags, *, emotions: bool) -> tuple[pa.Table, list[str]]:
    """The labelled clips of manifests, tables and corpora, and notes; raises ConfigError.

    `emotions`: some model predicts emotion categories, so that these are labels too.
    """
    read = read_labelled(flags.labels, **flags.how_labelled)
    table = with_dataset_names(labelled_only(read.table, emotions=emotions))
    if not len(table):
        names = ", ".join((*DIMENSIONS, "emotion") if emotions else DIMENSIONS)
        raise ConfigError(
            f"--labels {' '.join(flags.labels)}: none of its {len(read.table):,} clips has a label "
            f"for {names}: give labelled clips (or --emotion-map for categories)"
        )
    if twice := len(table) - pc.count_distinct(table["clip_id"]).as_py():
        raise ConfigError(f"--labels: {twice:,} clips are labelled twice: give each source once")
    if flags.speakers:
        table = table.append_column("pitch_hz", _pitches(flags.speakers, table))
    return table, list(read.notes)


def _pitches(uri: str, table: pa.Table) -> pa.Array:
    """Mean fundamental frequency of every clip's speaker as a table of speakers has it."""
    known: dict[str | None, float] = {}
    for where, record in csv_records(uri, ()):
        if text := record.get("pitch_hz"):
            try:
                known[speaker_of(record.get("speaker"))] = float(text)
            except ValueError as error:
                raise ConfigError(f"--speakers {where}: pitch_hz is {text!r}: give Hz") from error
    return pa.array([known.get(name) for name in table["speaker"].to_pylist()], pa.float64())


def labelled_clips(flags: EvaluateFlags, labels: pa.Table, *, emotions: bool) -> str:
    """A manifest, below the output, of just the clips that have labels; written once."""
    place = storage.join(flags.output, "clips")
    if not is_manifest(place) or _starts(read_manifest(place)) != _starts(labels):
        clips, _ = index_labelled(flags.labels, **flags.how_labelled)
        write_manifest(place, labelled_only(clips, emotions=emotions))
    return place


def _starts(table: pa.Table) -> list[tuple[Any, ...]]:
    """What clips are of; where they end may be unknown until their headers are read."""
    starts = pc.fill_null(table["start"].cast(pa.int64()), 0)
    parts = [pc.fill_null(table[name], 0) for name in parts_of_file(table.column_names)]
    columns = [column.to_pylist() for column in (table["file"], starts, *parts)]
    return sorted(zip(*columns, strict=True))


def measure(
    flags: EvaluateFlags, labels: tuple[pa.Table, list[str]], found: Sequence[Predictions]
) -> Report:
    """Join labels (and notes on them) and predictions by folder, and measure."""
    found = [with_training_clips(one) for one in found]
    models = pooled(found) if flags.pool else merged(found)
    scores, coverage = join(labels[0], {one.model: one.table for one in models})
    known = _datasets(scores)
    if not known:
        raise ConfigError("--predictions: no labelled clip has scores: see their column status")
    if flags.in_domain and flags.in_domain not in known:
        raise ConfigError(f"--in-domain {flags.in_domain}: the clips are of {', '.join(known)}")
    if unknown := [name for name in flags.by if not any(scores.column(name))]:
        raise ConfigError(f"--by {' '.join(unknown)}: the labels do not say it of any clip")
    rows, notes = assess(scores, flags, {one.model: backbone_of(one) for one in models})
    own = [*labels[1], *(note for one in models for note in one.notes)]
    for one in models:
        if leaks := (one.training.get("data") or {}).get("leakage"):
            why = f"trained with --allow-leakage ({leaks[0]}): its figures are too good"
            own.append(f"{one.model} was {why}")
        if one.model.startswith("random:"):
            own.append(f"{one.model} has random weights: its scores mean nothing")
        if moved := ", ".join(coverage[one.model].moved):
            why = f"no file is where the labels say; taken for their folder: {moved}"
            own.append(f"{one.model}: {why}")
    tests = correctness_and_fairness(scores, rows)
    return Report(rows=rows, tests=tests, notes=[*own, *notes], coverage=coverage)


def assess(
    scores: Scores, flags: EvaluateFlags, backbones: Mapping[str, str] | None = None
) -> tuple[list[Row], list[str]]:
    """All rows, with the paper's numbers beside them, and notes; `backbones` are by model."""
    by, draws, seed = tuple(dict.fromkeys(flags.by)), flags.bootstrap, flags.seed
    bootstrap, both = Bootstrap(draws=draws, seed=seed), with_baseline(scores, seed)
    rows = correctness_rows(both, by=by, draws=draws, seed=seed)
    rows += category_rows(scores, by=by, draws=draws, seed=seed)
    rows += fairness_rows(both, bootstrap)
    rows += comparison_rows(scores, bootstrap)
    rows += speaker_rows(scores, samples=flags.speaker_samples, seed=seed)
    if home := _home(scores, flags.in_domain):
        rows += drop_rows(scores, home, bootstrap)
    rows, paper_notes = with_paper(with_training(scores, rows), backbones)
    return rows, [*_notes(scores, flags, rows), *paper_notes]


def backbone_of(one: Predictions) -> str:
    """The backbone that the whole model was fine-tuned from as the paper did; empty: otherwise.

    Another corpus, other frozen parts, less data or shuffled labels make another model.
    """
    config, data = one.training.get("config") or {}, one.training.get("data") or {}
    changed = (
        config.get("layers"),
        config.get("shuffle_labels"),
        config.get("freeze") in ("backbone", "none"),
        config.get("train_fraction", 1.0) != 1.0,
        {row.get("corpus") for row in data.get("splits") or ()} != {_HOME},
    )
    return "" if any(changed) else str(config.get("backbone") or "")


def with_training_clips(one: Predictions) -> Predictions:
    """The predictions with the training clips, where a training left its manifest.

    Clips are the same by their id, or by their path below the folder that all clips share. Those of
    a built-in model and its copies are known by the names of their files, however they are cut or
    stored.
    """
    name = one.model.partition("@")[0]
    for folder in [str(ASSETS / name)] if name in EMBEDDED else one.places:
        listed = document_of(folder, TRAINED_FILES)
        if taught := frozenset(map(str, listed if isinstance(listed, list) else ())):
            files = pc.cast(one.table["file"], pa.string()).to_pylist()
            stems = (re.split("[/#]", file)[-1].rpartition(".")[0] for file in files)
            return _marked(one, pa.array([stem in taught for stem in stems]))
        place = storage.join(folder, "manifest")
        if not (document_of(folder, "training.json") and is_manifest(place)):
            continue
        clips = read_manifest(place)
        if "split" in clips.column_names:
            used = pc.fill_null(pc.equal(clips["split"], "train"), False)
            pairs = zip(_names(one.table), _names(clips), strict=True)
            met = [pc.is_in(mine, value_set=known.filter(used)) for mine, known in pairs]
            return _marked(one, pc.or_(*met))
    return one


def _marked(one: Predictions, met: pa.Array) -> Predictions:
    return replace(one, table=one.table.append_column(TRAINED_ON, met.cast(pa.float64())))


def _names(table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Ids and identities of clips."""
    paths = identities(table.select(["file", "start", "end", *parts_of_file(table.column_names)]))
    return pa.array(table["clip_id"].to_pylist(), pa.string()), pa.array(paths, pa.string())


def with_training(scores: Scores, rows: Sequence[Row]) -> list[Row]:
    """The rows with how many of their clips the model was trained on."""
    counts: Counter[tuple[str, ...]] = Counter()
    for model, trained in scores.trained.items():
        for cell in subsets(scores, sorted({row.group for row in rows} & {*COLUMNS})):
            found = np.isfinite(scores.predictions[model][cell.rows]).any(axis=1)
            counts[model, *cell.key] = int((trained[cell.rows] & found).sum())
    # a row of another kind of group is about all clips of the dataset and split
    keys = [(row.model, row.dataset, row.split, row.group, row.group_value) for row in rows]
    known = [counts.get(key, counts[*key[:3], "", ""]) for key in keys]
    return [replace(row, trained_on=count) for row, count in zip(rows, known, strict=True)]


def training_notes(scores: Scores) -> Iterator[str]:
    """Models that were trained on clips they are measured on."""
    for model, trained in scores.trained.items():
        found = trained & np.isfinite(scores.predictions[model]).any(axis=1)
        for cell in base_subsets(scores):
            if count := int(found[cell.rows].sum()):
                yield (
                    f"{model} was trained on {count:,} of the {len(cell.rows):,} clips of {cell}: "
                    "their figures say little about new speech"
                )


def _datasets(scores: Scores) -> list[str]:
    """Names of the datasets with a predicted clip."""
    return list(dict.fromkeys(cell.dataset for cell in base_subsets(scores)))


def _home(scores: Scores, in_domain: str) -> str:
    """The dataset others are measured against; empty when there is none, or no other one."""
    names, home = _datasets(scores), in_domain or _HOME
    return home if home in names and len(names) > 1 else ""


def _notes(scores: Scores, flags: EvaluateFlags, rows: Sequence[Row]) -> Iterator[str]:
    yield from training_notes(scores)
    for model, predicted in scores.predictions.items():
        missing = [d for i, d in enumerate(DIMENSIONS) if not np.isfinite(predicted[:, i]).any()]
        if missing:
            yield f"{model}: no scores of {', '.join(missing)}, so no figures of it"
    cells = subsets(scores, flags.by)
    yield from category_notes(scores)
    yield from constant_notes(scores, cells)
    yield from interval_notes(scores, cells) if flags.bootstrap else ()
    if not np.isfinite(scores.truth).any():
        return
    if not any(row.metric.startswith("sex_fairness") for row in rows):
        yield "no fairness between the sexes: the labels do not know clips of both"
    if not any(row.metric == "speaker_ccc" for row in rows):
        yield (
            f"no CCC per speaker: no speaker has more than {flags.speaker_samples} clips "
            "(--speaker-samples lowers that)"
        )
    if len(_datasets(scores)) > 1 and not _home(scores, flags.in_domain):
        yield "no cross-corpus drop: name the corpus the models were trained on with --in-domain"


def write(report: Report, run: Run, *, good: bool) -> None:
    """Write metrics and tests of a run that has begun, and end the run."""
    for place, table in (
        (METRICS_PART, to_table(report.rows, run.run_id)),
        (TESTS_PART, to_tests(report.tests, run.run_id)),
    ):
        parts.write_part(storage.join(run.output, place), table)
    outcome = {
        "rows": len(report.rows),
        "models": {name: asdict(found) for name, found in report.coverage.items()},
        "notes": report.notes,
    }
    run.finish("done" if good else "done_with_failures", outcome)


def print_coverage(coverage: Mapping[str, Coverage]) -> None:
    """What became of every model's predictions."""
    heads = ("", "predicted", "with label", "scored", "failed", "no label", "not predicted")
    lines, styles = [], []
    for model, name in model_names(list(coverage), WIDTH).items():
        found = coverage[model]
        joined, ok = sum(found.statuses.values()), found.statuses.get(Status.OK, 0)
        counts = (found.rows, joined, ok, joined - ok, found.unlabelled, found.unpredicted)
        lines.append([name, *(f"{count:,}" for count in counts)])
        styles.append("yellow" * (joined > ok or found.unpredicted > 0))
    print_table("clips", heads, lines, styles)
