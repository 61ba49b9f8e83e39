"""Commands that train one model, a sweep, or the models of a study.

What they run takes seconds to import, so that `--help` and mistakes do not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from raysers.cli import as_plain
from raysers.commands import command
from raysers.errors import RaysersError
from raysers.io import storage
from raysers.models.backbones import ASSETS
from raysers.run import Exit, Run, with_absolute_paths
from raysers.studies.flags import StudyFlags
from raysers.training.config import PLACES, SHOWN, TrainingFlags
from raysers.tuning.flags import TuningFlags

if TYPE_CHECKING:
    from raysers.studies.experiments import Experiment, Place


@command("data", recipes=ASSETS / "recipes", shown=SHOWN)
def train(flags: TrainingFlags) -> int:
    r"""Fine-tune a speech backbone for arousal, dominance and valence, on any number of workers.

        raysers train /corpora/MSP-Podcast --backbone w2v2-L-robust-12 \
            -o s3://bucket/models/msp-dim

    The defaults are the paper's (Adam 1e-4, 5 epochs, batch 32, CCC loss, CNN frozen). On a
    small machine: `raysers train emodb --recipe from-scratch --folds 5`. Rerunning the command
    resumes, and one to four --workers give the same model.

    Result: OUTPUT is a model folder for annotate, with a card, figures and the dev predictions.
    """
    from raysers.training.dataset import TooManyFailed
    from raysers.training.trainer import run_training

    try:
        run_training(flags, as_plain(flags))
        return Exit.DONE
    except TooManyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.TOO_MANY_FAILED


#: What run.json says for each way to end.
_STATUSES = {
    Exit.DONE: "done",
    Exit.TOO_MANY_FAILED: "done_with_failures",
    Exit.FAILED: "failed",
}


@command("space")
def tune(flags: TuningFlags) -> int:
    r"""Search the flags of training for the best dev CCC, many trainings at a time, on a cluster.

        raysers tune space.yaml --trials 40 --search optuna \
            --data /corpora/MSP-Podcast --backbone w2v2-L-robust-12 -o SWEEP

    space.yaml: `lr: loguniform(1e-5, 1e-3)`, `batch-size: [16, 32, 64]`, `layers: int(4, 12)`, a
    condition as `warmup: {values: "uniform(0, 0.3)", when: {freeze: cnn}}`. Flags of train given
    here are the same in all trials. ASHA stops bad trials early (--asha off keeps them).
    Rerunning the command resumes; `--dry-run` estimates time and cost and writes nothing.

    Result: OUTPUT/trials, a table with a row per trial; OUTPUT/best, a model folder for annotate.
    """
    from raysers.data.manifest import write_manifest
    from raysers.engine import cluster
    from raysers.training.dataset import TooManyFailed
    from raysers.tuning import results, sweep

    config, flags = as_plain(flags), with_absolute_paths(flags, *PLACES)
    with Run.open(sweep.JOB, flags.output, dry_run=flags.dry_run) as run:
        planned = sweep.make_sweep(flags)
        cluster.connect()
        try:
            planned, clips = sweep.with_data(planned, run)
        except TooManyFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return Exit.TOO_MANY_FAILED
        resources = sweep.find_resources(planned.trials, flags)
        results.print_plan(planned, resources)
        if flags.dry_run:
            results.print_estimate(planned, resources, clips)
            return Exit.DONE
        outcome = (run.earlier.outcome if run.earlier else None) or {}
        finished = "statuses" in outcome and not planned.left()
        if not finished:
            if run.earlier is None:
                write_manifest(planned.indexed.manifest, clips)
            run.begin(config, planned.settings)
        trials = sweep.run_sweep(planned, resources, partial(results.on_ended, planned))
        statuses = [trial.status for trial in trials]
        many = statuses.count("failed") > flags.max_failed_trials * len(trials)
        code = (
            Exit.FAILED if "done" not in statuses else Exit.TOO_MANY_FAILED if many else Exit.DONE
        )
        if not finished:
            outcome = results.conclude(planned, trials)
            run.finish(_STATUSES[code], outcome)
        results.print_outcome(planned, trials, outcome)
        return code


@command("study")
def study(flags: StudyFlags) -> int:
    r"""The paper's experiments as grids of trainings and of analyses of the trained models.

        raysers study backbones seeds --data /corpora/MSP-Podcast /corpora/IEMOCAP \
            -o s3://bucket/study
        raysers study paper --scale small -o study    # one small machine

    Costs what its trainings cost: see --dry-run. Rerunning the command resumes; cells that
    several studies share are run once. A study file is YAML: copy one of raysers/assets/studies
    and give its path.

    Result: OUTPUT/cells, metrics, curves (tables) and OUTPUT/runs/NAME, the output of every run
    as its own job writes it. raysers report OUTPUT draws the figures.
    """
    from raysers.engine import cluster
    from raysers.evaluation.rows import print_notes
    from raysers.studies import plan, runner

    config = as_plain(flags)
    flags = with_absolute_paths(flags, "data", "speakers", "emotion_map")
    with Run.open(plan.JOB, flags.output, dry_run=flags.dry_run) as run:
        planned = plan.make_plan(flags, run)
        cluster.connect()
        if flags.dry_run:
            runner.print_estimate(planned)
            return Exit.DONE
        corpora = plan.load_corpora(planned, storage.join(flags.output, "corpora"))
        runner.print_plan(planned, corpora)
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
    from raysers.commands.analyses import evaluate, probe
    from raysers.studies.experiments import analysis_flags
    from raysers.words import fuse_train

    flags = analysis_flags(run, place)
    flags.check()
    jobs: Mapping[str, Callable[[Any], int]] = {
        "evaluate": evaluate.run,
        "fuse": fuse_train.train,
        "probe": probe.run,
    }
    code = jobs[run.job](flags)
    if code != Exit.DONE:
        raise RaysersError(f"{run.job} ended with exit code {code}: see {place.uri(run.name)}")
    return {}
