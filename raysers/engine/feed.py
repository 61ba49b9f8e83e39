"""Fetching and decoding ahead of the model, within a bounded amount of audio.

Clips come out in the order they were asked for. Neighbouring clips of one recording share one open
reader, so a long recording cut into windows is opened once per stretch, not once per window.

It is done in threads of the model's process, or in processes beside it (`placement`), whose signals
come back in shared memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysers.audio.decode import AudioReader
from raysers.audio.samples import has_hum, levels
from raysers.errors import ClipError
from raysers.io import storage
from raysers.io.objects import is_remote
from raysers.types import SAMPLE_RATE_HZ, Clip, Status

T = TypeVar("T")

#: Audio seconds decoded ahead of the model, per shard.
AHEAD_S = 600.0

#: Audio seconds decoded by one thread in one go; also the longest stretch per open reader.
_RUN_S = 120.0

#: What is in flight is at least about so many jobs, so that every thread has one.
_JOBS_AHEAD = 4

#: Files that are handed over together: local ones to a thread, all to a process.
_RUNS = 8

#: A clip below this share of its batch's longest begins the next batch.
_LEAST_OF_LONGEST = 0.88

#: Clips that are alike in these share an open reader.
_OPENED = ("file", "status", "byte_offset", "audio_stream")

#: What a clip of unknown length counts as.
_UNKNOWN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A clip with its signal (mono float32 at 16 kHz), or with the error that replaced it.

    `faults` are keys of `samples.FAULTS`. A variant of a clip has a name, and columns that only its
    row has.
    """

    clip: Clip
    signal: NDArray[np.float32] | None = None
    error: ClipError | None = None
    rms_db: float | None = None
    clipped_ratio: float | None = None
    faults: tuple[str, ...] = ()
    variant: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Seconds of decoded audio; 0 when there is none."""
        return 0.0 if self.signal is None else len(self.signal) / SAMPLE_RATE_HZ


#: Tells an outage of the store from clips that cannot be read, for all shards of this process.
_BREAKER = storage.Breaker()

#: Makes the rows of a decoded clip, in the thread that decoded it.
Variants = Callable[[Decoded], list[Decoded]]


class Budget:
    """Audio seconds that shards in work may decode ahead together, given out in order of asking."""

    def __init__(self, total_s: float) -> None:
        # in whole milliseconds, so that all of them are there again when all are given back
        self._total_ms = self._free_ms = round(1000 * total_s)
        self._turn = threading.Lock()
        self._returned = threading.Condition()

    @contextmanager
    def taken(self, seconds: float) -> Iterator[None]:
        """Wait for so many seconds, at most all, and give them back at the end of the block."""
        taken_ms = min(round(1000 * seconds), self._total_ms)
        with self._turn, self._returned:
            self._returned.wait_for(lambda: self._free_ms >= taken_ms)
            self._free_ms -= taken_ms
        try:
            yield
        finally:
            with self._returned:
                self._free_ms += taken_ms
                self._returned.notify()


def decode_ahead(
    clips: Sequence[Clip],
    pool: Executor,
    *,
    max_clip_s: float,
    ahead_s: float,
    variants: Variants | None = None,
) -> Iterator[Decoded]:
    """Start decoding at once; yields every clip in order, at most `ahead_s` seconds in flight.

    The first decodes are submitted by this call, not by the first `next()`, so that a shard can
    warm up while the model still works on the one before. Most of a clip longer than `ahead_s` is
    consumed before the next is decoded, and nothing is kept once it was yielded.
    """
    # waiting for an object store is best done one object a thread
    alone = isinstance(pool, ThreadPoolExecutor) and any(is_remote(clip.file) for clip in clips)
    waiting = deque(_jobs(clips, min(_RUN_S, ahead_s / _JOBS_AHEAD), 1 if alone else _RUNS))
    in_flight: deque[tuple[float, Future[list[Decoded]]]] = deque()
    flying_s = 0.0

    def top_up(held_s: float = 0.0) -> None:
        nonlocal flying_s
        while waiting and held_s <= ahead_s:
            if in_flight and flying_s + waiting[0][0] > ahead_s:
                return
            seconds, runs = waiting.popleft()
            job = pool.submit(decode_runs, runs, max_clip_s, variants)
            in_flight.append((seconds, job))
            flying_s += seconds

    def drain() -> Iterator[Decoded]:
        nonlocal flying_s
        try:
            while in_flight:
                seconds = in_flight[0][0]
                decoded = deque(in_flight[0][1].result())
                in_flight.popleft()  # the future would keep what it returned
                flying_s -= seconds
                share_s = seconds / max(1, len(decoded))
                top_up(len(decoded) * share_s)
                while decoded:
                    yield decoded.popleft()
                    top_up(len(decoded) * share_s)
                top_up()
        finally:
            for _, future in in_flight:
                future.cancel()

    top_up()
    return drain()


def _jobs(
    clips: Sequence[Clip], most_s: float, most: int
) -> Iterator[tuple[float, list[list[Clip]]]]:
    """What is handed over at once, up to `most` files of `most_s` together, with its audio seconds.

    Short files are decoded so fast that handing over each would cost a third of the time.
    """

    def timed(some: Iterable[Clip]) -> Iterator[tuple[float, Clip]]:
        return ((clip.duration_s if clip.duration_s >= 0 else _UNKNOWN_S, clip) for clip in some)

    files = (same for _, same in groupby(clips, key=attrgetter(*_OPENED)))
    runs = chain.from_iterable(_stretches(timed(same), _RUN_S, len(clips)) for same in files)
    return _stretches(runs, most_s, most)


def _stretches(
    items: Iterable[tuple[float, T]], most_s: float, most: int
) -> Iterator[tuple[float, list[T]]]:
    """Neighbours, at most so many, and of so many seconds together unless one alone is longer."""
    held: list[T] = []
    held_s = 0.0
    for own_s, one in items:
        if held and (len(held) == most or held_s + own_s > most_s):
            yield held_s, held
            held, held_s = [], 0.0
        held.append(one)
        held_s += own_s
    if held:
        yield held_s, held


def decode_runs(
    runs: list[list[Clip]],
    max_clip_s: float,
    variants: Variants | None,
    pool: Executor | None = None,
) -> list[Decoded]:
    """Decode clips of several files, of a store in the threads of `pool`, and their variants."""
    apart = pool is not None and is_remote(runs[0][0].file)
    decode = partial(decode_run, max_clip_s=max_clip_s)
    found = pool.map(decode, runs) if pool is not None and apart else map(decode, runs)
    decoded = [one for run in found for one in run]
    return decoded if variants is None else [each for one in decoded for each in variants(one)]


def decode_run(clips: Sequence[Clip], max_clip_s: float) -> list[Decoded]:
    """Decode clips of one file; what is wrong with the audio becomes the clips' error."""
    first = clips[0]
    if first.status != Status.OK:
        return [Decoded(clip=c, error=ClipError(c.status, c.error)) for c in clips]
    try:
        source = storage.open_source(
            first.file,
            num_bytes=first.num_bytes,
            byte_offset=first.byte_offset,
            byte_size=first.byte_size,
            etag=first.etag,
        )
        with AudioReader(source, name=first.file, stream=first.audio_stream or 0) as reader:
            return [_read(reader, clip, max_clip_s) for clip in clips]
    except Exception as error:
        failure = _BREAKER.failed(first.file, error)
        return [Decoded(clip=clip, error=failure) for clip in clips]


