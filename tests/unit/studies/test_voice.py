"""A made-up speaker does what its labels say, audibly and repeatably."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile as sf

from raysers.studies.voice import Utterance, Voice, spoken

VOICE = Voice(
    name="v", sex="female", language="en-us", variant="f2", pitch=52, rate_wpm=175, size=1.0
)


def _heard(arousal: float, valence: float = 0.5, dominance: float = 0.5, clip: str = "c"):
    one = Utterance(
        clip=clip, voice=VOICE, emotion="neutral", text="The bag is on the table by the window",
        labels=(arousal, dominance, valence), seed=1,
    )  # fmt: skip
    samples, rate_hz = sf.read(io.BytesIO(spoken(one)))
    assert rate_hz == 16_000
    return samples


def _centre_hz(samples) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((np.fft.rfftfreq(len(samples), 1 / 16_000) * power).sum() / power.sum())


@pytest.fixture(scope="module")
def calm():
    return _heard(0.1)


def test_arousal_makes_speech_faster_and_brighter(calm):
    excited = _heard(0.9)
    assert len(excited) < 0.8 * len(calm)
    assert _centre_hz(excited) > 1.2 * _centre_hz(calm)


def test_the_same_clip_sounds_the_same_and_another_does_not(calm):
    assert np.array_equal(calm, _heard(0.1))
    assert len(_heard(0.1, clip="d")) != len(calm)
