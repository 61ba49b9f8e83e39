"""`calibrate`: a model that says how far a clip lies from a sample of the user's speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from raysers.commands.archive import annotate
from raysers.commands.models import calibrate
from raysers.evaluation.evaluate import with_training_clips
from raysers.evaluation.join import read_predictions
from raysers.models.checkpoint import licence_of
from raysers.models.emotion import EmotionModel
from raysers.models.loading import save_emotion_model
from tests.unit.models.networks import small_model, speechlike

FLAGS = ("--workers", "local", "--dtype", "fp32")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder, and its annotation with embeddings of 60 voices."""
    place = tmp_path_factory.mktemp("calibrate")
    model = small_model("w2v2-b")
    assert isinstance(model, EmotionModel)
    save_emotion_model(model, place / "model")
    (place / "speech").mkdir()
    for number in range(60):
        soundfile.write(place / f"speech/{number:02}.wav", speechlike(9_000, number), 16_000)
    score(place / "speech", place / "scores", place / "model", "--embeddings")
    return place / "model", place / "scores"


def score(audio: Path, output: Path, model: Path, *flags: str) -> None:
    args = ["--input", audio, "--output", output, "--model", model, *FLAGS, *flags]
    assert annotate([*map(str, args)]) == 0


def run(model: Path, sample: Path, output: Path) -> int:
    args = ["--model", model, "--sample", sample, "--output", output]
    return calibrate([*map(str, args)])


def test_scores_stay_and_other_sounds_are_farther(
    sample: tuple[Path, Path], tmp_path: Path
) -> None:
    model, scores = sample
    assert run(model, scores, tmp_path / "with-ood") == 0
    (tmp_path / "audio").mkdir()
    for number in range(8):
        soundfile.write(tmp_path / f"audio/a{number}.wav", speechlike(9_000, 100 + number), 16_000)
        tone = np.sin(np.arange(9_000) * 0.02 * (number + 1)).astype(np.float32)
        soundfile.write(tmp_path / f"audio/b{number}.wav", 0.3 * tone, 16_000)
    score(tmp_path / "audio", tmp_path / "before", model)
    score(tmp_path / "audio", tmp_path / "after", tmp_path / "with-ood")
    before, after = (
        pq.read_table(tmp_path / name / "annotations").to_pandas() for name in ("before", "after")
    )
    assert "ood" not in before
    for name in ("arousal", "dominance", "valence"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    speech = after["file"].str.contains("/audio/a")
    assert after["ood"].between(0, 1).all()
    assert after["ood"][speech].median() < 0.5
    assert after["ood"][~speech].median() > after["ood"][speech].max()


def test_a_copy_of_the_built_in_model_knows_what_it_was_trained_on(tmp_path: Path) -> None:
    for folder, names in (("sample", [*range(50)]), ("seen", ["03a01Fa", 1, 2])):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            soundfile.write(tmp_path / f"{folder}/{name}.wav", speechlike(9_000, number), 16_000)
    score(tmp_path / "sample", tmp_path / "scores", Path("raysers-base"), "--embeddings")
    copy = tmp_path / "copy"
    assert run(Path("raysers-base"), tmp_path / "scores", copy) == 0
    score(tmp_path / "seen", tmp_path / "after", copy)
    found = with_training_clips(read_predictions(str(tmp_path / "after"))).table
    is_seen = [file.endswith("/03a01Fa.wav") for file in found["file"].to_pylist()]
    assert found["trained_on"].to_pylist() == is_seen
    assert sum(is_seen) == 1
    assert (copy / "LICENSE-whisper").is_file()
    assert licence_of(copy) == "apache-2.0"


def test_a_sample_of_another_model_or_without_embeddings_is_refused(
    sample: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scores = sample
    save_emotion_model(small_model("hubert-b"), tmp_path / "other")
    assert run(tmp_path / "other", scores, tmp_path / "x") == 2
    assert "--sample" in capsys.readouterr().err
    assert run(model, tmp_path / "nothing", tmp_path / "x") == 2
    assert "has no embeddings" in capsys.readouterr().err
    soundfile.write(tmp_path / "long.wav", speechlike(60 * 9_600, 1), 16_000)
    windows = ("--embeddings", "--segment", "window", "--window-s", "0.6", "--hop-s", "0.6")
    score(tmp_path / "long.wav", tmp_path / "windows", model, *windows)
    assert run(model, tmp_path / "windows", tmp_path / "x") == 2
    assert "is of one recording" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
