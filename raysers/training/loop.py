"""The training loop: steps, dev scores, checkpoints, until the training is finished.

Every process of a group runs it. All hold the same progress and take the same decisions from the
same numbers; only process 0 writes. Progress is never ahead of the state that was saved with it.
"""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysers.engine import output as parts
from raysers.engine.placement import io_threads
from raysers.errors import RaysersError, TrainingDiverged
from raysers.io import storage
from raysers.models.backbones import Outputs
from raysers.models.initialize import regress_mel
from raysers.models.loading import load_emotion_model
from raysers.models.scorer import Scorer
from raysers.run import load_record
from raysers.schemas import ANNOTATIONS, with_outputs
from raysers.training import checkpoint, optim
from raysers.training.checkpoint import TrainProgress, dev_ccc, dev_record, dev_uar
from raysers.training.dataloader import Batch, Floats, SignalCache, TrainLoader, micro_batches
from raysers.training.dataset import TooManyFailed
from raysers.training.learner import Learner, StepResult, available_bytes
from raysers.training.plan import TrainingPlan, start_network
from raysers.types import DIMENSIONS, Clip, Status

#: Takes all records of epochs and all warnings so far.
PassOn = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], None]
#: The dev rows by the stored model, below the output.
PREDICTIONS = "predictions/part-00000.parquet"
#: What to do about a lack of memory, when single clips with checkpointing need too much.
_LESS = "a lower --max-clip-s, fewer --layers or --freeze backbone need less"
#: Share of the free memory that all workers of a machine may fill with decoded audio.
_CACHE_SHARE = 0.25
#: Share of the device's free memory for graphs that save a second forward pass.
_GRAPH_SHARE = {"cpu": 0.25, "cuda": 0.5}
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
    """Hooks of a training in one process; `pass_on` is called after every epoch."""

    def __init__(self, pass_on: PassOn) -> None:
        self._pass_on = pass_on

    def on_step(self, progress: TrainProgress, total_steps: int) -> None:
        """The training starts or resumes, or a step is done."""

    def on_epoch(self, progress: TrainProgress) -> None:
        """An epoch is done and its state saved."""
        self._pass_on(progress.history, progress.warnings)

    def should_stop(self) -> bool:
        """Whether all processes should stop after the next step, its state saved."""
        return False

    def should_save(self) -> bool:
        """Whether to save the state now; the answer must be the same in every process."""
        return False


