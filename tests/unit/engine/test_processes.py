"""Decoding in processes beside the model's: the same rows, also when one of them dies."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from raysers.engine.feed import Decoded
from raysers.engine.placement import ProcessPool
from raysers.engine.worker import ShardWorker
from raysers.errors import CredentialsError, DecoderDied
from tests.cluster.tasks import LevelTask, worker_settings
from tests.cluster.test_variants import HalvesTask
from tests.jobs.processes import title


@pytest.fixture
def shard(tmp_path: Path) -> pa.Table:
    """Twelve clips of a third to two seconds, one of them no audio."""
    files = [str(tmp_path / f"{i:02d}.wav") for i in range(12)]
    for i, file in enumerate(files):
        sf.write(file, np.full(5000 + 2000 * i, (i + 1) / 100), 16_000)
    Path(files[7]).write_text("not audio")
    return pa.table({"clip_id": files, "file": files, "shard": [0] * 12})


def rows(folder: Path, shard: pa.Table, task: LevelTask, processes: int) -> list[dict[str, Any]]:
    folder.mkdir()
    settings = worker_settings(folder, decode_processes=processes)
    worker = ShardWorker(settings, task, lambda *_: None)
    worker.run(shard)
    worker.close()
    (part,) = folder.glob("*/part-*.parquet")
    return pq.ParquetFile(part).read().drop(["created_at"]).to_pylist()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlyTask(LevelTask):
    """Kills the process that decodes the file of a name, once or always."""

    deadly: str
    once: str = ""

    def variants(self, decoded: Decoded) -> list[Decoded]:
        has_died = self.once and os.path.exists(self.once)
        is_deadly = decoded.signal is not None and decoded.clip.file.endswith(self.deadly)
        if is_deadly and not has_died:
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [decoded]


@pytest.mark.parametrize("kind", [LevelTask, HalvesTask])
def test_rows_are_those_of_decoding_in_threads(
    tmp_path: Path, shard: pa.Table, kind: type[LevelTask]
) -> None:
    task = kind(diary=str(tmp_path))
    expected = rows(tmp_path / "threads", shard, task, 0)
    assert rows(tmp_path / "processes", shard, task, 2) == expected
    assert {row["status"] for row in expected} >= {"ok", "unreadable"}


@pytest.mark.parametrize("once", [True, False])
def test_a_dead_process_costs_no_row_but_that_of_the_clip_that_kills_again(
    tmp_path: Path, shard: pa.Table, once: bool
) -> None:
    expected = rows(tmp_path / "calm", shard, LevelTask(diary=str(tmp_path)), 0)
    mark = str(tmp_path / "died") if once else ""
    deadly = DeadlyTask(diary=str(tmp_path), deadly="05.wav", once=mark)
    found = rows(tmp_path / "dying", shard, deadly, 2)
    if not once:
        died = found.pop(5)
        assert (died["status"], died["arousal"]) == ("worker_died", None)
        expected.pop(5)
    assert [{**row, "valence": 0} for row in found] == [{**row, "valence": 0} for row in expected]
    assert not list((tmp_path / "dying" / "_attempts").iterdir())
    assert not members()


def members() -> list[psutil.Process]:
    """Decoding processes of this one that do not end within seconds."""
    ours = [p for p in psutil.Process().children() if "serve()" in title(p)]
    return psutil.wait_procs(ours, timeout=20)[1]


def wait(pid_file: str, threads: Executor) -> np.ndarray:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(60)
    return np.zeros(1)


def fail(message: str, threads: Executor) -> None:
    raise CredentialsError(message)


def double(values: list[np.ndarray], threads: Executor) -> list[np.ndarray]:
    return [2 * one for one in values]


class Unreadable:
    """Is pickled, and cannot be unpickled."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("no number",)


def unreadable(threads: Executor) -> Unreadable:
    return Unreadable()


def test_answers_and_errors_arrive_and_calls_of_a_dead_process_fail(tmp_path: Path) -> None:
    pool = ProcessPool(1, 2)
    arrays = [np.arange(3, dtype=np.float32), np.empty(0), np.ones((2, 5))]
    for found, array in zip(pool.submit(double, arrays).result(), arrays, strict=True):
        assert found.dtype == array.dtype
        assert np.array_equal(found, 2 * array)
        found.fill(0)  # its own memory
    with pytest.raises(CredentialsError, match="key"):
        pool.submit(fail, "key").result()
    with pytest.raises(ValueError, match="no number"):
        pool.submit(unreadable).result(timeout=30)
    pid_file = tmp_path / "pid"
    stuck = pool.submit(wait, str(pid_file))
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.01)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    with pytest.raises(DecoderDied, match="-9"):
        stuck.result(timeout=30)
    assert pool.submit(double, []).result(timeout=30) == []
    pool.shutdown()
    assert not members()
