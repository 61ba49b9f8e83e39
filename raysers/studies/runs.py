"""The runs of a study: trials for what one process can do, then the jobs that take the cluster.

Every run has a folder with its record, so a study goes on after any death with no run lost and
none made twice. A run that fails is recorded with its error and the others go on.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raysers.data.manifest import is_manifest, write_manifest
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import Run
from raysers.studies import corpora as study_corpora
from raysers.studies import networks, speech
from raysers.studies import tables as study_tables
from raysers.studies.corpora import Corpora
from raysers.studies.experiments import PRETRAIN, Experiment
from raysers.studies.plan import StudyPlan, place_of, study_uri
from raysers.studies.units import IN_TRIALS, Place, Trial
from raysers.tuning.resources import find_resources
from raysers.tuning.trials import Piece, Progress, TrialRecord, failure, missing, run_pieces, stored

#: Looks at finished models: a run and where it is, to what it took.
RunAnalysis = Callable[[Experiment, Place], Mapping[str, Any]]

_TABLES_EVERY_S = 30.0
_LOG = "log.txt"


def begin(plan: StudyPlan, run: Run, corpora: Corpora, config: Mapping[str, Any]) -> None:
    """Write what comes before the runs: corpora, networks, studies and, last, the record.

    Raises:
        WriteError: the output cannot be written.
    """
    output = plan.flags.output
    if plan.earlier is None:
        study_corpora.write_corpora(output, corpora)
    _write_beginnings(plan)
    small = {str(run.settings["backbone"]) for run in plan.grid.runs.values() if _is_small(run)}
    networks.write_networks(output, small)
    for study in plan.studies:
        storage.write_atomic(study_uri(output, study.name), study.written().encode())
    known = {
        "fingerprint": corpora.fingerprint,
        "home": list(corpora.home),
        "others": list(corpora.others),
        "notes": list(corpora.notes),
    }
    run.begin(config, {**plan.settings, "corpora": known})


def _is_small(run: Experiment) -> bool:
    return bool(run.settings.get("small"))


def _write_beginnings(plan: StudyPlan) -> None:
    """The speech that small networks begin with, one manifest for each mixture."""
    folder = storage.join(plan.flags.output, "corpora")
    kinds = {r.settings["speech"] for r in plan.grid.runs.values() if r.job == PRETRAIN}
    for kind in sorted(kinds):
        place = storage.join(folder, f"begin-{kind}")
        if not is_manifest(place):
            table = speech.together(kind, folder)
            write_manifest(storage.join(place, "manifest"), table)


def run_all(plan: StudyPlan, corpora: Corpora, run_id: str, look: RunAnalysis) -> None:
    """Run what is left on the connected cluster; tables are kept up to date.

    Raises:
        WriteError: the output cannot be written.
    """
    runs = list(plan.grid.runs.values())
    place = place_of(plan, corpora.in_domain)
    in_trials = [run for run in runs if run.job in IN_TRIALS]
    resources = find_resources(
        max(len(in_trials), 1), plan.flags.workers_per_trial, plan.flags.max_concurrent
    )
    place = replace(place, resources=resources)
    print(f"{len(plan.grid.cells)} cells, {len(runs)} runs, {resources.words}", flush=True)
    tables = _Tables(plan=plan, place=place)
    progress = Progress(total=len(runs), at_once=resources.share.at_once, describe=describe)
    run_pieces(
        _pieces(in_trials, place, run_id),
        resources.share,
        total=len(runs),
        retries=plan.flags.retries,
        progress=progress,
        on_ended=tables.ended,
    )
    for run in runs:
        if run.job not in IN_TRIALS:
            _analysis(run, place, run_id, look, progress)
            tables.ended()
    tables.write()


def _pieces(runs: list[Experiment], place: Place, run_id: str) -> Iterator[Piece]:
    for run in runs:
        yield Piece(
            name=run.name,
            path=place.uri(run.name),
            call=Trial(run=run, place=place),
            notes={"job": run.job, "run_id": run_id},
            needs=run.needs,
        )


def describe(run: TrialRecord) -> str:
    """What a line about a run that ended says of it."""
    score = run.result.get("dev_ccc_mean")
    return f"dev CCC {score:.3f}" if isinstance(score, float) and score > -1 else ""


@dataclass(slots=True)
class _Tables:
    """Writes the tables now and then, so that a report can be made of a study at work."""

    plan: StudyPlan
    place: Place
    _written_s: float = field(default_factory=time.monotonic)

    def ended(self, _: TrialRecord | None = None) -> None:
        """A run has ended."""
        if time.monotonic() - self._written_s > _TABLES_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write them now."""
        study_tables.write_tables(self.plan.grid, self.place)
        self._written_s = time.monotonic()


def _analysis(
    run: Experiment, place: Place, run_id: str, look: RunAnalysis, progress: Progress
) -> None:
    """One run by a job that uses the cluster itself, in the driver."""
    path = place.uri(run.name)
    record = stored(path) or TrialRecord(name=run.name, path=path, status="running")
    if record.is_final(place.retries):
        progress.known(record)
        return
    record = replace(record.again(), status="running")
    while not record.is_over(place.retries):
        notes = {"job": run.job, "run_id": run_id}
        attempts = record.attempts + 1
        record = replace(
            record, status="running", error="", repeats=False, outside=False, attempts=attempts,
            notes=notes,
        )  # fmt: skip
        record.save()
        progress.started(run.name)
        began = time.monotonic()
        log = io.StringIO()
        try:
            with contextlib.redirect_stdout(log):
                if reason := missing(stored(place.uri(name)) for name in run.needs):
                    raise ConfigError(reason)
                result = dict(look(run, place))
            record = replace(record, status="done", result=result)
        except Exception as error:  # the cell boundary: whatever a job dies of is its record
            failures = record.failures + 1
            record = replace(record, status="failed", failures=failures, **failure(error))
        record = replace(record, wall_s=round(record.wall_s + time.monotonic() - began, 3))
        storage.write_atomic(storage.join(path, _LOG), log.getvalue().encode())
        record.save()
        if not record.is_over(place.retries):
            progress.failed(run.name, record.error)
    progress.over(record)


def outcome_of(plan: StudyPlan, corpora: Corpora) -> dict[str, Any]:
    """How many cells and runs ended how, for `run.json`."""
    place = place_of(plan, corpora.in_domain)
    records = {name: stored(place.uri(name)) for name in plan.grid.runs}
    statuses = {name: study_tables.status_of(record) for name, record in records.items()}
    cells = [statuses[cell.run] for cell in plan.grid.cells]
    return {
        "studies": [study.name for study in plan.studies],
        "cells": len(cells),
        "runs": len(records),
        "done": cells.count("done"),
        "failed": cells.count("failed"),
        "wall_s": round(sum(r.wall_s for r in records.values() if r), 1),
        "audio_s": round(sum(float(r.result.get("audio_s", 0)) for r in records.values() if r), 1),
        "notes": list(corpora.notes),
    }
