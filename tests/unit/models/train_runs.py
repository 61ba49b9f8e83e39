"""Small trainings, run alone or by several real processes, and a plain loop to compare with."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysers.models.initialize import start_model
from raysers.training import optim
from raysers.training.config import LearningFlags
from raysers.training.dataloader import (
    Batch,
    MicroBatch,
    assign,
    epoch_order,
    global_batches,
    micro_batches,
)
from raysers.training.learner import Learner, StepResult
from tests.unit.models.networks import small_config, speechlike

CATEGORIES = ("anger", "neutral", "sadness")

#: Imported once, before the processes fork off.
_PRELOAD = ["raysers.training.learner", "transformers.models.wav2vec2.modeling_wav2vec2"]

NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
_CNN14 = {"model_type": "cnn14", "widths": [8, 16, 16], "dropout": 0.2, "final_dropout": 0.3}


def learning(**changes: Any) -> LearningFlags:
    """The paper's recipe in fp32, but for `changes`."""
    recipe = {"optimiser": "adam", "schedule": "constant", "lr": 1e-4, "dtype": "fp32"}
    return LearningFlags(**(recipe | changes))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: everything that decides it, and how it is spread."""

    kind: str = "w2v2-b"
    dropout: bool = False
    flags: LearningFlags = field(default_factory=lambda: learning(category_weight=0.5, seed=5))
    clips: int = 22
    batch_size: int = 12
    steps: int = 3
    max_padded_s: float = 3.0
    pieces: int = 4
    absent: tuple[int, ...] = ()
    nan_clip: int | None = None
    graph_bytes: float = 1e9

    def but(self, **changes: Any) -> Run:
        """The same with other values, those of `flags` included."""
        own = {k: v for k, v in changes.items() if k in Run.__dataclass_fields__}
        rest = {k: v for k, v in changes.items() if k not in own}
        return replace(self, **own, flags=replace(self.flags, **rest))


def config_of(run: Run) -> dict[str, Any]:
    """The network as `config.json` keys."""
    if run.kind == "cnn14":
        return _CNN14
    config = small_config(run.kind) | {"hidden_size": 32, "conv_dim": [16] * 7}
    # frequent enough to happen within a few steps of a few frames
    busy = {"mask_time_prob": 0.3, "mask_time_length": 3, "layerdrop": 0.3, "final_dropout": 0.2}
    return config | (busy if run.dropout else NO_DROPOUT)


@functools.cache
def data_of(clips: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Clips of .15 to .6 s with labels, some missing, and categories, some unknown."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(2_400, 9_600, clips)
    signals = [speechlike(int(n), seed) for seed, n in enumerate(lengths)]
    labels = rng.random((clips, 3)).astype(np.float32)
    labels[rng.random((clips, 3)) < 0.15] = np.nan
    return signals, labels, rng.integers(-1, len(CATEGORIES), clips)


def sexes_of(rows: np.ndarray) -> np.ndarray:
    """0 or 1, and -1 (unknown) for a third of the clips."""
    return rows % 3 - 1


def new_learner(run: Run, model_seed: int = 1) -> Learner:
    """A learner at its start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config_of(run)))
        start = start_model(f"random:{path}", seed=model_seed)
    return Learner(
        start, CATEGORIES, run.flags, run.steps, "cpu", sexes=2, graph_bytes=run.graph_bytes
    )


def batches_of(run: Run) -> list[np.ndarray]:
    """Rows of every step."""
    rows: list[np.ndarray] = []
    for epoch in range(run.steps):
        rows += global_batches(epoch_order(run.clips, 0, epoch), run.batch_size)
    return rows[: run.steps]


def batch_of(run: Run, rows: np.ndarray) -> Batch:
    """A global batch with the micro-batches of this process."""
    signals, labels, classes = data_of(run.clips)
    lengths_s = [len(signals[r]) / 16_000 for r in rows]
    cut = micro_batches(lengths_s, run.max_padded_s, run.pieces)
    mine = assign(lengths_s, cut, optim.world_size())[optim.rank()]
    pieces = []
    for number in mine:
        kept = [int(i) for i in cut[number] if rows[i] not in run.absent]
        heard = [signals[rows[i]] for i in kept]
        if run.nan_clip in rows[kept]:
            place = rows[kept].tolist().index(run.nan_clip)
            heard[place] = heard[place] * np.float32(np.nan)
        if kept:
            pieces.append(MicroBatch.of(number, kept, heard))
    known = torch.from_numpy(labels[rows]), torch.from_numpy(classes[rows])
    sexes = torch.from_numpy(sexes_of(rows))
    return Batch(labels=known[0], categories=known[1], sexes=sexes, pieces=pieces)


def train(run: Run) -> tuple[Learner, list[StepResult]]:
    """Run all steps."""
    learner = new_learner(run)
    return learner, [learner.step(batch_of(run, rows)) for rows in batches_of(run)]


def parameters_of(learner: Learner) -> dict[str, np.ndarray]:
    """Everything that training changes, under its name."""
    found = dict(learner.model.state_dict())
    if learner.average is not None:
        found |= {f"average.{i}": a for i, a in enumerate(learner.average.averages)}
    return {name: value.detach().numpy().copy() for name, value in found.items()}


Job = Callable[[], Any]


def in_processes(jobs: Sequence[Job], size: int) -> list[list[Any]]:
    """What each job returns in each process of a gloo group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(target=_work, args=(rank, size, folder, jobs), daemon=True)
            for rank in range(size)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        codes = [worker.exitcode for worker in workers]
        assert codes == [0] * size, codes
        ranks = [torch.load(_result(folder, r), weights_only=False) for r in range(size)]
    return [list(of_job) for of_job in zip(*ranks, strict=True)]


def _result(folder: str, rank: int) -> str:
    return os.path.join(folder, f"result-{rank}.pt")


def _work(rank: int, size: int, folder: str, jobs: Sequence[Job]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    torch.save([job() for job in jobs], _result(folder, rank))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
