"""Fine-tune a speech backbone to arousal, dominance and valence, on any number of workers.

    python jobs/train.py --data /corpora/MSP-Podcast --backbone w2v2-L-robust-12 \
        --output s3://bucket/models/msp-dim

The defaults are the paper's (Adam 1e-4, 5 epochs, batch 32, CCC loss, CNN frozen). On a small
machine: `--backbone random:tiny --data emodb --emotion-map russell-mehrabian --folds 5 --epochs 30
--lr 1e-3`, a quarter of an hour on one core. The same command again resumes, and one
to four --workers give the same model.
Result: OUTPUT is a model folder for annotate, with a card, figures and the dev predictions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from raysers.config import as_plain, parse
from raysers.distributed import cluster, training_plan, training_report, training_state
from raysers.distributed.clipjob import recorded
from raysers.distributed.planning import before_writing, check_writable
from raysers.distributed.tracking import check_tracking, tracked
from raysers.distributed.trainer import fit
from raysers.distributed.training_data import TooManyFailed
from raysers.distributed.training_flags import TrainingFlags
from raysers.distributed.training_result import write_results
from raysers.run import Exit, finished, quiet_environment, run_main

JOB = "train"


@dataclass(frozen=True, kw_only=True)
class TrainFlags(TrainingFlags):
    """Flags of this job."""


def train(flags: TrainFlags) -> int:
    """Check, plan, train what is left, conclude; returns the exit code."""
    config = as_plain(flags)
    with before_writing():
        anchored = training_plan.anchored(flags)
        check_tracking(flags.track)
        earlier = training_plan.open_output(anchored, JOB)
        settled, network = training_plan.inspect(anchored)
        if training_plan.is_finished(settled, network, earlier):
            training_report.print_finished(settled.output)
            return Exit.DONE
        check_writable(settled.output)
        cluster.connect()
        plan = training_plan.make_plan(settled, network, earlier)
        training_report.print_plan(plan)
        record = training_plan.begin(plan, JOB, config)
    with recorded(record, settled.output), tracked(plan.flags, record, plan.history) as trackers:
        tell = training_report.teller(plan.flags.epochs, trackers)
        fitted = fit(plan.job(record.run_id), plan.placement, len(plan.history), tell)
        outcome = write_results(plan, record, fitted.history, fitted.failed)
    finished(record, "done", outcome).save(settled.output)
    training_state.clear(settled.output)  # not before: a failure until here must find it
    training_report.print_outcome(settled.output, outcome)
    return Exit.DONE


def train_or_refuse(flags: TrainFlags) -> int:
    """As `train`, with exit code 3 for data of which too much cannot be used."""
    try:
        return train(flags)
    except TooManyFailed as error:
        training_report.print_refusal(error)
        return Exit.TOO_MANY_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: train_or_refuse(parse(TrainFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
