"""Levels against hand-worked values, hum, and digital silence."""

import io
import math

import numpy as np
import pytest
import soundfile as sf

from raysers.audio.decode import AudioReader
from raysers.audio.samples import has_hum, is_silent, levels, rms_db
from tests.places import SHARED_DATA, needs_shared
from tests.unit.audio.sounds import encode, noise


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


X, Y, Z = (noise(2, 44_100, seed=seed) for seed in range(3))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((X, X), ""),
        ((X, Y), ""),  # a speaker on each channel
        ((X, np.roll(X, 44)), ""),  # spaced microphones
        ((X, 0.05 * X), ""),
        ((X, -0.5 * Y), ""),
        ((X, Y, Z), ""),
        ((X, -X), "opposite_phase"),
        ((X, -0.9 * X + 0.05 * Y), "opposite_phase"),
        ((X, -X / 2, -X / 2), "opposite_phase"),
        ((X, 0 * X), "silent_channel"),
        ((1e-3 * Y, X), "silent_channel"),
        ((1e-3 * X, -1e-3 * X), ""),  # too quiet for a verdict
        ((X,), ""),
    ],
)
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_channels_that_cancel_or_are_silent_are_named(channels, expected, rate_hz):
    data = encode(np.stack(channels, axis=1), rate_hz, "WAV", "FLOAT")
    with AudioReader(io.BytesIO(data), name="x") as reader:
        reader.read(10**9 // 2, 10**9, max_s=9)
        assert reader.channel_fault() == expected


T = np.arange(3 * 16_000) / 16_000
SPEECH = noise(3, 16_000)  # rms 0.12


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (SPEECH, False),
        (SPEECH + 0.3 * np.sin(2 * np.pi * 50.1 * T), True),
        (SPEECH + 0.3 * np.sin(2 * np.pi * 59.9 * T), True),
        (SPEECH + sum(0.15 * np.sin(2 * np.pi * 50 * k * T) for k in (1, 2, 3, 5)), True),
        (SPEECH + 0.1 * np.sin(2 * np.pi * 50 * T), False),  # a quarter of the power
        (np.sin(2 * np.pi * 55 * T), False),
        (np.sin(2 * np.pi * 100 * T), False),  # a voice may have this pitch
        (np.sin(2 * np.pi * 440 * T), False),
        (0.5 + SPEECH, False),
        (0 * SPEECH, False),
        (np.sin(2 * np.pi * 50 * T[:15_000]), False),
        (np.zeros(0), False),
    ],
)
def test_hum_is_found_where_it_is_louder_than_all_else(signal, expected):
    assert has_hum(signal.astype(np.float32)) is expected


@needs_shared
def test_speech_has_no_hum():
    for path in sorted((SHARED_DATA / "emodb" / "wav").glob("*.wav"))[::5]:
        signal, _ = sf.read(path, dtype="float32")
        assert not has_hum(signal), path


def test_rounding_noise_of_silence_is_silence_and_a_whisper_is_not():
    assert is_silent(np.zeros(100, np.float32))
    assert is_silent(np.full(100, -1 / 32_768, np.float32))
    assert not is_silent(np.full(100, 0.001, np.float32))
    assert is_silent(np.zeros(0, np.float32))