def _read(reader: AudioReader, clip: Clip, max_clip_s: float) -> Decoded:
    try:
        signal = reader.read(clip.start_ns, clip.end_ns, max_s=max_clip_s, channel=clip.channel)
    except Exception as error:
        return Decoded(clip=clip, error=_BREAKER.failed(clip.file, error))
    _BREAKER.succeeded(clip.file)
    level = levels(signal)
    faults = (reader.channel_fault(), "hum" if has_hum(signal) else "")
    return Decoded(
        clip=clip,
        signal=signal,
        rms_db=level.rms_db,
        clipped_ratio=level.clipped_ratio,
        faults=tuple(filter(None, faults)),
    )


def micro_batches(
    clips: Iterable[T],
    max_padded_s: float,
    pads: bool = True,
    length: Callable[[T], float] = attrgetter("duration_s"),
) -> Iterator[list[T]]:
    """Cut a stream, best sorted by length, so that clips x longest stays within the budget.

    A clip longer than the budget is alone. With `pads`, one much shorter than the longest begins a
    new batch: padding it would cost more than a smaller batch does. Clips without a signal, whose
    length is 0, pass through in their place. `length` and budget have the same unit.
    """
    batch: list[T] = []
    longest_s, with_signal = 0.0, 0
    for one in clips:
        own_s = length(one)
        grown_s = max(longest_s, own_s)
        if with_signal and own_s:
            over = (with_signal + 1) * grown_s > max_padded_s
            if over or (pads and own_s < _LEAST_OF_LONGEST * longest_s):
                yield batch
                batch, with_signal, grown_s = [], 0, own_s
        batch.append(one)
        with_signal += own_s > 0
        longest_s = grown_s
    if batch:
        yield batch
