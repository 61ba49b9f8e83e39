"""The harder perturbations: noise behind speech, phone, tilt, rooms; and which a suite has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile as sf

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
from raysers.robustness.perturbations import generator
from raysers.robustness.task import ALL, SUITES, chosen, with_options
from tests.places import SHARED_DATA, needs_shared

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
        got, _ = row.apply(x, np.random.default_rng(3), material())
        assert (got.dtype, got.shape) == (np.float32, x.shape)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("row", HARD, ids=lambda row: row.name)
def test_the_draw_follows_from_seed_clip_perturbation_and_repeat_alone(row):
    x = voice(4000)

    def made(*key) -> bytes:
        return row.apply(x, generator(*key), material())[0].tobytes()

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
    assert row.apply(voice(), np.random.default_rng(0))[1] == {"amr": True}


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
