"""Long clips are cut where nobody speaks; nothing is lost or said twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysers.audio.pauses import is_silent, quiet_pieces


def test_the_cut_is_in_the_pause():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40 * 16_000).astype(np.float32)
    noise[int(26.0 * 16_000) : int(26.6 * 16_000)] *= 1e-3
    first, second = quiet_pieces(noise, longest_s=30.0, search_s=8.0)
    assert 26.1 * 16_000 <= len(first) <= 26.5 * 16_000
    np.testing.assert_array_equal(np.concatenate((first, second)), noise)


def test_without_a_pause_pieces_are_as_long_as_they_may_be():
    tone = np.ones(70 * 16_000, np.float32)
    assert [round(len(p) / 16_000) for p in quiet_pieces(tone, longest_s=30, search_s=8)] == [
        30,
        30,
        10,
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400_000), st.integers(0, 2**32 - 1))
def test_pieces_are_the_clip_and_none_is_too_long(samples, seed):
    signal = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    pieces = quiet_pieces(signal, longest_s=4.0, search_s=1.5)
    np.testing.assert_array_equal(np.concatenate(pieces), signal)
    assert max(len(p) for p in pieces) <= 4 * 16_000
    assert all(len(p) >= 2.5 * 16_000 for p in pieces[:-1])


def test_rounding_noise_of_silence_is_silence_and_a_whisper_is_not():
    assert is_silent(np.zeros(100, np.float32))
    assert is_silent(np.full(100, -1 / 32_768, np.float32))
    assert not is_silent(np.full(100, 0.001, np.float32))
    assert is_silent(np.zeros(0, np.float32))
