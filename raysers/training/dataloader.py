"""From the clips of a training to the batches of one worker: order, cut, decode, augment, pad.

Order, batches and micro-batches never depend on the number of workers; only their assignment does,
and it does not change any result. Clips are known by their number among the job's clips, which are
sorted by identity.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysers.audio.augment import Augmentation, augment, clip_rng
from raysers.engine.feed import decode_run
from raysers.models.frontend import normalise
from raysers.models.scorer import pad
from raysers.training.dataset import Examples
from raysers.training.plan import TrainingPlan
from raysers.types import SAMPLE_RATE_HZ

BatchT = TypeVar("BatchT")
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
#: (number of the clip, its signal) -> the input of the network
Prepare = Callable[[int, Floats], Floats]
#: Keeps the order's random stream apart from others that start from seed and epoch.
_ORDER_STREAM = 0x0BDE
#: Audio seconds decoded ahead of the network.
_AHEAD_S = 600.0
#: Epochs of pre-training the front end are numbered from here, so that no other epoch is like them.
_FRONT_EPOCH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Clips of a global batch that are padded and run together; the number decides the dropout.

    `rows` int64 [clips] are their places in the batch, `lengths` their samples, `padded` float32
    [clips, samples] the 16 kHz audio on the CPU.
    """

    number: int
    rows: Tensor
    padded: Tensor
    lengths: Tensor

    @classmethod
    def of(
        cls, number: int, rows: Sequence[int], signals: Sequence[Floats], *, pinned: bool = False
    ) -> MicroBatch:
        """Pad signals, at least one; `pinned` ones are in page-locked memory."""
        padded, lengths = pad(signals, pinned=pinned)
        return cls(number=number, rows=torch.tensor(rows), padded=padded, lengths=lengths)

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
    """A global batch as one process has it: its own micro-batches, the labels of all clips.

    Labels are float32 [clips, 3], categories and sexes int64 [clips]; NaN and -1 where unknown.
    """

    labels: Tensor
    categories: Tensor
    pieces: Sequence[MicroBatch]
    sexes: Tensor | None = None


def epoch_order(clips: int, seed: int, epoch: int) -> Indices:
    """int64 [clips]: a permutation of the clips, a function of seed and epoch alone.

    Sorts raw 64-bit draws, which numpy promises never to change (its ready-made permutations may).
    """
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch, _ORDER_STREAM)))
    return np.argsort(bits.random_raw(clips), kind="stable").astype(np.int64)


def balanced_order(corpora: Indices, seed: int, epoch: int) -> Indices:
    """As `epoch_order`, clips of smaller `corpora` [clips] repeated up to the largest's number."""
    owned = [np.flatnonzero(corpora == corpus) for corpus in np.unique(corpora)]
    most = max(map(len, owned))
    drawn = [np.resize(own[epoch_order(len(own), seed, epoch)], most) for own in owned]
    return np.concatenate(drawn)[epoch_order(most * len(owned), seed, epoch)]


def global_batches(order: Indices, batch_size: int) -> list[Indices]:
    """The order cut into `ceil(clips / batch_size)` batches whose sizes differ by at most one.

    No row is dropped, and no batch is a small remainder, whose loss would be a poor estimate.
    """
    return np.array_split(order, math.ceil(len(order) / batch_size)) if len(order) else []


def micro_batches(lengths_s: Sequence[float], max_padded_s: float, pieces: int) -> list[Indices]:
    """Cut one batch by length into micro-batches, indices of [clips], the longest clips first.

    They are cut so that the costliest (clips x longest) is as cheap as that number of them allows.
    Their number is the smallest that keeps each within `max_padded_s`, which only a single clip may
    exceed, and at least `pieces`, as far as there are clips.
    """
    if not len(lengths_s):
        return []
    lengths = np.asarray(lengths_s, np.float64)
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
    for _ in range(40):  # halvings of the range of limits
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


