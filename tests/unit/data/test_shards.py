"""Plans: every row once, budgets kept, the same everywhere, small in memory."""

from __future__ import annotations

import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.data import manifest as manifest_module
from raysers.data.manifest import Manifest, clips_of
from raysers.data.shards import (
    MAX_CLIPS,
    PartPlan,
    ShardSource,
    plan_part,
    plan_shards,
)
from raysers.engine.placement import Placement
from raysers.errors import ConfigError
from raysers.schemas import MANIFEST
from tests.benchmarks.padding import padding_waste

NS = 10**9


def manifest(
    durations_s: list[float | None], files: list[str] | None = None, status: list[str] | None = None
) -> pa.Table:
    n = len(durations_s)
    files = files or [f"{i:06d}.wav" for i in range(n)]
    return pa.table(
        {
            "file": files,
            "start": pa.array(range(n), pa.duration("ns")),
            "end": pa.array([None] * n, pa.duration("ns")),
            "duration_s": pa.array(durations_s, pa.float64()),
            "status": status or ["ok"] * n,
        }
    )


def one_part(table: pa.Table, *, shard_s: float) -> PartPlan:
    """The plan of a manifest of one part."""
    whole = plan_shards(Manifest([table], [len(table)]), shard_s=shard_s)
    plan = plan_part(table, shard_s=shard_s)
    assert np.array_equal(whole.seconds, plan.seconds)
    assert np.array_equal(whole.clips, np.diff(plan.starts))
    return plan


def shards_of(plan: PartPlan) -> list[list[int]]:
    return [plan.rows(i).tolist() for i in range(len(plan))]


lengths = st.one_of(st.none(), st.floats(0, 4000), st.floats(0.1, 10))


@given(
    st.lists(st.tuples(lengths, st.sampled_from(["ok", "ok", "ok", "unreadable"])), max_size=120),
    st.floats(1, 5000),
)
def test_every_row_is_in_one_shard_and_shards_keep_the_budget(
    clips: list[tuple[float | None, str]], shard_s: float
) -> None:
    durations = [duration for duration, _ in clips]
    status = [state for _, state in clips]
    plan = one_part(manifest(durations, status=status), shard_s=shard_s)
    shards = shards_of(plan)
    assert sorted(row for rows in shards for row in rows) == list(range(len(clips)))
    assert all(shards)
    kinds = []
    for rows, seconds in zip(shards, plan.seconds, strict=True):
        known = [status[r] == "ok" and durations[r] is not None for r in rows]
        assert len(set(known)) == 1, "clips without a length have shards of their own"
        kinds.append(known[0])
        if not known[0]:
            assert seconds == 0
            continue
        longest = max(durations[r] or 0 for r in rows)
        assert len(rows) == 1 or len(rows) * longest <= shard_s * (1 + 1e-12)
        assert len(rows) <= MAX_CLIPS
        assert seconds == pytest.approx(sum(durations[r] or 0 for r in rows))
    assert kinds == sorted(kinds, reverse=True), "clips without a length come last"


def test_shards_hold_similar_lengths_and_keep_recordings_together() -> None:
    rng = np.random.default_rng(0)
    durations = np.exp(rng.normal(1.2, 0.6, 20_000)).clip(0.3, 30).tolist()
    plan = one_part(manifest(durations), shard_s=1800)
    in_order = []
    for rows in shards_of(plan):
        # a stream cannot sort: clips as they come, cut where the budget is full
        in_order += [rows[i : i + 5] for i in range(0, len(rows), 5)]
    assert padding_waste(in_order, durations) < 0.04
    unsorted = [list(range(i, i + 5)) for i in range(0, 20_000, 5)]
    assert padding_waste(unsorted, durations) > 0.3
    # windows of equal length: a recording's windows are consecutive
    windows = manifest([10.0] * 1000, files=[f"rec{i % 10}.wav" for i in range(1000)])
    windows = windows.sort_by("file")
    order = one_part(windows, shard_s=1800).order
    recordings = windows["file"].take(pa.array(order)).to_pylist()
    assert recordings == sorted(recordings)


def test_a_tiny_archive_is_one_shard_and_long_clips_are_alone() -> None:
    assert len(one_part(manifest([3.0] * 10), shard_s=1800)) == 1
    assert len(one_part(manifest([1800.0] * 100), shard_s=1800)) == 100


