"""Augmentation: decided by seed, epoch and clip id, within its bounds, and safe on odd clips."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal as dsp

from raysers.audio.augment import (
    Augmentation,
    Floats,
    add_noise,
    augment,
    clip_rng,
    draw_gains_db,
    equalise,
)

ALL = Augmentation(
    crop_s=(0.5, 1.0), equaliser_db=4.0, noise_db=(10.0, 40.0), noise_share=0.5, speed=(0.9, 1.1)
)


def noise(samples: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1


def tone(hz: float, samples: int = 16_000) -> Floats:
    return np.sin(2 * np.pi * hz * np.arange(samples) / 16_000).astype(np.float32)


def test_a_clip_changes_the_same_way_on_every_worker() -> None:
    clip = noise(20_000)
    first = augment(clip, ALL, clip_rng(1, 2, "abc"))
    assert np.array_equal(first, augment(clip, ALL, clip_rng(1, 2, "abc")))
    for other in (clip_rng(2, 2, "abc"), clip_rng(1, 3, "abc"), clip_rng(1, 2, "abd")):
        changed = augment(clip, ALL, other)
        assert len(changed) != len(first) or not np.allclose(changed, first)


def test_the_input_stays_and_the_output_is_new() -> None:
    for settings in (Augmentation(), ALL, Augmentation(crop_s=(0.5, 0.5))):
        clip = noise(20_000)
        before = clip.copy()
        clip.flags.writeable = False
        changed = augment(clip, settings, clip_rng(0, 0, "x"))
        assert not np.shares_memory(changed, clip)
        assert changed.dtype == np.float32
        assert np.array_equal(clip, before)


def test_nothing_to_do_changes_nothing() -> None:
    clip = noise(1_000)
    off = Augmentation(noise_db=(10.0, 20.0), noise_share=0.0, speed=(1.0,))
    assert not off.changes_anything
    assert np.array_equal(augment(clip, off, clip_rng(0, 0, "x")), clip)
    assert ALL.changes_anything


@pytest.mark.parametrize("pink", [False, True])
@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 40.0])
def test_noise_has_the_wanted_ratio(snr_db: float, pink: bool) -> None:
    clip = tone(440.0) * 0.3
    added = add_noise(clip, snr_db, clip_rng(0, 0, "x"), pink=pink).astype(np.float64) - clip
    found_db = 10 * np.log10(np.mean(clip.astype(np.float64) ** 2) / np.mean(added**2))
    assert found_db == pytest.approx(snr_db, abs=0.02)


@pytest.mark.parametrize(("pink", "slope_db"), [(False, 0.0), (True, -3.01)])
def test_the_colour_of_the_noise(pink: bool, slope_db: float) -> None:
    clip = np.ones(160_000, np.float32)
    added = add_noise(clip, 0.0, clip_rng(0, 0, "x"), pink=pink) - clip
    hz, power = dsp.welch(added.astype(np.float64), 16_000, nperseg=2048, detrend=False)
    keep = (hz > 100) & (hz < 6_000)
    slope = np.polyfit(np.log2(hz[keep]), 10 * np.log10(power[keep]), 1)[0]
    assert slope == pytest.approx(slope_db, abs=0.25)


def test_a_share_of_the_clips_gets_noise() -> None:
    clip = noise(400)
    settings = Augmentation(noise_db=(0.0, 10.0), noise_share=0.3)
    noisy = [
        not np.array_equal(augment(clip, settings, clip_rng(0, 0, str(i))), clip)
        for i in range(1000)
    ]
    assert np.mean(noisy) == pytest.approx(0.3, abs=0.06)


def test_the_equaliser_stays_within_its_bounds() -> None:
    # an impulse's spectrum is the equaliser's own curve
    impulse = np.zeros(16_000, np.float32)
    impulse[8_000] = 1.0
    widest = 0.0
    for number in range(40):
        gains_db = draw_gains_db(4.0, clip_rng(0, 0, str(number)))
        curve_db = 20 * np.log10(np.abs(np.fft.rfft(equalise(impulse, gains_db).astype(float))))
        assert np.all(np.abs(curve_db) <= 4.0 + 0.05)
        # smooth: nothing that rings for longer than 1/50 s
        assert np.max(np.abs(np.diff(curve_db))) < 0.2
        widest = max(widest, float(np.ptp(curve_db)))
    assert widest > 5.0


def test_equaliser_gains_reach_their_bands() -> None:
    for band, hz in ((0, 60.0), (7, 7_600.0)):
        gains_db = np.zeros(8)
        gains_db[band] = 6.0
        louder = equalise(tone(hz), gains_db)[4_000:12_000]
        ratio = np.std(louder) / np.std(tone(hz)[4_000:12_000])
        assert 20 * np.log10(ratio) == pytest.approx(6.0, abs=0.1)


def test_equalising_by_nothing_is_nothing() -> None:
    clip = noise(12_345)
    assert np.allclose(equalise(clip, np.zeros(8)), clip, atol=1e-6)


def test_the_ends_do_not_ring_into_each_other() -> None:
    clip = np.zeros(4_000, np.float32)
    clip[:5] = 1.0
    changed = equalise(clip, np.array([6.0, -6.0] * 4))
    assert np.max(np.abs(changed[-1_500:])) < 1e-3


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    played = augment(tone(1_000.0), Augmentation(speed=(speed,)), clip_rng(0, 0, "x"))
    assert len(played) == pytest.approx(16_000 / speed, abs=2)
    spectrum = np.abs(np.fft.rfft(played * np.hanning(len(played))))
    assert np.argmax(spectrum) * 16_000 / len(played) == pytest.approx(1_000 * speed, abs=3)


def test_every_speed_is_used() -> None:
    settings = Augmentation(speed=(0.8, 1.0, 1.25))
    lengths = {len(augment(noise(800), settings, clip_rng(0, 0, str(i)))) for i in range(60)}
    assert lengths == {1_000, 800, 640}


def test_crops_are_parts_of_the_clip_of_all_lengths_and_places() -> None:
    clip = np.arange(32_000, dtype=np.float32)
    settings = Augmentation(crop_s=(0.5, 1.5))
    crops = [augment(clip, settings, clip_rng(0, 0, str(i))) for i in range(300)]
    for crop in crops:
        assert np.all(np.diff(crop) == 1.0)
        assert 8_000 <= len(crop) <= 24_001
    assert np.ptp([len(c) for c in crops]) > 14_000
    places = [c[0] / (32_000 - len(c)) for c in crops]
    assert np.mean(places) == pytest.approx(0.5, abs=0.08)
    assert max(places) > 0.95
    assert min(places) < 0.05


def test_no_clip_gets_longer_than_foretold() -> None:
    for samples in (900, 16_000, 40_000):
        for i in range(40):
            changed = augment(noise(samples), ALL, clip_rng(0, 0, str(i)))
            assert len(changed) / 16_000 <= ALL.longest_s(samples / 16_000) + 2 / 16_000


def test_no_clip_gets_too_short() -> None:
    fast = Augmentation(crop_s=(0.001, 0.002), speed=(2.0,))
    for samples in (400, 500, 799, 801, 5_000):
        for i in range(10):
            rng = clip_rng(0, 0, str(i))
            assert len(augment(noise(samples), fast, rng, min_samples=400)) >= 400


@pytest.mark.parametrize("samples", [1, 2, 17])
def test_tiny_clips_are_safe(samples: int) -> None:
    always = Augmentation(
        crop_s=(0.5, 1.0), equaliser_db=6.0, noise_db=(0.0, 5.0), noise_share=1.0, speed=(1.1,)
    )
    for i in range(20):
        changed = augment(noise(samples), always, clip_rng(0, 0, str(i)))
        assert len(changed) >= 1
        assert np.isfinite(changed).all()


def test_silence_stays_silent() -> None:
    always = Augmentation(equaliser_db=6.0, noise_db=(0.0, 5.0), noise_share=1.0)
    changed = augment(np.zeros(5_000, np.float32), always, clip_rng(0, 0, "x"))
    assert not changed.any()
