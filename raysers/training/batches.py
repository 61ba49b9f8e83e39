"""Which clips a training step sees, in what pieces, and which worker handles which piece.

Order, batches and pieces never depend on the number of workers; only the dealing out of pieces
does, and it does not change any result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysers.errors import ConfigError

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
