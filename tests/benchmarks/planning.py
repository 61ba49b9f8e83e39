"""A million rows on the driver: listing them, and all that lies between a manifest and its shards.

Memory is growth of the process's resident set above what imports take, so it includes the manifest
itself and the blocks that lie in Ray's object store; the steps run in a fresh process in the order
of a job.
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
    import ray

    from raysers.data.manifest import (
        fingerprint,
        plan_shards,
        read_manifest,
        sort_manifest,
        write_manifest,
    )
    from raysers.engine import output
    from raysers.engine.job import shard_blocks
    from tests.benchmarks.engine import start_ray

    ray_s = start_ray()
    steps, before_bytes = _Steps(), rss_bytes()
    with steps("load"):
        table = pa.ipc.open_file(f"{folder}/rows.arrow").read_all()
    with steps("sort"):
        table = sort_manifest(table)
    with steps("write"):
        write_manifest(f"{folder}/manifest", table)
    with steps("read"):
        del table
        table = read_manifest(f"{folder}/manifest")
    with steps("fingerprint"):
        fingerprint(table)
    with steps("shards"):
        shards = plan_shards(table, shard_s=1800.0)
    with steps("blocks"):
        blocks = shard_blocks(table, shards, range(len(shards)))
    with steps("dataset"):
        dataset = ray.data.from_arrow(blocks)
    own_bytes, shared_bytes = rss_bytes("RssAnon"), rss_bytes("RssShmem")
    del dataset, blocks  # the run is over when its rows are checked
    with steps("check"):
        output.check_complete(table["clip_id"], table["clip_id"], folder)
    return {
        "shards": len(shards),
        "own_bytes": own_bytes,
        "object_store_bytes": shared_bytes,
        "growth_bytes": rss_bytes("VmHWM") - before_bytes,
        "manifest_bytes": table.nbytes,
        "ray_start_s": ray_s,
        **steps.seconds,
        "total_s": sum(steps.seconds.values()),
    }


class _Steps:
    """Seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[f"{name}_s"] = time.perf_counter() - began


def _make_rows(path: str, rows: int) -> None:
    """A manifest as S3 would give it, in random order."""
    rng = np.random.default_rng(0)
    order = rng.permutation(rows)
    files = [
        f"s3://voice-archive-eu-central-1/calls/2026/{i % 12 + 1:02d}/{i % 28 + 1:02d}/"
        f"agent-{i % 700:04d}/{i * 2654435761 % 2**64:016x}.flac"
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
    table = pa.table(columns).select(MANIFEST.names).cast(MANIFEST)
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=2000)


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
