"""Fusion end to end on made-up voices: the words alone say the valence, the pitch the arousal."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from safetensors.numpy import load_file

from raysers.commands.archive import annotate, transcribe
from raysers.commands.fusion import fuse as main
from raysers.evaluation.join import read_predictions
from tests.jobs import processes
from tests.jobs.conftest import comparable, record_of, rows_of
from tests.unit.models.asr_folders import write_ctc
from tests.unit.models.text_folders import write_encoder

DIMENSIONS = ("arousal", "dominance", "valence")
GOOD, BAD = ("wonderful", "great"), ("terrible", "awful")
#: What a transcript may hold and every table has to keep.
STRANGE = "the \"day\", 🎭\n<b>שלום</b> &amp; 'great'"
CLIPS = 100
HERE = ("--workers", "local")
HEADS = ("--epochs", 60, "--batch-size", 16, "--lr", 3e-3, "--dtype", "fp32", "--bootstrap", 200)


def run(*args: object) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Manifest of clips: the pitch says the arousal, a word the valence, nothing the dominance."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(CLIPS):
        split = ("train", "train", "train", "dev", "test")[number % 5]
        good, arousal = bool(rng.integers(2)), rng.random()
        text = f"{rng.choice(('this', 'the day', 'it'))} was {rng.choice(GOOD if good else BAD)}"
        sf.write(folder / f"{number:02d}.wav", hum(rng, arousal), 16_000)
        rows.append(
            {
                "file": f"{number:02d}.wav",
                "speaker": split,
                "split": split,
                "transcript": STRANGE if number == 9 else text,
                "arousal": f"{arousal:.3f}",
                "valence": "" if number % 7 == 5 else f"{0.8 if good else 0.2:.1f}",
            }
        )
    return write_rows(folder / "labels.csv", rows)


def hum(rng: np.random.Generator, arousal: float) -> np.ndarray:
    """A neutral voice: as loud and as bright whatever it says."""
    time_s = np.arange(int(16_000 * rng.uniform(0.5, 0.7))) / 16_000
    partials = [np.sin(2 * np.pi * k * (100 + 300 * arousal) * time_s) / k for k in range(1, 8)]
    return 0.2 * np.sum(partials, 0) + 0.01 * rng.standard_normal(len(time_s))


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def command(speech, tmp_path_factory) -> tuple[object, ...]:
    """Training with the transcripts and a small text encoder."""
    folder = tmp_path_factory.mktemp("text")
    write_encoder(folder)
    return ("train", "--data", speech, "--text-model", folder, "--asr", "manifest", *HEADS, *HERE)


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fusion") / "out"
    assert run(*command, "--output", out) == 0
    return out


def metrics_of(out: Path) -> dict[tuple[str, ...], dict]:
    keys = ("model", "split", "group_value", "dimension", "metric")
    rows = rows_of(out, "metrics")
    return {tuple(r[k] for k in keys): r for r in rows if r["group"] != "epoch"}


def test_fusion_uses_words_that_carry_the_label(trained):
    found = metrics_of(trained)
    against = found["fused", "test", "audio head", "valence", "ccc_difference"]
    assert against["value"] > 0.3
    # twenty clips; by sound alone it is about 0
    assert found["fused", "test", "", "valence", "ccc"]["value"] > 0.2


def test_fusion_does_no_harm_where_words_say_nothing(trained):
    against = metrics_of(trained)["fused", "test", "audio head", "arousal", "ccc_difference"]
    assert against["ci_high"] > 0
    assert against["value"] > -0.1
    assert metrics_of(trained)["audio head", "test", "", "arousal", "ccc"]["value"] > 0.5


def test_what_training_leaves(trained, command, capsys):
    rows = rows_of(trained / "features", "features")
    assert len(rows) == CLIPS == record_of(trained / "features")["outcome"]["decoded"]
    assert {r["asr_model"] for r in rows} == {"manifest"}
    assert STRANGE in {r["text"] for r in rows}
    predictions = rows_of(trained, "predictions")
    assert len(predictions) == CLIPS * 2 // 5 == len(read_predictions(str(trained)).table)
    assert {r["dominance"] for r in predictions} == {None}  # without labels there is no head
    assert "too few train labels for dominance" in (trained / "README.md").read_text()
    history = json.loads((trained / "training.json").read_text())["history"]
    for head, kept in record_of(trained)["outcome"]["dev_ccc"].items():
        assert kept == pytest.approx(max(one["dev_ccc"] for one in history[head]), abs=1e-4)
        assert len(history[head]) == 60
    assert (trained / "differences.png").read_bytes()[1:4] == b"PNG"
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert run(*command, "--output", trained) == 0
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before
    assert "finished already" in capsys.readouterr().out


def test_an_interrupted_training_ends_with_the_same_heads(trained, command, tmp_path):
    """Killed while a shard was worked on: a part, the heads and the end are missing."""
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    for part in sorted((copy / "features/features").iterdir())[1:]:
        part.unlink()
    for name in ("model.safetensors", "config.json", "README.md"):
        (copy / name).unlink()
    for folder in (copy, copy / "features"):
        record = record_of(folder) | {"status": "running"}
        (folder / "run.json").write_text(json.dumps(record))
    assert run(*command, "--output", copy) == 0
    assert 0 < record_of(copy / "features")["outcome"]["decoded"] < CLIPS
    same_results(copy, trained)


@pytest.mark.slow
def test_kill_9_while_the_clips_are_encoded_changes_no_weight(trained, command, tmp_path):
    out = tmp_path / "out"
    job = processes.start("jobs/fuse.py", *command, "--output", out)
    processes.kill_when(job, lambda: any((out / "features/features").glob("part-*")))
    assert record_of(out)["status"] == record_of(out / "features")["status"] == "running"
    assert run(*command, "--output", out) == 0
    same_results(out, trained)


def same_results(out: Path, expected: Path) -> None:
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert comparable(rows_of(out / "features", "features")) == comparable(
        rows_of(expected / "features", "features")
    )
    mine, theirs = (comparable(rows_of(f, "predictions")) for f in (out, expected))
    assert [r | {"model": ""} for r in mine] == [r | {"model": ""} for r in theirs]


def test_tables_of_annotate_and_transcribe_give_the_same_heads(speech, command, tmp_path, capsys):
    """As a pass over the audio does; half of the clips have a transcript."""
    with speech.open(newline="") as file:
        rows = [r | {"file": str(speech.parent / r["file"])} for r in csv.DictReader(file)][:30]
    for row in rows[::2]:
        row["transcript"] = ""
    data = write_rows(tmp_path / "labels.csv", rows)
    asr, texts, emotions = (tmp_path / name for name in ("asr", "texts", "emotions"))
    write_ctc(asr)
    how = ("--input", data, *HERE, "--dtype", "fp32", "--output")
    assert annotate([*map(str, (*how, emotions, "--embeddings"))]) == 0
    assert transcribe([*map(str, (*how, texts, "--asr", asr))]) == 0
    again = (*command, "--data", data, "--epochs", 3)
    assert run(*again, "--asr", asr, "--output", tmp_path / "audio") == 0
    joined = (*again, "--annotation", emotions, "--output", tmp_path / "tables")
    assert run(*joined) == 2
    assert "give --transcripts" in capsys.readouterr().err
    assert run(*joined, "--transcripts", texts) == 0
    configs, heads, predictions = zip(
        *(
            (
                json.loads((tmp_path / name / "config.json").read_text()),
                load_file(tmp_path / name / "model.safetensors"),
                comparable(rows_of(tmp_path / name, "predictions")),
            )
            for name in ("audio", "tables")
        ),
        strict=True,
    )
    assert configs[0] == configs[1]
    for name, weights in heads[0].items():
        np.testing.assert_allclose(heads[1][name], weights, atol=1e-4)
    assert {row["asr_model"] for row in predictions[0]} == {"manifest", str(asr)}
    for mine, theirs in zip(*predictions, strict=True):
        assert [mine[k] for k in ("text", "asr_model")] == [
            theirs[k] for k in ("text", "asr_model")
        ]
        assert mine["valence"] == pytest.approx(theirs["valence"], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--lr", 1e-4), "lr was 0.003, now 0.0001"),
        (("--epochs", 101), "--epochs"),
        (("--text-pooling", "cls"), "text_pooling was 'mean', now 'cls'"),
        (("--asr", "manifest", "--recognise-all"), "--recognise-all needs a recogniser"),
        (("--folds", 3), "was"),
        (("--text-model", "./nowhere"), "/nowhere does not exist: give a folder"),
        (("--annotation", "./nowhere"), "is no output of annotate"),
        (("--transcripts", "texts"), "--annotation"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(changes, words, trained, command, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    assert run(*command, "--output", trained, *changes) == 2
    line = capsys.readouterr().err.strip()
    assert words in line
    assert "\n" not in line
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before


def test_failed_clips_are_left_out_and_too_many_end_with_exit_3(speech, command, tmp_path, capsys):
    """The heads are trained on the other clips, here by the paper's recipe."""
    with speech.open(newline="") as file:
        rows = list(csv.DictReader(file))[:40]
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    for number, row in enumerate(rows):
        row["file"] = str(speech.parent / row["file"] if number > 2 else tmp_path / "broken.wav")
        row["start"], row["end"] = ("0", "0.2") if number > 2 else (str(number), str(number + 1))
    table = write_rows(tmp_path / "labels.csv", rows)
    out, own = tmp_path / "out", command[: command.index("--epochs")]
    again = (*own, *HERE, "--recipe", "paper", "--epochs", 2, "--data", table, "--output", out)
    named = ("--text-pooling", "mean", "--text-model", command[4], "--asr", "manifest")
    assert run(*again, *named) == 3
    record = record_of(out)
    assert record["status"] == record_of(out / "features")["status"] == "done_with_failures"
    assert record["outcome"]["clips"] == 37
    settings = record["settings"]
    assert [settings[k] for k in ("batch_size", "lr", "schedule")] == [32, 1e-4, "constant"]
    assert len(rows_of(out, "predictions")) == 16
    assert "text does not help: " in capsys.readouterr().out.splitlines()[-1]
    rows[5]["transcript"] = ""
    lacking = write_rows(tmp_path / "lacking.csv", rows)
    assert run(*command, "--output", tmp_path / "none", "--data", lacking) == 2
    assert "05.wav" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("args", [(), ("fit",), ("predict", "--fusion", "nowhere")])
