"""Drivers and nodes that die in mid-run: the same command ends with the same rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.jobs import processes
from tests.jobs.conftest import comparable, record_of, rows_of
from tests.places import REPO, needs_shared

pytestmark = needs_shared
JOB = "jobs/annotate.py"


def _args(clips_folder, out) -> tuple[object, ...]:
    # slow enough to be hit in the middle: about 0.5 s per shard
    model = ("--model", "random:w2v2-b-6", "--dtype", "fp32", "--shard-s", 5, "--workers", 1)
    return ("--input", clips_folder, "--output", out, *model)


def test_kill_9_of_the_driver_then_the_same_command_gives_identical_rows(clips_folder, tmp_path):
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert processes.run(JOB, *_args(clips_folder, calm))[0] == 0
    driver = processes.start(JOB, *_args(clips_folder, out))
    processes.kill_driver_when(driver, lambda: processes.parts_in(out) >= 2)
    done = processes.parts_in(out)
    assert 2 <= done < processes.parts_in(calm)
    assert record_of(out)["status"] == "running"
    kept = {p: p.read_bytes() for p in (out / "annotations").glob("part-*")}
    code, printed, _ = processes.run(JOB, *_args(clips_folder, out))
    assert code == 0
    assert "resuming the run of" in printed
    assert comparable(rows_of(out)) == comparable(rows_of(calm))
    assert {p: p.read_bytes() for p in kept} == kept
    assert record_of(out)["status"] == "done"


def test_losing_a_node_in_mid_run_gives_identical_rows(clips_folder, tmp_path):
    script = [sys.executable, "-m", "tests.jobs.node_loss", str(clips_folder), str(tmp_path)]
    done = subprocess.run(
        script, cwd=REPO, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == {"calm": 0, "out": 0, "nodes_lost": 1}
    assert comparable(rows_of(tmp_path / "out")) == comparable(rows_of(tmp_path / "calm"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--input", "{tmp}/nowhere"), "--input"),
        (("--input", "{tmp}/empty"), "no audio"),
        (("--input", "s3://no-such-bucket-here/x"), "--input"),
        (("--input", "{clips}", "--model", "w2v2-l-robst"), "did you mean"),
        (("--input", "{clips}", "--model", "w2v2-b"), "--model"),
        (("--input", "{clips}", "--model", "{tmp}/empty"), "config.json"),
        (("--input", "{clips}", "--output", "/proc/here"), "/proc/here"),
        (("--input", "{clips}", "--window-s", "0"), "--window-s"),
        (("--input", "{clips}", "--workers", "1000"), "--workers"),
        (("--input", "{clips}", "--dtype", "fp16"), "--dtype"),
        (("--input", "{clips}", "--outptu", "x"), "--output"),
        (("--input", "{clips}", "--config", "{tmp}/none.yaml"), "--config"),
    ],
)
def test_bad_commands_end_with_exit_2_and_one_clear_line_and_write_nothing(
    args, words, clips_folder, tmp_path, capsys, ray_session, s3
):
    from jobs.annotate import main

    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    given = [a.format(tmp=tmp_path, clips=clips_folder) for a in args]
    if "--output" not in given:
        given += ["--output", str(out)]
    before = sorted(tmp_path.rglob("*"))
    assert main(given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    if "--outptu" not in given:  # the argument parser draws a box of its own
        assert len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
