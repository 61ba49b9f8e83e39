r"""The paper's experiments as grids of trainings and of analyses of the trained models.

    raysers study backbones seeds --data /corpora/MSP-Podcast /corpora/IEMOCAP \
        -o s3://bucket/study
    raysers study paper --scale small -o study    # one small machine

Costs what its trainings cost: see --dry-run. Rerunning the command resumes; cells that several
studies share are run once. A study file is YAML: copy one of raysers/assets/studies and give its
path.

Result: OUTPUT/cells, metrics, curves (tables) and OUTPUT/runs/NAME, the output of every run as its
own job writes it. raysers report OUTPUT draws the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raysers.cli import as_plain, command
from raysers.commands.evaluate import evaluate
from raysers.commands.probe import probe
from raysers.engine import cluster
from raysers.errors import RaysersError
from raysers.evaluation.rows import print_notes
from raysers.io import storage
from raysers.run import Exit, Run, with_absolute_paths
from raysers.studies import plan, runner
from raysers.studies.experiments import Experiment, Place, analysis_flags
from raysers.studies.plan import StudyFlags
from raysers.words.fuse_train import train

#: Jobs that take the whole cluster.
_ANALYSES: Mapping[str, Callable[[Any], int]] = {
    "evaluate": evaluate,
    "fuse": train,
    "probe": probe,
}


def study(flags: StudyFlags) -> int:
    """Check, plan, run what is left, write the tables; returns the exit code."""
    config, flags = as_plain(flags), with_absolute_paths(flags, "data", "speakers")
    with Run.open(plan.JOB, flags.output, dry_run=flags.dry_run) as run:
        planned = plan.make_plan(flags, run)
        cluster.connect()
        if flags.dry_run:
            plan.print_estimate(planned)
            return Exit.DONE
        corpora = plan.load_corpora(planned, storage.join(flags.output, "corpora"))
        plan.print_plan(planned, corpora)
        runner.begin(planned, run, corpora, config)
        written = runner.run_all(planned, corpora, run.run_id, _analyse)
        outcome = runner.outcome_of(planned, corpora)
        failed = outcome["cells"] - outcome["done"]
        good = failed <= flags.max_failed_cells * outcome["cells"]
        run.finish("done" if good else "done_with_failures", outcome)
    runner.print_cells(written["cells"], written["metrics"])
    print_notes(list(corpora.notes))
    output = flags.output
    print(f"tables: {output}/cells, metrics, curves; figures: raysers report {output}")
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def _analyse(run: Experiment, place: Place) -> Mapping[str, Any]:
    flags = analysis_flags(run, place)
    flags.check()
    code = _ANALYSES[run.job](flags)
    if code != Exit.DONE:
        raise RaysersError(f"{run.job} ended with exit code {code}: see {place.uri(run.name)}")
    return {}


main = command(StudyFlags, study, __doc__ or "", positional="study")
