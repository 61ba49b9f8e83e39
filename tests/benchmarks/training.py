"""Training speed of the job against a bare torch loop, on the same network, clips and batch size.

The bare loop is what people write: one process, every clip decoded beforehand, a padded batch, the
loss, `backward`, `step`. Ours reads the files, in epochs after the first from its cache. Both are
timed after a first epoch, in fp32, with dropout on.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from tests.benchmarks import corpus
from tests.benchmarks.loops import normalised
from tests.benchmarks.measure import Line, Scale, alternate, cores, fresh, judged, rss_bytes

#: Of the bare loop, one worker with all cores and two that share them.
TARGET, _TARGET_OF_TWO = 0.9, 0.8
_EPOCHS = 2
_BATCH = 8
_SEED = 0
#: How the job cuts a batch on a CPU.
_MAX_PADDED_S, _PIECES = 16.0, 4

#: Network, its transformer layers (0: all), and how many clips of the scale's number it takes. Two
#: layers of the base model have its real sizes, and a turn of them takes about a minute.
_MODELS = (("random:tiny", 0, 4), ("random:w2v2-b", 2, 1))


def training(scale: Scale) -> Iterator[Line]:
    """Steps a second by network and placement."""
    for model, layers, times in _MODELS:
        files = [str(path) for path in corpus.emodb(times * scale.training_clips)]
        yield from _speeds(model, layers, files, scale)


def _speeds(model: str, layers: int, files: Sequence[str], scale: Scale) -> Iterator[Line]:
    all_cores = cores()
    one, two = f"1x{all_cores}", f"2x{all_cores // 2}"
    sides: dict[str, Any] = {f"ours {one}": partial(fresh, job, model, layers, files, all_cores, 1)}
    if all_cores > 1:
        sides[f"ours {two}"] = partial(fresh, job, model, layers, files, all_cores, 2)
    sides[f"our step alone {one}"] = partial(fresh, step_alone, model, layers, files, all_cores)
    sides[f"bare {one}"] = partial(fresh, bare_loop, model, layers, files, all_cores)
    found = alternate(sides, dict.fromkeys(sides, scale.repeats))
    about = {"bench": "training", "model": model, "layers": layers, "clips": len(files)}
    about |= {"batch_size": _BATCH}
    for side, line in found.items():
        yield {**about, "side": side, **line}
    bare = found[f"bare {one}"]["steps_per_s"]
    for side, target in ((one, TARGET), (two, _TARGET_OF_TWO)):
        if f"ours {side}" in found:
            ratio = found[f"ours {side}"]["steps_per_s"] / bare
            line = {**about, "side": f"ours {side}", "against": f"bare {one}"}
            yield judged(line, ratio=ratio, target=target)


def labels_of(clips: int) -> np.ndarray:
    """Random labels [clips, 3] on 0..1: the speed does not depend on them."""
    return np.random.default_rng(_SEED).uniform(size=(clips, 3)).astype(np.float32)


def job(model: str, layers: int, files: Sequence[str], cpus: int, workers: int) -> Line:
    """Train by the job itself on `cpus` cores of a Ray of its own. To be called in a fresh process.

    Raises:
        RuntimeError: the job did not end well, or not every clip was heard.
    """
    import ray

    from raysers.commands.training import train
    from raysers.engine import cluster
    from raysers.run import quiet_environment

    quiet_environment()
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    cluster.configure_ray_data()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table, output = Path(folder, "clips.csv"), Path(folder, "model")
        _write_table(table, files)
        args = ["--train", str(table), "--keep", "last", "--backbone", model, "--dtype", "fp32"]
        args += ["--layers", str(layers)]
        args += ["--epochs", str(_EPOCHS), "--batch-size", str(_BATCH), "--workers", str(workers)]
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for our lines
            code = train([*args, "--output", str(output)])
        if code:
            raise RuntimeError(f"the training job ended with {code}")
        history = json.loads((output / "training.json").read_text())["history"]
    steps = history[-1]["step"] - history[0]["step"]
    timed_s = sum(epoch["wall_s"] for epoch in history[1:])
    if steps != (_EPOCHS - 1) * -(-len(files) // _BATCH):
        raise RuntimeError(f"{steps} steps for {len(files)} clips")
    return {
        "steps_per_s": steps / timed_s,
        "steps": steps,
        "timed_s": timed_s,
        "first_epoch_s": history[0]["wall_s"],
        "wall_s": time.perf_counter() - began,
    }


def _write_table(path: Path, files: Sequence[str]) -> None:
    rows = zip(files, labels_of(len(files)).tolist(), strict=True)
    lines = [",".join((file, *map(str, values), "train")) for file, values in rows]
    path.write_text("\n".join(("file,arousal,dominance,valence,split", *lines, "")))


def bare_loop(model: str, layers: int, files: Sequence[str], threads: int) -> Line:
    """The loop people write. To be called in a fresh process."""
    from raysers.models.heads import ccc_loss
    from raysers.models.initialize import start_model

    torch.set_num_threads(threads)
    torch.manual_seed(_SEED)
    network = start_model(model, seed=_SEED, layers=layers or None).model.train()
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    signals = [normalised(signal) for signal in _decoded(files)]
    labels = torch.from_numpy(labels_of(len(files)))

    def step(chosen: np.ndarray) -> None:
        lengths = torch.tensor([len(signals[i]) for i in chosen])
        padded = torch.zeros(len(chosen), int(lengths.max()))
        for row, i in zip(padded, chosen, strict=True):
            row[: len(signals[i])] = torch.from_numpy(signals[i])
        optimiser.zero_grad(set_to_none=True)
        ccc_loss(network(padded, lengths)[0], labels[chosen]).backward()
        optimiser.step()

    return _timed(step, len(files))


def step_alone(model: str, layers: int, files: Sequence[str], threads: int) -> Line:
    """Our step without Ray and files, on decoded clips. To be called in a fresh process."""
    from raysers.models.initialize import start_model
    from raysers.training.config import LearningFlags
    from raysers.training.dataloader import micro_batches
    from raysers.training.learner import Learner

    torch.set_num_threads(threads)
    signals, labels = _decoded(files), labels_of(len(files))
    flags = LearningFlags(optimiser="adam", schedule="constant", lr=1e-4, dtype="fp32", seed=_SEED)
    start, steps = start_model(model, seed=_SEED, layers=layers or None), _EPOCHS * len(files)
    learner = Learner(start, (), flags, steps, "cpu", graph_bytes=4e9)

    def step(chosen: np.ndarray) -> None:
        cut = micro_batches([len(signals[i]) / 16_000 for i in chosen], _MAX_PADDED_S, _PIECES)
        learner.step(_batch(labels[chosen], cut, [signals[i] for i in chosen]))

    return _timed(step, len(files))


def _batch(labels: np.ndarray, cut: Sequence[np.ndarray], signals: Sequence[np.ndarray]) -> Any:
    """A global batch with all its micro-batches."""
    from raysers.training.dataloader import Batch, MicroBatch

    pieces = [
        MicroBatch.of(n, rows.tolist(), [signals[r] for r in rows]) for n, rows in enumerate(cut)
    ]
    unknown = torch.full((len(labels),), -1)
    return Batch(labels=torch.from_numpy(labels), categories=unknown, pieces=pieces)


def _decoded(files: Sequence[str]) -> list[np.ndarray]:
    """The clips in the order the job has them in."""
    by_id = corpus.manifest_of(files).sort_by("clip_id")["file"].to_pylist()
    return [sf.read(file, dtype="float32")[0] for file in by_id]


def _timed(step: Callable[[np.ndarray], None], clips: int) -> Line:
    """The job's batches through `step`; the first epoch is apart."""
    from raysers.training.dataloader import epoch_order, global_batches

    epochs_s, steps = [], 0
    for epoch in range(_EPOCHS):
        began = time.perf_counter()
        for chosen in global_batches(epoch_order(clips, _SEED, epoch), _BATCH):
            step(chosen)
            steps += epoch > 0
        epochs_s.append(time.perf_counter() - began)
    return {
        "steps_per_s": steps / sum(epochs_s[1:]),
        "steps": steps,
        "timed_s": sum(epochs_s[1:]),
        "first_epoch_s": epochs_s[0],
        "peak_bytes": rss_bytes("VmHWM"),
    }
