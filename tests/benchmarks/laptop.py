"""The default model on a small machine, without Ray, against plain scripts with the same network.

`whole` times commands from the start of the interpreter to its end; `steady` counts the cores that
a worker keeps busy; `windows` scores one long recording.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile as sf

from raysers.cli import DEFAULT_MODEL
from raysers.data.segments import Segmenting
from raysers.models.backbones import parse_model_name
from tests.benchmarks import corpus
from tests.benchmarks.engine import run_model
from tests.benchmarks.loops import normalised
from tests.benchmarks.measure import Line, Scale, alternate, cores, fresh, judged
from tests.places import REPO

#: Most wall time of the whole command, in those of the plain script.
WHOLE_TARGET = 1.3
#: Share of the cores that the default model keeps busy.
BUSY_TARGET = 0.925
WINDOWS_TARGET = 0.85

_WHOLE_CLIPS = 59
_WINDOW_S = 5.0

#: What a user would write: the same network, file by file.
_PLAIN = """
import sys
import soundfile as sf
import torch
from raysers.models.loading import load_emotion_model

model = load_emotion_model(sys.argv[1]).model
with torch.inference_mode(), open(sys.argv[3], "w") as rows:
    for file in open(sys.argv[2]).read().split("\\n")[1:-1]:
        signal = torch.from_numpy(sf.read(file, dtype="float32")[0])
        signal = (signal - signal.mean()) / torch.sqrt(signal.var(correction=0) + 1e-7)
        scores, _ = model(signal[None], torch.tensor([len(signal)]))
        print(file, *scores[0].tolist(), sep=",", file=rows)
"""


def whole(scale: Scale) -> Iterator[Line]:
    """The job as users call it against a plain script."""
    files = [str(path) for path in corpus.emodb(_WHOLE_CLIPS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = folder / "clips.csv"
        table.write_text("file\n" + "\n".join(files) + "\n")
        sides = {
            "ours": partial(_annotate, table, folder),
            "plain": partial(
                _timed, ["-c", _PLAIN, _model_folder(), str(table), f"{folder}/rows.csv"]
            ),
        }
        found = alternate(sides, dict.fromkeys(sides, scale.repeats))
    ours, plain = found["ours"], found["plain"]
    line = {"bench": "whole", "against": "plain script", "clips": len(files)}
    line |= {f"{side}_{key}": value for side, one in found.items() for key, value in one.items()}
    ratio = ours["wall_s"] / plain["wall_s"]
    yield judged(
        {**line, "cpu_ratio": ours["cpu_s"] / plain["cpu_s"]},
        ratio=ratio, target=WHOLE_TARGET, lower=True,
    )  # fmt: skip


def _annotate(table: Path, folder: Path) -> Line:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        job = str(REPO / "jobs" / "annotate.py")
        return _timed([job, "--input", str(table), "--output", f"{output}/out"])


def _timed(arguments: Sequence[str]) -> Line:
    """Wall and CPU seconds of one Python process."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=REPO)
    wall_s, after = time.perf_counter() - began, os.times()
    cpu_s = after.children_user + after.children_system
    return {"wall_s": wall_s, "cpu_s": cpu_s - before.children_user - before.children_system}


def _model_folder() -> str:
    return str(parse_model_name(DEFAULT_MODEL).path)


def steady(scale: Scale) -> Iterator[Line]:
    """Cores that the default model keeps busy in a job without Ray, its model loaded."""
    with tempfile.TemporaryDirectory() as folder:
        files = corpus.many_files(Path(folder) / "audio", "flac-16k", scale.feed_clips)
        manifest = corpus.manifest_of(files)
        sides = {"ours": partial(fresh, run_model, manifest, DEFAULT_MODEL, workers="local")}
        ours = alternate(sides, {"ours": scale.repeats})["ours"]
    line = {"bench": "steady", "model": DEFAULT_MODEL, "clips": len(files), **ours}
    line["x_real_time"] = ours["audio_s"] / ours["steady_s"]
    yield judged(line, ratio=ours["cores_busy"] / cores(), target=BUSY_TARGET)


def windows(scale: Scale) -> Iterator[Line]:
    """A recording of hours in windows against blocks of `soundfile` through the same network."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "long.flac")
        _write_long(file, scale.window_hours)
        manifest = corpus.manifest_of([file], Segmenting(kind="window", window_s=_WINDOW_S))
        sides = {
            "ours": partial(fresh, run_model, manifest, DEFAULT_MODEL, workers="local"),
            "one by one": partial(fresh, _blocks, file, 1),
            "batches of 4": partial(fresh, _blocks, file, 4),
        }
        found = alternate(sides, dict.fromkeys(sides, scale.repeats))
    ours = found.pop("ours")
    best = min(found, key=lambda side: found[side]["steady_s"])
    line = {"bench": "windows", "against": best, "clips": manifest.num_rows, **ours}
    line["x_real_time"] = ours["audio_s"] / ours["steady_s"]
    line["theirs_steady_s"] = found[best]["steady_s"]
    line["theirs_cores_busy"] = found[best]["cores_busy"]
    yield judged(line, ratio=found[best]["steady_s"] / ours["steady_s"], target=WINDOWS_TARGET)


def _write_long(file: str, hours: float) -> None:
    clips = [sf.read(path, dtype="int16")[0] for path in corpus.emodb(535)]
    speech = np.concatenate(clips)
    with sf.SoundFile(file, "w", 16_000, 1, "PCM_16") as long:
        left = int(hours * 3600 * 16_000)
        while left > 0:
            long.write(speech[:left])
            left -= len(speech)


def _blocks(file: str, batch_size: int) -> Line:
    """The recording through the network, so many windows at a time. In a fresh process."""
    import torch

    from raysers.models.loading import load_emotion_model

    torch.set_num_threads(cores())
    model = load_emotion_model(_model_folder()).model
    size = int(_WINDOW_S * 16_000)

    @torch.inference_mode()
    def score(windows: list[np.ndarray]) -> None:
        for length in sorted({len(window) for window in windows}):
            batch = np.stack([normalised(w) for w in windows if len(w) == length])
            model(torch.from_numpy(batch), torch.full((len(batch),), length))

    score([np.zeros(size, np.float32)] * batch_size)
    began, began_cpu_s = time.perf_counter(), time.process_time()
    batch: list[np.ndarray] = []
    for window in sf.blocks(file, size, dtype="float32"):
        batch.append(window)
        if len(batch) == batch_size:
            score(batch)
            batch = []
    score(batch)
    steady_s = time.perf_counter() - began
    return {"steady_s": steady_s, "cores_busy": (time.process_time() - began_cpu_s) / steady_s}
