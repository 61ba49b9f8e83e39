"""`ray job submit` against a real cluster, as the README shows it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import processes
from tests.jobs.conftest import record_of, rows_of
from tests.places import REPO, needs_shared


def _submitted(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submit, again while the young cluster says that it cannot take jobs yet."""
    for _ in range(30):
        done = subprocess.run(
            command, cwd=REPO, env=env, capture_output=True, text=True, timeout=240, check=False
        )
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(2)
    return done


@needs_shared
@pytest.mark.slow
@pytest.mark.timeout(600)  # two starts of Ray, beside other tests
def test_ray_job_submit_runs_the_job_on_the_cluster(clips_folder, emodb_files, tmp_path):
    bin_folder = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.submit_cluster"],
        cwd=REPO,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        assert cluster.stdout is not None
        address = next(line for line in cluster.stdout if line.startswith("http")).strip()
        out = tmp_path / "out"
        command = [
            "ray", "job", "submit", "--address", address, "--working-dir", ".", "--",
            "python", "jobs/annotate.py", "--input", str(clips_folder), "--output", str(out),
        ]  # fmt: skip
        done = _submitted(command, env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(rows_of(out)) == len(emodb_files)
        assert record_of(out)["status"] == "done"
        assert "x real time" in done.stdout
    finally:
        processes.kill_tree(cluster.pid)
        cluster.wait()
