"""The experiments of a study: trainings, then analyses of the trained models, then the tables.

Every experiment has its folder with a record, so a study resumes after any crash with none lost and
none run twice; one that fails is recorded with its error and the others go on. A value stands in
the table of every cell that shares its experiment; the scores of the random model are listed once a
study.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.engine import output
from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.errors import ConfigError, ObjectMissing, RaysersError
from raysers.evaluation.rows import number, print_table
from raysers.evaluation.scores import RANDOM
from raysers.io import storage
from raysers.robustness.task import SUITES
from raysers.run import Run
from raysers.schemas import CELLS, CURVES, METRICS, STUDY_METRICS
from raysers.studies import synthetic
from raysers.studies.experiments import (
    IN_TRIALS,
    MEASURED,
    Cell,
    Experiment,
    Grid,
    Place,
    training_flags,
    training_json,
    work,
)
from raysers.studies.plan import Corpora, StudyPlan, load_corpora, missing
from raysers.training import plan as training_plan
from raysers.tuning.results import curve_rows, measure_speed
from raysers.tuning.sweep import find_resources
from raysers.tuning.trials import (
    Trial,
    TrialRecord,
    attempt,
    print_ended,
    run_trials,
    stored,
)
from raysers.types import DIMENSIONS

_TABLES_EVERY_S = 30.0
_MAX_ERROR = 300
#: Forward passes that take as long as a training step on the same audio.
_FORWARDS = 3

Rows = Iterator[dict[str, Any]]


def begin(plan: StudyPlan, run: Run, corpora: Corpora, config: Mapping[str, Any]) -> None:
    """Write what comes before the experiments: corpora, networks, studies and, last, the record."""
    output = plan.flags.output
    if plan.earlier is None:
        corpora.write(output)
    synthetic.write_networks(output, plan.small_networks)
    for study in plan.studies:
        uri = storage.join(output, "studies", f"{study.name}.yaml")
        storage.write_atomic(uri, study.written().encode())
    known: dict[str, Any] = {"fingerprint": corpora.fingerprint}
    known |= {key: list(getattr(corpora, key)) for key in ("home", "others", "notes")}
    run.begin(config, plan.settings | {"corpora": known})


def run_all(
    plan: StudyPlan,
    corpora: Corpora,
    run_id: str,
    analyse: Callable[[Experiment, Place], Mapping[str, Any]],
) -> dict[str, pa.Table]:
    """Run what is left on the connected cluster: trainings, then analyses; returns the tables.

    `analyse` does an experiment that uses the whole cluster.
    """
    retries, total, left = plan.flags.retries, len(plan.grid.runs), plan.left()
    resources = find_resources(max(1, len(left)), plan.flags)
    place = replace(plan.place, in_domain=corpora.in_domain, resources=resources)
    print(f"{len(plan.grid.cells)} cells, {total} runs, {resources.words}", flush=True)
    written_s = time.monotonic()

    def ended(record: TrialRecord) -> str:
        nonlocal written_s
        if time.monotonic() - written_s > _TABLES_EVERY_S:
            write_tables(plan.grid, place)
            written_s = time.monotonic()
        score = record.result.get("dev_ccc_mean")
        return f"dev CCC {score:z.3f}" if isinstance(score, float) else ""

    def trial(run: Experiment) -> Trial:
        in_trial = run.job in IN_TRIALS
        call = partial(work, run, place) if in_trial else lambda _: analyse(run, place)
        if reason := _unmet(run, place):
            call = partial(_refuse, reason)
        notes = {"job": run.job, "run_id": run_id}
        return Trial(name=run.name, path=place.uri(run.name), call=call, notes=notes)

    for jobs in (("train",), tuple(IN_TRIALS)[1:]):
        if trials := [trial(run) for run in left if run.job in jobs]:
            run_trials(
                lambda config, found=trials: found[config["number"]],  # type: ignore[misc]
                list(range(len(trials))),
                replace(resources, at_once=min(resources.at_once, len(trials))),
                total=len(trials),
                retries=retries,
                on_ended=ended,
            )
    analyses = [run for run in left if run.job not in IN_TRIALS]
    for count, run in enumerate(analyses, start=1):
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            record = attempt(trial(run), retries, lambda _: None)
        storage.write_atomic(storage.join(record.path, "log.txt"), log.getvalue().encode())
        print_ended(record, count, len(analyses), ended(record))
    return write_tables(plan.grid, place)


def _refuse(reason: str, _: object) -> Mapping[str, Any]:
    raise ConfigError(reason)


def _unmet(run: Experiment, place: Place) -> str:
    """Why an analysis cannot begin; empty when all that it needs is done."""
    for name in run.needs:
        record = stored(place.uri(name))
        if record is None or record.status != "done":
            how = f"{record.status}: {record.error}" if record else "is not there"
            return f"it needs {name}, which {how}"[:2000]
    return ""


def outcome_of(plan: StudyPlan, corpora: Corpora) -> dict[str, Any]:
    """How many cells and experiments ended how, for `run.json`."""
    records = {name: stored(plan.place.uri(name)) for name in plan.grid.runs}
    cells = [_status(records[cell.run]) for cell in plan.grid.cells]
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


def _status(record: TrialRecord | None) -> str:
    """done, failed, or waiting for the same command to be given again."""
    status = record.status if record else ""
    return status if status in ("done", "failed") else "waiting"


def write_tables(grid: Grid, place: Place) -> dict[str, pa.Table]:
    """Write `cells`, `metrics` and `curves`; returns them."""
    records = {name: stored(place.uri(name)) for name in grid.runs}
    done = [cell for cell in grid.cells if _status(records[cell.run]) == "done"]
    tables: dict[str, pa.Table] = {}
    for name, schema, rows in (
        ("cells", CELLS, (_cell_row(cell, records[cell.run]) for cell in grid.cells)),
        ("metrics", STUDY_METRICS, _metric_rows(done, place)),
        ("curves", CURVES, (row for cell in done for row in _curve_rows(cell, place))),
    ):
        tables[name] = pa.Table.from_pylist(list(rows), schema)
        output.write_part(storage.join(place.output, name, "part-00000.parquet"), tables[name])
    return tables


def _key(cell: Cell) -> dict[str, Any]:
    names = ("study", "cell", "factor", "factor_value", "seed")
    return {name: getattr(cell, name) for name in names}


def _cell_row(cell: Cell, record: TrialRecord | None) -> dict[str, Any]:
    result: Mapping[str, Any] = record.result if record else {}
    status = _status(record)
    return {
        **_key(cell),
        "kind": cell.job,
        "model": cell.model,
        "status": status,
        "error": record.error if record and status == "failed" else "",
        "path": f"runs/{cell.run}",
        "wall_s": result.get("wall_s", record.wall_s if record else None),
        "audio_s": result.get("audio_s"),
        "workers": result.get("workers", 1 if status == "done" else None),
        "device": result.get("device", ""),
        "run_id": str(record.notes.get("run_id", "")) if record else "",
    }


def _metric_rows(done: list[Cell], place: Place) -> Rows:
    """Rows of the cells' metrics, with models called as the reader knows them.

    The parts of a fusion keep their names.
    """
    listed: dict[tuple[str, ...], str] = {}
    for cell in done:
        labels = {place.uri(run): label for run, label in cell.labels.items()}
        for row in _own_metrics(cell, place):
            own = dict(labels)
            if row["model"] == RANDOM:
                key = (cell.study, *(str(row[n]) for n in METRICS.names[1:7]))
                if listed.setdefault(key, cell.cell) != cell.cell:
                    continue
            elif cell.job == "train":
                own[row["model"]] = cell.labels[cell.run]
            row["model"] = own.get(row["model"], row["model"])
            if row["group"] == "model":
                row["group_value"] = own.get(row["group_value"], row["group_value"])
            yield {**_key(cell), **row}


def _own_metrics(cell: Cell, place: Place) -> Rows:
    folder = place.uri(cell.run)
    if cell.job == "train":
        yield from _rows(storage.join(folder, MEASURED, "metrics"))
    for row in _rows(storage.join(folder, "metrics")):
        # of the training itself: what chose the epoch
        own = row["split"] == "dev" and not row["group"]
        if own if cell.job == "train" else row["group"] != "epoch":
            yield row


def _rows(folder: str) -> list[dict[str, Any]]:
    with contextlib.suppress(ObjectMissing):
        if (table := output.read_part(storage.join(folder, "part-00000.parquet"))) is not None:
            return list(table.to_pylist())
    return []


def _curve_rows(cell: Cell, place: Place) -> Rows:
    if cell.job == "train":
        document = training_json(place.uri(cell.run))
        found = (*document.get("evaluations", ()), *document["history"])
        by_step = {one["step"]: one for one in found}
        epochs = [by_step[step] for step in sorted(by_step)]
        yield from curve_rows({**_key(cell), "model": cell.model}, epochs)


def print_cells(cells: pa.Table, metrics: pa.Table) -> None:
    """A line for every cell of `schemas.CELLS` and dataset, with CCC of `schemas.STUDY_METRICS`."""
    ccc = metrics.to_pandas()
    ccc = ccc[(ccc["metric"] == "ccc") & (ccc["group"] == "") & (ccc["model"] != RANDOM)]
    lines = []
    for row in cells.to_pylist():
        name = f"{row['study']}, {row['cell']}"
        own = ccc[(ccc["study"] == row["study"]) & (ccc["cell"] == row["cell"])]
        if row["status"] != "done" or row["kind"] != "train" or own.empty:
            wall = "" if row["wall_s"] is None else f" in {row['wall_s']:.0f} s"
            lines.append([name, f"{row['kind']} {row['status']}{wall}", *[""] * len(DIMENSIONS)])
            continue
        measured = own[own["split"] != "dev"]
        measured = measured if len(measured) else own
        for (dataset, split), block in measured.groupby(["dataset", "split"], sort=False):
            values = dict(zip(block["dimension"], map(number, block["value"]), strict=True))
            lines.append([name, f"{dataset} {split}", *(values.get(d, "") for d in DIMENSIONS)])
            name = ""
    print_table("cells", ("study, cell", "CCC on", *DIMENSIONS), lines)
    for row in cells.to_pylist():
        if row["error"]:
            print_warning(f"{row['study']}, {row['cell']}: {row['error'][:_MAX_ERROR]}")


def print_plan(plan: StudyPlan, corpora: Corpora) -> None:
    """Cells, corpora and what is missing, before the study starts."""
    grid, others = plan.grid, ", ".join(corpora.others) or "no other"
    pairs = {
        "studies": ", ".join(plan.wanted),
        "cells": f"{len(grid.cells)}, {len(grid.runs)} runs, {len(plan.left())} of them left",
        "corpora": f"trained on {', '.join(corpora.home)}; also evaluated on {others}",
    }
    print_pairs("study", pairs)
    for name, lacks in missing(plan, corpora).items():
        print_warning(f"study {name} lacks {lacks}: its cells will fail or be incomplete")


def print_estimate(plan: StudyPlan) -> None:
    """A line for every experiment that is left, and their sum, measured on a few batches.

    One training of each backbone is measured; scoring is counted at three times its speed, and
    evaluation, fusion and probe are not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        corpora = load_corpora(plan, folder)
        print_plan(plan, corpora)
        left = plan.left()
        resources = find_resources(max(1, len(left)), plan.flags)
        synthetic.write_networks(folder, plan.small_networks)
        place = replace(plan.place, output=folder)
        speeds: dict[str, float] = {}
        total_s = 0.0
        lines: dict[str, str] = {}
        for run in left:
            if run.job not in IN_TRIALS:
                lines[run.name] = f"{run.job}, not estimated"
                continue
            training = plan.grid.runs[run.needs[0]] if run.needs else run
            backbone = str(training.settings["backbone"])
            try:
                flags, _ = training_plan.inspect(training_flags(training, place))
                if backbone not in speeds:
                    speeds[backbone] = measure_speed(flags, corpora.training, resources)
            except RaysersError as error:
                lines[run.name] = f"cannot be measured: {error}"
                continue
            audio_s = _audio_s(run, flags.epochs, corpora)
            seconds = audio_s / speeds[backbone]
            total_s += seconds
            lines[run.name] = f"{hours(audio_s)} of audio, {duration(seconds)}"
    print_pairs("estimate (nothing was written)", lines)
    usd = plan.flags.usd_per_hour * total_s / 3600
    pairs = {
        "places": resources.words,
        "of one place": duration(total_s) + (f", {usd:,.2f} USD" if usd else ""),
        "in all": f"about {duration(total_s / resources.at_once)}",
    }
    print_pairs("all", pairs)


def _audio_s(run: Experiment, epochs: int, corpora: Corpora) -> float:
    """Audio of a run in seconds of training."""
    scored_s = float(pc.sum(corpora.judged["duration_s"]).as_py() or 0.0) / _FORWARDS
    if run.job == "train":
        train = corpora.training.filter(pc.equal(corpora.training["split"], "train"))
        share = float(run.settings["train"].get("train_fraction", 1.0))
        return epochs * share * float(pc.sum(train["duration_s"]).as_py() or 0.0) + scored_s
    flags = run.settings["flags"]
    names = flags.get("perturbations") or SUITES[flags.get("suite", "paper")]
    return scored_s * (1 + len(names) if run.job == "robustness" else 1)
