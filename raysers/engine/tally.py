"""Running figures of one shard, and the summary row a worker sends back."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from raysers.engine.feed import Decoded


class Tally:
    """What was decoded and scored, and where the time went."""

    def __init__(self) -> None:
        self.audio_s = 0.0
        self.padded_s = 0.0
        self.model_s = 0.0
        self.wait_s = 0.0
        self.decoded = 0
        self._decoding = threading.Lock()
        self.statuses: Counter[str] = Counter()

    def add(self, one: Decoded, status: str) -> None:
        """Count a finished clip, or version of one."""
        self.audio_s += one.duration_s
        self.statuses[status] += 1

    def count_decode(self) -> None:
        """Count that audio was decoded; called by the decoding threads."""
        with self._decoding:
            self.decoded += 1

    def timing_waits(self, feed: Iterator[Decoded]) -> Iterator[Decoded]:
        """Pass `feed` on, adding up how long its consumer had to wait."""
        while True:
            started = time.perf_counter()
            try:
                one = next(feed)
            except StopIteration:
                return
            self.wait_s += time.perf_counter() - started
            yield one


def summary_row(shard: int, table: pa.Table, tally: Tally) -> pa.Table:
    """One row about a finished part: what it holds, and what this attempt did for it."""
    statuses = Counter(table["status"].to_pylist())
    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "clips": [table.num_rows],
            "audio_s": [float(np.nansum(table["duration_s"].to_numpy()))],
            "padded_s": [tally.padded_s],
            "scored_s": [tally.audio_s],
            "model_s": [tally.model_s],
            "wait_s": [tally.wait_s],
            "decoded": [tally.decoded],
            "peak_bytes": [_peak_bytes()],
            "statuses": [json.dumps(statuses)],
        }
    )


def _peak_bytes() -> int:
    """Most memory this process ever held; the kernel counts in KiB on Linux, in bytes on macOS."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
