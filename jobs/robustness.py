"""How much a model's scores change when its input is changed in ways that should not matter.

    python jobs/robustness.py --input s3://bucket/calls --output s3://bucket/calls-robustness \
        --model msp-dim --suite small

Every clip is decoded once; the clip and its perturbed variants are scored in the same batches.
Takes about as long as `jobs/annotate.py`, times the number of perturbations plus one.
Rerunning the command resumes.
Result: OUTPUT/robustness/part-*.parquet, one row per clip and perturbation; the share of clips
left unchanged in OUTPUT/metrics and OUTPUT/robustness.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raysers.cli import parse
from raysers.engine.job import ClipJob
from raysers.engine.progress import print_line
from raysers.robustness.flags import RobustnessFlags
from raysers.robustness.summary import report, save_audio
from raysers.robustness.task import RobustnessTask
from raysers.run import quiet_environment, run_main

JOB = "robustness"


def robustness(flags: RobustnessFlags) -> int:
    """Check, plan, score what is left, conclude, compare; returns the exit code."""
    with ClipJob.open(flags, JOB, table=RobustnessTask.table) as job:
        task = RobustnessTask.load(flags, job.run.earlier)
        job.prepare(task)
        names = ", ".join(task.variant_names)
        print_line(f"{len(task.variant_names)} variants of every clip: {names}")
        if flags.dry_run:
            return job.estimate()
        code = job.execute()
        report(job, task, flags.comparison)
        save_audio(job, task.perturbed, flags.save_audio)
        return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: robustness(parse(RobustnessFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
