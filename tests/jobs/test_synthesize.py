"""Speech end to end: odd texts, refusals, programs that fail, and a job that is killed."""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysers.commands.speech import synthesize as main
from raysers.data.manifest import is_manifest, read_manifest
from raysers.schemas import MANIFEST
from raysers.words.texts import template_texts
from tests.jobs import processes
from tests.jobs.conftest import record_of, rows_of

pytest.importorskip("espeakng_loader")

ODD = [
    ('He said "no" & <b>left</b>', "negative", "ok"),
    ("😀 great\nnews", "positive", "ok"),
    ("שלום עולם", "neutral", "ok"),
    ("$(touch pwned); {output}", "neutral", "ok"),
    ("...", "neutral", "empty"),
    ("very " * 5000, "neutral", "too_long"),
]


def run(*args: object) -> int:
    return main([str(a) for a in args])


def sounds(output: Path) -> dict[str, str]:
    files = (output / "audio").iterdir()
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def stable(output: Path) -> list[dict]:
    """Rows of the manifest without what a second run of the same command may change."""
    rows = rows_of(output, "manifest")
    kept = [{k: v for k, v in r.items() if k not in ("etag", "clip_id", "file")} for r in rows]
    names = [{"name": Path(r["file"]).name} for r in rows]
    return [one | two for one, two in zip(kept, names, strict=True)]


