"""Windows: cases worked by hand, and what holds for all."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.data.segments import windows
from raysers.errors import ConfigError


def in_s(duration_s: float, window_s: float, hop_s: float, min_s: float):
    cut = windows(duration_s, window_s=window_s, hop_s=hop_s, min_s=min_s)
    return [(a / 1e9, b / 1e9) for a, b in cut]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # exactly two windows; no third, empty one
        ((20, 10, 10, 1), [(0, 10), (10, 20)]),
        # the rest is long enough, just long enough, and too short
        ((25, 10, 10, 1), [(0, 10), (10, 20), (20, 25)]),
        ((21, 10, 10, 1), [(0, 10), (10, 20), (20, 21)]),
        ((20.9, 10, 10, 1), [(0, 10), (10, 20)]),
        # half overlap: the window from 10 reaches the end, the one from 15 would repeat its tail
        ((20, 10, 5, 1), [(0, 10), (5, 15), (10, 20)]),
        ((21, 10, 5, 1), [(0, 10), (5, 15), (10, 20), (15, 21)]),
        # shorter than a window, and shorter than the least
        ((4, 10, 10, 1), [(0, 4)]),
        ((0.4, 10, 10, 1), [(0, 0.4)]),
        ((0, 10, 10, 1), [(0, 0)]),
        # gaps: nothing starts beyond the end
        ((12, 2, 5, 1), [(0, 2), (5, 7), (10, 12)]),
        ((9, 2, 5, 1), [(0, 2), (5, 7)]),
        # a least length above the window's asks for full windows
        ((5, 2, 2, 3), [(0, 2), (2, 4)]),
    ],
)
def test_by_hand(arguments, expected):
    assert in_s(*arguments) == expected


def test_starts_do_not_drift_over_ten_hours():
    cut = windows(36_000, window_s=0.1, hop_s=0.1, min_s=0.1)
    assert len(cut) == 360_000
    assert cut[-1] == (35_999_900_000_000, 36_000_000_000_000)


@given(
    duration_ms=st.integers(0, 100_000),
    window_ms=st.integers(1, 20_000),
    hop_share=st.floats(0.02, 1.0),
    min_ms=st.integers(0, 5_000),
)
def test_overlapping_windows_cover_all_but_a_short_rest(duration_ms, window_ms, hop_share, min_ms):
    hop_ms = max(1, math.ceil(window_ms * hop_share))
    duration_ms = min(duration_ms, 200 * hop_ms)
    cut = windows(
        duration_ms / 1e3, window_s=window_ms / 1e3, hop_s=hop_ms / 1e3, min_s=min_ms / 1e3
    )
    assert cut[0][0] == 0
    assert all(b - a == window_ms * 10**6 for a, b in cut[:-1])
    assert all(y[0] - x[0] == hop_ms * 10**6 for x, y in pairwise(cut))
    # none lies within the one before
    assert all(y[1] > x[1] for x, y in pairwise(cut))
    end = cut[-1][1]
    assert end <= duration_ms * 10**6
    if len(cut) > 1:
        assert cut[-1][1] - cut[-1][0] >= min(min_ms, window_ms) * 10**6
    # what is left out is shorter than the least window
    rest_start = cut[-1][0] + hop_ms * 10**6
    assert end == duration_ms * 10**6 or duration_ms * 10**6 - rest_start < min_ms * 10**6


def test_refused_arguments():
    for window_s, hop_s in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ConfigError):
            windows(5, window_s=window_s, hop_s=hop_s, min_s=1)
    for duration_s in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="duration"):
            windows(duration_s, window_s=1, hop_s=1, min_s=1)
