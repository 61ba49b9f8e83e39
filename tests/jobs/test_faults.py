"""Drivers and nodes that die in mid-run: the same command ends with the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from raysers.commands.archive import annotate as main
from tests.jobs import processes
from tests.jobs.conftest import comparable, link_clips, record_of, rows_of
from tests.places import REPO, needs_shared

pytestmark = needs_shared


def _args(clips, out, checkpoint) -> tuple[object, ...]:
    # some twenty shards, so that there is a middle to be hit in
    model = ("--model", checkpoint[0], "--dtype", "fp32", "--shard-s", 5)
    return ("--input", clips, "--output", out, *model)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, emodb_files) -> Path:
    return link_clips(tmp_path_factory.mktemp("clips") / "audio", emodb_files)


@pytest.mark.slow
def test_losing_a_node_in_mid_run_gives_identical_rows(clips, checkpoint, tmp_path):
    command = map(str, _args(clips, "{out}", checkpoint))
    done = subprocess.run(
        [sys.executable, "-m", "tests.jobs.node_loss", str(tmp_path), *command],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Ray may have a word about the lost node behind it
    report = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    assert (report["calm"], report["out"]) == (0, 0)
    assert 2 <= report["parts_at_the_loss"] < processes.parts_in(tmp_path / "calm")
    assert comparable(rows_of(tmp_path / "out")) == comparable(rows_of(tmp_path / "calm"))


@pytest.mark.slow
def test_kill_9_of_the_driver_then_the_same_command_gives_identical_rows(
    clips, checkpoint, tmp_path, ray_session, capsys
):
    """In one cluster, which outlives the driver."""
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert main([str(a) for a in (*_args(clips, calm, checkpoint), "--workers", 1)]) == 0
    command = [str(a) for a in (*_args(clips, out, checkpoint), "--workers", 1)]
    address = ray.get_runtime_context().gcs_address
    driver = processes.start(
        "jobs/annotate.py", *command, env={"RAY_ADDRESS": address, "TMPDIR": str(tmp_path)}
    )
    workers = processes.stop_workers_when(os.getpid(), lambda: processes.parts_in(out) >= 2)
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlive their driver"
    done = processes.parts_in(out)
    assert 2 <= done < processes.parts_in(calm)
    assert record_of(out)["status"] == "running"
    kept = {p: p.read_bytes() for p in (out / "annotations").glob("part-*")}
    assert main(command) == 0
    assert "resuming the run of" in capsys.readouterr().out
    assert comparable(rows_of(out)) == comparable(rows_of(calm))
    assert {p: p.read_bytes() for p in kept} == kept
    assert record_of(out)["status"] == "done"
