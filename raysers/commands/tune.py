r"""Search the flags of training for the best dev CCC, many trainings at a time, on a whole cluster.

    raysers tune space.yaml --trials 40 --search optuna \
        --data /corpora/MSP-Podcast --backbone w2v2-L-robust-12 -o SWEEP

space.yaml: `lr: loguniform(1e-5, 1e-3)`, `batch-size: [16, 32, 64]`, `layers: int(4, 12)`, a
condition as `warmup: {values: "uniform(0, 0.3)", when: {freeze: cnn}}`. Flags of train given
here are the same in all trials. ASHA stops bad trials early (--asha off keeps them).
Rerunning the command resumes; `--dry-run` estimates time and cost and writes nothing.

Result: OUTPUT/trials, a table with a row per trial; OUTPUT/best, a model folder for annotate.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from raysers.cli import as_plain, command
from raysers.engine import cluster
from raysers.run import Exit, Run
from raysers.training import plan as training_plan
from raysers.training.dataset import TooManyFailed
from raysers.tuning import plan, results
from raysers.tuning.plan import TuningFlags
from raysers.tuning.resources import find_resources
from raysers.tuning.tuner import run_sweep


@dataclass(frozen=True, kw_only=True)
class TuneFlags(TuningFlags):
    """Flags of this job."""


def tune(flags: TuneFlags) -> int:
    """Check, plan, run the trials that are left, conclude; returns the exit code."""
    config, flags = as_plain(flags), training_plan.with_absolute_paths(flags)
    with Run.open(plan.JOB, flags.output, dry_run=flags.dry_run) as run:
        sweep = plan.make_sweep(flags)
        cluster.connect()
        sweep, clips = plan.with_data(sweep, run)
        resources = find_resources(sweep.trials, flags.workers_per_trial, flags.max_concurrent)
        plan.print_plan(sweep, resources)
        if flags.dry_run:
            plan.print_estimate(sweep, resources, clips)
            return Exit.DONE
        outcome = (run.earlier.outcome if run.earlier else None) or {}
        finished = "statuses" in outcome and not plan.left(sweep)
        if not finished:
            plan.begin(sweep, run, clips, config)
        trials = run_sweep(sweep, resources, lambda known: results.write_trials(known, sweep))
        code = results.exit_code(trials, flags.max_failed_trials)
        if not finished:
            outcome = results.conclude(sweep, trials)
            run.finish(results.STATUSES[code], outcome)
        results.print_outcome(sweep, trials, outcome)
        return code


def tune_or_refuse(flags: TuneFlags) -> int:
    """As `tune`, with exit code 3 for data of which too much cannot be used."""
    try:
        return tune(flags)
    except TooManyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.TOO_MANY_FAILED


main = command(TuneFlags, tune_or_refuse, __doc__ or "", positional="space")
