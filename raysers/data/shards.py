"""Cuts a manifest into shards by audio length.

A plan depends on the manifest and on `shard_s` alone, never on the cluster: shard 12 is the same
list of clips on every machine and in every run, which is what makes resume safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.errors import ConfigError
from raysers.types import SAMPLE_RATE_HZ, Status

Indices = NDArray[np.int64]
Seconds = NDArray[np.float64]

#: Most clips of one shard, however short: bounds a result table and the loss of one retry.
MAX_CLIPS = 20_000
#: Clips of unknown length per shard; each may be long.
MAX_UNKNOWN_CLIPS = 256
#: Lengths this close count as equal, so that clips of one recording stay neighbours.
_BUCKET_RATIO = 1.08
#: A small archive is cut into at least about this many shards, unless they fell below a minute.
_MIN_SHARDS = 32
_MIN_SHARD_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardPlan:
    """Which manifest rows each shard holds.

    Attributes:
        order: row indices of the manifest, shard after shard.
        starts: where each shard begins in `order`; one more entry than shards.
        seconds: audio seconds of each shard, 0 where lengths are unknown.
    """

    order: Indices
    starts: Indices
    seconds: Seconds

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, shard: int) -> Indices:
        """Manifest rows of a shard, longest bucket first."""
        if not 0 <= shard < len(self):
            raise IndexError(f"shard {shard} of {len(self)}")
        return self.order[self.starts[shard] : self.starts[shard + 1]]


def shard_name(shard: int) -> str:
    """Object name of a shard's result.

    >>> shard_name(12)
    'part-000012.parquet'
    """
    return f"part-{shard:06d}.parquet"


def plan_shards(table: pa.Table, *, shard_s: float) -> ShardPlan:
    """Cuts a manifest into shards of similar lengths.

    Longest clips first, within a length bucket of 8 % by file and start. A shard is full when
    clips x longest would pass `shard_s` (padded seconds), or a 32nd of the archive but not less
    than a minute, so that a small archive still spreads over workers; a clip longer than that is
    alone. Clips of unknown length, then those that are not `ok`, come last in shards of their own.

    Args:
        table: manifest; needs `file`, `start`, `duration_s` and `status`.
        shard_s: padded audio seconds of a shard, > 0.

    Raises:
        ConfigError: `shard_s` is not positive.
    """
    if not shard_s > 0:
        raise ConfigError(f"--shard-s must be more than 0 seconds, got {shard_s}")
    lengths_s = _lengths_s(table)
    scored, ok = np.isfinite(lengths_s), _is_ok(table)
    shard_s = min(shard_s, max(_MIN_SHARD_S, float(lengths_s[scored].sum()) / _MIN_SHARDS))
    by_file = _order_by_file(table)
    longest_first, cuts = _by_length(by_file[scored[by_file]], lengths_s, shard_s)
    unknown = by_file[(ok & ~scored)[by_file]]
    failed = by_file[~ok[by_file]]
    sizes = np.concatenate(
        [cuts, _even_sizes(len(unknown), MAX_UNKNOWN_CLIPS), _even_sizes(len(failed), MAX_CLIPS)]
    )
    order = np.concatenate([longest_first, unknown, failed])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    heard_s = np.append(0.0, np.cumsum(np.nan_to_num(lengths_s[order])))
    return ShardPlan(order=order, starts=starts, seconds=np.diff(heard_s[starts]))


def _is_ok(table: pa.Table) -> NDArray[np.bool_]:
    ok = pc.fill_null(pc.equal(table["status"], str(Status.OK)), False)
    return np.asarray(ok.to_numpy(zero_copy_only=False), dtype=bool)


def _lengths_s(table: pa.Table) -> Seconds:
    """Length of each clip that will be scored; NaN where it is unknown or the clip is not ok."""
    lengths_s = pc.fill_null(table["duration_s"].cast(pa.float64()), np.nan).to_numpy()
    return np.where(_is_ok(table), lengths_s, np.nan)


def _order_by_file(table: pa.Table) -> Indices:
    """Rows by file and start; rows of one file and start by end."""
    columns = {name: table[name] for name in ("file", "start", "end") if name in table.column_names}
    keys = [(name, "ascending") for name in columns]
    return np.asarray(pc.sort_indices(pa.table(columns), keys).to_numpy(), dtype=np.int64)


def _by_length(rows: Indices, lengths_s: Seconds, shard_s: float) -> tuple[Indices, Indices]:
    """`rows` by falling length bucket, stable within, and the size of each shard of them."""
    if not len(rows):
        return rows, np.empty(0, np.int64)
    mine_s = np.maximum(lengths_s[rows], 1 / SAMPLE_RATE_HZ)
    buckets = np.floor(np.log(mine_s) / np.log(_BUCKET_RATIO)).astype(np.int64)
    # stable, so that rows of a bucket stay by file
    sequence = np.argsort(-buckets, kind="stable")
    buckets, mine_s = buckets[sequence], mine_s[sequence]
    firsts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] + 1))
    # whatever follows in the shard is not longer than the longest of the first row's bucket
    widths = np.diff(np.append(firsts, len(rows)))
    longest_s = np.repeat(np.maximum.reduceat(mine_s, firsts), widths)
    most = np.clip((shard_s / longest_s).astype(np.int64), 1, MAX_CLIPS)
    sizes, start = [], 0
    while start < len(rows):
        sizes.append(min(int(most[start]), len(rows) - start))
        start += sizes[-1]
    return rows[sequence], np.asarray(sizes, dtype=np.int64)


def _even_sizes(rows: int, most: int) -> Indices:
    """Sizes of the fewest shards of at most `most` rows."""
    starts = np.arange(0, rows, most)
    return np.diff(np.append(starts, rows)).astype(np.int64)
