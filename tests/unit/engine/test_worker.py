"""What one worker asks of the store for a shard."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from raysers.engine.placement import Placement, io_threads
from raysers.engine.worker import ShardWorker
from tests.cluster.tasks import LevelTask, worker_settings
from tests.s3 import Bucket, Faults


def shard(folder: Path, number: int) -> pa.Table:
    """Three clips on the local disk."""
    files = [str(folder / f"{number}-{i}.wav") for i in range(3)]
    for file in files:
        sf.write(file, np.full(1600, 0.1), 16_000)
    ids = [os.path.basename(file) for file in files]
    return pa.table({"clip_id": ids, "file": files, "shard": [number] * 3})


def test_a_shard_waits_for_the_store_twice(tmp_path: Path, s3: Bucket, s3_faults: Faults) -> None:
    settings = worker_settings(f"{s3.uri}/out")
    for number in (0, 1):  # connections are open for the second
        s3_faults.clear()
        s3_faults.add("out/", "delay", delay_s=0.3 * number)
        worker = ShardWorker(settings, LevelTask(diary=str(tmp_path)), lambda *_: None)
        worker.run(shard(tmp_path, number))
        worker.close()
    assert s3_faults.in_sequence() == 2  # is it there, and a mark; then its part
    assert s3_faults.count("_attempts", "DELETE") == 1
    assert s3.keys() == [f"out/annotations/part-00000{number}.parquet" for number in (0, 1)]


@pytest.mark.parametrize("processes", [0, 2])
def test_clips_of_a_slow_store_are_fetched_together(
    tmp_path: Path, s3: Bucket, s3_faults: Faults, processes: int
) -> None:
    sf.write(tmp_path / "x.wav", np.full(1600, 0.1), 16_000)
    files = [s3.put(f"in/{i}.wav", (tmp_path / "x.wav").read_bytes()) for i in range(48)]
    block = pa.table({"clip_id": files, "file": files, "shard": [0] * len(files)})
    threads = io_threads(block, Placement(workers=1, num_cpus=1, num_gpus=0))
    settings = worker_settings(tmp_path, io_threads=threads, decode_processes=processes)
    s3_faults.add("in/", "delay", delay_s=0.5)
    worker = ShardWorker(settings, LevelTask(diary=str(tmp_path)), lambda *_: None)
    assert worker.run(block).statuses == {"ok": 48}
    worker.close()
    assert s3_faults.count("in/") == 48
    assert s3_faults.in_sequence() <= 8


@pytest.mark.parametrize(("duration_s", "rounds"), [(0.7, 1), (700.1, 3)])
def test_short_shards_are_fetched_together_and_long_ones_in_pairs(
    tmp_path: Path, s3: Bucket, s3_faults: Faults, duration_s: float, rounds: int
) -> None:
    sf.write(tmp_path / "x.wav", np.full(1600, 0.1), 16_000)
    files = [s3.put(f"in/{i}.wav", (tmp_path / "x.wav").read_bytes()) for i in range(7)]
    settings = worker_settings(tmp_path / "out", io_threads=16)
    worker = ShardWorker(settings, LevelTask(diary=str(tmp_path)), lambda *_: None)

    def run(numbers: Iterable[int]) -> None:
        column = {"duration_s": pa.array([duration_s])}
        for n in numbers:
            block = pa.table({"clip_id": [files[n]], "file": [files[n]], "shard": [n], **column})
            assert worker.run(block).statuses == {"ok": 1}

    run([0])  # connections are open
    s3_faults.clear()
    s3_faults.add("in/", "delay", delay_s=0.5)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, ([n] for n in range(1, 7))))
    worker.close()
    assert s3_faults.in_sequence() == rounds
