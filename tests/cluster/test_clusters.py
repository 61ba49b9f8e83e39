"""Clusters that come and go: nodes that the autoscaler starts, a head that dies, a slow worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile as sf
import yaml

from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from raysers.run import load_record
from tests.cluster.tasks import LevelTask
from tests.jobs.processes import finish, kill_tree, parts_in, start
from tests.places import REPO
from tests.s3 import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
#: Ray's simulated nodes, and the id that they expect of the head.
NODES = "ray.autoscaler._private.fake_multi_node.node_provider"
HEAD_ID = "f" * 51 + "00000"
STORE_BYTES = 100 << 20
Rows = Callable[[], list[dict[str, Any]]]


@contextmanager
def head(port: int, *args: str, **env: str) -> Iterator[psutil.Process]:
    """A cluster's head, killed at the end with everything below it."""
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    program += [f"--port={port}", "--include-dashboard=false"]
    process = subprocess.Popen(
        [*program, f"--object-store-memory={STORE_BYTES}", *args],
        env={**os.environ, "PYTHONPATH": str(REPO), **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not below(process.pid, "raylet"):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(2)
        yield psutil.Process(process.pid)
    finally:
        kill_tree(process.pid)
        process.wait()


def below(pid: int, name: str) -> list[psutil.Process]:
    """Processes of a name below one of ours."""
    return [p for p in psutil.Process(pid).children(recursive=True) if p.name() == name]


def job(port: int, clips: Path, folder: Path, pause_s: float) -> subprocess.Popen[str]:
    """The level job on the cluster of that port."""
    env = {"RAY_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": str(REPO)}
    return start("tests/cluster/level_job.py", clips, folder, pause_s, env=env)


def check_levels(rows: list[dict[str, Any]]) -> None:
    """Every clip once, with the level it was made with."""
    levels = [row["arousal"] ** 0.5 for row in rows]
    assert levels == pytest.approx([i / 100 for i in range(1, 41)], abs=1e-4)


def test_nodes_start_for_a_job_get_workers_and_end_when_they_are_idle(
    clips: Path, tmp_path: Path, rows: Rows
) -> None:
    """The groups of cluster.yaml on Ray's autoscaler, with simulated nodes of one CPU."""
    config = yaml.safe_load((REPO / "cluster.yaml").read_text())
    config |= {
        "provider": {
            "type": "external", "module": f"{NODES}.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID, "gcs_address": f"127.0.0.1:{(port := free_port())}",
            "launch_multiple": True, "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "auth": {}, "file_mounts": {}, "setup_commands": [], "cluster_synced_files": [],
        "idle_timeout_minutes": 0.2,
        "head_node_type": "ray.head.default", "max_workers": 2,
    }  # fmt: skip
    types = config["available_node_types"]
    types["ray.head.default"] = types.pop("head")
    types["gpu"]["resources"] = {"CPU": 1, "object_store_memory": STORE_BYTES}
    (tmp_path / "cluster.json").write_text(json.dumps(config))
    ours = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    ours |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
    args = ("--num-cpus=0", f"--autoscaling-config={tmp_path}/cluster.json")
    with head(port, *args, **ours) as cluster:
        assert len(below(cluster.pid, "raylet")) == 1
        code, _, errors = finish(job(port, clips, tmp_path, 2.5), timeout_s=300)
        assert code == 0, errors
        while len(below(cluster.pid, "raylet")) > 1:
            time.sleep(1)
    check_levels(rows())
    workers = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(workers) == 2


@pytest.mark.parametrize("lost", ["node", "gcs_server"])
def test_a_job_survives_the_restart_of_the_head_by_the_same_command(
    lost: str, clips: Path, tmp_path: Path, rows: Rows
) -> None:
    port, out = free_port(), tmp_path / "out"
    with head(port, "--num-cpus=2") as cluster:
        first = job(port, clips, tmp_path, 0.5)
        while parts_in(out) < 5:
            assert first.poll() is None
            time.sleep(0.1)
        if lost == "gcs_server":  # as a driver on another node sees it
            cluster.suspend()
            below(cluster.pid, "gcs_server")[0].kill()
            first.wait(timeout=90)
    code, _, errors = finish(first, timeout_s=30)
    assert code == 1
    assert errors.strip().splitlines()[-1].endswith("the same command resumes where it stopped")
    assert "Traceback" not in errors
    kept = {path: path.read_bytes() for path in out.glob("annotations/part-*")}
    assert 5 <= len(kept) < 40
    with head(port, "--num-cpus=2"):
        code, _, errors = finish(job(port, clips, tmp_path, 0.0), timeout_s=120)
    assert code == 0, errors
    assert {path: path.read_bytes() for path in kept} == kept
    check_levels(rows())
    assert not list(out.glob("_*"))


def test_a_worker_of_a_tenth_of_the_speed_does_not_hold_the_end(
    ray_session: None, tmp_path: Path
) -> None:
    """Ten hours in windows of ten seconds, on two workers; the fast one has 700 x real time."""
    audio, diary, out = (tmp_path / name for name in ("audio", "diary", "out"))
    audio.mkdir()
    diary.mkdir()
    sf.write(audio / "000.wav", np.full(600 * 16_000, 0.1, np.float32), 16_000)
    for number in range(1, 60):
        os.link(audio / "000.wav", audio / f"{number:03}.wav")
    flags = ClipJobFlags(
        input=(str(audio),), output=str(out), workers=2, segment="window", window_s=10, hop_s=10
    )
    task = LevelTask(diary=str(diary), max_padded_s=60.0, speed=700.0)
    with ClipJob.open(flags, "level", table=task.table) as opened:
        opened.prepare(task)
        assert opened.execute() == 0
    record = load_record(str(out))
    assert record is not None
    assert record.outcome is not None
    assert record.outcome["statuses"] == {"ok": 3600}
    ended_at = sorted(path.stat().st_mtime for path in diary.iterdir())
    tail_s = ended_at[1] - ended_at[0]
    assert tail_s < 0.05 * (record.outcome["wall_s"] - record.outcome["startup_s"])
