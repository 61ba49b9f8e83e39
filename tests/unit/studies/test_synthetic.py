"""Synthetic corpora and small networks."""

from __future__ import annotations

import io

import numpy as np
import soundfile as sf

from raysers.models.backbones import BACKBONES
from raysers.studies.synthetic import (
    CROSS_CORPUS,
    HOME,
    Utterance,
    small_config,
    spoken,
    utterances,
    voices,
)


def speech(arousal: float, clip: str = "c"):
    one = Utterance(
        clip=clip, voice=voices(HOME)[1], emotion="neutral", labels=(arousal, 0.5, 0.5),
        text="The bag is on the table by the window",
    )  # fmt: skip
    samples, rate_hz = sf.read(io.BytesIO(spoken(one)))
    assert rate_hz == 16_000
    return samples


def centre_hz(samples) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((np.fft.rfftfreq(len(samples), 1 / 16_000) * power).sum() / power.sum())


def test_arousal_makes_speech_faster_and_brighter_and_the_same_clip_sounds_the_same():
    calm, excited = speech(0.1), speech(0.9)
    assert len(excited) < 0.8 * len(calm)
    assert centre_hz(excited) > 1.2 * centre_hz(calm)
    assert np.array_equal(calm, speech(0.1))
    assert len(speech(0.1, clip="d")) != len(calm)


def test_corpora_have_both_sexes_all_emotions_and_words_that_follow_the_valence():
    for corpus, speakers in ((HOME, 12), (CROSS_CORPUS, 8)):
        lines = list(utterances(corpus))
        assert len({one.clip for one in lines}) == len(lines) == speakers * 7 * corpus.takes
        sexes = [voice.sex for voice in voices(corpus)]
        assert sexes.count("female") == len(sexes) / 2 == speakers / 2
    lines = list(utterances(HOME))
    for place in range(3):
        values = [one.labels[place] for one in lines]
        assert (min(values) < 0.25, max(values) > 0.75) == (True, True)
    assert sum("terrible" in one.text for one in lines if one.labels[2] < 0.3) > 5
    assert not any("terrible" in one.text for one in lines if one.labels[2] > 0.7)


def test_small_networks_keep_what_tells_the_families_apart():
    for alias in ("w2v2-b", "hubert-L", "w2v2-L-xls-r"):
        full, small = BACKBONES[alias].config(), small_config(alias)
        for key in ("model_type", "feat_extract_norm", "do_stable_layer_norm", "conv_bias"):
            assert small[key] == full[key]
        assert small["hidden_size"] < full["hidden_size"]
