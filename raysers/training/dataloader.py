"""From the clips of a training to the batches of one worker: decode ahead, augment, pad.

Clips are known by their number among the job's clips, which are sorted by identity.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from raysers.audio.augment import Augmentation, augment, clip_rng
from raysers.engine.feed import decode_run
from raysers.training.batch import (
    Batch,
    Floats,
    Indices,
    MicroBatch,
    assign,
    epoch_order,
    global_batches,
    micro_batches,
    padded_s,
)
from raysers.training.dataset import Examples, TrainingJob
from raysers.types import SAMPLE_RATE_HZ

BatchT = TypeVar("BatchT")
#: (number of the clip, its signal) -> the input of the network
Prepare = Callable[[int, Floats], Floats]

#: Audio seconds decoded ahead of the network.
_AHEAD_S = 600.0
#: Epochs of pre-training the front end are numbered from here, so that no other epoch is like them.
_FRONT_EPOCH = 1 << 20

#: Control groups of this machine, and the file that says which of them this process is in.
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: Where version 2 and 1 keep the limit and the usage, and what of the latter is page cache.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Memory that this process can still get: the machine's, or what its container leaves.

    Args:
        cgroups: where control groups are mounted, version 1 or 2.
        membership: a file as `/proc/self/cgroup`.
    """
    left = int(psutil.virtual_memory().available)
    for folder in _memory_cgroups(cgroups, membership):
        for limit, usage, cache in _CGROUP_FILES:
            with suppress(OSError, ValueError, KeyError):  # of the other version, or without limit
                most = int((folder / limit).read_text())
                lines = (folder / "memory.stat").read_text().splitlines()
                reclaimable = int(dict(line.split() for line in lines)[cache])
                used = int((folder / usage).read_text()) - reclaimable
                left = min(left, most - used)
    return max(left, 0)


def _memory_cgroups(cgroups: Path, membership: Path) -> Iterator[Path]:
    """The group of this process and those around it; a limit of any of them counts."""
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            mount = cgroups / "memory" if controllers else cgroups
            group = Path(path.lstrip("/"))
            yield from (mount / place for place in (group, *group.parents))


class SignalCache:
    """Decoded clips of one set of examples, kept as far as they fit.

    The cache never evicts: with cyclic access, LRU would evict exactly the clip needed next.

    Args:
        examples: the clips, by their number.
        pool: threads that fetch and decode.
        max_clip_s: a clip that turns out longer is a failed one.
        min_samples: and so is one that turns out shorter.
        room_bytes: how much decoded audio may be kept.

    Attributes:
        failed: why a clip could not be decoded, by its number.
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
        self._clips = examples.clips
        self._pool = pool
        self._max_clip_s = max_clip_s
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

        Args:
            batches: in the order of their use.
            numbers: which clips a batch has.
            prepare: changes a signal, in the decoding threads; None leaves it.

        Yields:
            The batch and a signal per clip, None for one that cannot be decoded (see `failed`).

        Raises:
            TransientStorageError, CredentialsError: the store fails; not the clips' fault.
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
    """One optimiser step.

    Attributes:
        number: from 0, over the whole training.
        epoch: from 0.
        clips: numbers of the clips of the global batch.
        audio_s: of the global batch, as far as headers tell.
        pieces: by number, the positions in `clips` of this worker's micro-batches.
    """

    number: int
    epoch: int
    clips: Indices
    audio_s: float
    pieces: dict[int, Indices]


class TrainLoader:
    """The steps of a training, with this worker's audio.

    Args:
        job: the training.
        signals: of its train clips.
        rank: of this worker.
        workers: how many share the work.
        pinned: whether batches are put into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self, job: TrainingJob, signals: SignalCache, rank: int, workers: int, *, pinned: bool
    ) -> None:
        self._job, self._signals, self._rank, self._workers = job, signals, rank, workers
        self._pinned = pinned
        flags = job.flags
        self._augmentation = Augmentation(
            crop_s=flags.crop_s,
            equaliser_db=flags.equaliser_db,
            noise_db=flags.noise_db,
            noise_share=flags.noise_share,
            speed=flags.speed,
        )
        self._lengths_s = [self._augmentation.longest_s(c.duration_s) for c in job.train.clips]
        self.steps_per_epoch = math.ceil(len(job.train) / flags.batch_size)
        self.total_steps = self.steps_per_epoch * flags.epochs

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Step, Batch]]:
        """Steps of `epoch` from number `first` of the training on; one is padded ahead."""

        def clips(step: Step) -> list[int]:
            return [int(step.clips[i]) for piece in step.pieces.values() for i in piece]

        steps = self._signals.ahead(self._steps(epoch, first), clips, self._changed(epoch))
        with ThreadPoolExecutor(1, thread_name_prefix="pad") as pad:
            ready: tuple[Step, Future[Batch]] | None = None
            for step, signals in steps:
                padding = step, pad.submit(self._batch, step, signals)
                if ready is not None:
                    yield ready[0], ready[1].result()
                ready = padding
            if ready is not None:
                yield ready[0], ready[1].result()

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

    def _steps(self, epoch: int, first: int) -> Iterator[Step]:
        flags = self._job.flags
        order = epoch_order(len(self._job.train), flags.seed, epoch)
        for number, clips in enumerate(
            global_batches(order, flags.batch_size), epoch * self.steps_per_epoch
        ):
            if number < first:
                continue
            lengths_s = [self._lengths_s[i] for i in clips]
            cut = micro_batches(lengths_s, flags.max_padded_s, self._job.pieces)
            costs = [padded_s(lengths_s, piece) for piece in cut]
            mine = assign(costs, self._workers)[self._rank]
            yield Step(
                number=number,
                epoch=epoch,
                clips=clips,
                audio_s=float(sum(lengths_s)),
                pieces={piece: cut[piece] for piece in mine},
            )

    def _changed(self, epoch: int) -> Prepare | None:
        """The augmentation of `epoch`, from the seed and the clip's identity alone."""
        if not self._augmentation.changes_anything:
            return None
        flags, identities = self._job.flags, self._job.train.identities

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
                rows_of, signals_of = zip(*decoded, strict=True)
                piece = MicroBatch.of(number, rows_of, signals_of)
                pieces.append(piece.pinned() if self._pinned else piece)
        train = self._job.train
        labels = torch.from_numpy(train.labels[step.clips])
        categories = torch.from_numpy(train.categories[step.clips])
        return Batch(labels=labels, categories=categories, pieces=pieces)
