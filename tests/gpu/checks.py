"""What has to hold on a GPU, as functions of the device, so that a CPU can try them too.

Every check returns rows of a table: what, value, what is expected of it, whether it holds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from raysers.commands.archive import annotate
from raysers.models import checkpoint
from raysers.models.backbones import keep_layers, parse_model_name
from raysers.models.initialize import start_model
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from raysers.training.dataloader import Batch, MicroBatch, micro_batches
from raysers.training.learner import Learner
from tests.benchmarks.loops import batch_scorer
from tests.unit.models.networks import speechlike
from tests.unit.models.train_runs import NO_DROPOUT, learning

RATE_HZ = 16_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `holds` is None where nothing is promised."""

    what: str
    value: str
    expected: str = ""
    holds: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything: `full` for a GPU, `tiny` to try the script on a CPU."""

    model: str
    exact_model: str
    clips: int
    clip_s: tuple[float, float]
    batch_clips: int
    max_padded_s: float
    steps: int


FULL = Size(
    model="w2v2-L-robust-12",
    exact_model="w2v2-b",
    clips=4_000,
    clip_s=(1.0, 6.0),
    batch_clips=32,
    max_padded_s=60.0,
    steps=20,
)
TINY = Size(
    model="w2v2-b",
    exact_model="tiny",
    clips=12,
    clip_s=(0.3, 0.8),
    batch_clips=8,
    max_padded_s=4.0,
    steps=3,
)


def speech(clips: int, clip_s: tuple[float, float], seed: int = 0) -> list[np.ndarray]:
    """Clips that differ in length, as float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(int(clip_s[0] * RATE_HZ), int(clip_s[1] * RATE_HZ) + 1, clips)
    base = [speechlike(int(clip_s[1] * RATE_HZ), seed + number) for number in range(min(clips, 16))]
    return [base[i % len(base)][: int(length)] for i, length in enumerate(lengths)]


def scores_equal_the_cpu(size: Size, device: str) -> Iterator[Row]:
    """Scores of one network on both devices, in fp32 and bf16."""
    signals = speech(8, size.clip_s)
    with tempfile.TemporaryDirectory() as folder:
        save_emotion_model(start_model(f"random:{size.exact_model}", seed=0).model, folder)
        loaded = load_emotion_model(folder)
        cpu = Scorer(loaded, dtype="fp32", device="cpu").score(signals).scores
        for dtype, most in (("fp32", 1e-4), ("bf16", 0.02)):
            loaded = load_emotion_model(folder)
            found = Scorer(loaded, dtype=dtype, device=device).score(signals).scores
            worst = float(np.abs(found - cpu).max())
            yield Row(f"scores, {dtype} against CPU", f"{worst:.1e}", f"<= {most:g}", worst <= most)


def new_learner(model: str, device: str, *, graph_bytes: float = 1e12, **changes: Any) -> Learner:
    """Of all parameters, with random weights; without dropout, which devices draw differently."""
    parsed = parse_model_name(f"random:{model}")
    config = checkpoint.random_config(parsed) | NO_DROPOUT
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(keep_layers(config, parsed.layers, model)))
        start = start_model(f"random:{path}", seed=0, freeze="none")
    return Learner(start, (), learning(**changes), 1_000, device, graph_bytes=graph_bytes)


def batch_of(signals: Sequence[np.ndarray], max_padded_s: float, *, pinned: bool) -> Batch:
    """All clips as one global batch."""
    cut = micro_batches([len(s) / RATE_HZ for s in signals], max_padded_s, 4)
    pieces = [
        MicroBatch.of(number, rows.tolist(), [signals[row] for row in rows], pinned=pinned)
        for number, rows in enumerate(cut)
    ]
    labels = torch.from_numpy(np.random.default_rng(1).random((len(signals), 3), np.float32))
    unknown = torch.full((len(signals),), -1)
    return Batch(labels=labels, categories=unknown, pieces=pieces)


def losses_of(learner: Learner, batch: Batch, steps: int = 3) -> list[float]:
    """Of the first steps."""
    return [learner.step(batch).loss for _ in range(steps)]


def training_equals_the_cpu(size: Size, device: str) -> Iterator[Row]:
    """Losses of the first steps on both devices, in fp32 and bf16."""
    batch = batch_of(speech(8, size.clip_s), size.max_padded_s, pinned=False)
    changes = {"lr": 1e-4}
    cpu = losses_of(new_learner(size.exact_model, "cpu", **changes), batch)
    for dtype, most in (("fp32", 1e-3), ("bf16", 0.05)):
        learner = new_learner(size.exact_model, device, dtype=dtype, **changes)
        worst = float(np.abs(np.array(losses_of(learner, batch)) - cpu).max())
        yield Row(f"losses, {dtype} against CPU", f"{worst:.1e}", f"<= {most:g}", worst <= most)


