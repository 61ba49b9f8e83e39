"""The paper's experiments as grids of train and evaluate runs, and of looks at trained models.

    python jobs/study.py --study backbones seeds --data /corpora/MSP-Podcast /corpora/IEMOCAP \
        --output s3://bucket/study
    python jobs/study.py --study paper --scale small --output study    # one small machine

Costs what its trainings cost: see --dry-run. The same command again goes on; cells that several
studies share are run once. A study file is YAML: copy one of raysers/assets/studies and give its
path.
Result: OUTPUT/cells, metrics, curves (tables) and OUTPUT/runs/NAME, the output of every run as its
own job writes it. jobs/report.py --runs OUTPUT draws the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from jobs.evaluate import evaluate
from jobs.probe import ProbeFlags, probe
from raysers.cli import as_plain, parse
from raysers.data.manifest import read_manifest
from raysers.engine import cluster
from raysers.errors import RaysersError
from raysers.evaluation.flags import EvaluateFlags
from raysers.evaluation.tables import print_notes
from raysers.io import storage
from raysers.run import Exit, Run, quiet_environment, run_main
from raysers.studies import cost, runs
from raysers.studies import tables as study_tables
from raysers.studies.corpora import evaluation_uri, training_uri
from raysers.studies.experiments import Experiment
from raysers.studies.plan import (
    JOB,
    StudyingFlags,
    StudyPlan,
    load_corpora,
    make_plan,
    place_of,
    with_absolute_paths,
)
from raysers.studies.table import print_cells
from raysers.studies.units import SCORED, Place, best_run
from raysers.words.fuse import train
from raysers.words.fusion_flags import FuseTrainFlags


@dataclass(frozen=True, kw_only=True)
class StudyFlags(StudyingFlags):
    """Flags of this job."""


def study(flags: StudyFlags) -> int:
    """Check, plan, run what is left, write the tables; returns the exit code."""
    config, flags = as_plain(flags), with_absolute_paths(flags)
    with Run.open(JOB, flags.output, dry_run=flags.dry_run) as run:
        plan = make_plan(flags, run)
        if flags.dry_run:
            return _print_cost(plan)
        cluster.connect()
        corpora = load_corpora(plan)
        runs.begin(plan, run, corpora, config)
        runs.run_all(plan, corpora, run.run_id, _analysis)
        tables = study_tables.write_tables(plan.grid, place_of(plan, corpora.in_domain))
        outcome = runs.outcome_of(plan, corpora)
        failed = outcome["cells"] - outcome["done"]
        good = failed <= flags.max_failed_cells * outcome["cells"]
        run.finish("done" if good else "done_with_failures", outcome)
    print_cells(tables["cells"], tables["metrics"])
    print_notes(list(corpora.notes))
    output = flags.output
    print(f"tables: {output}/cells, metrics, curves; figures: jobs/report.py --runs {output}")
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def _print_cost(plan: StudyPlan) -> int:
    cluster.connect()
    heard = cost.heard(plan)
    cost.print_cost(plan, heard)
    return Exit.DONE


def _models(run: Experiment, place: Place) -> tuple[str, ...]:
    """What is looked at: the best model where the study asks for it, else all."""
    chosen = (best_run(run, place),) if run.settings["best"] else run.needs
    return tuple(map(place.uri, chosen))


def _evaluate(run: Experiment, place: Place) -> int:
    flags = EvaluateFlags(
        predictions=tuple(storage.join(model, SCORED) for model in _models(run, place)),
        labels=(evaluation_uri(place.output),),
        output=place.uri(run.name),
        in_domain=place.in_domain,
        **run.job_flags,
    )
    flags.check()
    return evaluate(flags)


def _fuse(run: Experiment, place: Place) -> int:
    flags = FuseTrainFlags(
        data=(training_uri(place.output),),
        output=place.uri(run.name),
        model=_models(run, place)[0],
        **run.job_flags,
    )
    return train(flags)


def _probe(run: Experiment, place: Place) -> int:
    data = training_uri(place.output)
    spoken = pc.any(pc.is_valid(read_manifest(data, ["transcript"])["transcript"])).as_py()
    flags = ProbeFlags(
        model=_models(run, place),
        output=place.uri(run.name),
        data=(data,) if spoken else (),
        **run.job_flags,
    )
    return probe(flags)


#: Jobs that take the whole cluster, by name.
_ANALYSES: Mapping[str, Callable[[Experiment, Place], int]] = {
    "evaluate": _evaluate,
    "fuse": _fuse,
    "probe": _probe,
}


def _analysis(run: Experiment, place: Place) -> Mapping[str, Any]:
    code = _ANALYSES[run.job](run, place)
    if code != Exit.DONE:
        raise RaysersError(f"{run.job} ended with exit code {code}: see {place.uri(run.name)}")
    return {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: study(parse(StudyFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
