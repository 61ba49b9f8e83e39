"""What a store that answers late costs: a null model and short FLAC clips.

The store is a process of its own that waits before each answer, as S3 does, and takes its CPU time
from the same cores; so it is compared with itself without the wait, and the local disk is beside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from tests.benchmarks import corpus
from tests.benchmarks.engine import NullTask, run_task
from tests.benchmarks.measure import Line, Scale, alternate, fresh, judged

TARGET = 0.9
LATENCY_S = 0.05
_MAX_PADDED_S = 240.0
#: Threads of the worker, or processes beside it.
_SIDES = (0, 2)


def store(scale: Scale) -> Iterator[Line]:
    """A line per place of decoding: a store that waits against one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        files = corpus.many_files(Path(folder) / "audio", "flac-16k", scale.feed_clips)
        local = corpus.manifest_of(files)
        remote = local.set_column(
            local.schema.get_field_index("file"),
            local.schema.field("file"),
            pa.array([f"s3://audio{file}" for file in local["file"].to_pylist()]),
        ).set_column(
            local.schema.get_field_index("etag"),
            local.schema.field("etag"),
            pa.array([""] * len(local)),
        )
        for processes in _SIDES:
            with serving(0.0) as near, serving(LATENCY_S) as far:
                sides = {
                    "local": partial(fresh, _score, local, processes, ""),
                    "prompt": partial(fresh, _score, remote, processes, near),
                    "late": partial(fresh, _score, remote, processes, far),
                }
                found = alternate(sides, dict.fromkeys(sides, scale.repeats))
            late = found["late"]
            line = {"bench": "store", "decode_processes": processes, **late}
            line |= {f"{k}_x_real_time": v["audio_s"] / v["steady_s"] for k, v in found.items()}
            if not processes:  # the CPU time of other processes is not counted
                busy = late["cores_busy"]
                line["x_real_time_per_core"] = line["late_x_real_time"] / busy
            yield judged(line, ratio=found["prompt"]["steady_s"] / late["steady_s"], target=TARGET)


def _score(manifest: pa.Table, processes: int, endpoint: str) -> Line:
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    task = NullTask(max_padded_s=_MAX_PADDED_S)
    return run_task(manifest, task, workers="local", decode_processes=processes)


@contextlib.contextmanager
def serving(latency_s: float) -> Iterator[str]:
    """A store of every local file, under any bucket, that answers `latency_s` late; its address."""
    code = f"from tests.benchmarks.store import serve; serve({latency_s})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def serve(latency_s: float) -> None:
    """Answer ranged GETs until killed; the port goes to stdout."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = unquote(head.split(" ", 2)[1].partition("?")[0])
                data = Path("/" + path.split("/", 2)[2].lstrip("/")).read_bytes()
                first, last = re.search(r"(?i)range: bytes=(\d+)-(\d+)", head).groups()
                part = data[int(first) : int(last) + 1]
                await asyncio.sleep(latency_s)
                span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                writer.write(
                    f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(part)}\r\n"
                    f"Content-Range: {span}\r\n\r\n".encode()
                    + part
                )
                await writer.drain()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())
