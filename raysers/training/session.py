"""One training from its flags to its model folder: what the train job does, and a trial of a sweep.

The folder decides what is left: a finished training is only read, an interrupted one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysers.data.manifest import is_manifest
from raysers.engine import cluster
from raysers.engine.job import recorded
from raysers.engine.plan import before_writing, check_writable
from raysers.io import storage
from raysers.run import RunRecord, finished
from raysers.training import checkpoint, epochs, team
from raysers.training import plan as training_plan
from raysers.training.config import TrainingFlags
from raysers.training.dataset import Indexed
from raysers.training.initial_model import TrainingJob
from raysers.training.loop import train_in
from raysers.training.plan import TrainingPlan
from raysers.training.results import write_results
from raysers.training.team import TrainingStopped
from raysers.training.tracking import check_tracking, tracked
from raysers.training.trainer import Fitted, fit, fitted

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
class Room:
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
    alone: bool = False,
    room: Room | None = None,
    placement: cluster.Placement | None = None,
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
        alone: train in this process, without Ray Train; and without any cluster when the data
            are finished manifests or `indexed`.
        room: with `alone`, what of this machine the training may use.
        placement: without `alone`, where the workers go; None asks the cluster for `--workers`.
        indexed: the data of `flags`, if they have been indexed before.
        command: what to tell readers of the card to run; default: this process's command line.

    Raises:
        ConfigError: bad flags or data; nothing was written.
        TooManyFailed: too many clips cannot be used.
        TrainingStopped: `on_epoch` did; run.json says `stopped`, and the state is kept.
        RaysersError: the training failed; the same call goes on from its last state.
    """
    with before_writing():
        anchored = training_plan.anchored(flags)
        check_tracking(flags.track)
        earlier = training_plan.open_output(anchored, JOB)
        settled, network = training_plan.inspect(anchored)
        if training_plan.is_finished(settled, network, earlier):
            return _stored(settled.output)
        check_writable(settled.output)
        if not (alone and (indexed or _is_indexed(settled))):
            cluster.connect()
        place = _here(room or Room()) if alone else placement or cluster.place(flags.workers)
        plan = training_plan.make_plan(
            settled, network, earlier, place, alone=alone, indexed=indexed
        )
        epochs.print_plan(plan)
        record = training_plan.begin(plan, JOB, config, command)
    return _train(plan, record, on_epoch, room or Room() if alone else None)


def _train(
    plan: TrainingPlan, record: RunRecord, on_epoch: OnEpoch | None, room: Room | None
) -> Outcome:
    output = plan.flags.output
    try:
        with recorded(record, output), tracked(plan.flags, record, plan.history) as trackers:
            tell = epochs.teller(plan.flags.epochs, trackers)
            told = tell if on_epoch is None else _both(tell, on_epoch)
            if on_epoch is not None:
                for epoch in plan.history:
                    on_epoch(epoch)
            job = plan.job(record.run_id)
            if room is not None:
                ended = _fit_here(job, told, room)
            else:
                ended = fit(job, plan.placement, len(plan.history), told)
            figures = write_results(plan, record, ended.history, ended.failed)
    except TrainingStopped as stopped:
        finished(record, "stopped", {"reason": str(stopped)}).save(output)
        raise
    finished(record, "done", figures).save(output)
    checkpoint.clear(output)  # not before: a failure until here must find it
    epochs.print_outcome(output, figures)
    return Outcome(output=output, figures=figures, history=ended.history, trained=True)


def _both(first: OnEpoch, second: OnEpoch) -> OnEpoch:
    def tell(record: Epoch) -> None:
        first(record)
        second(record)

    return tell


def _here(room: Room) -> cluster.Placement:
    gpus = 1.0 if torch.cuda.is_available() else 0.0
    return cluster.Placement(workers=1, num_cpus=room.threads, num_gpus=gpus)


def _fit_here(job: TrainingJob, on_epoch: OnEpoch, room: Room) -> Fitted:
    """As `trainer.fit`, by this process."""
    train_in(team.alone(on_epoch, room.processes_here), job)
    return fitted(job)


def _is_indexed(flags: TrainingFlags) -> bool:
    """Whether no header of the data is left to be read."""
    return all(map(is_manifest, (*flags.data, *flags.train, *flags.dev)))


def _stored(output: str) -> Outcome:
    """The outcome of a training that was finished before."""
    epochs.print_finished(output)
    document = json.loads(storage.read_bytes(storage.join(output, "training.json")))
    return Outcome(
        output=output, figures=document["outcome"], history=document["history"], trained=False
    )
