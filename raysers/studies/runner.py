"""The experiments of a study: trainings, then analyses of the trained models.

Every experiment has its folder with a record, so a study resumes after any crash with none lost and
none run twice; one that fails is recorded with its error and the others go on.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import Run
from raysers.studies import corpora as study_corpora
from raysers.studies import synthetic, tables
from raysers.studies.corpora import Corpora
from raysers.studies.experiments import Experiment
from raysers.studies.plan import StudyPlan, small_networks
from raysers.studies.work import IN_TRIALS, Place, Work
from raysers.tuning.resources import find_resources
from raysers.tuning.trials import Trial, TrialRecord, attempt, print_ended, run_trials, stored

_TABLES_EVERY_S = 30.0


def begin(plan: StudyPlan, run: Run, corpora: Corpora, config: Mapping[str, Any]) -> None:
    """Write what comes before the experiments: corpora, networks, studies and, last, the record.

    Raises:
        WriteError: the output cannot be written.
    """
    output = plan.flags.output
    if plan.earlier is None:
        study_corpora.write_corpora(output, corpora)
    synthetic.write_networks(output, small_networks(plan))
    for study in plan.studies:
        uri = storage.join(output, "studies", f"{study.name}.yaml")
        storage.write_atomic(uri, study.written().encode())
    known = {
        "home": list(corpora.home),
        "others": list(corpora.others),
        "notes": list(corpora.notes),
        "fingerprint": corpora.fingerprint,
    }
    run.begin(config, plan.settings | {"corpora": known})


def run_all(
    plan: StudyPlan,
    corpora: Corpora,
    run_id: str,
    analyse: Callable[[Experiment, Place], Mapping[str, Any]],
) -> dict[str, pa.Table]:
    """Run what is left on the connected cluster: trainings, then analyses; returns the tables.

    Args:
        plan: of the study.
        corpora: its data.
        run_id: of this run.
        analyse: does an experiment that uses the whole cluster.

    Raises:
        WriteError: the output cannot be written.
    """
    flags, place = plan.flags, plan.place(corpora)
    total, left = len(plan.grid.runs), plan.left()
    resources = find_resources(max(1, len(left)), flags.workers_per_trial, flags.max_concurrent)
    place = replace(place, resources=resources)
    print(f"{len(plan.grid.cells)} cells, {total} runs, {resources.words}", flush=True)
    written_s = time.monotonic()

    def ended(record: TrialRecord) -> None:
        nonlocal written_s
        if time.monotonic() - written_s > _TABLES_EVERY_S:
            tables.write_tables(plan.grid, place)
            written_s = time.monotonic()

    def trial(run: Experiment) -> Trial:
        call: Callable[..., Mapping[str, Any]] = Work(run=run, place=place)
        if run.job not in IN_TRIALS:

            def call(_: Any) -> Mapping[str, Any]:
                return analyse(run, place)

        if reason := _unmet(run, place):

            def call(_: Any) -> Mapping[str, Any]:
                raise ConfigError(reason)

        notes = {"job": run.job, "run_id": run_id}
        return Trial(name=run.name, path=place.uri(run.name), call=call, notes=notes)

    for jobs in (("train",), tuple(IN_TRIALS)[1:]):
        trials = [trial(run) for run in left if run.job in jobs]
        if trials:
            run_trials(
                lambda config, found=trials: found[config["number"]],  # type: ignore[misc]
                list(range(len(trials))),
                replace(resources, at_once=min(resources.at_once, len(trials))),
                total=len(trials),
                retries=flags.retries,
                describe=describe,
                on_ended=ended,
            )
    analyses = [run for run in left if run.job not in IN_TRIALS]
    for number, run in enumerate(analyses, start=1):
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            record = attempt(trial(run), flags.retries, lambda _: None)
        storage.write_atomic(storage.join(record.path, "log.txt"), log.getvalue().encode())
        print_ended(record, number, len(analyses), describe(record))
        ended(record)
    return tables.write_tables(plan.grid, place)


def _unmet(run: Experiment, place: Place) -> str:
    """Why an analysis cannot begin; empty when all that it needs is done."""
    for name in run.needs:
        record = stored(place.uri(name))
        if record is None or record.status != "done":
            how = f"{record.status}: {record.error}" if record else "is not there"
            return f"it needs {name}, which {how}"[:2000]
    return ""


def describe(run: TrialRecord) -> str:
    """What a line about an experiment that ended says of it."""
    score = run.result.get("dev_ccc_mean")
    return f"dev CCC {score:.3f}" if isinstance(score, float) and score > -1 else ""


def outcome_of(plan: StudyPlan, corpora: Corpora) -> dict[str, Any]:
    """How many cells and experiments ended how, for `run.json`."""
    records = {name: stored(plan.place().uri(name)) for name in plan.grid.runs}
    cells = [tables.status_of(records[cell.run]) for cell in plan.grid.cells]
    known = [record for record in records.values() if record]
    return {
        "studies": [study.name for study in plan.studies],
        "cells": len(cells),
        "runs": len(records),
        "done": cells.count("done"),
        "failed": cells.count("failed"),
        "wall_s": round(sum(record.wall_s for record in known), 1),
        "audio_s": round(sum(float(r.result.get("audio_s", 0)) for r in known), 1),
        "notes": list(corpora.notes),
    }
