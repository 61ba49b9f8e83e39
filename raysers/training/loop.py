"""The training loop: steps, dev scores, checkpoints, until the training is finished.

Every process of a group runs it. All hold the same progress and take the same decisions from the
same numbers; only process 0 writes. Progress is never ahead of the state that was saved with it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch

from raysers.errors import RaysersError, TrainingDiverged
from raysers.models.mel_front import regress_mel
from raysers.run import load_record
from raysers.training import checkpoint, optim
from raysers.training.batch import Batch
from raysers.training.checkpoint import DevScores, TrainProgress
from raysers.training.dataloader import SignalCache, TrainLoader, available_bytes
from raysers.training.dataset import TooManyFailed, TrainingJob
from raysers.training.dev import dev_ccc, dev_uar, predict_all, store_model, store_predictions
from raysers.training.learner import Learner, StepResult
from raysers.training.plan import start_network
from raysers.types import DIMENSIONS

#: What to do about a lack of memory, when single clips with checkpointing need too much.
_LESS = "a lower --max-clip-s, fewer --layers or --freeze backbone need less"
#: Share of the free memory that all workers of a machine may fill with decoded audio.
_CACHE_SHARE = 0.25
#: Share of the device's free memory for graphs that save a second forward pass.
_GRAPH_SHARE = {"cpu": 0.25, "cuda": 0.5}
#: Learning rate of Adam for the front end; the regression is short and forgiving.
_FRONT_LR = 1e-3
#: Steps after which the network is judged, and what it may take: seconds, share of a step.
_JUDGED_STEPS, _EXCHANGE_S, _EXCHANGE_SHARE = 5, 0.05, 0.25


class TrainingStopped(RaysersError):
    """The training was asked to stop; its state is saved."""


class OutOfMemory(RaysersError):
    """No process can make the step, however little memory it uses."""


class OutputUnseen(RaysersError):
    """A node of the cluster does not see the output folder."""


#: Errors that every process meets at the same step: no restart can mend them.
AGREED = (TrainingDiverged, TooManyFailed, TrainingStopped, OutOfMemory, OutputUnseen)


class Callback:
    """Hooks of a training, called by every process that has it after the same steps."""

    def on_start(self, progress: TrainProgress) -> None:
        """The training starts or resumes."""

    def on_step(self, progress: TrainProgress, total_steps: int) -> None:
        """A step is done."""

    def on_epoch(self, progress: TrainProgress) -> None:
        """An epoch is done and its state saved."""

    def on_warning(self, text: str) -> None:
        """Something that the user should know."""

    def should_stop(self) -> bool:
        """Whether all processes should stop after the next step, its state saved."""
        return False

    def should_save(self) -> bool:
        """Whether to save the state now; the answer must be the same in every process."""
        return False


def train_loop(
    job: TrainingJob,
    callbacks: Sequence[Callback],
    *,
    device: torch.device,
    processes_here: int = 1,
) -> None:
    """Train to the end, from wherever the saved state is.

    Args:
        job: the same in every process.
        callbacks: of this process.
        device: of this process.
        processes_here: training processes on this machine, of any training.

    Raises:
        TrainingStopped: a callback asked for it.
        TrainingDiverged, TooManyFailed, OutOfMemory, OutputUnseen: in every process alike.
        RaysersError: in this process alone.
    """
    _require_same_output(job)
    torch.set_num_threads(job.threads)
    pool = ThreadPoolExecutor(job.io_threads, thread_name_prefix="decode")
    try:
        training = _Training(job, callbacks, device, processes_here, pool)
        for callback in callbacks:
            callback.on_start(training.progress)
        while not training.is_over():
            training.run_epoch()
        if not training.progress.finished:
            training.finish()
        optim.wait_for_all()
    except (
        torch.OutOfMemoryError,
        MemoryError,
    ) as error:  # of this process alone
        raise RaysersError(f"out of memory ({_first_line(error)}): {_LESS}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _require_same_output(job: TrainingJob) -> None:
    record = load_record(job.output)
    sees = record is not None and record.run_id == job.run_id
    blind = [node for node, seen in optim.gather((platform.node(), sees)) if not seen]
    if blind:
        raise OutputUnseen(
            f"{blind[0]} does not see {job.output}: give an --output that every node reaches, "
            "s3:// or a shared disk"
        )


class _Training:
    """One process's part of a training, as it was saved or at its start."""

    def __init__(
        self,
        job: TrainingJob,
        callbacks: Sequence[Callback],
        device: torch.device,
        processes_here: int,
        pool: Executor,
    ) -> None:
        self._job, self._callbacks, self._device = job, callbacks, device
        flags = job.flags
        start = start_network(flags, job.backbone)
        free_bytes = available_bytes() / max(processes_here, 1)
        audio_s = max(job.train.audio_s + job.dev.audio_s, 1.0)
        self._train, self._dev = (
            SignalCache(
                examples,
                pool,
                max_clip_s=flags.max_clip_s,
                min_samples=start.min_samples,
                room_bytes=int(_CACHE_SHARE * free_bytes * examples.audio_s / audio_s),
            )
            for examples in (job.train, job.dev)
        )
        is_cuda = device.type == "cuda"
        if is_cuda:
            free_bytes = torch.cuda.mem_get_info(device)[0]
        self._loader = TrainLoader(
            job, self._train, optim.rank(), optim.world_size(), pinned=is_cuda
        )
        saved = checkpoint.latest(job.output)
        if flags.front_steps and saved is None and optim.rank() == 0:
            # alone; the weights then reach the others as all first weights do
            start.model.to(device)
            batches = (
                (piece.on(device, normalised=start.do_normalize), piece.lengths)
                for piece in self._loader.front_batches(flags.front_steps)
            )
            regress_mel(
                start.model, batches, steps=flags.front_steps, lr=_FRONT_LR, seed=flags.seed
            )
        self._learner = Learner(
            start,
            job.categories,
            flags,
            self._loader.total_steps,
            device,
            graph_bytes=_GRAPH_SHARE[device.type] * free_bytes,
        )
        self.progress = TrainProgress()
        if saved is not None:
            saved.restore(self._learner)
            self.progress = saved.progress
        self._lr = 0.0
        self._exchange_s = self._learner.gradients.sum_s()
        self._judged_at = self.progress.step + _JUDGED_STEPS

    def is_over(self) -> bool:
        """Whether no further epoch is needed."""
        patience = self._job.flags.patience
        tired = bool(patience) and self.progress.waited >= patience
        return tired or self.progress.epoch >= self._job.flags.epochs

    def run_epoch(self) -> None:
        """Make the steps that are left of the epoch, score the dev set, save the state."""
        flags, progress = self._job.flags, self.progress
        stopped = False
        began_s = time.monotonic()
        for step, batch in self._loader.epoch(progress.epoch, progress.step):
            stop = any(callback.should_stop() for callback in self._callbacks)
            result = self._step(step.epoch, batch, stop=stop)
            progress.end_step(result.loss, step.audio_s, time.monotonic() - began_s)
            self._lr, stopped = result.lr, result.stop
            self._judge_network()
            if progress.step % self._loader.steps_per_epoch:
                if flags.eval_steps and progress.step % flags.eval_steps == 0:
                    self._evaluate(ends_epoch=False)
                due = bool(flags.checkpoint_steps) and progress.step % flags.checkpoint_steps == 0
                asked = sum(callback.should_save() for callback in self._callbacks)
                if due or asked or stopped:
                    self._save()
            for callback in self._callbacks:
                callback.on_step(progress, self._loader.total_steps)
            if stopped and progress.step % self._loader.steps_per_epoch:
                raise TrainingStopped(f"stopped after step {progress.step}")
            began_s = time.monotonic()
        self._evaluate(ends_epoch=True)
        self._save()
        for callback in self._callbacks:
            callback.on_epoch(progress)
        if stopped:
            raise TrainingStopped(f"stopped after epoch {progress.epoch}")

    def finish(self) -> None:
        """Score the dev set once more, by the model as it was stored, and note that all is done."""
        optim.wait_for_all()  # process 0 may still be writing it
        if len(self._job.dev):
            store_predictions(self._job, self._dev, self.progress.failed, self._device)
        self.progress.finished = True
        if optim.rank() == 0:
            checkpoint.write_notes(self._job.output, self.progress, self._learner)

    def _step(self, epoch: int, batch: Batch, *, stop: bool) -> StepResult:
        try:
            return self._learner.step(batch, stop=stop)
        except TrainingDiverged as error:
            raise TrainingDiverged(
                f"epoch {epoch + 1}, {error}; the last good model stays in the output"
            ) from error
        except MemoryError as error:
            raise OutOfMemory(f"out of memory ({_first_line(error)}): {_LESS}") from error

    def _evaluate(self, *, ends_epoch: bool) -> None:
        """Score the dev set, and store the model if it is the one to keep."""
        flags, dev = self._job.flags, self._job.dev
        scores = DevScores()
        if len(dev):
            found = predict_all(
                self._job,
                self._dev,
                self._learner.predict,
                outputs=len(DIMENSIONS) + len(self._job.categories),
                device=self._device,
            )
            values, probabilities = np.split(found, [len(DIMENSIONS)], axis=1)
            scores = DevScores(
                ccc=dev_ccc(dev.labels, values) if self._job.trained else None,
                uar=dev_uar(dev.categories, probabilities) if self._job.categories else None,
            )
        self._agree_on_failed()
        kept = False
        if flags.eval_steps and self.progress.step % flags.eval_steps == 0:
            kept = self.progress.end_evaluation(scores, may_keep=flags.keep == "best-step")
        if ends_epoch:
            last = flags.keep == "last"
            kept |= self.progress.end_epoch(scores, lr=self._lr, keep_last=last)
        if kept and optim.rank() == 0:
            with self._learner.averaged() as model:
                store_model(self._job, model, do_normalize=self._learner.do_normalize)

    def _save(self) -> None:
        """Save the state; all workers wait for it, so that none is ahead of what is saved."""
        self._agree_on_failed()
        if optim.rank() == 0:
            checkpoint.save(self._job.output, self.progress, self._learner)
        optim.wait_for_all()

    def _agree_on_failed(self) -> None:
        """Put together which clips any worker could not decode.

        Raises:
            TooManyFailed: more than `--max-failed` allows; in every worker alike.
        """
        job, known = self._job, self.progress.failed
        mine: dict[str, str] = {}
        for signals, examples in ((self._train, job.train), (self._dev, job.dev)):
            mine |= {examples.clips[n].clip_id: why for n, why in signals.failed.items()}
        for found in optim.gather(mine):
            known |= found
        failed = dict(sorted(known.items()))
        clips = len(job.train) + len(job.dev)
        if len(failed) > job.flags.max_failed * clips:
            raise TooManyFailed(
                f"{len(failed)} of {clips} clips could not be decoded, more than --max-failed "
                f"{job.flags.max_failed:g} allows; the first is {next(iter(failed.values()))}"
            )

    def _judge_network(self) -> None:
        """Warn once when exchanging gradients takes a large share of the first steps."""
        sums = self.progress.sums
        if self.progress.step != self._judged_at or not sums.steps:
            return
        step_s = sums.wall_s / sums.steps
        if self._exchange_s > max(_EXCHANGE_S, _EXCHANGE_SHARE * step_s):
            mb = self._learner.gradients.num_bytes / 1e6
            text = (
                f"slow network between workers: exchanging {mb:.0f} MB of gradients takes "
                f"{self._exchange_s:.2f} s, a step {step_s:.2f} s: give a larger --batch-size, "
                "fewer --workers, or --gradient-dtype bf16"
            )
            for callback in self._callbacks:
                callback.on_warning(text)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no memory"])[0]
