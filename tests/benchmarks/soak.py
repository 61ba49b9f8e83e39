"""Many small shards, a null model and workers that die at random: memory flat, rows exact."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile as sf

from tests.benchmarks import corpus
from tests.benchmarks.engine import NullTask
from tests.benchmarks.measure import Line, Scale, fresh, judged, rss_bytes
from tests.jobs.processes import model_workers, parts_in

#: Growth of the driver from a third of the run to its end.
TARGET_BYTES = 30 << 20
_CLIPS_PER_SHARD = 10
_WINDOW_S = 0.1


def soak(scale: Scale) -> Iterator[Line]:
    """One line: growth of the driver's memory."""
    found = fresh(run, scale.shards, scale.deaths)
    growth = found["growth_bytes"]
    yield judged({"bench": "soak", **found}, ratio=growth / TARGET_BYTES, target=1, lower=True)


def run(shards: int, deaths: int) -> Line:
    """A job over so many shards, in which a worker is killed now and then. In a fresh process.

    Raises:
        RuntimeError: a row is missing, doubled or not ok.
    """
    from raysers.data.segments import Segmenting
    from raysers.engine.job import ClipJob
    from raysers.engine.listing import ClipJobFlags
    from raysers.run import load_record

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        windows = shards * _CLIPS_PER_SHARD
        noise = np.random.default_rng(0).normal(0, 0.1, int(windows * _WINDOW_S * 8000))
        sf.write(folder / "long.wav", noise.astype(np.float32), 8000, subtype="PCM_16")
        cut = Segmenting(kind="window", window_s=_WINDOW_S, hop_s=_WINDOW_S, min_s=_WINDOW_S / 2)
        manifest = corpus.manifest_of([str(folder / "long.wav")], cut)
        out, over, killed = folder / "out", threading.Event(), list[int]()
        seen_bytes: list[tuple[int, int]] = []

        def watch() -> None:
            draws = random.Random(0)
            at = sorted(draws.uniform(0.1, 0.9) * shards for _ in range(deaths))
            while not over.wait(0.5):
                parts = parts_in(out)
                seen_bytes.append((parts, rss_bytes()))
                if at and parts >= at[0]:
                    workers = model_workers(os.getpid())
                    if workers:
                        at.pop(0)
                        victim = draws.choice(workers)
                        killed.append(victim.pid)
                        victim.kill()

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        began = time.perf_counter()
        size_s = _CLIPS_PER_SHARD * _WINDOW_S
        flags = ClipJobFlags(input=(name,), output=str(out), workers=2, shard_s=size_s * 1.01)
        task = NullTask(max_padded_s=60.0)
        with ClipJob.open(flags, "soak", table=task.table) as job:
            job.prepare(task, manifest=manifest)
            job.execute()
        over.set()
        watching.join()
        record = load_record(str(out))
        assert record is not None
        assert record.outcome is not None
        parts = sorted((out / task.table).iterdir())
        rows = Counter(
            row for part in parts for row in pq.ParquetFile(part).read(["clip_id"])[0].to_pylist()
        )
        if rows != Counter(manifest["clip_id"].to_pylist()):
            raise RuntimeError(f"{rows.total()} rows of {len(manifest)} clips")
        if record.outcome["statuses"] != {"ok": len(manifest)}:
            raise RuntimeError(str(record.outcome["statuses"]))
        early = [num_bytes for done, num_bytes in seen_bytes if done >= len(parts) / 3]
        return {
            "shards": len(parts),
            "rows": len(manifest),
            "deaths": len(killed),
            "wall_s": time.perf_counter() - began,
            "driver_bytes": early[-1],
            "growth_bytes": early[-1] - early[0],
            "worker_peak_bytes": record.outcome["worker_peak_bytes"],
        }
