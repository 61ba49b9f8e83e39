"""Annotation end to end on local files: every clip is a row, whatever is in the folder."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import audformat
import numpy as np
import pytest
import soundfile as sf

from raysers.commands.archive import annotate as main
from tests.jobs.conftest import comparable, link_clips, record_of, rows_of
from tests.places import SHARED_DATA, needs_shared
from tests.published import score_files, write_checkpoint

pytestmark = [needs_shared, pytest.mark.usefixtures("ray_session")]
DIMENSIONS = ("arousal", "dominance", "valence")


def run(*args: object) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def expected(checkpoint, emodb_files) -> dict[str, np.ndarray]:
    """Scores and embedding by file name, one file at a time with plain transformers."""
    return {Path(f).name: v for f, v in score_files(checkpoint[1], emodb_files).items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory, emodb_files) -> Path:
    """A folder of real clips that no test changes."""
    return link_clips(tmp_path_factory.mktemp("archive") / "audio", emodb_files)


@pytest.fixture(scope="module")
def command(archive, checkpoint) -> tuple[object, ...]:
    """Annotation with all that a row can have."""
    return ("--input", archive, "--model", checkpoint[0], "--dtype", "fp32", "--embeddings")


@pytest.fixture(scope="module")
def calm(tmp_path_factory, command) -> Path:
    """The output of a run that nothing happens to, in some ten shards."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert run(*command, "--output", out, *CALM) == 0
    return out


@pytest.fixture
def copy(calm, tmp_path) -> Path:
    """That output, to change."""
    return Path(shutil.copytree(calm, tmp_path / "copy"))


HERE = ("--workers", "local")
CALM = (*HERE, "--shard-s", 10)


@pytest.mark.parametrize(
    "way",
    [
        (),
        ("--workers", 2, "--shard-s", 5, "--max-padded-s", 0.5),
        (*HERE, "--shard-s", 1800, "--max-padded-s", 60),
    ],
    ids=["without-ray", "two-workers-tiny-shards-of-single-clips", "large-batches"],
)
def test_scores_equal_the_single_file_forward_however_the_work_is_cut(
    way, command, calm, checkpoint, expected, tmp_path
):
    out = tmp_path / "out" if way else calm
    assert not way or run(*command, "--output", out, *way) == 0
    rows = rows_of(out)
    assert sorted(Path(r["file"]).name for r in rows) == sorted(expected)
    for row in rows:
        got = np.array([*(row[d] for d in DIMENSIONS), *row["embedding"]])
        np.testing.assert_allclose(got, expected[Path(row["file"]).name], atol=1e-5, rtol=0)
        assert row["status"] == "ok"
        assert row["model"] == checkpoint[0]
        assert row["duration_s"] == pytest.approx(sf.info(row["file"]).duration)
    assert np.std([r["arousal"] for r in rows]) > 1e-3  # the model tells clips apart


def test_each_channel_is_scored_as_a_file_of_its_own(archive, checkpoint, expected, tmp_path):
    one, two = sorted(archive.rglob("*.wav"), key=lambda p: sf.info(p).frames)[:2]
    pair = [sf.read(p, dtype="int16")[0] for p in (one, two)]
    both = np.zeros((len(pair[1]), 2), np.int16)
    for channel, signal in enumerate(pair):
        both[: len(signal), channel] = signal
    (tmp_path / "in").mkdir()
    sf.write(tmp_path / "in/call.wav", both, 16_000)
    out, model = tmp_path / "out", ("--model", checkpoint[0], "--dtype", "fp32")
    assert run("--input", tmp_path / "in", *model, "--channel", "each", "-o", out, *HERE) == 0
    rows = sorted(rows_of(out), key=lambda row: row["channel"])
    assert [row["channel"] for row in rows] == [1, 2]
    np.testing.assert_allclose(
        [rows[1][d] for d in DIMENSIONS], expected[two.name][:3], atol=1e-5, rtol=0
    )
    assert run("--input", tmp_path / "in", *model, "-o", out, *HERE) == 2


