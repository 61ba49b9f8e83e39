"""The outputs of other jobs as evidence for the report.

A run is known by the job in its `run.json`. Tables of clips are streamed part by part and counted;
only metrics, curves and cells, which are small, are read whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from raysers.errors import ConfigError, ObjectMissing
from raysers.io import storage
from raysers.plotting import model_names
from raysers.report.clips import read_archive, read_map, read_spoken
from raysers.report.evidence import ArchiveFacts, ReportData, RunFacts
from raysers.report.map_figure import Embedded
from raysers.report.parts import last_part
from raysers.report.run_tables import rows_of, table_of
from raysers.report.values import Value, values_of
from raysers.run import load_record

#: Tables of scored clips, by the job that writes them.
_CLIP_TABLES = {"annotate": "annotations", "fuse-predict": "annotations"}


@dataclass(slots=True)
class _Found:
    """What has been read so far."""

    runs: list[RunFacts] = field(default_factory=list)
    cell_runs: list[RunFacts] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    curves: list[Mapping[str, Any]] = field(default_factory=list)
    cells: list[Mapping[str, Any]] = field(default_factory=list)
    words: list[pa.Table] = field(default_factory=list)
    sentences: list[pa.Table] = field(default_factory=list)
    respoken: list[pa.Table] = field(default_factory=list)
    maps: dict[str, Embedded] = field(default_factory=dict)
    archives: list[ArchiveFacts] = field(default_factory=list)
    trials: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trial_curves: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    spoken: dict[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_evidence(uris: Sequence[str]) -> ReportData:
    """All that the runs in these folders have to say.

    Raises:
        ConfigError: a folder holds no run.
        StorageError, RaysersError: a table cannot be read.
    """
    found = _Found()
    runs = [_run(uri) for uri in dict.fromkeys(uris)]
    for run in runs:
        found.runs.append(run)
        found.notes += _notes(run)
        _read(run, found)
    manifests = [*uris, *(run.folder for run in found.cell_runs)]
    for run in (*runs, *found.cell_runs):
        if run.job == "annotate" and (clips := read_map(run.folder, manifests)) is not None:
            found.maps[run.folder] = clips
    names = _names(found.values)
    found.values = _named(_distinct(found.values), names)
    found.notes = [_with_names(note, names) for note in found.notes]
    return ReportData(**{name: getattr(found, name) for name in found.__slots__})


def _run(uri: str) -> RunFacts:
    record = load_record(uri)
    if record is None:
        raise ConfigError(f"--runs {uri} has no run.json: give the --output folders of other jobs")
    is_training = record.job == "train"
    return RunFacts(
        folder=uri,
        record=asdict(record),
        training=_document(uri, "training.json") if is_training else {},
        network=_document(uri, "config.json") if is_training else {},
    )


def _document(uri: str, name: str) -> Mapping[str, Any]:
    """A JSON object beside a run's tables; empty when it is not there, or is no object."""
    try:
        found = json.loads(storage.read_bytes(storage.join(uri, name)))
    except (ObjectMissing, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(run: RunFacts, found: _Found) -> None:
    if run.job == "study":
        _read_study(run, found)
        return
    found.values += _values(run)
    if (table := _CLIP_TABLES.get(run.job)) is not None:
        archive = read_archive(run.folder, table, run.job)
        found.archives += [archive] if archive else []
    if run.job == "transcribe":
        found.spoken[run.folder] = read_spoken(run.folder)
    if run.job == "tune":
        found.trials[run.folder] = rows_of(run.folder, "trials")
        found.trial_curves[run.folder] = rows_of(run.folder, "curves")
    _read_probe(run, found)


def _read_probe(run: RunFacts, found: _Found) -> None:
    if run.job == "probe":
        for name in ("words", "sentences", "respoken"):
            table = table_of(run.folder, name)
            if table is not None and len(table):
                getattr(found, name).append(table)


def _values(run: RunFacts) -> list[Value]:
    table = table_of(run.folder, "metrics")
    values = [] if table is None else values_of(table)
    if run.job == "fuse-train":
        return [replace(v, backbone=last_part(run.folder)) for v in values]
    if run.job != "train":
        return values
    # a training calls its model by its folder's name, the other jobs by the folder
    own = last_part(run.folder)
    return [replace(v, model=run.folder) if v.model == own else v for v in values]


def _read_study(run: RunFacts, found: _Found) -> None:
    cells = rows_of(run.folder, "cells")
    names = {(row["study"], row["cell"]): row["model"] for row in cells if row["model"]}
    found.cells += cells
    table = table_of(run.folder, "metrics")
    found.values += [] if table is None else values_of(table, names)
    found.curves += rows_of(run.folder, "curves")
    for row in cells:
        if row["status"] == "done" and row["path"]:
            folder = storage.join(run.folder, row["path"])
            if load_record(folder) is not None:
                inner = replace(_run(folder), model=row["model"] or "")
                found.cell_runs.append(inner)
                _read_probe(inner, found)
        elif row["status"] == "failed":
            found.notes.append(f"{row['study']} {row['cell']} failed: {row['error']}")


def _notes(run: RunFacts) -> Iterator[str]:
    status = str(run.record.get("status", ""))
    if not status.startswith("done"):
        yield f"{run.folder}: its run has not ended well ({status}), what it says is incomplete"
    notes = run.outcome.get("notes")
    yield from (str(note) for note in notes) if isinstance(notes, list) else ()


def _distinct(values: Sequence[Value]) -> list[Value]:
    """Of what was measured twice, the last."""
    last = {
        (
            v.study, v.cell, v.backbone, v.model, v.dataset, v.split, v.group, v.group_value,
            v.dimension, v.metric,
        ): v
        for v in values
    }  # fmt: skip
    return list(last.values())


def _names(values: Sequence[Value]) -> Mapping[str, str]:
    """Names of models that a reader can tell apart."""
    compared = [v.group_value for v in values if v.group == "model"]
    return model_names(list(dict.fromkeys([v.model for v in values] + compared)))


def _with_names(note: str, names: Mapping[str, str]) -> str:
    """The note, calling the model it begins with by its name."""
    model = next((m for m in names if note.startswith(f"{m} ")), "")
    return names[model] + note[len(model) :] if model else note


def _named(values: Sequence[Value], names: Mapping[str, str]) -> list[Value]:
    return [
        replace(
            v,
            model=names[v.model],
            group_value=names[v.group_value] if v.group == "model" else v.group_value,
        )
        for v in values
    ]
