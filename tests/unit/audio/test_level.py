"""Levels against hand-worked values; long clips are cut in their pauses, and nothing is lost."""

import io
import math

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from raysers.audio.level import is_silent, levels, quiet_pieces, rms_db


def test_a_sine_is_3_db_below_its_peak():
    sine = 0.5 * np.sin(2 * np.pi * 100 * np.arange(16000) / 16000).astype(np.float32)
    # peak -6.0206 dB, crest factor of a sine 3.0103 dB
    assert rms_db(sine) == pytest.approx(-9.0309, abs=1e-3)


def test_silence_is_at_the_floor_and_nothing_is_below():
    assert rms_db(np.zeros(100, np.float32)) == -120.0
    assert rms_db(np.full(100, 1e-9, np.float32)) == -120.0
    assert rms_db(np.full(100, 1e-5, np.float32)) == pytest.approx(-100.0, abs=1e-3)


def test_long_signals_do_not_lose_precision():
    # a float32 sum of 10 million equal squares stops growing
    assert rms_db(np.full(10_000_000, 0.1, np.float32)) == pytest.approx(-20.0, abs=1e-5)


def test_no_samples_have_no_level():
    empty = np.zeros(0, np.float32)
    assert math.isnan(rms_db(empty))
    assert math.isnan(levels(empty).clipped_ratio)


def test_clipped_samples_are_those_at_the_rails_of_16_bits():
    loud = (1.5 * np.sin(np.arange(5000) / 7)).astype(np.float32)
    file = io.BytesIO()
    sf.write(file, loud, 16000, format="WAV", subtype="PCM_16")
    file.seek(0)
    counts, _ = sf.read(file, dtype="int16")
    rails = np.count_nonzero((counts == 32767) | (counts <= -32767))
    file.seek(0)
    signal, _ = sf.read(file, dtype="float32")
    assert rails > 1000
    assert levels(signal).clipped_ratio == rails / 5000
    assert levels(signal * np.float32(0.99)).clipped_ratio == 0.0


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
