"""How the parts of a manifest are cut into shards, and the clips of each shard.

Every part is cut by itself, so a worker that reads one part knows all of its shards and the driver
keeps two numbers a shard. The plan depends on the manifest and on `shard_s` alone, never on the
cluster: shard 12 is the same list of clips on every machine and in every run, which is what makes
resume safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.data.manifest import Manifest
from raysers.errors import ConfigError, RaysersError
from raysers.io.objects import ROW_PATTERN
from raysers.types import SAMPLE_RATE_HZ, Status

Indices = NDArray[np.int64]
Seconds = NDArray[np.float64]

#: Most clips of one shard, however short: bounds a result table and the loss of one retry.
MAX_CLIPS = 20_000
#: Clips of unknown length per shard; each may be long.
MAX_UNKNOWN_CLIPS = 256
#: Lengths this close count as equal, so that clips of one recording stay neighbours.
_BUCKET_RATIO = 1.08
#: No shard is more than this part of the audio from its beginning to the end of the list, or than a
#: minute: so seven workers, two shards in each, end together if one has a tenth of their speed.
_LAST_SHARDS = 128
_MIN_SHARD_S = 60.0

#: Parts that a process keeps: shards in work are of the same part or of two neighbours.
_PARTS_KEPT = 2

#: Columns of the manifest that a worker needs, where they are there.
_TRAVELLING = (
    "clip_id", "file", "start", "end", "duration_s", "num_bytes", "etag",
    "byte_offset", "byte_size", "status", "error", "transcript", "channel",
    "audio_stream",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartPlan:
    """The rows of each shard of one table.

    `order` has the rows, shard after shard; `starts` where each shard begins in it (one more entry
    than shards); `seconds` the audio of each, 0 if unknown.
    """

    order: Indices
    starts: Indices
    seconds: Seconds

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, shard: int) -> Indices:
        """Rows of a shard, longest bucket first."""
        return self.order[self.starts[shard] : self.starts[shard + 1]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardPlan:
    """The shards of each part of a manifest.

    `shard_s` are the padded audio seconds of a full shard. Per part: `after_s`, audio of the parts
    that follow in its list, and `firsts`, the number of its first shard (one more entry than
    parts). Per shard: `clips`, and `seconds` of audio, 0 if unknown.
    """

    shard_s: float
    after_s: Seconds
    firsts: Indices
    clips: Indices
    seconds: Seconds

    def __len__(self) -> int:
        return len(self.clips)


def shard_name(shard: int) -> str:
    """Object name of a shard's result.

    >>> shard_name(12)
    'part-000012.parquet'
    """
    return f"part-{shard:06d}.parquet"


def plan_shards(manifest: Manifest, *, shard_s: float) -> ShardPlan:
    """Cuts every part of a manifest into shards of at most `shard_s` padded seconds (`plan_part`).

    Towards the end of the list they get shorter, a 128th of what is left but a minute at least, so
    that a small archive spreads over workers and no slow one works on when the others are done. An
    extension is planned by itself: it moves no shard before it. Raises ConfigError: `shard_s` is
    not positive.
    """
    if not shard_s > 0:
        raise ConfigError(f"--shard-s must be more than 0 seconds, got {shard_s}")
    columns = ("file", "duration_s", "status")
    parts_s = np.array([_sum_s(_lengths_s(part)) for part in manifest.parts(columns[1:])])
    after_s = np.append(np.cumsum(parts_s[::-1])[::-1], 0.0)
    ends = np.array([*manifest.firsts[1:], len(manifest)])
    after_s = after_s[1:] - np.repeat(after_s[ends], np.diff([0, *ends]))
    parts = zip(manifest.parts(columns), after_s.tolist(), strict=True)
    plans = [plan_part(part, shard_s=shard_s, after_s=one_s) for part, one_s in parts]
    return ShardPlan(
        shard_s=shard_s,
        after_s=after_s,
        firsts=np.cumsum([0, *map(len, plans)]),
        clips=np.concatenate([np.diff(plan.starts) for plan in plans]),
        seconds=np.concatenate([plan.seconds for plan in plans]),
    )


def plan_part(table: pa.Table, *, shard_s: float, after_s: float = 0.0) -> PartPlan:
    """Cuts a sorted table (`file`, `duration_s`, `status`) into shards of similar lengths.

    Longest clips first, within a length bucket of 8 % in the order of the table. A shard is full
    when clips x longest would pass `shard_s`, or less near the end of the list, of which `after_s`
    follow; a clip longer than that is alone. Clips of unknown length, then those that are not `ok`,
    come last in shards of their own.
    """
    lengths_s, ok = _lengths_s(table), _is_ok(table)
    scored = np.isfinite(lengths_s)
    in_tables = pc.match_substring_regex(table["file"].cast(pa.string()), ROW_PATTERN).to_numpy()
    rows = np.flatnonzero(scored)
    longest_first, cuts = _by_length(rows, lengths_s, shard_s, after_s, in_tables)
    unknown, failed = np.flatnonzero(ok & ~scored), np.flatnonzero(~ok)
    sizes = np.concatenate(
        [cuts, _even_sizes(len(unknown), MAX_UNKNOWN_CLIPS), _even_sizes(len(failed), MAX_CLIPS)]
    )
    order = np.concatenate([longest_first, unknown, failed])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    known_s = np.append(0.0, np.cumsum(np.nan_to_num(lengths_s[order])))
    return PartPlan(order=order, starts=starts, seconds=np.diff(known_s[starts]))


class ShardSource:
    """The clips of each shard, read part by part.

    `manifest` may be where the run has written it. Rows of `changed`, as `--retry` found them,
    replace those of the same `clip_id`.
    """

    def __init__(
        self, manifest: Manifest | str, plan: ShardPlan, changed: pa.Table | None = None
    ) -> None:
        self._manifest = Manifest.stored(manifest) if isinstance(manifest, str) else manifest
        self._plan, self._changed = plan, changed
        self._parts: OrderedDict[int, tuple[pa.Table, PartPlan]] = OrderedDict()
        self._lock = threading.Lock()

    def block(self, shard: int) -> pa.Table:
        """The clips of a shard, with a column `shard`; RaysersError if the manifest has changed."""
        number = int(np.searchsorted(self._plan.firsts, shard, "right")) - 1
        with self._lock:
            if number not in self._parts:
                self._parts[number] = self._read(number)
                if len(self._parts) > _PARTS_KEPT:
                    self._parts.popitem(last=False)
            self._parts.move_to_end(number)
            part, plan = self._parts[number]
        block = part.take(plan.rows(shard - self._plan.firsts[number])).combine_chunks()
        return block.append_column("shard", pa.array(np.full(len(block), shard)))

    def _read(self, number: int) -> tuple[pa.Table, PartPlan]:
        part = self._manifest.part(number, _TRAVELLING)
        after_s = float(self._plan.after_s[number])
        plan = plan_part(part, shard_s=self._plan.shard_s, after_s=after_s)
        if len(plan) != self._plan.firsts[number + 1] - self._plan.firsts[number]:
            raise RaysersError(
                "the manifest of the output was changed while its clips were scored: run the same "
                "command again"
            )
        if self._changed is not None:
            part = replace_clips(part, self._changed)
        return part.combine_chunks(), plan


def replace_clips(table: pa.Table, new: pa.Table) -> pa.Table:
    """`table` with the columns of `new` in the rows of the same `clip_id`, if it has such rows."""
    places = pc.index_in(table["clip_id"], new["clip_id"].combine_chunks())
    chosen = pc.is_valid(places).to_numpy()
    if not chosen.any():
        return table
    take = np.where(chosen, pc.fill_null(places, 0).to_numpy() + len(table), np.arange(len(table)))
    for place, field in enumerate(table.schema):
        if field.name in new.column_names:
            both = pa.chunked_array([*table[place].chunks, *new[field.name].chunks], field.type)
            table = table.set_column(place, field, both.take(pa.array(take)))
    return table


def _is_ok(table: pa.Table) -> NDArray[np.bool_]:
    ok = pc.fill_null(pc.equal(table["status"], str(Status.OK)), False)
    return np.asarray(ok.to_numpy(zero_copy_only=False), dtype=bool)


def _lengths_s(table: pa.Table) -> Seconds:
    """Length of each clip that will be scored; NaN where it is unknown or the clip is not ok."""
    lengths_s = pc.fill_null(table["duration_s"].cast(pa.float64()), np.nan).to_numpy()
    return np.where(_is_ok(table), lengths_s, np.nan)


def _sum_s(lengths_s: Seconds) -> float:
    """Their sum in whole milliseconds, which is exact and so the same on every machine."""
    return float(np.nansum(np.rint(1000 * lengths_s))) / 1000


def _by_length(
    rows: Indices,
    lengths_s: Seconds,
    shard_s: float,
    after_s: float,
    in_tables: NDArray[np.bool_],
) -> tuple[Indices, Indices]:
    """`rows` by falling length bucket, stable within, and the size of each shard of them.

    Rows of Parquet tables are one bucket: apart, each would cost the reading of its row group.
    """
    if not len(rows):
        return rows, np.empty(0, np.int64)
    mine_s = np.maximum(lengths_s[rows], 1 / SAMPLE_RATE_HZ)
    buckets = np.floor(np.log(mine_s) / np.log(_BUCKET_RATIO)).astype(np.int64)
    buckets[in_tables[rows].astype(bool)] = np.iinfo(np.int64).min + 1
    # stable, so that rows of a bucket stay by file
    sequence = np.argsort(-buckets, kind="stable")
    buckets, mine_s = buckets[sequence], mine_s[sequence]
    firsts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] + 1))
    # all that follows in the shard is not longer than the longest of the first row's bucket
    widths = np.diff(np.append(firsts, len(rows)))
    longest_s = np.repeat(np.maximum.reduceat(mine_s, firsts), widths)
    left_s = after_s + np.cumsum(np.rint(1000 * mine_s)[::-1])[::-1] / 1000
    full_s = np.minimum(shard_s, np.maximum(_MIN_SHARD_S, left_s / _LAST_SHARDS))
    most = np.clip((full_s / longest_s).astype(np.int64), 1, MAX_CLIPS)
    sizes, start = [], 0
    while start < len(rows):
        sizes.append(min(int(most[start]), len(rows) - start))
        start += sizes[-1]
    return rows[sequence], np.asarray(sizes, dtype=np.int64)


def _even_sizes(rows: int, most: int) -> Indices:
    """Sizes of the fewest shards of at most `most` rows."""
    starts = np.arange(0, rows, most)
    return np.diff(np.append(starts, rows)).astype(np.int64)
