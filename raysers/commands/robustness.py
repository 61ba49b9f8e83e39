r"""How much a model's scores change when its input is changed in ways that should not matter.

    raysers robustness s3://bucket/calls -o s3://bucket/calls-robustness \
        --model msp-dim --suite small

Every clip is decoded once; the clip and its perturbed variants are scored in the same batches.
Takes about as long as `raysers annotate`, times the number of perturbations plus one.
Rerunning the command resumes.

Result: OUTPUT/robustness/part-*.parquet, one row per clip and perturbation; the share of clips
left unchanged in OUTPUT/metrics and OUTPUT/robustness.png.
"""

from __future__ import annotations

from raysers.cli import command
from raysers.engine.job import ClipJob
from raysers.engine.progress import print_line
from raysers.robustness.summary import report
from raysers.robustness.task import RobustnessFlags, RobustnessTask, save_audio

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


main = command(RobustnessFlags, robustness, __doc__ or "", positional="input")