def train_loop(
    plan: TrainingPlan, callback: Callback, device: str | torch.device, processes_here: int
) -> None:
    """Train to the end, from wherever the saved state is, beside `processes_here` others.

    Raises one of `AGREED` in every process alike; RaysersError in this one.
    """
    record = load_record(plan.output)
    sees = record is not None and record.run_id == plan.run_id
    blind = [node for node, seen in optim.gather((platform.node(), sees)) if not seen]
    if blind:
        raise OutputUnseen(
            f"{blind[0]} does not see {plan.output}: give an --output that every node reaches, "
            "s3:// or a shared disk"
        )
    torch.set_num_threads(plan.placement.threads)
    pool = ThreadPoolExecutor(
        io_threads(plan.data.table, plan.placement), thread_name_prefix="decode"
    )
    try:
        training = _Training(plan, callback, torch.device(device), processes_here, pool)
        while not training.is_over():
            training.run_epoch()
        training.store_predictions()
        optim.wait_for_all()
    except (torch.OutOfMemoryError, MemoryError) as error:  # of this process alone
        raise RaysersError(f"out of memory ({_first_line(error)}): {_LESS}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Training:
    """One process's part of a training, as it was saved or at its start."""

    def __init__(
        self,
        plan: TrainingPlan,
        callback: Callback,
        device: torch.device,
        processes_here: int,
        pool: Executor,
    ) -> None:
        self._plan, self._callback, self._device = plan, callback, device
        flags, data = plan.flags, plan.data
        start = start_network(flags, plan.network.load_from)
        free_bytes = available_bytes() / max(processes_here, 1)
        audio_s = max(data.train.audio_s + data.dev.audio_s, 1.0)
        self._train, self._dev = (
            SignalCache(
                examples,
                pool,
                max_clip_s=flags.max_clip_s,
                min_samples=start.model.min_samples,
                room_bytes=int(_CACHE_SHARE * free_bytes * examples.audio_s / audio_s),
            )
            for examples in (data.train, data.dev)
        )
        is_cuda = device.type == "cuda"
        if is_cuda:
            free_bytes = torch.cuda.mem_get_info(device)[0]
        self._loader = TrainLoader(
            plan, self._train, optim.rank(), optim.world_size(), pinned=is_cuda
        )
        saved = checkpoint.latest(plan.output)
        if flags.front_steps and saved is None and optim.rank() == 0:
            # alone; the weights then reach the others as all first weights do
            start.model.to(device)
            batches = (
                (piece.on(device, normalised=start.do_normalize), piece.lengths)
                for piece in self._loader.front_batches(flags.front_steps)
            )
            regress_mel(start.model, batches, steps=flags.front_steps, lr=1e-3, seed=flags.seed)
        self._learner = Learner(
            start,
            plan.categories,
            flags,
            self._loader.total_steps,
            device,
            sexes=len(data.sexes),
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
        flags, progress = self._plan.flags, self.progress
        tired = flags.patience and progress.waited >= flags.patience
        return bool(tired) or progress.epoch >= flags.epochs

    def run_epoch(self) -> None:
        flags, progress = self._plan.flags, self.progress
        stopped = False
        self._callback.on_step(progress, self._loader.total_steps)
        began_s = time.monotonic()
        for step, batch in self._loader.epoch(progress.epoch, progress.step):
            result = self._step(batch, stop=self._callback.should_stop())
            progress.end_step(result.loss, step.audio_s, time.monotonic() - began_s)
            self._lr, stopped = result.lr, result.stop
            progress.warnings += self._new_warnings()
            within_epoch = progress.step % self._loader.steps_per_epoch
            if within_epoch:
                if flags.eval_steps and progress.step % flags.eval_steps == 0:
                    self._evaluate(ends_epoch=False)
                due = bool(flags.checkpoint_steps) and progress.step % flags.checkpoint_steps == 0
                if self._callback.should_save() or due or stopped:
                    self._save()
            self._callback.on_step(progress, self._loader.total_steps)
            if stopped and within_epoch:
                raise TrainingStopped(f"stopped after step {progress.step}")
            began_s = time.monotonic()
        self._evaluate(ends_epoch=True)
        self._save()
        self._callback.on_epoch(progress)
        if stopped:
            raise TrainingStopped(f"stopped after epoch {progress.epoch}")

    def store_predictions(self) -> None:
        """Score the dev clips once more, by the model in the output, as annotate would."""
        plan = self._plan
        optim.wait_for_all()  # process 0 may still be writing the model
        if not len(plan.data.dev):
            return
        loaded = load_emotion_model(storage.fetch_folder(plan.output))
        threads = plan.placement.threads
        scorer = Scorer(loaded, dtype=plan.flags.dtype, device=str(self._device), threads=threads)

        def predict(signals: Sequence[Floats]) -> Floats:
            scored = scorer.score(signals)
            return np.hstack([scored.scores, scored.extras])

        outputs = loaded.model.outputs
        found = self._predict_all(predict, len(DIMENSIONS) + len(outputs.columns))
        if optim.rank() == 0:
            common = {
                "model": plan.output,
                "model_revision": loaded.revision,
                "run_id": plan.run_id,
                "created_at": datetime.now(UTC),
            }
            failed = self.progress.failed
            rows = [
                _row(clip, values, outputs, failed.get(clip.clip_id, "")) | common
                for clip, values in zip(plan.data.dev.clips, found.tolist(), strict=True)
            ]
            schema = with_outputs(ANNOTATIONS, outputs.categories, outputs.columns)
            uri = storage.join(plan.output, PREDICTIONS)
            parts.write_part(uri, parts.to_table(rows, schema))

    def _step(self, batch: Batch, *, stop: bool) -> StepResult:
        try:
            return self._learner.step(batch, stop=stop)
        except TrainingDiverged as error:
            kept = "; the last good model stays in the output" * bool(self.progress.history)
            raise TrainingDiverged(f"epoch {self.progress.epoch + 1}, {error}{kept}") from error
        except MemoryError as error:
            raise OutOfMemory(f"out of memory ({_first_line(error)}): {_LESS}") from error

    def _predict_all(
        self, predict: Callable[[Sequence[Floats]], Floats], outputs: int
    ) -> NDArray[np.float64]:
        """Predictions [clips, outputs] of all dev clips; every process has to call it.

        NaN where a clip could not be decoded, infinite where the network gave no number.
        """
        lengths_s = [clip.duration_s for clip in self._plan.data.dev.clips]
        cut = micro_batches(lengths_s, self._plan.flags.max_padded_s, 1)
        mine = []
        pieces = [piece.tolist() for piece in cut[optim.rank() :: optim.world_size()]]
        for piece, found in self._dev.ahead(pieces, list):
            decoded = {n: s for n, s in zip(piece, found, strict=True) if s is not None}
            if decoded:
                scores = predict([*decoded.values()])
                # a network that fails on a clip must not pass for one that was not asked
                mine.append(([*decoded], np.where(np.isfinite(scores), scores, np.inf)))
        table = np.full((len(lengths_s), outputs), np.nan)
        for numbers, scores in itertools.chain(*optim.gather(mine)):
            table[numbers] = scores
        return table

    def _evaluate(self, *, ends_epoch: bool) -> None:
        """Score the dev set, and store the model if it is the one to keep."""
        plan, flags, dev = self._plan, self._plan.flags, self._plan.data.dev
        scores = dev_record(None, None)
        if len(dev):
            width = len(DIMENSIONS) + len(plan.categories)
            found = self._predict_all(self._learner.predict, width)
            values, probabilities = np.split(found, [len(DIMENSIONS)], axis=1)
            scores = dev_record(
                dev_ccc(dev.labels, values) if plan.data.trained else None,
                dev_uar(dev.categories, probabilities) if plan.categories else None,
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
                checkpoint.store_model(plan, model, do_normalize=self._learner.do_normalize)

    def _save(self) -> None:
        """Save the state; all workers wait for it, so that none is ahead of what is saved."""
        self._agree_on_failed()
        if optim.rank() == 0:
            checkpoint.save(self._plan.output, self.progress, self._learner)
        optim.wait_for_all()

    def _agree_on_failed(self) -> None:
        """Put together which clips any worker could not decode; TooManyFailed in every worker."""
        data, known, share = self._plan.data, self.progress.failed, self._plan.flags.max_failed
        mine: dict[str, str] = {}
        for signals, examples in ((self._train, data.train), (self._dev, data.dev)):
            mine |= {examples.clips[n].clip_id: why for n, why in signals.failed.items()}
        for found in optim.gather(mine):
            known |= found
        failed = dict(sorted(known.items()))
        clips = len(data.train) + len(data.dev)
        if len(failed) > share * clips:
            raise TooManyFailed(
                f"{len(failed)} of {clips} clips could not be decoded, more than --max-failed "
                f"{share:g} allows; the first is {next(iter(failed.values()))}"
            )

    def _new_warnings(self) -> Iterator[str]:
        """Of the step: out of memory, and, once, that exchanging gradients takes long."""
        while self._learner.warnings:
            yield self._learner.warnings.pop(0)
        sums = self.progress.sums
        if self.progress.step == self._judged_at and sums.steps:
            step_s = sums.wall_s / sums.steps
            if self._exchange_s > max(_EXCHANGE_S, _EXCHANGE_SHARE * step_s):
                mb = self._learner.gradients.num_bytes / 1e6
                yield (
                    f"slow network between workers: exchanging {mb:.0f} MB of gradients takes "
                    f"{self._exchange_s:.2f} s, a step {step_s:.2f} s: give a larger --batch-size, "
                    "fewer --workers, or --gradient-dtype bf16"
                )


def _row(clip: Clip, values: Sequence[float], outputs: Outputs, error: str) -> dict[str, Any]:
    columns = outputs.row(values[: len(DIMENSIONS)], values[len(DIMENSIONS) :])
    status = Status.UNREADABLE if error else Status.OK
    numbers = [columns[name] for name in (*outputs.trained, *outputs.columns)]
    if not error and not all(map(math.isfinite, numbers)):
        status, error = Status.MODEL_ERROR, "the model's scores are not finite numbers"
    row = {"file": clip.file, "start": clip.start_ns, "end": clip.end_ns, "clip_id": clip.clip_id}
    row |= {"status": str(status), "error": error}
    return row if error else {**row, "duration_s": clip.duration_s, **columns}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no memory"])[0]
