"""Order, batches and pieces: nobody is dropped, and workers do not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.errors import ConfigError
from raysers.training.batches import assign, epoch_order, global_batches, micro_batches, padded_s

lengths = st.lists(st.floats(0.1, 30.0), min_size=1, max_size=60)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = epoch_order(500, seed=3, epoch=2)
    assert np.array_equal(first, epoch_order(500, seed=3, epoch=2))
    assert first.dtype == np.int64
    for seed, epoch in ((3, 1), (2, 2), (2, 3)):
        other = epoch_order(500, seed, epoch)
        assert np.mean(first == other) < 0.05
        assert np.array_equal(np.sort(other), np.arange(500))


def test_the_order_will_never_change() -> None:
    # from numpy's raw stream, which is promised to stay: a resumed run needs the same next year
    assert epoch_order(8, seed=0, epoch=0).tolist() == EXPECTED_ORDER


EXPECTED_ORDER = [3, 0, 1, 2, 6, 7, 5, 4]


def test_every_place_of_the_order_is_equally_likely() -> None:
    orders = np.stack([epoch_order(5, seed, 0) for seed in range(3000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=5) for place in range(5)])
    assert np.all(np.abs(counts - 600) < 6 * np.sqrt(600 * 0.8))


@given(clips=st.integers(0, 300), batch_size=st.integers(1, 70))
def test_no_row_is_dropped_by_batches(clips: int, batch_size: int) -> None:
    order = epoch_order(clips, 0, 0)
    batches = global_batches(order, batch_size)
    assert np.array_equal(np.concatenate([*batches, np.zeros(0, np.int64)]), order)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == -(-clips // batch_size)
    assert not sizes or max(sizes) <= min(batch_size, min(sizes) + 1)


@given(lengths, st.floats(0.05, 200.0), st.integers(1, 9), st.integers(1, 5))
def test_no_row_is_dropped_by_pieces_and_workers(
    lengths_s: list[float], max_padded_s: float, pieces: int, workers: int
) -> None:
    cut = micro_batches(lengths_s, max_padded_s, pieces)
    assert len(cut) >= min(pieces, len(lengths_s))
    for piece in cut:
        assert len(piece)
        assert len(piece) == 1 or padded_s(lengths_s, piece) <= max_padded_s * (1 + 1e-12)
    falling = [lengths_s[i] for piece in cut for i in piece]
    assert falling == sorted(lengths_s, reverse=True)
    assignments = assign([padded_s(lengths_s, piece) for piece in cut], workers)
    assert len(assignments) == workers
    rows = [i for hand in assignments for piece in hand for i in cut[piece].tolist()]
    assert sorted(rows) == list(range(len(lengths_s)))


@given(st.lists(st.floats(0.1, 30.0), min_size=4, max_size=9), st.integers(2, 4))
def test_the_costliest_piece_is_as_cheap_as_can_be(lengths_s: list[float], pieces: int) -> None:
    def cost(edges: tuple[int, ...]) -> float:
        return max((b - a) * falling[a] for a, b in itertools.pairwise((0, *edges, len(falling))))

    falling = sorted(lengths_s, reverse=True)
    inner = itertools.combinations(range(1, len(falling)), pieces - 1)
    best = min(cost(edges) for edges in inner)
    cut = micro_batches(lengths_s, 1e9, pieces)
    assert len(cut) == pieces
    assert max(padded_s(lengths_s, piece) for piece in cut) == pytest.approx(best, rel=1e-6)


def test_pieces_worked_by_hand() -> None:
    assert [p.tolist() for p in micro_batches([1.0, 4.0, 2.0, 2.0], 4.0, 1)] == [[1], [2, 3], [0]]
    # a clip that is too long by itself does not let others in
    assert [p.tolist() for p in micro_batches([9.0, 1.0, 1.0], 2.0, 1)] == [[0], [1, 2]]
    assert micro_batches([], 2.0, 4) == []


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size"):
        global_batches(np.arange(3), 0)
    with pytest.raises(ConfigError, match="--max-padded-s"):
        micro_batches([1.0], 0.0, 1)