def test_turns_have_timelines_and_means_by_speaker(archive, checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    long = sorted(archive.rglob("*.wav"), key=lambda p: sf.info(p).frames)[-2:]
    turns = {"m1": [(0.0, 1.0, "a"), (1.0, 0.5, "b"), (1.5, 1.5, "a")], "m2": [(0.0, 1.0, "a")]}
    lines = []
    for (name, spans), path in zip(turns.items(), long, strict=True):
        shutil.copy(path, tmp_path / f"in/{name}.wav")
        for start, length, who in spans:
            lines.append(f"SPEAKER {name} 1 {start} {length} <NA> <NA> {who} <NA> <NA>\n")
    (tmp_path / "in/turns.rttm").write_text("".join(lines))
    out = tmp_path / "out"
    model = ("--model", checkpoint[0], "--dtype", "fp32")
    assert run("--input", tmp_path / "in/turns.rttm", *model, "-o", out, *HERE) == 0
    timeline = rows_of(out, "timelines")
    got = [(Path(r["file"]).stem, r["start"].total_seconds(), r["speaker"]) for r in timeline]
    assert got == [("m1", 0, "a"), ("m1", 1.5, "a"), ("m1", 1, "b"), ("m2", 0, "a")]
    by_id = {row["clip_id"]: row for row in rows_of(out)}
    assert all(by_id[row["clip_id"]]["valence"] == row["valence"] for row in timeline)
    speakers = rows_of(out, "speakers")
    assert [(r["speaker"], r["turns"], r["speech_s"]) for r in speakers] == [
        ("a", 2, 2.5), ("b", 1, 0.5), ("a", 1, 1.0),
    ]  # fmt: skip
    first, second = (row["arousal"] for row in timeline[:2])
    assert speakers[0]["arousal"] == pytest.approx((first * 1.0 + second * 1.5) / 2.5, abs=1e-6)
    card = (out / "README.md").read_text()
    assert all(f"{name}/part-*.parquet" in card for name in ("timelines", "speakers"))
    db = audformat.Database.load(out)
    assert list(db["timelines"].get()["clip_id"]) == [row["clip_id"] for row in timeline]
    assert set(db.tables) == {"annotations", "manifest", "timelines"}


def test_files_that_were_added_are_named_at_every_resume(
    checkpoint, clips_folder, tmp_path, capsys
):
    command = ("--input", clips_folder, "--model", checkpoint[0], "-o", tmp_path / "out", *HERE)
    assert run(*command) == 0
    assert run(*command) == 0
    assert "were added" not in capsys.readouterr().err
    (first, *_) = clips_folder.rglob("*.wav")
    for name in ("0new.wav", "new2.wav"):
        (clips_folder / name).symlink_to(first.resolve())
    for _ in range(2):
        assert run(*command) == 0
        told = capsys.readouterr().err
        assert "2 files were added since the clips were listed" in told
        assert f"{clips_folder}/0new.wav" in told
        assert "--extend scores them" in told


def test_the_output_opens_as_an_audformat_database(calm):
    table = audformat.Database.load(str(calm), load_data=True)["annotations"].get()
    assert table.index.names == ["file", "start", "end"]
    by_file = {r["file"]: r["arousal"] for r in rows_of(calm)}
    assert table["arousal"].droplevel(["start", "end"]).to_dict() == by_file
    assert record_of(calm)["status"] == "done"


def test_the_same_command_again_does_nothing_and_changes_nothing(command, copy):
    before = {p: p.read_bytes() for p in copy.glob("annotations/*")}
    first = record_of(copy)
    assert run(*command, "--output", copy, *CALM) == 0
    assert {p: p.read_bytes() for p in copy.glob("annotations/*")} == before
    again = record_of(copy)
    assert [h["run_id"] for h in again["history"]] == [first["run_id"]]
    assert again["outcome"]["decoded"] == 0


def test_lost_parts_are_made_again_and_nothing_else(command, copy):
    rows = comparable(rows_of(copy))
    parts = sorted(copy.glob("annotations/*"))
    assert len(parts) > 5
    kept = {p: p.read_bytes() for p in parts[2:]}
    for part in parts[:2]:
        part.unlink()
    (copy / "annotations" / ".part-0123").touch()  # a worker that died while it wrote
    assert run(*command, "--output", copy, *CALM) == 0
    assert comparable(rows_of(copy)) == rows
    assert {p: p.read_bytes() for p in parts[2:]} == kept
    assert sorted(p.name for p in (copy / "annotations").iterdir()) == [p.name for p in parts]


def test_another_model_or_segmenting_into_the_same_folder_is_refused(
    command, copy, tmp_path, capsys
):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    write_checkpoint(tmp_path / "other", seed=1)
    whole = [*command, "--output", copy, *CALM]
    for args, words in [
        ([*whole, "--model", tmp_path / "other"], "model_revision was"),
        ([*whole, "--segment", "window"], "segment was 'whole', now 'window'"),
        ([x for x in whole if x != "--embeddings"], "embeddings was True, now False"),
        ([*whole, "--limit", 3], "limit was 0, now 3"),
    ]:
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_a_run_is_repeated_from_its_run_json(calm, tmp_path):
    again = tmp_path / "again"
    assert run("--config", calm / "run.json", "--output", again) == 0
    assert comparable(rows_of(again)) == comparable(rows_of(calm))


def test_dry_run_writes_nothing_and_estimates_from_a_measurement(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*command, "--output", out, "--dry-run", "--usd-per-hour", 3, *HERE) == 0
    printed = capsys.readouterr().out
    for word in ("30 ", "x real time per worker", "wall time", "CPU hours", "$"):
        assert word in printed
    assert not out.exists()


@pytest.mark.parametrize("workers", ["local", pytest.param(1, marks=pytest.mark.slow)])
def test_faults_of_recordings_are_counted_and_named_with_the_fix(
    workers, checkpoint, emodb_files, tmp_path, capsys
):
    speech, rate_hz = sf.read(emodb_files[0])
    hum = 0.5 * np.sin(2 * np.pi * 50 * np.arange(len(speech)) / rate_hz)
    channels = {
        "same": (speech, speech),
        "opposite": (speech, -speech),
        "opposite2": (speech, -0.9 * speech),
        "left": (speech, 0 * speech),
        "hum": (speech, hum),
    }
    (tmp_path / "in").mkdir()
    for name, signals in channels.items():
        sf.write(tmp_path / "in" / f"{name}.wav", np.stack(signals, axis=1), rate_hz)
    command = ("--input", tmp_path / "in", "--model", checkpoint[0], "--workers", workers)
    assert run(*command, "--output", tmp_path / "out") == 0
    outcome = record_of(tmp_path / "out")["outcome"]
    assert outcome["faults"] == {"opposite_phase": 2, "silent_channel": 1, "hum": 1}
    assert outcome["statuses"] == {"ok": 5}
    printed = capsys.readouterr().out
    for words in ("2 clips", "opposite phase", "left.wav", "hum.wav", "ffmpeg -af highpass"):
        assert words in printed


#: The status of every odd file, decided by hand.
ODD = {
    "cpy_pluck-alaw.aifc": "ok",
    "cpy_pluck-pcm8.wav": "ok",
    "emodb_03a01Fa.mp3": "ok",
    "hound_nonstandard-01.wav": "too_short",
    "hound_oom-48ae4cd061ff8578ad3f23dc87624bd365cf5216.wav": "unreadable",
    "hound_pop.wav": "too_short",
    "lfs_1001_IEO_ANG_HI.wav": "unreadable",
    "lh_common_voice_en_651325.mp3": "ok",
    "lh_real_8ch.wav": "ok",
    "lh_stereo.mp3": "ok",
    "ps_awful.wav": "unsupported",
    "ps_goforward.raw": "unsupported",
    "ps_null.wav": "empty",
    "pydub_test5.webm": "ok",
    "pydub_wrong_extension.aac": "ok",
    "sr_french.aiff": "ok",
    "trunc_30395_03a01Fa.wav": "truncated",
    "tt_8khz_5s.opus": "ok",
    "tt_empty_file.wav": "empty",
    "tt_invalid_file.wav": "unreadable",
    "tt_mp3_audio.wav": "ok",
    "ünïcode näme – 03a01Fa.wav": "ok",
    "gone.wav": "missing",
    "hours.wav": "too_long",
    "1.wav": "too_short",  # the receptive field is 400 samples
    "399.wav": "too_short",
    "400.wav": "ok",
}
#: Its line break and quotes break sloppy lists and CSVs.
AWKWARD = "a b#c%20d'e\"f&g;h\nend.wav"
ODD[AWKWARD] = "not_finite"


@pytest.fixture(scope="module")
def odd(tmp_path_factory, emodb_files) -> Path:
    """Real clips among all that a folder may hold besides."""
    folder = link_clips(tmp_path_factory.mktemp("odd") / "audio", emodb_files)
    shutil.copytree(SHARED_DATA / "ci" / "odd", folder / "odd")
    (folder / "odd" / "manifest.csv").unlink()
    sf.write(folder / AWKWARD, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    sf.write(folder / "silence.wav", np.zeros(16_000), 16_000)
    for samples in (1, 399, 400):
        sf.write(folder / f"{samples}.wav", np.full(samples, 0.1), 16_000)
    (folder / "gone.wav").symlink_to("/nowhere/at/all.wav")
    (folder / "broken.wav").write_text("not audio at all")
    (folder / "empty.wav").touch()
    with wave.open(str(folder / "hours.wav"), "wb") as long:
        long.setparams((1, 1, 8000, 0, "NONE", ""))
        long.writeframes(bytes(8000 * 700))
    return folder


@pytest.fixture(scope="module")
def odd_out(tmp_path_factory, odd, checkpoint) -> Path:
    """The output of a run over that folder."""
    out = tmp_path_factory.mktemp("odd-out") / "out"
    assert run(*_odd_args(odd, checkpoint, out)) == 3  # far more than 5 % are not ok
    return out


def _odd_args(odd: Path, checkpoint: tuple, out: Path) -> tuple[object, ...]:
    return ("--input", odd, "--output", out, "--model", checkpoint[0], "--dtype", "fp32", *HERE)


def test_every_file_is_exactly_one_row_with_its_status_and_good_ones_are_untouched(
    odd, odd_out, expected
):
    rows = {r["file"]: r for r in rows_of(odd_out)}
    files = {str(p) for p in odd.rglob("*") if not p.is_dir() or p.is_symlink()}
    assert set(rows) == files
    assert len(rows_of(odd_out)) == len(files)
    statuses = {Path(f).name: r["status"] for f, r in rows.items()}
    assert {name: statuses[name] for name in ODD} == ODD
    silent = rows[str(odd / "silence.wav")]  # as the published model scores it
    assert (silent["status"], silent["rms_db"], silent["clipped_ratio"]) == ("ok", -120.0, 0.0)
    for file, row in rows.items():
        assert bool(row["error"]) == (row["status"] != "ok"), file
        assert (row["arousal"] is None) == (row["status"] != "ok"), file
        if Path(file).name in expected:
            got = [row[d] for d in DIMENSIONS]
            np.testing.assert_allclose(got, expected[Path(file).name][:3], atol=1e-5, rtol=0)


def test_retry_redoes_rows_of_the_named_statuses_only(odd, odd_out, checkpoint, tmp_path):
    out = Path(shutil.copytree(odd_out, tmp_path / "out"))
    args = (*_odd_args(odd, checkpoint, out), "--max-failed", 0.8)
    before = {r["file"]: r for r in rows_of(out)}
    sf.write(odd / "broken.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    sf.write(odd / "empty.wav", np.zeros(16_000), 16_000)
    assert run(*args) == 0
    assert {r["file"]: r for r in rows_of(out)} == before
    assert run(*args, "--retry", "unreadable", "missing") == 0
    after = {r["file"]: r for r in rows_of(out)}
    assert after.keys() == before.keys()
    for file, row in after.items():
        if before[file]["status"] not in ("unreadable", "missing"):
            assert row == before[file]
        elif file.endswith("broken.wav"):
            assert (before[file]["status"], row["status"]) == ("unreadable", "ok")
        else:
            assert row["run_id"] != before[file]["run_id"]
            assert comparable([row]) == comparable([before[file]])


def test_windows_cover_a_recording_and_each_is_scored_as_if_alone(checkpoint, tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    signal = np.random.default_rng(1).normal(0, 0.1, 16_000 * 25).astype(np.float32)
    sf.write(audio / "long.flac", signal, 16_000, subtype="PCM_16")
    stored, _ = sf.read(audio / "long.flac", dtype="float32")
    out = tmp_path / "out"
    code = run(
        "--input", audio, "--output", out, "--model", checkpoint[0], "--dtype", "fp32",
        "--segment", "window", "--window-s", 10, "--hop-s", 5, "--min-s", 1, *HERE,
    )  # fmt: skip
    assert code == 0
    rows = sorted(rows_of(out), key=lambda r: r["start"])
    spans = [(r["start"].total_seconds(), r["end"].total_seconds()) for r in rows]
    assert spans == [(0, 10), (5, 15), (10, 20), (15, 25)]
    for row, (start, end) in zip(rows, spans, strict=True):
        cut = tmp_path / "cut.wav"
        sf.write(cut, stored[int(start * 16_000) : int(end * 16_000)], 16_000, subtype="FLOAT")
        (alone,) = score_files(checkpoint[1], [str(cut)]).values()
        np.testing.assert_allclose([row[d] for d in DIMENSIONS], alone[:3], atol=1e-5, rtol=0)
