"""Signals of training clips: decoded ahead in threads, kept in memory as far as they fit.

The cache never evicts: with cyclic access, LRU would evict exactly the clip needed next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from raysers.engine.feed import decode_run
from raysers.training.dataset import Examples
from raysers.types import Clip

Signal = NDArray[np.float32]
BatchT = TypeVar("BatchT")
#: (number of the clip, its signal) -> the input of the network
Prepare = Callable[[int, Signal], Signal]

#: Audio seconds decoded ahead of the network.
AHEAD_S = 600.0
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


class Signals:
    """The decoded clips of one set of examples.

    Args:
        examples: the clips, by their number.
        pool: threads that fetch and decode.
        max_clip_s: a clip that turns out longer is a failed one.
        min_samples: and so is one that turns out shorter.
        room_bytes: how much decoded audio may be kept.
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
        self._clips: Sequence[Clip] = examples.clips
        self._pool = pool
        self._max_clip_s = max_clip_s
        self._min_samples = min_samples
        self._room_bytes = room_bytes
        self._kept: dict[int, Signal] = {}
        self._lock = threading.Lock()
        self.failed: dict[int, str] = {}

    def ahead(
        self,
        batches: Iterable[BatchT],
        numbers: Callable[[BatchT], Sequence[int]],
        prepare: Prepare | None = None,
    ) -> Iterator[tuple[BatchT, list[Signal | None]]]:
        """Every batch with the signals of its clips, decoded while earlier batches are in use.

        Args:
            batches: in the order of their use.
            numbers: which clips a batch has.
            prepare: what happens to a signal, in the decoding threads; None leaves it.

        Yields:
            The batch and a signal per clip, None for one that cannot be decoded (see `failed`).

        Raises:
            TransientStorageError, CredentialsError: the store fails; not the clips' fault.
        """
        waiting = iter(batches)
        in_flight: deque[tuple[BatchT, float, list[Future[Signal | None]]]] = deque()

        def top_up() -> None:
            flying_s = sum(seconds for _, seconds, _ in in_flight)
            while not in_flight or flying_s < AHEAD_S:
                batch = next(waiting, None)
                if batch is None:
                    break
                wanted = numbers(batch)
                seconds = sum(self._clips[n].duration_s for n in wanted)
                futures = [self._pool.submit(self._signal, n, prepare) for n in wanted]
                in_flight.append((batch, seconds, futures))
                flying_s += seconds

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

    def _signal(self, number: int, prepare: Prepare | None) -> Signal | None:
        signal = self._kept.get(number)
        if signal is None and number not in self.failed:
            signal = self._decode(number)
        if signal is None or prepare is None:
            return signal
        return prepare(number, signal)

    def _decode(self, number: int) -> Signal | None:
        clip = self._clips[number]
        (decoded,) = decode_run([clip], self._max_clip_s)
        if decoded.signal is None or len(decoded.signal) < self._min_samples:
            self.failed[number] = f"{clip.file}: {decoded.error or 'too short for the network'}"
            return None
        with self._lock:
            if decoded.signal.nbytes <= self._room_bytes:
                self._room_bytes -= decoded.signal.nbytes
                self._kept[number] = decoded.signal
        return decoded.signal
