"""Millions of rows on the driver: listing them, and all that lies between rows and shards.

Memory is growth of the process's resident set above what imports take; the steps run in a fresh
process in the order of a job.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from raysers.schemas import MANIFEST
from raysers.types import clip_id
from tests.benchmarks.measure import Line, Scale, fresh, judged, rss_bytes

TARGET_S = 60.0
TARGET_BYTES = 10**9
_FILES_PER_FOLDER = 1000


def planning(scale: Scale) -> Iterator[Line]:
    """Planning of synthetic rows, then listing of empty files."""
    with tempfile.TemporaryDirectory() as folder:
        fresh(_make_rows, f"{folder}/rows.arrow", scale.rows)
        yield from _lines("planning", fresh(_plan, folder), {"rows": scale.rows})
    with tempfile.TemporaryDirectory() as folder:
        fresh(_make_objects, folder, scale.objects)
        found = fresh(_list, folder)
        yield from _lines("listing", found, {"objects": scale.objects, "where": "local disk"})


def _lines(name: str, found: Line, about: Line) -> Iterator[Line]:
    line = {"bench": name, **about, **found}
    yield judged(
        {**line, "measure": "time"}, ratio=found["total_s"] / TARGET_S, target=1.0, lower=True
    )
    yield judged(
        {"bench": name, **about, "measure": "memory", "growth_bytes": found["growth_bytes"]},
        ratio=found["growth_bytes"] / TARGET_BYTES,
        target=1.0,
        lower=True,
    )


def _plan(folder: str) -> Line:
    from raysers.data.manifest import Manifest, collect
    from raysers.data.shards import ShardSource, plan_shards
    from raysers.engine import output

    seconds: Line = {}
    before_bytes = rss_bytes()

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[f"{name}_s"] = time.perf_counter() - began

    def listed() -> Iterator[pa.Table]:
        with pa.OSFile(f"{folder}/rows.arrow") as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)])

    with step("sort"):
        clips, _ = collect(listed())
    with step("write"):
        clips.write(f"{folder}/manifest")
    with step("fingerprint"):
        _ = clips.fingerprint
    with step("shards"):
        plan = plan_shards(clips, shard_s=1800.0)
    planned_bytes = rss_bytes("VmHWM") - before_bytes
    with step("resume"):
        stored = Manifest.stored(f"{folder}/manifest")
        _ = stored.fingerprint
    with step("first_shard"):
        ShardSource(stored, plan).block(0)
    with step("check"):
        for part in stored.parts(["clip_id"]):
            output.check_complete(part["clip_id"], part["clip_id"], folder)
    started = ("sort", "write", "fingerprint", "shards", "first_shard")
    return {
        "shards": len(plan),
        "planned_bytes": planned_bytes,
        "growth_bytes": rss_bytes("VmHWM") - before_bytes,
        **seconds,
        "total_s": sum(seconds[f"{name}_s"] for name in started),
    }


def _make_rows(path: str, rows: int) -> None:
    """Manifest rows in random order, written a million at a time."""
    schema = MANIFEST
    with pa.ipc.new_file(path, schema) as sink:
        for start in range(0, rows, 1_000_000):
            some = some_rows(start, min(rows, start + 1_000_000))
            sink.write_table(some, max_chunksize=2000)


def some_rows(start: int, end: int) -> pa.Table:
    rng = np.random.default_rng(start)
    rows = end - start
    # a bijection, so that neighbours lie far apart in the sorted manifest
    order = (np.arange(start, end) * 2_654_435_761) % 4_294_967_296
    files = [
        f"s3://voice-archive-eu-central-1/calls/2026/{i % 12 + 1:02d}/{i % 28 + 1:02d}/"
        f"agent-{i % 700:04d}/{i * 11400714819323198485 % 2**64:016x}.flac"
        for i in order.tolist()
    ]
    lengths_s = np.clip(rng.lognormal(1.4, 0.8, rows), 0.3, 600.0)
    ends_ns = (lengths_s * 1e9).astype(np.int64)
    columns = {
        "file": files,
        "start": pa.array(np.zeros(rows, np.int64)).cast(pa.duration("ns")),
        "end": pa.array(ends_ns).cast(pa.duration("ns")),
        "clip_id": [clip_id(f, 0, e) for f, e in zip(files, ends_ns.tolist(), strict=True)],
        "duration_s": lengths_s,
        "sample_rate_hz": np.full(rows, 16_000, np.int32),
        "channels": np.ones(rows, np.int32),
        "codec": ["FLAC/PCM_16"] * rows,
        "num_bytes": (lengths_s * 17_000).astype(np.int64),
        "etag": [f"{i * 11400714819323198485 % 2**128:032x}" for i in range(rows)],
        "status": ["ok"] * rows,
        "error": [""] * rows,
        "byte_offset": pa.nulls(rows, pa.int64()),
        "byte_size": pa.nulls(rows, pa.int64()),
    }
    return pa.table(columns).select(MANIFEST.names).cast(MANIFEST)


def _make_objects(folder: str, objects: int) -> None:
    """Empty files, a thousand a folder: listing looks at names and sizes only."""
    for start in range(0, objects, _FILES_PER_FOLDER):
        inner = Path(folder) / "calls" / f"{start // _FILES_PER_FOLDER:05d}"
        inner.mkdir(parents=True)
        for i in range(start, min(start + _FILES_PER_FOLDER, objects)):
            os.close(os.open(inner / f"{i:08d}.flac", os.O_CREAT | os.O_WRONLY))


def _list(folder: str) -> Line:
    """List as the driver does: all rows are kept until they go to the workers."""
    from raysers.data.sources import list_inputs

    before_bytes = rss_bytes()
    began = time.perf_counter()
    batches = list(list_inputs([folder]))
    total_s = time.perf_counter() - began
    rows = sum(batch.num_rows for batch in batches)
    return {
        "listed": rows,
        "total_s": total_s,
        "objects_per_s": rows / total_s,
        "growth_bytes": rss_bytes("VmHWM") - before_bytes,
    }
