"""All that the given runs have to say, read once, in the shapes the figures ask for.

Nothing here is as large as an archive: clips are counted, embeddings are a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raysers.evaluation.rows import Row
from raysers.report.archive import Archive, Timeline
from raysers.report.map_figure import Embedded
from raysers.report.values import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run's record, and what beside it tells about its work.

    Attributes:
        folder: as it was given, or found in a study.
        record: `run.json`.
        training: `training.json`; empty when the run is no training.
        network: the trained model's `config.json`.
        model: what its study calls the model; empty outside of studies.
    """

    folder: str
    record: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def job(self) -> str:
        """Which job wrote the folder."""
        return str(self.record.get("job", ""))

    @property
    def outcome(self) -> Mapping[str, Any]:
        """The figures of the run's end; empty when it has not ended."""
        found = self.record.get("outcome")
        return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFacts:
    """A clip job's rows, counted, and the timelines of its longest recordings."""

    folder: str
    job: str
    model: str
    archive: Archive
    timelines: Sequence[Timeline] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What the figures are made from.

    Attributes:
        runs: the given runs.
        cell_runs: what the cells of the given studies left.
        values: all metrics tables.
        curves: rows of `schemas.CURVES` of studies.
        cells: rows of `schemas.CELLS`.
        words: ratings of words of the probes.
        sentences: scores of the probes' sentences.
        respoken: scores of re-spoken clips beside those of the originals.
        maps: a sample of embeddings by the folder they are in.
        archives: annotated archives.
        trials: rows of sweeps, by folder.
        trial_curves: rows of `schemas.CURVES` of sweeps, by folder.
        spoken: some transcripts, by folder: file and text.
        notes: what the runs want their readers to know.
    """

    runs: Sequence[RunFacts] = ()
    cell_runs: Sequence[RunFacts] = ()
    values: Sequence[Value] = ()
    curves: Sequence[Mapping[str, Any]] = ()
    cells: Sequence[Mapping[str, Any]] = ()
    words: Sequence[pa.Table] = ()
    sentences: Sequence[pa.Table] = ()
    respoken: Sequence[pa.Table] = ()
    maps: Mapping[str, Embedded] = field(default_factory=dict)
    archives: Sequence[ArchiveFacts] = ()
    trials: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    trial_curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    spoken: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def rows(self) -> list[Row]:
        """The values as rows of a metrics table."""
        return [Row(**{name: getattr(v, name) for name in Row.__slots__}) for v in self.values]
