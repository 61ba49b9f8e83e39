"""Search the flags of training for the best dev CCC, many trainings at a time, on a whole cluster.

    python jobs/tune.py --space space.yaml --trials 40 --search optuna --data /corpora/MSP-Podcast \
        --backbone w2v2-L-robust-12 --output s3://bucket/sweeps/msp

space.yaml: `lr: loguniform(1e-5, 1e-3)`, `batch-size: [16, 32, 64]`, `layers: int(4, 12)`, a
condition as `warmup: {values: "uniform(0, 0.3)", when: {freeze: cnn}}`. Flags of train.py given
here are the same in all trials. Bad trials are stopped early (--asha off keeps them); the same
command again resumes. What it would take: add `--dry-run`.
Result: OUTPUT/trials, a table with a row per trial; OUTPUT/best, a model folder for annotate.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from raysers.config import as_plain, parse
from raysers.distributed import (
    cluster,
    training_plan,
    training_report,
    tuning,
    tuning_plan,
    tuning_result,
)
from raysers.distributed.clipjob import recorded
from raysers.distributed.planning import before_writing, check_writable
from raysers.distributed.training_data import TooManyFailed
from raysers.distributed.tuning_estimate import print_estimate, print_plan
from raysers.distributed.tuning_flags import TuningFlags
from raysers.distributed.tuning_share import find_seats
from raysers.run import Exit, finished, quiet_environment, run_main


@dataclass(frozen=True, kw_only=True)
class TuneFlags(TuningFlags):
    """Flags of this job."""


def tune(flags: TuneFlags) -> int:
    """Check, plan, run the trials that are left, conclude; returns the exit code."""
    with before_writing():
        anchored = training_plan.anchored(flags)
        earlier = tuning_plan.open_output(anchored)
        if not flags.dry_run:
            check_writable(anchored.output)
        planned = tuning_plan.draft(anchored)
        cluster.connect()
        sweep, clips = tuning_plan.make_sweep(planned, earlier)
        seats = find_seats(sweep.trials, flags.workers_per_trial, flags.max_concurrent)
    print_plan(sweep, seats)
    if flags.dry_run:
        print_estimate(sweep, seats, clips)
        return Exit.DONE
    if tuning.is_finished(sweep):
        trials = tuning.ended_trials(sweep)
        tuning_result.print_outcome(sweep, trials, sweep.earlier_outcome)
        return tuning_result.exit_code(trials, flags.max_failed_trials)
    record = tuning_plan.begin(sweep, clips, as_plain(flags))
    with recorded(record, sweep.output):
        trials = tuning.run_trials(sweep, seats)
        outcome = tuning_result.conclude(sweep, trials)
    code = tuning_result.exit_code(trials, flags.max_failed_trials)
    finished(record, tuning_result.STATUSES[code], outcome).save(sweep.output)
    tuning_result.print_outcome(sweep, trials, outcome)
    return code


def tune_or_refuse(flags: TuneFlags) -> int:
    """As `tune`, with exit code 3 for data of which too much cannot be used."""
    try:
        return tune(flags)
    except TooManyFailed as error:
        training_report.print_refusal(error)
        return Exit.TOO_MANY_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: tune_or_refuse(parse(TuneFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
