"""The steps of a training as one worker sees them: which clips, in which pieces, which its own.

Order, batches and pieces never depend on the number of workers; only the dealing out of pieces
does, and it does not change any result. Clips are told by their number among the job's training
clips, which are sorted by identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysers.audio.augment import Augmentation, augment, clip_rng
from raysers.errors import ConfigError
from raysers.training.feed import Signal
from raysers.training.initial_model import TrainingJob
from raysers.types import SAMPLE_RATE_HZ

Indices = NDArray[np.int64]

#: Keeps the order's random stream apart from others that start from seed and epoch.
_ORDER_STREAM = 0x0BDE

#: Halvings of the range in which the best limit for a batch's pieces is looked for.
_HALVINGS = 40


def epoch_order(clips: int, seed: int, epoch: int) -> Indices:
    """A permutation of `clips` rows, a function of seed and epoch alone.

    Sorts raw 64-bit draws, which numpy promises never to change (its ready-made permutations
    may). Rows have to be in an order of their own, by identity.

    Args:
        clips: how many, at least 0.
        seed: at least 0.
        epoch: at least 0.

    Returns:
        int64 [clips].
    """
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch, _ORDER_STREAM)))
    return np.argsort(bits.random_raw(clips), kind="stable").astype(np.int64)


def global_batches(order: Indices, batch_size: int) -> list[Indices]:
    """The order cut into `ceil(clips / batch_size)` batches whose sizes differ by at most one.

    No row is dropped, and no batch is a small remainder, whose loss would be a poor estimate.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}: give 1 or more clips")
    if not len(order):
        return []
    return np.array_split(order, math.ceil(len(order) / batch_size))


def micro_batches(lengths_s: Sequence[float], max_padded_s: float, pieces: int) -> list[Indices]:
    """Cut one batch by length into pieces that are padded and run one at a time.

    Clips are sorted, longest first, and cut so that the costliest piece (clips x longest) is as
    cheap as that number of pieces allows. Their number is the smallest that keeps every piece
    within `max_padded_s`, and at least `pieces`, as far as there are clips.

    Args:
        lengths_s: of the batch's clips, finite.
        max_padded_s: clips x longest of a piece; a clip longer than that is alone.
        pieces: least number of pieces.

    Returns:
        Indices into the batch, each once, the longest clips first.

    Raises:
        ConfigError: `max_padded_s` is not positive.
    """
    if not max_padded_s > 0:
        raise ConfigError(f"--max-padded-s is {max_padded_s}: give more than 0 seconds")
    lengths = np.asarray(lengths_s, np.float64)
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    longest_first: list[float] = lengths[order].tolist()
    most_s = min(max_padded_s, len(lengths) * longest_first[0])
    needed = len(_cut(longest_first, most_s))
    sizes = _even_cut(longest_first, max(needed, min(pieces, len(lengths))), most_s)
    return np.split(order, np.cumsum(sizes)[:-1])


def padded_s(lengths_s: Sequence[float], piece: Indices) -> float:
    """Seconds of a padded piece: clips x longest."""
    return len(piece) * max(float(lengths_s[i]) for i in piece)


def assign(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Hand pieces to workers, the costliest first, each to the worker with the least to do.

    Args:
        costs: of each piece, in any unit.
        workers: at least 1.

    Returns:
        For each worker the numbers of its pieces, rising; empty for workers without any.
    """
    assignments: list[list[int]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker = min(range(workers), key=lambda w: (loads[w], len(assignments[w]), w))
        assignments[worker].append(piece)
        loads[worker] += costs[piece]
    return [sorted(hand) for hand in assignments]


def _cut(longest_first: list[float], limit_s: float) -> list[int]:
    """Sizes of the fewest consecutive pieces within `limit_s`; one clip may be above it."""
    sizes, start = [], 0
    while start < len(longest_first):
        fitting = int(limit_s / longest_first[start]) if longest_first[start] > 0 else math.inf
        sizes.append(int(min(max(fitting, 1), len(longest_first) - start)))
        start += sizes[-1]
    return sizes


def _even_cut(longest_first: list[float], pieces: int, most_s: float) -> list[int]:
    """Sizes of exactly `pieces` pieces, the costliest as cheap as can be; `most_s` is enough."""
    low_s, high_s = 0.0, most_s
    for _ in range(_HALVINGS):
        middle_s = (low_s + high_s) / 2
        if len(_cut(longest_first, middle_s)) <= pieces:
            high_s = middle_s
        else:
            low_s = middle_s
    sizes = _cut(longest_first, high_s)
    while len(sizes) < pieces:
        _halve_costliest(longest_first, sizes)
    return sizes


def _halve_costliest(longest_first: list[float], sizes: list[int]) -> None:
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    costs = [
        (size * longest_first[start], size) if size > 1 else (-1.0, size)
        for start, size in zip(starts, sizes, strict=True)
    ]
    piece = max(range(len(sizes)), key=lambda i: (*costs[i], -i))
    sizes[piece : piece + 1] = [sizes[piece] // 2, sizes[piece] - sizes[piece] // 2]


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