def out_of_memory_falls_back(size: Size, device: str) -> Iterator[Row]:
    """A step for which the GPU lacks memory is made again with less, and gives the same loss."""
    batch = batch_of(speech(size.batch_clips, size.clip_s), 1e6, pinned=False)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    roomy = new_learner(size.exact_model, device)
    expected = roomy.step(batch).loss
    del roomy
    _clear()
    learner = new_learner(size.exact_model, device)
    with _less_memory(learner, device):
        found = learner.step(batch).loss
    measures = f"halved {learner.halvings} x" + ", checkpointing" * learner.checkpointing
    worst = abs(found - expected)
    fell_back = learner.graph_bytes == 0
    yield Row(
        f"loss out of memory ({measures})", f"{worst:.1e}", "<= 0.001, graphs not kept",
        worst <= 1e-3 and fell_back,
    )  # fmt: skip


@contextlib.contextmanager
def _less_memory(learner: Learner, device: str) -> Iterator[None]:
    """On a GPU half of what a step would take at most; elsewhere an error at the first pass."""
    if torch.device(device).type == "cuda":
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
        now = torch.cuda.memory_allocated()
        torch.cuda.set_per_process_memory_fraction((now + (peak - now) / 2) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    calls = iter([True])

    def fail_once(*_: Any) -> None:
        if next(calls, False):
            raise torch.OutOfMemoryError("out of memory")

    handle = learner.model.register_forward_pre_hook(fail_once)
    yield
    handle.remove()


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def annotate_keeps_the_device_busy(size: Size, device: str) -> Iterator[Row]:
    """Speed of the whole engine in one process against a bare loop over decoded clips."""
    signals = speech(size.clips, size.clip_s)
    audio_s = sum(map(len, signals)) / RATE_HZ
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        for number, signal in enumerate(signals):
            sf.write(folder / "clips" / f"{number:05}.wav", signal, RATE_HZ)
        save_emotion_model(start_model(f"random:{size.model}", seed=0).model, folder / "model")
        args = ["--input", f"{folder}/clips", "--model", f"{folder}/model"]
        args += ["--output", f"{folder}/out", "--workers", "local"]
        assert annotate(args) == 0
        outcome = json.loads((folder / "out" / "run.json").read_text())["outcome"]
    ours = outcome["audio_s"] / max(outcome["wall_s"] - outcome["startup_s"], 1e-3)
    _clear()
    score = batch_scorer(size.model)
    by_length = sorted(signals, key=len, reverse=True)
    score(by_length[: size.batch_clips])
    began_s = time.perf_counter()
    for first in range(0, len(by_length), size.batch_clips):
        score(by_length[first : first + size.batch_clips])
    bare = audio_s / (time.perf_counter() - began_s)
    yield Row(f"annotate {size.model}, x real time", f"{ours:,.0f}")
    yield Row("the same by a bare loop", f"{bare:,.0f}")
    yield Row("annotate / bare loop", f"{ours / bare:.2f}", ">= 0.9", ours / bare >= 0.9)


def training_speed(size: Size, device: str) -> Iterator[Row]:
    """Steps per second of the paper's recipe, and what the options change."""
    is_cuda = torch.device(device).type == "cuda"
    batch = batch_of(speech(size.batch_clips, size.clip_s), size.max_padded_s, pinned=is_cuda)
    dtype = "bf16" if is_cuda else "fp32"
    free_bytes = torch.cuda.mem_get_info()[0] if is_cuda else 1e9
    for name, changes, room in (
        (f"steps/s, {dtype}, graphs kept", {}, free_bytes / 2),
        (f"steps/s, {dtype}, graphs computed again", {}, 0.0),
        (f"steps/s, {dtype}, torch.compile", {"compile": True}, free_bytes / 2),
    ):
        if changes and not is_cuda:
            continue  # compiling for CPUs takes minutes
        learner = new_learner(size.model, device, graph_bytes=room, dtype=dtype, **changes)
        losses_of(learner, batch)  # warm-up
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        began_s = time.perf_counter()
        losses_of(learner, batch, size.steps)
        per_s = size.steps / (time.perf_counter() - began_s)
        peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if is_cuda else ""
        yield Row(name, f"{per_s:.2f}{peak}")
        del learner
        _clear()


CHECKS = (
    scores_equal_the_cpu,
    training_equals_the_cpu,
    out_of_memory_falls_back,
    training_speed,
    annotate_keeps_the_device_busy,
)
