"""The clips of `make demo`: complete, varied, the same each time, and made only once."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.demo import _say_moods, make_audio

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
    moods = Counter(path.name.split("-")[0] for path in spoken(folder))
    assert moods == {"happy": 15, "angry": 15, "sad": 15, "neutral": 15}


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


def test_mean_scores_are_said_by_mood_without_the_broken_files(tmp_path, capsys):
    files = ["/a-b/happy-00-en-us.wav", "sad-01-en.wav", "/q/sad-02-en-us-f3.flac", "broken-x.wav"]
    table = {"file": files, "arousal": [0.9, 0.1, 0.3, None]}
    table |= {"dominance": [0.8, 0.2, 0.3, None], "valence": [0.7, 0.3, 0.4, None]}
    pq.write_table(pa.table(table), tmp_path / "part-00000.parquet")
    _say_moods(tmp_path)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows] == [
        ["happy", "0.90", "0.80", "0.70"],
        ["sad", "0.20", "0.25", "0.35"],
    ]
