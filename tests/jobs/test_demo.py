"""`make demo`: clips that are varied, the same each time and made only once, and their scores."""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from raysers.commands.speech import demo as main
from raysers.commands.speech import make_audio
from raysers.types import DIMENSIONS
from tests.jobs.conftest import rows_of

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "audio"
    assert make_audio(folder) == (60, 6)
    return folder


def spoken(folder):
    return sorted(p for p in folder.iterdir() if not p.name.startswith("broken-"))


def test_clips_are_speech_of_varied_formats(folder):
    kinds = Counter()
    for path in spoken(folder):
        samples, sample_rate_hz = soundfile.read(path, always_2d=True)
        assert 1.0 < len(samples) / sample_rate_hz < 8.0, path.name
        assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.5, path.name
        kinds[path.suffix, sample_rate_hz, samples.shape[1]] += 1
    assert len(kinds) == 6
    assert {suffix for suffix, _, _ in kinds} == {".wav", ".flac", ".ogg", ".mp3"}
    emotions = Counter(path.name.split("-")[0] for path in spoken(folder))
    assert emotions == {"happy": 15, "angry": 15, "sad": 15, "neutral": 15}


def test_broken_files_are_broken_as_their_names_say(folder):
    def content(name):
        return (folder / f"broken-{name}.wav").read_bytes()

    assert content("zero-bytes") == b""
    assert content("only-text").isascii()
    assert content("git-lfs-pointer").startswith(b"version https://git-lfs")
    cut = content("cut-in-the-middle")
    assert int.from_bytes(cut[4:8], "little") + 8 > len(cut)
    assert soundfile.info(folder / "broken-ten-milliseconds.wav").duration == 0.01
    samples, _ = soundfile.read(folder / "broken-not-a-number.wav")
    assert np.isnan(samples).sum() == 1


def test_same_samples_each_time_and_no_clip_made_twice(folder, tmp_path):
    make_audio(tmp_path)
    for path in spoken(folder):
        again, _ = soundfile.read(tmp_path / path.name)
        np.testing.assert_array_equal(again, soundfile.read(path)[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 66
    make_audio(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_demo_annotates_its_clips_and_says_mean_scores_by_emotion(
    folder, tmp_path, no_cluster, capsys
):
    made = tmp_path / "synthetic-speech" / "audio"
    made.parent.mkdir()
    made.symlink_to(folder)
    assert main(["--output", str(tmp_path)]) == 0
    scores = defaultdict(list)
    for row in rows_of(tmp_path / "synthetic-speech" / "tables"):
        if row["status"] == "ok" and not Path(row["file"]).name.startswith("broken-"):
            emotion = Path(row["file"]).name.partition("-")[0]
            scores[emotion].append([row[d] for d in DIMENSIONS])
    assert {emotion: len(values) for emotion, values in scores.items()} == dict.fromkeys(
        ("happy", "angry", "sad", "neutral"), 15
    )
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for emotion, values in scores.items():
        assert [emotion, *(f"{mean:.2f}" for mean in np.mean(values, axis=0))] in printed
    read = subprocess.run(printed[-1], capture_output=True, text=True, check=True).stdout
    assert read.splitlines()[-1].startswith("66 rows")
