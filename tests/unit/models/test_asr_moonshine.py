"""Moonshine on real English speech, and what it must make of everything else."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from raysers.errors import ClipError, ConfigError
from raysers.models.asr import load_asr
from raysers.types import Status
from raysers.words.transcribe import count_errors
from tests.places import SHARED_DATA, needs_shared

pytest.importorskip("moonshine_voice")

CI = SHARED_DATA / "ci"


@pytest.fixture(scope="module")
def recogniser():
    return load_asr("moonshine", threads=2)


@pytest.fixture(scope="module")
def english() -> dict[str, tuple[np.ndarray, str]]:
    """Real clips and what is said in them, by file name."""
    with (CI / "manifest.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["language"] == "en"]
    return {Path(r["file"]).stem: (_read(CI / r["file"]), r["transcript"]) for r in rows}


def _read(path: Path) -> np.ndarray:
    signal, rate = sf.read(path, dtype="float32")
    return np.asarray(soxr.resample(signal, rate, 16_000), np.float32)


def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    """Word errors by words said."""
    counts = np.array([count_errors(said, text)[:4] for said, text in pairs]).sum(axis=0)
    return counts[1:].sum() / counts[0]


def heard(recogniser, signals: list[np.ndarray]) -> list[str]:
    return [row["text"] for row in recogniser.transcribe(signals)]


@needs_shared
def test_real_speech_gives_the_words_that_were_said(recogniser, english):
    """Measured: .035, of sentences and single digits of six sources."""
    texts = heard(recogniser, [signal for signal, _ in english.values()])
    said = [truth for _, truth in english.values()]
    assert word_error_rate(list(zip(said, texts, strict=True))) <= 0.05


@needs_shared
def test_a_recording_of_minutes_has_the_words_of_its_clips(recogniser, english):
    """Ten sentences twice over, in another order: at no edge of a window a word goes or doubles."""
    sentences = [clip for name, clip in english.items() if "fsdd" not in name]
    alone = heard(recogniser, [signal for signal, _ in sentences])
    order = [(step * place) % 11 - 1 for step in (1, 3) for place in range(1, 11)]
    pause = np.zeros(8_000, np.float32)
    joined = np.concatenate([part for place in order for part in (sentences[place][0], pause)])
    assert len(joined) > 90 * 16_000
    said = " ".join(sentences[place][1] for place in order)
    lost = count_errors(said, " ".join(alone[place] for place in order))[2]
    (text,) = heard(recogniser, [joined])
    deleted, inserted = count_errors(said, text)[2:4]
    assert deleted <= lost
    assert inserted <= 2  # "unless" becomes two words in one of them
    assert word_error_rate([(said, text)]) <= 0.05


@needs_shared
def test_a_text_depends_on_its_clip_alone(recogniser, english):
    some = [signal for name, (signal, _) in english.items() if name.startswith(("LJ", "spk1"))]
    first = heard(recogniser, some)
    assert len(set(first)) == len(some)
    assert heard(recogniser, some[::-1]) == first[::-1]
    assert heard(load_asr("moonshine", threads=1), [some[1], some[0] * 0, some[1]]) == [
        first[1],
        "",
        first[1],
    ]


def test_what_is_no_speech_has_empty_text_and_no_error(recogniser):
    rng = np.random.default_rng(0)
    times = np.arange(32_000) / 16_000
    click = np.zeros(32_000)
    click[9_000] = 1.0
    no_speech = {
        "silence": np.zeros(32_000),
        "tenth of a second": np.zeros(1_600),
        "shortest": np.full(895, 0.01),
        "noise": rng.normal(0, 0.05, 32_000),
        "loud noise": np.clip(rng.normal(0, 0.5, 32_000), -1, 1),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * times),
        "hum": 0.01 * np.sin(2 * np.pi * 50 * times),
        "click": click,
    }
    texts = heard(recogniser, [s.astype(np.float32) for s in no_speech.values()])
    assert dict(zip(no_speech, texts, strict=True)) == dict.fromkeys(no_speech, "")


@pytest.mark.parametrize("samples", [0, 1, 894])
def test_less_than_the_model_sees_at_once_is_too_short(recogniser, samples):
    (found,) = recogniser.transcribe([np.full(samples, 0.1, np.float32)])
    assert isinstance(found, ClipError)
    assert found.status == Status.TOO_SHORT


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    with pytest.raises(ConfigError, match=r"pip install 'raysers\[asr\]'"):
        load_asr("moonshine")