def assign(lengths_s: Sequence[float], cut: Sequence[Indices], workers: int) -> list[list[int]]:
    """Numbers of each worker's micro-batches of `cut`: the costliest first, to the least loaded."""
    costs = [len(piece) * max(float(lengths_s[i]) for i in piece) for piece in cut]
    assignments: list[list[int]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker = min(range(workers), key=lambda w: (loads[w], len(assignments[w]), w))
        assignments[worker].append(piece)
        loads[worker] += costs[piece]
    return [sorted(mine) for mine in assignments]


class SignalCache:
    """Decoded clips of one set of examples, kept as far as they fit into `room_bytes`.

    Nothing is evicted: with cyclic access, LRU would evict exactly the clip needed next. `failed`
    says why a clip could not be decoded or does not fit.
    """

    def __init__(
        self,
        examples: Examples,
        pool: Executor,
        *,
        max_clip_s: float,
        min_samples: int,
        room_bytes: int,
    ) -> None:
        self.min_samples = min_samples
        self.failed: dict[int, str] = {}
        self._clips, self._pool, self._max_clip_s = examples.clips, pool, max_clip_s
        self._room_bytes = room_bytes
        self._kept: dict[int, Floats] = {}
        self._lock = threading.Lock()

    def ahead(
        self,
        batches: Iterable[BatchT],
        numbers: Callable[[BatchT], Sequence[int]],
        prepare: Prepare | None = None,
    ) -> Iterator[tuple[BatchT, list[Floats | None]]]:
        """Every batch with the signals of its clips, decoded while earlier batches are in use.

        A signal is None where its clip (of the `numbers` of a batch) cannot be decoded; `prepare`
        changes the others in the decoding threads.
        """
        waiting = iter(batches)
        in_flight: deque[tuple[BatchT, float, list[Future[Floats | None]]]] = deque()

        def top_up() -> None:
            while not in_flight or sum(seconds for _, seconds, _ in in_flight) < _AHEAD_S:
                batch = next(waiting, None)
                if batch is None:
                    break
                clips = numbers(batch)
                seconds = sum(self._clips[n].duration_s for n in clips)
                futures = [self._pool.submit(self._signal, n, prepare) for n in clips]
                in_flight.append((batch, seconds, futures))

        try:
            top_up()
            while in_flight:
                batch, _, futures = in_flight.popleft()
                signals = [future.result() for future in futures]
                top_up()
                yield batch, signals
        finally:
            for _, _, futures in in_flight:
                for future in futures:
                    future.cancel()

    def _signal(self, number: int, prepare: Prepare | None) -> Floats | None:
        signal = self._kept.get(number)
        if signal is None and number not in self.failed:
            signal = self._decode(number)
        return signal if signal is None or prepare is None else prepare(number, signal)

    def _decode(self, number: int) -> Floats | None:
        clip = self._clips[number]
        (decoded,) = decode_run([clip], self._max_clip_s)
        if decoded.signal is None or len(decoded.signal) < self.min_samples:
            self.failed[number] = f"{clip.file}: {decoded.error or 'too short for the network'}"
            return None
        with self._lock:
            if decoded.signal.nbytes <= self._room_bytes:
                self._room_bytes -= decoded.signal.nbytes
                self._kept[number] = decoded.signal
        return decoded.signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The clips of one step's global batch by number, and their audio by the headers.

    `pieces` has the positions in `clips` of this worker's micro-batches, by their number.
    """

    clips: Indices
    audio_s: float
    pieces: dict[int, Indices]


class TrainLoader:
    """The steps of a training, with the audio of worker `rank` of `workers`, `pinned` for a GPU."""

    def __init__(
        self, plan: TrainingPlan, signals: SignalCache, rank: int, workers: int, *, pinned: bool
    ) -> None:
        self._plan, self._signals, self._rank, self._workers = plan, signals, rank, workers
        self._pinned = pinned
        flags, train = plan.flags, plan.data.train
        self._augmentation = Augmentation(
            crop_s=flags.crop_s,
            equaliser_db=flags.equaliser_db,
            noise_db=flags.noise_db,
            noise_share=flags.noise_share,
            speed=flags.speed,
        )
        self._lengths_s = [self._augmentation.longest_s(c.duration_s) for c in train.clips]
        self.steps_per_epoch = math.ceil(len(self._order(0)) / flags.batch_size)
        self.total_steps = self.steps_per_epoch * flags.epochs

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Step, Batch]]:
        """Steps of `epoch` from number `first` of the training on; one is padded ahead."""

        def clips(step: Step) -> list[int]:
            return [int(step.clips[i]) for piece in step.pieces.values() for i in piece]

        steps = self._signals.ahead(self._steps(epoch, first), clips, self._changed(epoch))
        with ThreadPoolExecutor(1, thread_name_prefix="pad") as pad:
            ready: deque[tuple[Step, Future[Batch]]] = deque()
            for step, signals in steps:
                ready.append((step, pad.submit(self._batch, step, signals)))
                if len(ready) > 1:
                    padded, padding = ready.popleft()
                    yield padded, padding.result()
            for padded, padding in ready:
                yield padded, padding.result()

    def front_batches(self, steps: int) -> Iterator[MicroBatch]:
        """Whole batches for that many steps of pre-training the front end."""
        for epoch in range(_FRONT_EPOCH, _FRONT_EPOCH - (-steps // self.steps_per_epoch)):
            batches = self._steps(epoch, 0)
            for _, found in self._signals.ahead(
                batches, lambda step: step.clips.tolist(), self._changed(epoch)
            ):
                signals = [signal for signal in found if signal is not None]
                if signals:
                    yield MicroBatch.of(0, range(len(signals)), signals)

    def _order(self, epoch: int) -> Indices:
        flags, corpora = self._plan.flags, self._plan.data.train.corpora
        if flags.balance:
            return balanced_order(corpora, flags.seed, epoch)
        return epoch_order(len(corpora), flags.seed, epoch)

    def _steps(self, epoch: int, first: int) -> Iterator[Step]:
        flags = self._plan.flags
        batches = global_batches(self._order(epoch), flags.batch_size)
        for clips in batches[max(0, first - epoch * self.steps_per_epoch) :]:
            lengths_s = [self._lengths_s[i] for i in clips]
            cut = micro_batches(lengths_s, flags.max_padded_s, self._plan.pieces)
            mine = assign(lengths_s, cut, self._workers)[self._rank]
            pieces = {piece: cut[piece] for piece in mine}
            yield Step(clips=clips, audio_s=float(sum(lengths_s)), pieces=pieces)

    def _changed(self, epoch: int) -> Prepare | None:
        """The augmentation of `epoch`, from the seed and the clip's identity alone."""
        if not self._augmentation.changes_anything:
            return None
        flags, identities = self._plan.flags, self._plan.data.train.identities

        def change(number: int, signal: Floats) -> Floats:
            return augment(
                signal,
                self._augmentation,
                clip_rng(flags.seed, epoch, identities[number]),
                min_samples=self._signals.min_samples,
                max_samples=int(flags.max_clip_s * SAMPLE_RATE_HZ),
            )

        return change

    def _batch(self, step: Step, signals: Sequence[Floats | None]) -> Batch:
        pieces, rest = [], iter(signals)
        for number, rows in step.pieces.items():
            found = [(int(row), next(rest)) for row in rows]
            decoded = [(row, signal) for row, signal in found if signal is not None]
            if decoded:
                columns = zip(*decoded, strict=True)
                pieces.append(MicroBatch.of(number, *columns, pinned=self._pinned))
        train = self._plan.data.train
        labels, categories, sexes = (
            torch.from_numpy(of[step.clips]) for of in (train.labels, train.categories, train.sexes)
        )
        return Batch(labels=labels, categories=categories, sexes=sexes, pieces=pieces)
