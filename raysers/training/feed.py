"""Signals of training clips: decoded ahead in threads, kept in memory as far as they fit.

The cache never evicts: with cyclic access, LRU would evict exactly the clip needed next.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np
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
#: Share of the free memory that all workers of a machine may fill with decoded audio.
_CACHE_SHARE = 0.25


def cache_bytes(workers_here: int) -> int:
    """Room for one worker's cache."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(free * _CACHE_SHARE / max(workers_here, 1))


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
