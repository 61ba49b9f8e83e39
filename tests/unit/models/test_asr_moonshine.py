"""Moonshine on real English speech, and what it must make of everything else."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile as sf
import soxr

from raysers.errors import ClipError, ConfigError
from raysers.models.asr import load_asr
from raysers.types import Status
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


#: Sources by how their files are named, and the highest word error rate that is no step back;
#: measured when this was written: 2.8, 0, 0, 6.7 and 16.7 %.
SOURCES = {"sense": 0.05, "libri": 0.03, "LJ": 0.15, "spk1": 0.07, "fsdd": 0.26}


def heard(recogniser, signals: list[np.ndarray]) -> list[str]:
    return [row["text"] for row in recogniser.transcribe(signals)]


@needs_shared
def test_real_speech_gives_the_words_that_were_said(recogniser, english):
    texts = heard(recogniser, [signal for signal, _ in english.values()])
    plain = jiwer.Compose([jiwer.ToLowerCase(), jiwer.SubstituteRegexes({r"[^\w\s']": " "})])
    said, recognised = defaultdict(list), defaultdict(list)
    for (name, (_, truth)), text in zip(english.items(), texts, strict=True):
        source = next(s for s in SOURCES if name.startswith(s))
        said[source].append(plain(truth))
        recognised[source].append(plain(text))
    errors = {source: jiwer.wer(said[source], recognised[source]) for source in SOURCES}
    assert {s for s, rate in errors.items() if rate > SOURCES[s]} == set(), errors


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
