"""Files to ready batches: the engine with a null model against a bare decode loop on all cores."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import corpus
from tests.benchmarks.engine import NullTask, run_task
from tests.benchmarks.measure import Line, Scale, alternate, cores, fresh, judged

TARGET = 0.7
#: Padded seconds per batch of a GPU: the feed matters where the model is fast.
_MAX_PADDED_S = 240.0
#: How much longer a format takes: it gets so many times fewer files.
_COSTS = {"flac-16k": 1, "flac-44k-stereo": 4}


def feed(scale: Scale) -> Iterator[Line]:
    """One line per format and layout of workers."""
    for kind in corpus.FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            count = scale.feed_clips // _COSTS[kind]
            files = corpus.many_files(Path(folder) / "audio", kind, count)
            yield from _compare(kind, files, scale.repeats)


def _compare(kind: str, files: list[str], repeats: int) -> Iterator[Line]:
    manifest = corpus.manifest_of(files)
    task = NullTask(max_padded_s=_MAX_PADDED_S)
    sides = {
        "bare": partial(bare_loop, files),
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
            "placement": ours["placement"],
            "clips": len(files),
            "audio_s": ours["audio_s"],
            "ours_steady_s": ours["steady_s"],
            "ours_with_actors_s": ours["wall_s"],
            "ray_start_s": ours["ray_s"],
            "wait_s": ours["wait_s"],
            "bare_s": bare["steady_s"],
            "bare_with_start_s": bare["wall_s"],
            "ours_x_real_time": ours["audio_s"] / ours["steady_s"],
            "bare_x_real_time": ours["audio_s"] / bare["steady_s"],
            "ratio_with_start": bare["wall_s"] / (ours["ray_s"] + ours["wall_s"]),
        }
        yield judged(line, ratio=bare["steady_s"] / ours["steady_s"], target=TARGET)


def bare_loop(files: list[str]) -> Line:
    """Read, mean of channels, resample and forget, a process per core: as fast as it gets.

    Steady: from when every process has its libraries until the last one is through.
    """
    spawn = multiprocessing.get_context("spawn")
    barrier, times = spawn.Barrier(cores()), spawn.SimpleQueue()
    workers = [
        spawn.Process(target=_decode, args=(files[i :: cores()], barrier, times))
        for i in range(cores())
    ]
    began = time.time()
    for worker in workers:
        worker.start()
    spans = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    ended = max(end for _, end in spans)
    return {"steady_s": ended - min(start for start, _ in spans), "wall_s": ended - began}


def _decode(files: list[str], barrier: Any, times: Any) -> None:
    import soundfile as sf
    import soxr

    sf.read(files[0])
    barrier.wait()
    start = time.time()
    for file in files:
        signal, rate_hz = sf.read(file, dtype="float32")
        if signal.ndim > 1:  # two channels; numpy's mean needs ten times as long
            signal = (signal[:, 0] + signal[:, 1]) * np.float32(0.5)
        if rate_hz != 16_000:
            signal = soxr.resample(signal, rate_hz, 16_000, quality="HQ")
    times.put((start, time.time()))
