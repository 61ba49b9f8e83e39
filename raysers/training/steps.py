"""The steps of an epoch as one worker sees them: which clips, in which pieces, which are its own.

Clips are told by their number among the job's training clips, which are sorted by identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raysers.audio.augment import Augmentation, augment, clip_rng
from raysers.training.batches import (
    Indices,
    assign,
    epoch_order,
    global_batches,
    micro_batches,
    padded_s,
)
from raysers.training.feed import Signal
from raysers.training.initial_model import TrainingJob
from raysers.types import SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step.

    Attributes:
        number: from 0, over the whole training.
        epoch: from 0.
        batch: numbers of the clips of the global batch.
        pieces: positions in `batch` of every micro-batch, the same for any number of workers.
        mine: which of the pieces this worker handles.
    """

    number: int
    epoch: int
    batch: Indices
    pieces: Sequence[Indices]
    mine: Sequence[int]

    @property
    def my_clips(self) -> list[int]:
        """Numbers of the clips of this worker's pieces, piece after piece."""
        return [int(self.batch[i]) for piece in self.mine for i in self.pieces[piece]]


class Schedule:
    """All steps of a training.

    Args:
        job: the training.
        rank: of this worker.
        workers: how many share the work.
    """

    def __init__(self, job: TrainingJob, rank: int, workers: int) -> None:
        self._job, self._rank, self._workers = job, rank, workers
        self.augmentation = augmentation_of(job)
        self._lengths_s = [self.augmentation.longest_s(clip.duration_s) for clip in job.train.clips]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return math.ceil(len(self._job.train) / self._job.flags.batch_size)

    @property
    def total(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self._job.flags.epochs

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """The steps of `epoch`, from number `first` of the training on."""
        order = epoch_order(len(self._job.train), self._job.flags.seed, epoch)
        batches = global_batches(order, self._job.flags.batch_size)
        for place, batch in enumerate(batches):
            number = epoch * self.steps_per_epoch + place
            if number >= first:
                yield self._step(number, epoch, batch)

    def _step(self, number: int, epoch: int, batch: Indices) -> Step:
        lengths_s = [self._lengths_s[i] for i in batch]
        pieces = micro_batches(lengths_s, self._job.flags.max_padded_s, self._job.pieces)
        assignments = assign([padded_s(lengths_s, piece) for piece in pieces], self._workers)
        return Step(
            number=number, epoch=epoch, batch=batch, pieces=pieces, mine=assignments[self._rank]
        )

    def changed(self, epoch: int, number: int, signal: Signal, min_samples: int) -> Signal:
        """What clip `number` sounds like in `epoch`."""
        if not self.augmentation.changes_anything:
            return signal
        identity = self._job.train.identities[number]
        rng = clip_rng(self._job.flags.seed, epoch, identity)
        most = int(self._job.flags.max_clip_s * SAMPLE_RATE_HZ)
        return augment(signal, self.augmentation, rng, min_samples=min_samples, max_samples=most)

    def batch_s(self, step: Step) -> float:
        """Audio seconds of a step's global batch, as far as headers tell."""
        return float(sum(self._lengths_s[i] for i in step.batch))


def augmentation_of(job: TrainingJob) -> Augmentation:
    """What the flags say may happen to training clips."""
    flags = job.flags
    return Augmentation(
        crop_s=flags.crop_s,
        equaliser_db=flags.equaliser_db,
        noise_db=flags.noise_db,
        noise_share=flags.noise_share,
        speed=flags.speed,
    )
