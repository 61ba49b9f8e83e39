"""The perturbations against auglib's published outputs, hand-worked cases and properties."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from raysers.robustness import perturbations
from raysers.robustness.perturbations import PERTURBATIONS
from tests.places import SHARED_DATA, needs_shared

REFERENCE = SHARED_DATA.parent / "reference"

#: auglib's transform and arguments as ours.
OURS = {
    "Tone": lambda x, a: perturbations.additive_tone(x, a["freq"], a["snr_db"], a["snr"]),
    "ClipByRatio": lambda x, a: perturbations.clip(x, a["ratio"]),
    "AppendValue": lambda x, a: perturbations.append_zeros(x, a["duration"]),
    "PrependValue": lambda x, a: perturbations.prepend_zeros(x, a["duration"]),
    "Trim": lambda x, a: (
        perturbations.crop_beginning(x, a["start_pos"])
        if "start_pos" in a
        else perturbations.crop_end(x, a["end_pos"])
    ),
    "GainStage": lambda x, a: perturbations.gain(x, a["gain_db"]),
    "HighPass": lambda x, a: perturbations.highpass(x, a["cutoff"], a["order"]),
    "LowPass": lambda x, a: perturbations.lowpass(x, a["cutoff"], a["order"]),
    "WhiteNoiseGaussian": lambda x, a: perturbations.white_noise(
        x, a["snr_db"], np.random.default_rng(0).standard_normal(len(x))
    ),
}


def vectors() -> dict:
    return json.loads((REFERENCE / "auglib_vectors.json").read_text())


def formula_input() -> np.ndarray:
    n = np.arange(4000)
    x = 0.5 * np.sin(2 * np.pi * 220 * n / 16000) * np.exp(-n / 8000)
    return (x + 0.1 * np.sin(2 * np.pi * 1234 * n / 16000 + 0.3)).astype(np.float32)


CASES = vectors()["cases"] if REFERENCE.is_dir() else []


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['transform']}-{c['args']}")
def test_published_outputs_are_reproduced(case):
    got = OURS[case["transform"]](formula_input(), case["args"])
    want = case["output"]
    assert (len(got), str(got.dtype)) == (want["length"], want["dtype"])
    for name, part in [
        ("head", got[: len(want["head"])]),
        ("tail", got[-len(want["tail"]) :]),
        ("idx_500_520", got[500:520]),
    ]:
        np.testing.assert_allclose(part, want[name], atol=1e-6, rtol=0)
    assert float(got.astype(np.float64).sum()) == pytest.approx(want["sum"], abs=2e-3)
    assert np.sqrt(np.mean(got.astype(np.float64) ** 2)) == pytest.approx(want["rms"], abs=1e-6)
    assert np.abs(got).max() == pytest.approx(want["peak"], abs=1e-6)


@needs_shared
def test_literals_of_auglibs_own_tests():
    literals = json.loads((REFERENCE / "auglib_unit_expectations.json").read_text())
    for ratio, given_, expected in literals["ClipByRatio"]:
        np.testing.assert_array_equal(perturbations.clip(given_, ratio), np.float32(expected))
    for start, end, expected in literals["Trim_samples(signal=[1,2,3,4];start,end,expected)"]:
        got = np.float32([1, 2, 3, 4])
        got = perturbations.crop_end(got, end) if end else got
        got = perturbations.crop_beginning(got, start) if start else got
        np.testing.assert_array_equal(got, np.float32(expected))
    assert perturbations.gain([1.0], -3)[0] == pytest.approx(literals["from_db(-3)"], abs=1e-7)


def test_a_tone_against_the_peak_worked_by_hand():
    # peak .5 at 40 dB: amplitude .005; 4 kHz at 16 kHz is 0, 1, 0, -1
    x = np.float32([0.5, -0.25, 0.0, 0.1])
    got = perturbations.additive_tone(x, 4000, 40, "peak")
    np.testing.assert_allclose(got - x, [0, 0.005, 0, -0.005], atol=1e-7)


def test_a_tone_against_the_rms_worked_by_hand():
    # mean square of (.3, -.3, .3, -.3) is .09: amplitude .3 * sqrt 2 / 100
    x = np.float32([0.3, -0.3, 0.3, -0.3])
    got = perturbations.additive_tone(x, 4000, 40, "rms")
    np.testing.assert_allclose(got - x, [0, 0.00424264, 0, -0.00424264], atol=1e-7)


@pytest.mark.parametrize("seconds", [30, 300])
def test_a_tone_stays_a_tone_in_a_long_clip(seconds):
    x = np.full(16_000 * seconds, 0.5, np.float32)
    tone = (perturbations.additive_tone(x, 6000, 40) - x)[-16_000:]
    spectrum = np.abs(np.fft.rfft(tone)) ** 2
    assert spectrum[6000] > 0.99 * spectrum.sum()


def speech() -> list[np.ndarray]:
    files = sorted((SHARED_DATA / "emodb" / "wav").glob("*.wav"))[::25]
    return [sf.read(f, dtype="float32")[0] for f in files]


def level_db(x: np.ndarray) -> float:
    return 10 * math.log10(np.mean(x.astype(np.float64) ** 2))


@needs_shared
def test_the_snr_is_really_reached_on_real_speech():
    rng = np.random.default_rng(0)
    for x in (x for x in speech() if len(x) >= 32_000):
        noisy = perturbations.white_noise(x, 35, rng.standard_normal(len(x)))
        assert level_db(x) - level_db(noisy - x) == pytest.approx(35, abs=0.1)
        toned = perturbations.additive_tone(x, 6000, 45, "rms")
        assert level_db(x) - level_db(toned - x) == pytest.approx(45, abs=0.1)
        toned = perturbations.additive_tone(x, 6000, 45, "peak")
        peak_db = 20 * math.log10(np.abs(x).max() / np.abs(toned - x).max())
        assert peak_db == pytest.approx(45, abs=0.1)


def test_filters_do_what_their_names_say():
    t = np.arange(16_000) / 16_000
    low, high = np.sin(2 * np.pi * 20 * t), np.sin(2 * np.pi * 7800 * t)
    for signal, function, cutoff_hz in [
        (low, perturbations.highpass, 150),
        (high, perturbations.lowpass, 6500),
    ]:
        got = function(signal, cutoff_hz)
        assert level_db(got[2000:]) < level_db(np.float32(signal)) - 10
    # -3 dB at the cutoff, as a Butterworth filter has
    at = np.sin(2 * np.pi * 150 * t)
    assert level_db(perturbations.highpass(at, 150)[8000:]) - level_db(np.float32(at)[8000:]) == (
        pytest.approx(-3.01, abs=0.02)
    )


audio = npst.arrays(
    np.float32,
    st.integers(1, 3000),
    elements=st.floats(-1, 1, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize("row", PERTURBATIONS, ids=lambda row: row.name)
@given(x=audio, seed=st.integers(0, 100))
def test_any_clip_gives_finite_float32_and_is_itself_unchanged(row, x, seed):
    before = x.copy()
    x.flags.writeable = False
    try:
        got, parameters = row.apply(x, np.random.default_rng(seed))
    except ValueError:
        assert "crop" in row.name
        assert len(x) <= 1000
        return
    np.testing.assert_array_equal(x, before)
    assert got.dtype == np.float32
    assert got.ndim == 1
    assert np.isfinite(got).all()
    assert not np.shares_memory(got, x)
    longer = {"append_zeros": 1, "prepend_zeros": 1, "crop_beginning": -1, "crop_end": -1}
    assert len(got) - len(x) == longer.get(row.name, 0) * parameters.get("samples", 0)
    for name, value in parameters.items():
        assert value in row.choices[name]


@pytest.mark.parametrize("row", PERTURBATIONS, ids=lambda row: row.name)
@pytest.mark.parametrize("x", [np.zeros(2000), np.zeros(1), np.ones(1)], ids=["silence", "0", "1"])
def test_silence_and_single_samples_are_safe(row, x):
    x = x.astype(np.float32)
    if len(x) == 1 and "crop" in row.name:
        with pytest.raises(ValueError, match="from a clip of 1"):
            row.apply(x, np.random.default_rng(0))
        return
    got, _ = row.apply(x, np.random.default_rng(0))
    assert np.isfinite(got).all()
    if not x.any():
        assert np.abs(got).max() < 1e-6  # noise is relative to the clip: silence stays silent