@pytest.mark.parametrize("hours", [60, 1000])
@pytest.mark.parametrize("workers", [2, 7])
def test_no_worker_works_on_long_after_the_others(hours: int, workers: int) -> None:
    """One has a tenth of the speed; each has as many shards as the engine hands out at a time."""
    table = rows_like(manifest([9.0, 10.0] * (hours * 3600 // 19)))
    plan = plan_shards(Manifest.of(table), shard_s=1800)
    assert plan.seconds.max() > 0.9 * min(1800, hours * 3600 / 128)
    places = Placement(workers=workers, num_cpus=1, num_gpus=1).shards_in_flight
    ends_s = np.zeros(places * workers)  # when each place is free; a worker serves its own in turns
    costs = np.repeat([10.0] + [1.0] * (workers - 1), places) * places
    for seconds in plan.seconds:
        place = ends_s.argmin()
        ends_s[place] += seconds * costs[place]
    assert ends_s.max() - ends_s[places:].max() < 0.05 * ends_s.max()


def rows_like(table: pa.Table) -> pa.Table:
    """A whole manifest with the clips of `table`."""
    n = len(table)
    empty = {field.name: pa.nulls(n, field.type) for field in MANIFEST}
    ids = pa.array([f"{file}-{i}" for i, file in enumerate(table["file"].to_pylist())])
    columns = {**empty, **{name: table[name] for name in table.column_names}, "clip_id": ids}
    return pa.table(
        [columns[name].cast(t) for name, t in zip(MANIFEST.names, MANIFEST.types, strict=True)],
        schema=MANIFEST,
    )


def test_a_plan_depends_on_the_clips_and_not_on_the_order_or_chunks_of_rows(monkeypatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 120)
    rng = random.Random(1)
    durations: list[float | None] = [rng.uniform(0.5, 20) for _ in range(500)]
    table = rows_like(manifest(durations))
    mixed = list(range(500))
    rng.shuffle(mixed)
    shuffled = pa.concat_tables([table.take(mixed[:123]), table.take(mixed[123:])])
    names = []
    for rows in (table, shuffled):
        clips = Manifest.of(rows)
        plan = plan_shards(clips, shard_s=100)
        source = ShardSource(clips, plan)
        names.append([source.block(n)["file"].to_pylist() for n in range(len(plan))])
    assert names[0] == names[1]


def test_workers_read_in_the_store_what_the_driver_planned(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    rng = random.Random(2)
    status = ["ok", "ok", "ok", "missing"] * 90
    table = rows_like(manifest([rng.uniform(0.5, 20) for _ in status], status=status))
    clips = Manifest.of(table)
    clips.write(str(tmp_path / "manifest"))
    plan = plan_shards(clips, shard_s=100)
    assert len(clips) == 4
    assert plan.clips.sum() == len(table)
    here = ShardSource(clips, plan)
    gone = table.slice(7, 1).set_column(
        table.schema.get_field_index("status"), "status", pa.array(["empty"])
    )
    there = ShardSource(str(tmp_path / "manifest"), plan, gone.select(["clip_id", "status"]))
    found = []
    for shard in reversed(range(len(plan))):
        block = here.block(shard)
        assert block["shard"].to_pylist() == [shard] * int(plan.clips[shard])
        known = pa.compute.filter(block["duration_s"], pa.compute.equal(block["status"], "ok"))
        assert np.nansum(known.to_numpy()) == pytest.approx(plan.seconds[shard])
        again = {clip.clip_id: clip for clip in clips_of(there.block(shard))}
        for clip in clips_of(block):
            found.append(clip.clip_id)
            expected = "empty" if clip.clip_id == gone["clip_id"][0].as_py() else clip.status
            assert again[clip.clip_id].status == expected
    assert sorted(found) == sorted(table["clip_id"].to_pylist())


def test_limits_and_refusals() -> None:
    plan = one_part(manifest([0.001] * (2 * MAX_CLIPS + 1)), shard_s=1e9)
    assert max(len(rows) for rows in shards_of(plan)) <= MAX_CLIPS
    n = MAX_CLIPS + 1
    failed = one_part(manifest([None] * n, status=["missing"] * n), shard_s=60)
    assert [len(rows) for rows in shards_of(failed)] == [MAX_CLIPS, 1]
    empty = one_part(manifest([]), shard_s=60)
    assert len(empty) == 0
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="--shard-s"):
            one_part(manifest([1.0]), shard_s=bad)
