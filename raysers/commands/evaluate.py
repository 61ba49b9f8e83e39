"""Evaluate predictions against labels as the paper does: correctness, fairness, intervals.

    raysers evaluate ANNOTATED TRAINED --labels MANIFEST -o EVALUATED --by sex

Instead of finished predictions, `--model M --input AUDIO` predicts first. The evaluation
of 15,000 predicted clips takes seconds.

Result: EVALUATED/metrics/part-00000.parquet, one value a row with its 95 % interval, and
EVALUATED/tests, the pass-or-fail tests of ser-tests with their thresholds; printed too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysers.annotation import AnnotateTask
from raysers.cli import as_plain, command
from raysers.commands.annotate import AnnotateFlags, annotate
from raysers.evaluation.evaluate import (
    EvaluateFlags,
    folder_names,
    labelled_clips,
    measure,
    print_coverage,
    read_labels,
    write,
)
from raysers.evaluation.predictions import read_predictions
from raysers.evaluation.published import print_tests
from raysers.evaluation.rows import print_metrics, print_notes
from raysers.io import storage
from raysers.run import Exit, Run, with_absolute_paths

if TYPE_CHECKING:
    from raysers.words.probe import ProbeFlags

JOB = "evaluate"


def evaluate(flags: EvaluateFlags) -> int:
    """Read, predict what is left to predict, measure, write, print; returns the exit code."""
    flags = with_absolute_paths(flags, "labels", "predictions", "input")
    with Run.open(JOB, flags.output, table="metrics") as run:
        run.refuse_other_settings(flags.settings)
        found = [read_predictions(uri) for uri in flags.predictions]
        tasks = [AnnotateTask.load(m, dtype=flags.dtype, max_padded_s=0) for m in flags.model]
        emotions = any(one.has_categories for one in found)
        emotions = emotions or any(task.outputs.categories for task in tasks)
        labels = read_labels(flags, emotions=emotions)
        report = None if flags.model else measure(flags, labels, found)
        run.begin(as_plain(flags), flags.settings)
        if report is None:
            clips = flags.input or (labelled_clips(flags, labels[0], emotions=emotions),)
            for model, name in folder_names(flags.model).items():
                place = storage.join(flags.output, "predictions", name)
                predict(flags, model, clips, place)
                found.append(read_predictions(place))
            report = measure(flags, labels, found)
        good = report.failed_share <= flags.max_failed
        write(report, run, good=good)
    print_coverage(report.coverage)
    print_metrics(report.rows)
    print_tests(report.tests)
    print_notes(report.notes)
    print(f"metrics: {storage.join(flags.output, 'metrics')}")
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def predict(
    flags: EvaluateFlags | ProbeFlags, model: str, clips: tuple[str, ...], output: str
) -> int:
    """Annotate with a model and the flags of another command; returns the exit code."""
    return annotate(
        AnnotateFlags(
            input=clips,
            output=output,
            model=model,
            dtype=flags.dtype,
            workers=flags.workers,
            max_failed=flags.max_failed,
        )
    )


main = command(EvaluateFlags, evaluate, __doc__ or "", positional="predictions")
