"""Transcription end to end: a network of a folder, real speech through moonshine, scored text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from raysers.commands.archive import transcribe as main
from tests.jobs import processes
from tests.jobs.conftest import comparable, record_of, rows_of
from tests.places import SHARED_DATA, needs_shared
from tests.unit.models.asr_folders import plain_texts, write_ctc, write_whisper

pytestmark = needs_shared

#: Transcripts as strangers write them; all must arrive, none may reach the terminal.
WILD = [
    'She said "no", \'twas <b>bold</b> & done; {x}',
    "emoji 😀👩‍👩‍👧 and \u202edesrever\u202c",
    "first line\nsecond\tline\r\n",
    "שלום עולם مرحبا",
    "\x1b[31mred\x07 alarm",
    "",
    None,
]


def run(*args: object) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def asr(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asr")
    write_ctc(folder, "wav2vec2-group")
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, emodb_files) -> Path:
    """Real clips and some that cannot be heard, with wild transcripts and names."""
    folder = tmp_path_factory.mktemp("clips")
    files = emodb_files[:10]
    silent, short, broken = (str(folder / f"{n}.wav") for n in ("silent", "short", "broken"))
    sf.write(silent, np.zeros(16_000), 16_000)
    sf.write(short, np.full(399, 0.1), 16_000)
    Path(broken).write_text("no audio")
    files += [silent, short, broken]
    table = {
        "file": files,
        "transcript": [WILD[i % len(WILD)] for i in range(len(files))],
        "speaker": [f"s{i % 3}" for i in range(len(files))],
        "corpus": ["evil\x1b[2J\u202ename"] * len(files),
    }
    pq.write_table(pa.table(table), folder / "clips.parquet")
    return folder / "clips.parquet"


@pytest.fixture(scope="module")
def finished(asr, manifest, tmp_path_factory, ray_session) -> tuple[Path, tuple[object, ...]]:
    """A run's output and its command."""
    out = tmp_path_factory.mktemp("out") / "texts"
    args = ("--input", manifest, "--output", out, "--asr", asr, "--dtype", "fp32", "--workers", 2,
            "--shard-s", 8, "--max-failed", 0.5)  # fmt: skip
    assert run(*args) == 0
    return out, args


def test_every_clip_is_a_row_with_the_text_of_the_single_file(finished, asr):
    rows = {Path(r["file"]).stem: r for r in rows_of(finished[0], "transcripts")}
    assert len(rows) == 13
    fates = {name: (r["status"], r["text"]) for name, r in rows.items() if r["status"] != "ok"}
    assert fates == {"short": ("too_short", None), "broken": ("unreadable", None)}
    assert rows["silent"]["text"] == ""
    heard = {n: r for n, r in rows.items() if r["status"] == "ok" and n != "silent"}
    signals = [sf.read(r["file"], dtype="float32")[0] for r in heard.values()]
    expected = [" ".join(text.split()) for text in plain_texts(asr, signals)]
    assert [r["text"] for r in heard.values()] == expected
    assert len(set(expected)) == 10
    record = record_of(finished[0])
    for row in rows.values():
        assert row["model"] == str(asr)
        assert row["model_revision"] == record["settings"]["asr_revision"]
        assert row["run_id"] == record["run_id"]
        assert bool(row["error"]) == (row["status"] != "ok")


def test_wild_transcripts_survive_and_are_scored(finished, manifest):
    out, _ = finished
    kept = {r["file"]: r["transcript"] for r in rows_of(out, "manifest")}
    given = pq.read_table(manifest).to_pylist()
    assert {r["file"]: r["transcript"] for r in given} == kept
    assert "metrics/part-*.parquet" in (Path(out) / "README.md").read_text()
    metrics = {r["metric"]: r for r in rows_of(out, "metrics")}
    assert set(metrics) == {"wer", "cer", "substitutions", "deletions", "insertions", "words"}
    known = [r for r in given if r["transcript"] is not None]
    failed = [r for r in known if Path(r["file"]).stem in ("short", "broken")]
    assert metrics["wer"]["n"] == len(known) - len(failed)
    assert metrics["wer"]["value"] > 0.9  # random letters
    assert record_of(out)["outcome"]["word_errors"]["wer"] == pytest.approx(
        metrics["wer"]["value"], abs=1e-6
    )


def test_the_same_command_again_only_redoes_what_is_lost_and_prints_nothing_wild(finished, capsys):
    out, args = finished
    args = (*args, "--workers", "local")
    rows = comparable(rows_of(out, "transcripts"))
    metrics = [{**r, "run_id": ""} for r in rows_of(out, "metrics")]
    parts = sorted((out / "transcripts").glob("*"))
    assert len(parts) > 2
    kept = {p: p.read_bytes() for p in parts[1:]}
    parts[0].unlink()
    assert run(*args) == 0
    assert comparable(rows_of(out, "transcripts")) == rows
    assert {p: p.read_bytes() for p in parts[1:]} == kept
    assert [{**r, "run_id": ""} for r in rows_of(out, "metrics")] == metrics
    printed = capsys.readouterr().out
    assert "WER" in printed
    assert not set(printed) & {"\x1b", "\x07", "\u202e", "\x9b"}


