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
from functools import partial

from raysers.cli import as_plain, command
from raysers.data.manifest import write_manifest
from raysers.engine import cluster
from raysers.run import Exit, Run
from raysers.training import plan as training_plan
from raysers.training.dataset import TooManyFailed
from raysers.tuning import results, sweep
from raysers.tuning.resources import find_resources
from raysers.tuning.sweep import TuningFlags as TuneFlags

#: What run.json says for each way to end.
_STATUSES = {
    Exit.DONE: "done",
    Exit.TOO_MANY_FAILED: "done_with_failures",
    Exit.FAILED: "failed",
}


def tune(flags: TuneFlags) -> int:
    """Check, plan, run the trials that are left, conclude; returns the exit code."""
    config, flags = as_plain(flags), training_plan.with_absolute_paths(flags)
    with Run.open(sweep.JOB, flags.output, dry_run=flags.dry_run) as run:
        planned = sweep.make_sweep(flags)
        cluster.connect()
        try:
            planned, clips = sweep.with_data(planned, run)
        except TooManyFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return Exit.TOO_MANY_FAILED
        resources = find_resources(planned.trials, flags)
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


main = command(TuneFlags, tune, __doc__ or "", positional="space")
