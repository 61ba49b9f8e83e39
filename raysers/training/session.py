"""One training from its flags to its model folder: what the train job does, and a trial of a sweep.

The folder decides what is left: a finished training is only read, an interrupted one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysers.engine import cluster
from raysers.engine.job import here
from raysers.engine.plan import Placement
from raysers.io import storage
from raysers.run import Run
from raysers.training import checkpoint, context, epochs
from raysers.training import plan as training_plan
from raysers.training.config import TrainingFlags
from raysers.training.context import TrainingStopped
from raysers.training.dataset import Indexed
from raysers.training.loop import train_in
from raysers.training.plan import TrainingPlan
from raysers.training.results import write_results
from raysers.training.tracking import check_tracking, tracked
from raysers.training.trainer import fit, fitted

JOB = "train"

Epoch = Mapping[str, Any]
OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended.

    Attributes:
        output: the model folder.
        figures: `outcome` of its run.json: dev CCC of the stored model, epochs, audio, times.
        history: a record per epoch.
        trained: whether anything was left to do.
    """

    output: str
    figures: Mapping[str, Any]
    history: Sequence[Epoch]
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResources:
    """What a training in the calling process may use.

    Attributes:
        threads: compute threads.
        processes_here: training processes that share this machine's memory.
    """

    threads: int = 1
    processes_here: int = 1


def run_training(
    flags: TrainingFlags,
    config: Mapping[str, Any],
    *,
    on_epoch: OnEpoch | None = None,
    in_process: bool = False,
    local: LocalResources | None = None,
    placement: Placement | None = None,
    indexed: Indexed | None = None,
    command: Sequence[str] | None = None,
) -> Outcome:
    """Check, plan, train what is left, conclude.

    The same settings give the same model, whichever way it is trained.

    Args:
        flags: of the training.
        config: the flags as the user gave them, for run.json.
        on_epoch: called in this thread with the record of every epoch, those of an interrupted
            run first; not for a run that is finished. May raise TrainingStopped.
        in_process: train in this process, without Ray Train; a cluster is joined only to read the
            headers of many files.
        local: with `in_process`, what of this machine the training may use.
        placement: without `in_process`, of the workers; None asks the cluster for `--workers`.
        indexed: the data of `flags`, if they have been indexed before.
        command: what to tell readers of the card to run; default: this process's command line.

    Raises:
        ConfigError: bad flags or data; nothing was written.
        TooManyFailed: too many clips cannot be used.
        TrainingStopped: `on_epoch` did; run.json says `stopped`, and the state is kept.
        RaysersError: the training failed; the same call goes on from its last state.
    """
    flags = training_plan.with_absolute_paths(flags)
    with Run.open(JOB, flags.output) as run:
        training_plan.refuse_unknown_model(run)
        check_tracking(flags.track)
        settled, network = training_plan.inspect(flags)
        if training_plan.is_finished(settled, network, run):
            return _stored(run.output)
        local = (local or LocalResources()) if in_process else None
        if local is not None:
            placement = here(threads=local.threads)
        else:
            cluster.connect()
            placement = placement or cluster.place(flags.workers)
        plan = training_plan.make_plan(settled, network, run, placement, indexed=indexed)
        epochs.print_plan(plan)
        training_plan.begin(plan, run, config, command)
        return _train(plan, run, on_epoch, local)


def _train(
    plan: TrainingPlan, run: Run, on_epoch: OnEpoch | None, local: LocalResources | None
) -> Outcome:
    record = run.record
    assert record is not None, "the run has not begun"
    try:
        with tracked(plan.flags, record, plan.history) as trackers:
            log_epoch = epochs.epoch_logger(plan.flags.epochs, trackers)

            def end_epoch(epoch: Epoch) -> None:
                run.verify()
                log_epoch(epoch)
                if on_epoch is not None:
                    on_epoch(epoch)

            if on_epoch is not None:
                for epoch in plan.history:
                    on_epoch(epoch)
            job = plan.job(record.run_id)
            if local is not None:
                train_in(context.in_process(end_epoch, local.processes_here), job)
                ended = fitted(job)
            else:
                ended = fit(job, plan.placement, len(plan.history), end_epoch)
            figures = write_results(plan, record, ended.history, ended.failed)
    except TrainingStopped as stopped:
        run.finish("stopped", {"reason": str(stopped)})
        raise
    run.finish("done", figures)
    checkpoint.clear(run.output)  # not before: a failure until here must find it
    epochs.print_outcome(run.output, figures)
    return Outcome(output=run.output, figures=figures, history=ended.history, trained=True)


def _stored(output: str) -> Outcome:
    """The outcome of a training that was finished before."""
    epochs.print_finished(output)
    document = json.loads(storage.read_bytes(storage.join(output, "training.json")))
    return Outcome(
        output=output, figures=document["outcome"], history=document["history"], trained=False
    )