def test_a_wrong_command_is_told_what_is_right(args, capsys):
    assert run(*args, *(("--input", ".", "--output", "o") if args[:1] == ("predict",) else ())) == 2
    assert capsys.readouterr().err


def test_predicting_in_one_pass_equals_training_s_own_predictions(trained, speech, tmp_path):
    out = tmp_path / "out"
    words = ("--input", speech, "--output", out, "--fusion", trained, "--dtype", "fp32", *HERE)
    assert run("predict", *words) == 0
    rows = {r["clip_id"]: r for r in rows_of(out)}
    assert record_of(out)["outcome"]["decoded"] == CLIPS == len(rows)
    columns = [f"{d}{suffix}" for d in DIMENSIONS for suffix in ("", "_audio", "_text")]
    for known in rows_of(trained, "predictions"):
        row = rows[known["clip_id"]]
        got, wanted = (np.array([r[c] for c in columns], float) for r in (row, known))
        np.testing.assert_allclose(got, wanted, atol=2e-5)
        assert [row[k] for k in ("text", "model_revision")] == [
            known[k] for k in ("text", "model_revision")
        ]
    schema = pq.read_schema(next((out / "annotations").glob("*.parquet")))
    assert "text_embedding" not in schema.names
    assert len(read_predictions(str(out)).table) == CLIPS


def test_predicting_audio_alone_needs_a_recogniser(trained, speech, tmp_path, capsys):
    audio = tmp_path / "audio"
    audio.mkdir()
    shutil.copy(speech.parent / "00.wav", audio)
    words = ("predict", "--input", audio, "--output", tmp_path / "out", "--fusion", trained, *HERE)
    assert run(*words) == 2  # it was trained without one
    assert "give a recogniser" in capsys.readouterr().err
    pytest.importorskip("moonshine_voice")
    assert run(*words, "--asr", "moonshine") == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["asr_model"] == "moonshine"
    assert np.isfinite([row["valence"], row["valence_audio"], row["valence_text"]]).all()


def test_another_acoustic_model_than_in_training_is_refused(trained, speech, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    config = json.loads((trained / "config.json").read_text()) | {"acoustic_revision": "before"}
    (copy / "config.json").write_text(json.dumps(config))
    shutil.copy(trained / "model.safetensors", copy)
    words = ("--input", speech, "--output", tmp_path / "out", "--fusion", copy, *HERE)
    assert run("predict", *words) == 2
    assert "was before in training" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