def test_other_settings_are_refused_and_retry_redoes_its_statuses(
    finished, asr, manifest, tmp_path, capsys
):
    out, args = finished
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    write_ctc(tmp_path / "other", "wav2vec2-layer")
    for change, words in [
        (("--asr", tmp_path / "other"), "asr_revision was"),
        (("--asr", "moonshine", "--dtype", "auto"), "asr was"),
        (("--max-clip-s", 3), "max_clip_s was 600.0, now 3.0"),
    ]:
        assert run(*args, *change) == 2
        assert words in capsys.readouterr().err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    broken = manifest.parent / "broken.wav"
    sf.write(broken, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    assert run(*args, "--retry", "unreadable", "--workers", "local") == 0
    fates = {Path(r["file"]).stem: r["status"] for r in rows_of(out, "transcripts")}
    assert (fates["broken"], fates["short"]) == ("ok", "too_short")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--asr", "moonshin"), "unknown --asr 'moonshin'"),
        (("--asr", "moonshine", "--dtype", "bf16"), "--dtype bf16"),
        (("--asr", "moonshine", "--dtype", "fp16"), "--dtype fp16"),
        (("--max-clip-s", 0), "--max-clip-s"),
        (("--model", "raysers-base"), "--model"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(args, words, manifest, tmp_path, capsys):
    assert run("--input", manifest, "--output", tmp_path / "out", *args) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_english_through_moonshine_is_scored(tmp_path, capsys):
    pytest.importorskip("moonshine_voice")
    ci = SHARED_DATA / "ci" / "audio"
    said = {
        "sense_and_sensibility_01_austen_64kb-0880.wav": "he was not an ill disposed young man",
        "spk1_snt1.wav": "THE CHILD ALMOST HURT THE SMALL DOG",
        "fsdd_3_lucas_0.wav": "three",
    }
    clips = tmp_path / "clips.csv"
    lines = [f"{ci / name},{words},en" for name, words in said.items()]
    clips.write_text("\n".join(["file,transcript,language", *lines]) + "\n")
    out = tmp_path / "out"
    assert run("--input", clips, "--output", out, "--workers", "local") == 0
    texts = {Path(r["file"]).name: r["text"] for r in rows_of(out, "transcripts")}
    assert texts["spk1_snt1.wav"] == "The child almost hurt the small dog."
    assert record_of(out)["outcome"]["word_errors"]["wer"] <= 0.1
    assert "0.0%" in capsys.readouterr().out


def test_languages_and_times_are_columns_where_they_are_asked_for(asr, emodb_files, tmp_path):
    table = pa.table({"file": emodb_files[:2]})
    pq.write_table(table, tmp_path / "clips.parquet")
    write_whisper(tmp_path / "whisper", multilingual=True)
    here = ("--input", tmp_path / "clips.parquet", "--dtype", "fp32", "--workers", "local")
    assert run(*here, "--asr", asr, "--timestamps", "--output", tmp_path / "a") == 0
    for row in rows_of(tmp_path / "a", "transcripts"):
        assert " ".join(word["word"] for word in row["words"]) == row["text"]
        assert all(0 <= w["start_s"] < w["end_s"] <= row["duration_s"] for w in row["words"])
        assert "language" not in row
    whisper = ("--asr", tmp_path / "whisper", "--language", "auto")
    assert run(*here, *whisper, "--output", tmp_path / "b") == 0
    assert {row["language"] for row in rows_of(tmp_path / "b", "transcripts")} <= {"de", "en"}
    assert run(*here, "--asr", asr, "--language", "auto", "--output", tmp_path / "c") == 2


@pytest.mark.slow
def test_kill_9_changes_no_row(asr, emodb_files, tmp_path):
    table = pa.table({"file": emodb_files})
    pq.write_table(table, tmp_path / "clips.parquet")
    args = ("--input", tmp_path / "clips.parquet", "--asr", asr, "--dtype", "fp32",
            "--shard-s", 4, "--workers", "local")  # fmt: skip
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    job = processes.start("jobs/transcribe.py", *args, "--output", killed)
    processes.kill_when(job, lambda: any((killed / "transcripts").glob("part-*")))
    assert record_of(killed)["status"] == "running"
    for out in (killed, calm):
        assert run(*args, "--output", out) == 0
    ours, theirs = (comparable(rows_of(out, "transcripts")) for out in (killed, calm))
    assert ours == theirs
