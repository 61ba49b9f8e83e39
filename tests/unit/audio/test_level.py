"""Levels against hand-worked values."""

import io
import math

import numpy as np
import pytest
import soundfile as sf

from raysers.audio.level import clipped_ratio, rms_db


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
    assert math.isnan(clipped_ratio(empty))


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
    assert clipped_ratio(signal) == rails / 5000
    assert clipped_ratio(signal * np.float32(0.99)) == 0.0
