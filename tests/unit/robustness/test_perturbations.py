"""The perturbations against auglib's published outputs, hand-worked cases and properties."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from raysers.robustness import perturbations
from raysers.robustness.environments import (
    BACKGROUND,
    PHONE,
    ROOMS,
    TILTS,
    compressed,
    has_amr,
    mix,
    phone,
    through_amr,
    tilt,
)
from raysers.robustness.perturbations import PERTURBATIONS, generator
from raysers.robustness.task import ALL, SUITES, chosen, with_options
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
        got, parameters = apply(row, x, np.random.default_rng(seed))
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
            apply(row, x, np.random.default_rng(0))
        return
    got, _ = apply(row, x, np.random.default_rng(0))
    assert np.isfinite(got).all()
    if not x.any():
        assert np.abs(got).max() < 1e-6  # noise is relative to the clip: silence stays silent


def apply(row, x, rng, material=None):
    parameters = row.draw(rng)
    return row.change(x, parameters, rng, material), parameters


HARD = (*BACKGROUND, PHONE, *TILTS, *ROOMS)
EVERYTHING = {row.needs for row in HARD}


@dataclass
class Kept:
    """Recordings that are in memory."""

    signals: list[np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(s) for s in self.signals])

    def read(self, number: int, first: int, samples: int) -> np.ndarray:
        return self.signals[number][first : first + samples]


def material(seed: int = 0) -> Kept:
    rng = np.random.default_rng(seed)
    return Kept([rng.normal(0, 0.2, n).astype(np.float32) for n in (700, 5000, 40_000)])


def level_db(x: np.ndarray) -> float:
    return 10 * math.log10(np.mean(np.square(x, dtype=np.float64)))


def voice(n: int = 16_000) -> np.ndarray:
    t = np.arange(n) / 16_000
    x = np.sin(2 * np.pi * 200 * t) + 0.3 * np.sin(2 * np.pi * 2500 * t)
    return (0.2 * x * (1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)


@pytest.mark.parametrize("snr_db", [20, 10])
def test_noise_is_mixed_at_its_ratio_and_the_level_stays(snr_db):
    x = voice()
    noise = np.random.default_rng(0).normal(0, 3.0, len(x))
    got = mix(x, noise, snr_db)
    assert level_db(got) == pytest.approx(level_db(x), abs=1e-4)
    # what is not explained by the clip is the noise
    share = np.dot(got, x) / np.dot(x, x)
    assert level_db(share * x) - level_db(got - share * x) == pytest.approx(snr_db, abs=0.2)


@pytest.mark.parametrize("row", HARD, ids=lambda row: row.name)
@pytest.mark.parametrize("samples", [1, 2, 399, 16_000])
def test_any_length_and_silence_are_safe_and_nothing_is_modified(row, samples):
    for x in (voice(samples), np.zeros(samples, np.float32), np.full(samples, -0.5, np.float32)):
        before = x.copy()
        x.flags.writeable = False
        got, _ = apply(row, x, np.random.default_rng(3), material())
        assert (got.dtype, got.shape) == (np.float32, x.shape)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("row", HARD, ids=lambda row: row.name)
def test_the_draw_follows_from_seed_clip_perturbation_and_repeat_alone(row):
    x = voice(4000)

    def made(*key) -> bytes:
        return apply(row, x, generator(*key), material())[0].tobytes()

    assert made(0, "clip", row.name, 0) == made(0, "clip", row.name, 0)
    others = [made(1, "clip", row.name, 0), made(0, "other", row.name, 0)]
    others += [made(0, "clip", row.name, 1), made(0, "clip", "another", 0)]
    if not row.is_random:
        assert set(others) == {made(0, "clip", row.name, 0)}
    elif row not in ROOMS:  # three rooms only: a draw may repeat
        assert made(0, "clip", row.name, 0) not in others


def test_tilts_have_their_slope_keep_the_place_and_the_level():
    impulse = np.zeros(8192, np.float32)
    impulse[4000] = 0.5
    for slope in (-3, 3):
        response = np.abs(np.fft.rfft(tilt(impulse, slope)))
        hz = np.fft.rfftfreq(8192, 1 / 16_000)
        octaves = [
            float(np.interp(f, hz, 20 * np.log10(response))) for f in (500, 1000, 2000, 4000)
        ]
        np.testing.assert_allclose(np.diff(octaves), slope, atol=0.1)
        assert np.abs(tilt(impulse, slope)).argmax() == 4000
    assert level_db(tilt(voice(), 3)) == pytest.approx(level_db(voice()), abs=1e-3)


def test_the_phone_has_no_speech_above_4_khz_and_keeps_the_level():
    t = np.arange(32_000) / 16_000
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 6000 * t)
    x = (0.3 * (low + high)).astype(np.float32)
    got = phone(x, np.random.default_rng(0).standard_normal(len(x) + 1))
    assert len(got) == len(x)
    assert level_db(got) == pytest.approx(level_db(x), abs=0.01)
    spectrum = np.abs(np.fft.rfft(got))
    assert spectrum[12_000] < 0.02 * spectrum[2000]


def test_the_compressor_follows_its_curve_once_settled():
    # steady magnitudes: level in -> level out of `4:-20,-16` towards 0 dB
    for level, wanted in ((-40.0, -36.0), (-20.0 - 4, -20.0), (-10.0, -8.0), (0.0, 0.0)):
        x = np.full(8000, 10 ** (level / 20), np.float32)
        got = 20 * math.log10(compressed(x, 8000)[-1])
        assert got == pytest.approx(wanted, abs=0.01), level


@needs_shared
def test_amr_keeps_speech_recognisable_where_it_has_amr():
    if not has_amr():
        pytest.skip("the optional package av is not installed")
    x = sf.read(SHARED_DATA / "emodb" / "wav" / "03a01Fa.wav", dtype="float32")[0][::2].copy()
    got = through_amr(x)
    assert got.shape == x.shape
    lag = np.correlate(got, x, "full").argmax() - (len(x) - 1)
    assert 0 <= lag <= 80  # the codec's look-ahead, at most 10 ms
    assert np.corrcoef(got[lag:], x[: len(x) - lag])[0, 1] > 0.7
    row = with_options([PHONE], tone_snr="peak", amr=True)[0]
    assert apply(row, voice(), np.random.default_rng(0))[1] == {"amr": True}


def test_suites_have_what_their_names_say():
    assert (len(SUITES["paper"]), len(SUITES["small"])) == (8, 10)
    rows, left = chosen((), "full", EVERYTHING)
    assert [row.name for row in rows] == list(ALL)
    assert left == []
    rows, left = chosen((), "full", ())
    assert {row.name for row in rows} - set(SUITES["small"]) == {
        "background_white", "phone", "tilt_down", "tilt_up",
    }  # fmt: skip
    assert {row.needs for row in left} == EVERYTHING - {""}
