"""How clips become batches: order, global batches, micro-batches that are padded together.

Order, batches and micro-batches never depend on the number of workers; only their assignment does,
and it does not change any result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysers.errors import ConfigError
from raysers.models.masking import normalise
from raysers.types import SAMPLE_RATE_HZ

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

#: Keeps the order's random stream apart from others that start from seed and epoch.
_ORDER_STREAM = 0x0BDE
#: Halvings of the range in which the best limit for a batch's micro-batches is searched.
_HALVINGS = 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Clips of a global batch that are padded and run together.

    Attributes:
        number: within the batch; decides the dropout.
        rows: places of the clips in the batch.
        padded: float32 [clips, samples], 16 kHz mono, on the CPU.
        lengths: int64 [clips], samples of each clip.
    """

    number: int
    rows: Tensor
    padded: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, number: int, rows: Sequence[int], signals: Sequence[Floats]) -> MicroBatch:
        """Pad signals, at least one."""
        lengths = torch.tensor([len(signal) for signal in signals])
        padded = torch.zeros((len(signals), int(lengths.max())))
        for row, signal in zip(padded.numpy(), signals, strict=True):
            row[: len(signal)] = signal
        return cls(number=number, rows=torch.tensor(rows), padded=padded, lengths=lengths)

    def pinned(self) -> MicroBatch:
        """The same in page-locked memory."""
        return replace(self, padded=self.padded.pin_memory())

    def on(self, device: torch.device, *, normalised: bool) -> Tensor:
        """[clips, samples] on the device; `normalised`: zero mean, unit variance per clip."""
        padded = self.padded.to(device, non_blocking=True)
        return normalise(padded, self.lengths.to(device)) if normalised else padded

    @property
    def padded_s(self) -> float:
        """Seconds of padded audio."""
        return self.padded.numel() / SAMPLE_RATE_HZ

    def chosen(self, clips: Tensor | slice, number: int) -> MicroBatch:
        """Some of the clips, at least one, padded to the longest of them."""
        lengths = self.lengths[clips]
        padded = self.padded[clips, : int(lengths.max())]
        return MicroBatch(number=number, rows=self.rows[clips], padded=padded, lengths=lengths)

    def halved(self, times: int) -> list[MicroBatch]:
        """Up to 2 ** times parts, each with another number; none is empty."""
        if not times:
            return [self]
        middle = (len(self.rows) + 1) // 2
        halves = [(0, slice(middle))] + [(1, slice(middle, None))] * (len(self.rows) > 1)
        parts = [self.chosen(clips, 2 * self.number + half) for half, clips in halves]
        return [part for half in parts for part in half.halved(times - 1)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """A global batch as one process has it.

    Attributes:
        labels: float32 [clips, 3] of all clips, NaN where missing.
        categories: int64 [clips] of all clips, -1 where unknown.
        pieces: this process's own; together the processes have every clip at most once.
    """

    labels: Tensor
    categories: Tensor
    pieces: Sequence[MicroBatch]


def epoch_order(clips: int, seed: int, epoch: int) -> Indices:
    """int64 [clips]: a permutation of the clips, a function of seed and epoch alone.

    Sorts raw 64-bit draws, which numpy promises never to change (its ready-made permutations may).
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
    """Cut one batch by length into micro-batches that are padded and run one at a time.

    Clips are sorted, longest first, and cut so that the costliest micro-batch (clips x longest) is
    as cheap as that number of them allows. Their number is the smallest that keeps each within
    `max_padded_s`, and at least `pieces`, as far as there are clips.

    Args:
        lengths_s: of the batch's clips, finite.
        max_padded_s: clips x longest of a micro-batch; a clip longer than that is alone.
        pieces: least number of micro-batches.

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


def _cut(longest_first: list[float], limit_s: float) -> list[int]:
    """Sizes of the fewest consecutive micro-batches within `limit_s`; one clip may be above it."""
    sizes, start = [], 0
    while start < len(longest_first):
        fitting = int(limit_s / longest_first[start]) if longest_first[start] > 0 else math.inf
        sizes.append(int(min(max(fitting, 1), len(longest_first) - start)))
        start += sizes[-1]
    return sizes


def _even_cut(longest_first: list[float], pieces: int, most_s: float) -> list[int]:
    """Sizes of exactly `pieces` micro-batches, the costliest as cheap as can be."""
    low_s, high_s = 0.0, most_s
    for _ in range(_HALVINGS):
        middle_s = (low_s + high_s) / 2
        if len(_cut(longest_first, middle_s)) <= pieces:
            high_s = middle_s
        else:
            low_s = middle_s
    sizes = _cut(longest_first, high_s)
    while len(sizes) < pieces:  # halve the costliest that has more than one clip
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        costs = [
            (size * longest_first[start] if size > 1 else -1.0, size, -number)
            for number, (size, start) in enumerate(zip(sizes, starts, strict=True))
        ]
        number = -max(costs)[2]
        sizes[number : number + 1] = [sizes[number] // 2, sizes[number] - sizes[number] // 2]
    return sizes


def padded_s(lengths_s: Sequence[float], piece: Indices) -> float:
    """Seconds of a padded micro-batch: clips x longest."""
    return len(piece) * max(float(lengths_s[i]) for i in piece)


def assign(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Numbers of each worker's micro-batches: the costliest first, to the least loaded worker."""
    assignments: list[list[int]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker = min(range(workers), key=lambda w: (loads[w], len(assignments[w]), w))
        assignments[worker].append(piece)
        loads[worker] += costs[piece]
    return [sorted(mine) for mine in assignments]
