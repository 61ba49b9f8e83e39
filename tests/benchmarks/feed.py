"""Files to ready batches: the engine with a null model against a bare threaded decode loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks import corpus
from tests.benchmarks.engine import NullTask, run_task
from tests.benchmarks.measure import Line, Scale, alternate, cores, fresh, judged

TARGET = 0.85
#: Padded seconds per batch of a GPU: the feed matters where the model is fast.
_MAX_PADDED_S = 240.0
#: How much longer a format takes: it gets so many times fewer files.
_COSTS = {"flac-16k": 1, "flac-44k-stereo": 4}


def feed(scale: Scale) -> Iterator[Line]:
    """One line per format and placement of workers."""
    for kind in corpus.FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            count = scale.feed_clips // _COSTS[kind]
            files = corpus.many_files(Path(folder) / "audio", kind, count)
            yield from _compare(kind, files, scale.repeats)


def _compare(kind: str, files: list[str], repeats: int) -> Iterator[Line]:
    manifest = corpus.manifest_of(files)
    task = NullTask(max_padded_s=_MAX_PADDED_S)
    sides = {
        "bare": partial(fresh, bare_loop, files),
        "local": partial(fresh, run_task, manifest, task, workers="local"),
        "local, 2 decode processes": partial(
            fresh, run_task, manifest, task, workers="local", decode_processes=2
        ),
        "auto": partial(fresh, run_task, manifest, task),
        "one per core": partial(fresh, run_task, manifest, task, workers=cores()),
    }
    found = alternate(sides, dict.fromkeys(sides, repeats))
    bare = found.pop("bare")
    for workers, ours in found.items():
        line = {
            "bench": "feed",
            "audio": kind,
            "workers": workers,
            "clips": len(files),
            **ours,
            "bare_s": bare["steady_s"],
            "bare_cores_busy": bare["cores_busy"],
            "x_real_time": ours["audio_s"] / ours["steady_s"],
            "bare_x_real_time": ours["audio_s"] / bare["steady_s"],
        }
        yield judged(line, ratio=bare["steady_s"] / ours["steady_s"], target=TARGET)


def bare_loop(files: Sequence[str]) -> Line:
    """Read, mean of channels, resample and forget, a thread per core. In a fresh process."""
    import soundfile as sf
    import soxr

    def decode(file: str) -> None:
        signal, rate_hz = sf.read(file, dtype="float32")
        if signal.ndim > 1:  # two channels; numpy's mean needs ten times as long
            signal = (signal[:, 0] + signal[:, 1]) * np.float32(0.5)
        if rate_hz != 16_000:
            soxr.resample(signal, rate_hz, 16_000, quality="HQ")

    def decode_all(some: Sequence[str]) -> None:
        for file in some:
            decode(file)

    decode(files[0])
    began, began_cpu_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(decode_all, [files[i :: cores()] for i in range(cores())]))
    steady_s = time.perf_counter() - began
    return {"steady_s": steady_s, "cores_busy": (time.process_time() - began_cpu_s) / steady_s}
