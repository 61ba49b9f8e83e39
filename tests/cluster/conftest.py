"""Clips made on the spot, and a job over them with a task of the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from tests.cluster.tasks import LevelTask

JOB = "level"


@pytest.fixture
def clips(tmp_path) -> Path:
    """Forty clips of about a second, each of its own level."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for i in range(40):
        sf.write(folder / f"{i:02d}.wav", np.full(16_000 + 10 * i, (i + 1) / 100), 16_000)
    return folder


@pytest.fixture
def run(tmp_path, clips) -> Callable[..., int]:
    """A job: `run(out="out", pause_s=0.0, **flags)` returns its exit code."""

    def run_job(*, out: str = "out", pause_s: float = 0.0, task: Any = None, **changes: Any) -> int:
        diary = tmp_path / f"diary-{out}"
        diary.mkdir(exist_ok=True)
        flags = ClipJobFlags(
            input=(str(clips),), output=str(tmp_path / out), workers=2, shard_s=4.0
        )
        task = task or LevelTask(diary=str(diary), pause_s=pause_s)
        with ClipJob.open(replace(flags, **changes), JOB, table=task.table) as job:
            job.prepare(task)
            return job.execute()

    return run_job


@pytest.fixture
def rows(tmp_path) -> Callable[..., list[dict[str, Any]]]:
    """Rows of an output without run id and time, by file and variant."""

    def read(out: str = "out", table: str = "annotations") -> list[dict[str, Any]]:
        found = []
        for part in sorted((tmp_path / out / table).glob("part-*.parquet")):
            found += pq.ParquetFile(part).read().drop(["run_id", "created_at"]).to_pylist()
        return sorted(found, key=lambda r: (r["file"], r.get("perturbation", "")))

    return read
