"""Order, batches and micro-batches: no clip is dropped, workers do not matter."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.training.dataloader import (
    MicroBatch,
    assign,
    balanced_order,
    epoch_order,
    global_batches,
    micro_batches,
)
from raysers.training.learner import available_bytes

lengths = st.lists(st.floats(0.1, 30.0), min_size=1, max_size=60)


def test_the_order_is_a_permutation_by_seed_and_epoch_and_will_never_change() -> None:
    # from numpy's raw stream, which is promised to stay: a resumed run needs the same next year
    assert epoch_order(8, seed=0, epoch=0).tolist() == [3, 0, 1, 2, 6, 7, 5, 4]
    first = epoch_order(500, seed=3, epoch=2)
    for seed, epoch in ((3, 1), (2, 2), (2, 3)):
        other = epoch_order(500, seed, epoch)
        assert np.mean(first == other) < 0.05
        assert np.array_equal(np.sort(other), np.arange(500))
    orders = np.stack([epoch_order(5, seed, 0) for seed in range(3000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=5) for place in range(5)])
    assert np.all(np.abs(counts - 600) < 6 * np.sqrt(600 * 0.8))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 9))
def test_a_balanced_epoch_has_equally_many_clips_of_every_corpus(
    sizes: list[int], epoch: int
) -> None:
    corpora = np.repeat(np.arange(len(sizes)), sizes)
    order = balanced_order(corpora, seed=1, epoch=epoch)
    assert np.bincount(corpora[order]).tolist() == [max(sizes)] * len(sizes)
    counts = np.bincount(order, minlength=len(corpora))
    for corpus in range(len(sizes)):  # each of its clips about equally often
        assert np.ptp(counts[corpora == corpus]) <= 1


@given(clips=st.integers(0, 300), batch_size=st.integers(1, 70))
def test_no_row_is_dropped_by_batches(clips: int, batch_size: int) -> None:
    order = epoch_order(clips, 0, 0)
    batches = global_batches(order, batch_size)
    assert np.array_equal(np.concatenate([*batches, np.zeros(0, np.int64)]), order)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == -(-clips // batch_size)
    assert not sizes or max(sizes) <= min(batch_size, min(sizes) + 1)


def padded_s(lengths_s: list[float], piece: np.ndarray) -> float:
    return len(piece) * max(lengths_s[i] for i in piece)


@given(lengths, st.floats(0.05, 200.0), st.integers(1, 9), st.integers(1, 5))
def test_no_row_is_dropped_by_micro_batches_and_workers(
    lengths_s: list[float], max_padded_s: float, pieces: int, workers: int
) -> None:
    cut = micro_batches(lengths_s, max_padded_s, pieces)
    assert len(cut) >= min(pieces, len(lengths_s))
    for piece in cut:
        assert len(piece)
        assert len(piece) == 1 or padded_s(lengths_s, piece) <= max_padded_s * (1 + 1e-12)
    falling = [lengths_s[i] for piece in cut for i in piece]
    assert falling == sorted(lengths_s, reverse=True)
    assignments = assign(lengths_s, cut, workers)
    assert len(assignments) == workers
    rows = [i for mine in assignments for piece in mine for i in cut[piece].tolist()]
    assert sorted(rows) == list(range(len(lengths_s)))


@given(st.lists(st.floats(0.1, 30.0), min_size=4, max_size=9), st.integers(2, 4))
def test_the_costliest_micro_batch_is_as_cheap_as_can_be(
    lengths_s: list[float], pieces: int
) -> None:
    def cost(edges: tuple[int, ...]) -> float:
        return max((b - a) * falling[a] for a, b in itertools.pairwise((0, *edges, len(falling))))

    falling = sorted(lengths_s, reverse=True)
    best = min(cost(edges) for edges in itertools.combinations(range(1, len(falling)), pieces - 1))
    cut = micro_batches(lengths_s, 1e9, pieces)
    assert len(cut) == pieces
    assert max(padded_s(lengths_s, piece) for piece in cut) == pytest.approx(best, rel=1e-6)


def test_micro_batches_worked_by_hand() -> None:
    assert [p.tolist() for p in micro_batches([1.0, 4.0, 2.0, 2.0], 4.0, 1)] == [[1], [2, 3], [0]]
    # a clip that is too long by itself does not let others in
    assert [p.tolist() for p in micro_batches([9.0, 1.0, 1.0], 2.0, 1)] == [[0], [1, 2]]
    assert micro_batches([], 2.0, 4) == []


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(0, 4))
def test_halves_have_every_clip_once_padded_to_its_longest(sizes: list[int], times: int) -> None:
    signals = [np.full(size, i + 1, np.float32) for i, size in enumerate(sizes)]
    parts = MicroBatch.of(3, range(len(sizes)), signals).halved(times)
    assert len({part.number for part in parts}) == len(parts) <= 2**times
    assert [int(row) for part in parts for row in part.rows] == list(range(len(sizes)))
    for part in parts:
        assert part.padded.shape[1] == max(sizes[row] for row in part.rows)
        for row, padded in zip(part.rows, part.padded, strict=True):
            assert padded.sum() == (row + 1) * sizes[row]


MIB = 1 << 20


def cgroup(folder: Path, version: int, limit: str, used: int = 0, cache: int = 0) -> None:
    """A memory control group with `cache` bytes of its usage that can be given back."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    limit_file, used_file, cache_key = names[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache_key} {cache}\n")


def test_memory_limits_are_those_of_the_container(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slice/job\n")
    total = psutil.virtual_memory().total
    cgroup(tmp_path / "slice/job", 2, "max", used=4 * MIB)
    assert 0 < available_bytes(tmp_path, membership) <= total
    cgroup(tmp_path / "slice", 2, str(16 * MIB), used=12 * MIB, cache=3 * MIB)
    assert available_bytes(tmp_path, membership) == 7 * MIB  # of a group around this one
    cgroup(tmp_path / "slice/job", 2, str(3 * MIB), used=4 * MIB)
    assert available_bytes(tmp_path, membership) == 0
    assert 0 < available_bytes(tmp_path, tmp_path / "absent") <= total
    membership.write_text("7:cpu,cpuacct:/job\n6:rdma,memory:/docker/abc\n0::/\n")
    cgroup(tmp_path / "memory", 1, str(2**63 - 4096))
    cgroup(tmp_path / "memory/docker/abc", 1, str(32 * MIB), used=8 * MIB, cache=MIB)
    assert available_bytes(tmp_path, membership) == 25 * MIB