@pytest.fixture(scope="module")
def spoken(ray_session, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    with (folder / "texts.csv").open("w", newline="") as file:
        rows = [(text, sentiment, "0.25", i) for i, (text, sentiment, _) in enumerate(ODD)]
        csv.writer(file).writerows([("text", "sentiment", "valence", "clip_id"), *rows])
    assert run("--texts", folder / "texts.csv", "--output", folder / "out", "--workers", 2) == 3
    return folder


def test_every_text_is_one_row_of_a_manifest_like_any_other(spoken):
    out = spoken / "out"
    rows = {row["source_clip_id"]: row for row in rows_of(out, "manifest")}
    assert len(rows) == len(rows_of(out, "manifest")) == len(ODD)
    for i, (text, sentiment, status) in enumerate(ODD):
        row = rows[str(i)]
        assert (row["transcript"], row["sentiment"], row["status"]) == (text, sentiment, status)
        assert (row["valence"], row["voice"]) == (0.25, "en-us")
        assert (row["rate_wpm"], row["pitch"]) == (175, 50)
        assert Path(row["file"]).is_file() == (status == "ok")
    record = record_of(out)
    assert record["status"] == "done_with_failures"
    assert record["outcome"]["statuses"] == {"ok": 4, "empty": 1, "too_long": 1}
    assert not (spoken / "pwned").exists()
    assert is_manifest(str(out))
    assert set(MANIFEST.names) <= set(read_manifest(str(out)).column_names)
    assert "transcript" in read_manifest(str(out)).column_names
    before, rows = {f: f.stat().st_mtime_ns for f in (out / "audio").iterdir()}, stable(out)
    assert run("--texts", spoken / "texts.csv", "--output", out) == 3
    assert {f: f.stat().st_mtime_ns for f in (out / "audio").iterdir()} == before
    assert stable(out) == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--voice", "de"], "voice was ['neutral'], now ['de']"),
        (["--limit", "2"], "texts was"),
        (["--audio-format", "flac"], "audio_format was 'wav', now 'flac'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(spoken, capsys, change, message):
    out = spoken / "out"
    assert run("--texts", spoken / "texts.csv", "--output", out, *change) == 2
    assert message in capsys.readouterr().err


def test_the_same_command_again_leaves_the_manifest_as_it_is(spoken):
    (manifest,) = (spoken / "out" / "manifest").iterdir()
    before = manifest.stat().st_mtime_ns
    assert run("--texts", spoken / "texts.csv", "--output", spoken / "out") == 3
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--templates", "this-iss"], "choose context, negation"),
        (["--templates", "this-is", "--texts", "a.txt"], "either --texts FILE or --templates"),
        (["--texts", "nowhere.txt"], "--texts"),
        (["--templates", "this-is", "--voice", "xx"], "--voice xx: espeak-ng has no 'xx'"),
        (["--templates", "this-is", "--rate", "9"], "--rate is 9: give 80 to 450"),
        (["--templates", "this-is", "--rate", "90", "90"], "--rate has the same value twice"),
        (["--templates", "this-is", "--tts", "command"], "give the program with --tts-command"),
        (["--templates", "this-is", "--workers", "1000"], "--workers 1000 is too many"),
        (
            ["--templates", "this-is", "--tts-command", "nope {output}"],
            "no program 'nope'",
        ),
    ],
)
def test_bad_commands_write_nothing(spoken, tmp_path, capsys, flags, message):
    assert run(*flags, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_dry_run_writes_nothing(spoken, tmp_path, capsys):
    flags = ["--templates", "this-is", "words", "--rate", 120, 200, "--voice", "random"]
    assert run(*flags, "--output", tmp_path / "out", "--dry-run") == 0
    assert "240 sound files" in capsys.readouterr().out  # (72 + 48) x 2
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_kills_its_worker_costs_one_row(spoken, tmp_path):
    script = tmp_path / "say.py"
    script.write_text(
        "import os, signal, sys, wave\n"
        "text = sys.stdin.read()\n"
        "if text == 'die': os.kill(os.getppid(), signal.SIGKILL)\n"
        "if text == 'fail': sys.exit('cannot say that')\n"
        "out = wave.open(sys.argv[1], 'wb')\n"
        "out.setparams((1, 2, 16000, 0, 'NONE', ''))\n"
        "out.writeframes(bytes([0, int(sys.argv[2])]) * 8000)\n"
    )
    (tmp_path / "texts.txt").write_text("one\ndie\nfail\ntwo\n")
    flags = ["--texts", tmp_path / "texts.txt", "--output", tmp_path / "out"]
    command = f"{sys.executable} -S {script} {{output}} {{voice}}"
    flags += ["--tts-command", command, "--voice", "7", "9"]
    assert run(*flags) == 3
    rows = {(r["transcript"], r["voice"]): r for r in rows_of(tmp_path / "out", "manifest")}
    assert {key: row["status"] for key, row in rows.items()} == {
        ("one", "7"): "ok", ("die", "7"): "worker_died", ("fail", "7"): "model_error",
        ("two", "7"): "ok", ("one", "9"): "ok", ("die", "9"): "worker_died",
        ("fail", "9"): "model_error", ("two", "9"): "ok",
    }  # fmt: skip
    assert rows["fail", "7"]["error"].endswith("cannot say that")
    assert not (tmp_path / "out" / "_attempts").exists()
    assert run(*flags, "--retry", "model_error", "--max-failed", "0.5") == 0


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_output(spoken, tmp_path):
    flags = ["--templates", "context", "--limit", 160, "--voice", "random", "--seed", 5]
    killed = tmp_path / "killed"
    process = processes.start("jobs/synthesize.py", *flags, "--output", killed, "--workers", 1)
    processes.kill_driver_when(process, lambda: any((killed / "speech").glob("part-*.parquet")))
    finished = len(list((killed / "speech").glob("part-*.parquet")))
    assert finished < 10
    assert not is_manifest(str(killed))
    assert run(*flags, "--output", killed) == 0
    whole = tmp_path / "whole"
    assert run(*flags, "--output", whole) == 0
    assert sounds(killed) == sounds(whole)
    assert len(sounds(whole)) == 160
    assert stable(killed) == stable(whole)
    assert [r["run_id"] for r in record_of(killed)["history"]]
    written = {row["transcript"] for row in rows_of(whole, "manifest")}
    assert written == set(template_texts("context")["text"].to_pylist()[:160])
    first = pq.ParquetFile(whole / "manifest" / "part-00000.parquet").read()
    assert first["file"].to_pylist() == sorted(first["file"].to_pylist())
