"""What every training worker does: steps, dev scores, checkpoints, until the training is finished.

All workers hold the same position and take the same decisions from the same numbers; only process 0
writes. A position is never ahead of the state that was saved with it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from raysers.errors import RaysersError, TrainingDiverged
from raysers.run import load_record
from raysers.training import checkpoint
from raysers.training.batch import Batch, MicroBatch
from raysers.training.batches import Schedule, Step
from raysers.training.context import TrainingStopped, WorkerContext
from raysers.training.dataset import TooManyFailed
from raysers.training.dev import cut_by_length, dev_ccc, dev_uar, predict_all
from raysers.training.feed import Signal, Signals, available_bytes
from raysers.training.initial_model import TrainingJob, start_network, train_settings
from raysers.training.learner import Learner
from raysers.training.position import TrainProgress
from raysers.training.pretrain import pretrain_frontend
from raysers.training.state import dump, restore, scalars_of
from raysers.training.store import store_model, store_predictions
from raysers.types import DIMENSIONS

#: What to do about a lack of memory, when single clips with checkpointing need too much.
_LESS = "a lower --max-clip-s, fewer --layers or --freeze backbone need less"
#: Share of the free memory that all workers of a machine may fill with decoded audio.
_CACHE_SHARE = 0.25
#: Share of the device's free memory for graphs that save a second forward pass.
_GRAPH_SHARE = {"cpu": 0.25, "cuda": 0.5}

#: Shortest time between two reports to the live line.
_REPORT_EVERY_S = 0.5


def train_in(context: WorkerContext, job: TrainingJob) -> None:
    """One process's part of the training, to its end; every process of the group calls it.

    Raises:
        TrainingStopped: the callback ended the training.
        TrainingDiverged, TooManyFailed: like the above, in every process at the same step.
        RaysersError: in this process alone.
    """
    try:
        _Worker(job, context).run()
    except (torch.OutOfMemoryError, MemoryError) as error:
        first_line = (str(error).splitlines() or ["no memory"])[0]
        raise RaysersError(f"out of memory ({first_line}): {_LESS}") from error


class _Worker:
    def __init__(self, job: TrainingJob, context: WorkerContext) -> None:
        self._job, self._callback = job, context.callback
        self._require_same_output()
        torch.set_num_threads(job.threads)
        self._group, self._device = context.group, context.device
        own_bytes = available_bytes() / max(context.processes_here, 1)
        self._room_bytes = _CACHE_SHARE * own_bytes
        if self._device.type == "cuda":
            own_bytes = torch.cuda.mem_get_info(self._device)[0]
        self._schedule = Schedule(job, self._group.rank, self._group.size)
        start = start_network(job.flags, job.backbone)
        saved = checkpoint.latest(job.output)
        self._pool = ThreadPoolExecutor(job.io_threads, thread_name_prefix="decode")
        self._train = self._signals(start.min_samples)
        self._dev = self._signals(start.min_samples, dev=True)
        if job.flags.front_steps and saved is None and self._group.rank == 0:
            pretrain_frontend(start, job.flags, self._schedule, self._train, self._device)
        self._learner = Learner(
            start,
            job.categories,
            train_settings(job.flags),
            self._schedule.total,
            self._device,
            self._group,
            graph_bytes=_GRAPH_SHARE[self._device.type] * own_bytes,
        )
        self._position = TrainProgress()
        if saved is not None:
            content = (saved.read("weights.safetensors"), saved.read("optimizer.safetensors"))
            restore(self._learner, *content, saved.notes["trainee"])
            own = {k: v for k, v in saved.notes.items() if k != "trainee"}
            self._position = TrainProgress.from_state_dict(saved.step, own)
        self._lr = 0.0
        self._reported_s = 0.0
        self._since_s = time.monotonic()
        if self._group.rank == 0:
            self._callback.started(self._position.step)

    def run(self) -> None:
        """Train to the end, from wherever the saved state is."""
        while not self._is_over():
            for step in self._steps():
                self._check_in(step)
            self._end_epoch()
        if not self._position.finished:
            self._finish()
        self._group.wait()

    def _is_over(self) -> bool:
        patience = self._job.flags.patience
        tired = bool(patience) and self._position.waited >= patience
        return tired or self._position.epoch >= self._job.flags.epochs

    def _steps(self) -> Iterator[Step]:
        """Make the steps that are left of the epoch, yielding each when it is done."""
        position, epoch = self._position, self._position.epoch
        wanted = self._schedule.epoch(epoch, position.step)

        def changed(number: int, signal: Signal) -> Signal:
            return self._schedule.changed(epoch, number, signal, self._learner.min_samples)

        self._since_s = time.monotonic()
        for step, signals in self._train.ahead(wanted, lambda s: s.my_clips, changed):
            result = self._step(step, signals)
            position.step += 1
            position.sums.steps += 1
            position.sums.loss += result.loss
            position.sums.audio_s += self._schedule.batch_s(step)
            self._lr = result.lr
            self._count_time()
            yield step

    def _step(self, step: Step, signals: list[Signal | None]) -> Any:
        pieces, left = [], iter(signals)
        for piece in step.mine:
            found = [(int(row), next(left)) for row in step.pieces[piece]]
            decoded = [(row, signal) for row, signal in found if signal is not None]
            pieces.append(
                MicroBatch(
                    number=piece,
                    rows=[row for row, _ in decoded],
                    signals=[signal for _, signal in decoded],
                )
            )
        train = self._job.train
        labels, classes = train.labels[step.batch], train.categories[step.batch]
        try:
            return self._learner.step(Batch(labels=labels, classes=classes, pieces=pieces))
        except TrainingDiverged as error:
            raise TrainingDiverged(
                f"epoch {step.epoch + 1}, {error}; the last good model stays in the output"
            ) from error

    def _check_in(self, step: Step) -> None:
        """After a step: the live line, and a checkpoint where one is due."""
        every = self._job.flags.checkpoint_steps
        ends_epoch = self._position.step % self._schedule.steps_per_epoch == 0
        if every and self._position.step % every == 0 and not ends_epoch:
            self._agree_on_failed()
            self._save()
        now_s = time.monotonic()
        if self._group.rank == 0 and now_s - self._reported_s >= _REPORT_EVERY_S:
            self._reported_s = now_s
            sums = self._position.sums
            self._callback.progress(
                {
                    "epoch": step.epoch + 1,
                    "step": self._position.step,
                    "steps": self._schedule.total,
                    "loss": sums.mean_loss,
                    "audio_s": sums.audio_s,
                    "audio_hours_per_s": sums.audio_hours_per_s,
                }
            )

    def _end_epoch(self) -> None:
        """Score the dev set, keep the model if it is to be kept, save the state, and tell."""
        flags = self._job.flags
        ccc, uar, dev = None, None, self._job.dev
        if len(dev):
            scores, probabilities = np.split(self._predict_dev(), [len(DIMENSIONS)], axis=1)
            ccc = dev_ccc(dev.labels, scores) if self._job.trained else None
            uar = dev_uar(dev.categories, probabilities) if self._job.categories else None
        self._agree_on_failed()
        kept = self._position.end_epoch(ccc, uar, lr=self._lr, keep_last=flags.keep == "last")
        if kept and self._group.rank == 0:
            with self._learner.averaged() as model:
                store_model(self._job, model, do_normalize=self._learner.do_normalize)
        self._save()
        wanted = self._group.rank != 0 or self._callback.epoch(self._position.history[-1])
        if not all(self._group.gather(wanted)):
            raise TrainingStopped(f"stopped after epoch {self._position.epoch}")

    def _predict_dev(self) -> Any:
        lengths_s = [clip.duration_s for clip in self._job.dev.clips]
        return predict_all(
            self._dev,
            cut_by_length(lengths_s, self._job.flags.max_padded_s),
            self._learner.predict,
            clips=len(lengths_s),
            outputs=len(DIMENSIONS) + len(self._job.categories),
            device=self._device,
            group=self._group,
        )

    def _finish(self) -> None:
        """Score the dev set once more, by the model as it was stored, and say that all is done."""
        self._group.wait()  # process 0 may still be writing it
        if len(self._job.dev):
            failed = self._position.failed
            store_predictions(self._job, self._dev, failed, self._device, self._group)
        self._position.finished = True
        if self._group.rank == 0:
            checkpoint.note(self._job.output, self._position.step, self._notes())

    def _save(self) -> None:
        """Save the state; all workers wait for it, so that none is ahead of what is saved."""
        if self._group.rank == 0:
            state = dump(self._learner)
            files = {
                "weights.safetensors": state.weights,
                "optimizer.safetensors": state.optimiser,
            }
            checkpoint.save(self._job.output, self._position.step, files, self._notes())
        self._group.wait()
        self._since_s = time.monotonic()

    def _notes(self) -> dict[str, Any]:
        return self._position.state_dict() | {"trainee": scalars_of(self._learner)}

    def _count_time(self) -> None:
        now_s = time.monotonic()
        self._position.sums.wall_s += now_s - self._since_s
        self._since_s = now_s

    def _agree_on_failed(self) -> None:
        """Put together which clips any worker could not decode.

        Raises:
            TooManyFailed: more than `--max-failed` allows; in every worker alike.
        """
        mine: dict[str, str] = {}
        for signals, examples in ((self._train, self._job.train), (self._dev, self._job.dev)):
            mine |= {examples.clips[n].clip_id: why for n, why in signals.failed.items()}
        for found in self._group.gather(mine):
            self._position.failed |= found
        failed = dict(sorted(self._position.failed.items()))
        clips = len(self._job.train) + len(self._job.dev)
        if len(failed) > self._job.flags.max_failed * clips:
            raise TooManyFailed(
                f"{len(failed)} of {clips} clips could not be decoded, more than --max-failed "
                f"{self._job.flags.max_failed:g} allows; the first is {next(iter(failed.values()))}"
            )

    def _signals(self, min_samples: int, *, dev: bool = False) -> Signals:
        """The feed of train or dev; together they may fill this worker's share of the memory."""
        both = self._job.train.audio_s + self._job.dev.audio_s
        examples = self._job.dev if dev else self._job.train
        return Signals(
            examples,
            self._pool,
            max_clip_s=self._job.flags.max_clip_s,
            min_samples=min_samples,
            room_bytes=int(self._room_bytes * examples.audio_s / max(both, 1.0)),
        )

    def _require_same_output(self) -> None:
        record = load_record(self._job.output)
        if record is None or record.run_id != self._job.run_id:
            raise RaysersError(
                f"{platform.node()} does not see {self._job.output}: give an --output that every "
                "node reaches, s3:// or a shared disk"
            )
