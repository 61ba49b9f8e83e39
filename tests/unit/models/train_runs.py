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
from raysers.training.batch import Batch, MicroBatch, StepResult
from raysers.training.batches import assign, epoch_order, global_batches, micro_batches, padded_s
from raysers.training.context import Alone, Group, TorchGroup
from raysers.training.learner import Learner
from raysers.training.optim import TrainSettings
from tests.unit.models.networks import small_config, speechlike

CATEGORIES = ("anger", "neutral", "sadness")
_WORKERS = 4

#: Imported once, before the processes fork off.
_PRELOAD = ["raysers.training.learner", "transformers.models.wav2vec2.modeling_wav2vec2"]

_NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
_CNN14 = {"model_type": "cnn14", "widths": [8, 16, 16], "dropout": 0.2, "final_dropout": 0.3}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: everything that decides it, and how it is spread."""

    kind: str = "w2v2-b"
    dropout: bool = False
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(category_weight=0.5, seed=5)
    )
    clips: int = 22
    batch_size: int = 12
    steps: int = 3
    max_padded_s: float = 3.0
    pieces: int = 4
    absent: tuple[int, ...] = ()
    nan_clip: int | None = None
    graph_bytes: float = 1e9

    def but(self, **changes: Any) -> Run:
        """The same with other values, those of `settings` included."""
        own = {k: v for k, v in changes.items() if k in Run.__dataclass_fields__}
        rest = {k: v for k, v in changes.items() if k not in own}
        return replace(self, **own, settings=replace(self.settings, **rest))


def config_of(run: Run) -> dict[str, Any]:
    """The network as `config.json` keys."""
    if run.kind == "cnn14":
        return _CNN14
    config = small_config(run.kind) | {"hidden_size": 32, "conv_dim": [16] * 7}
    # frequent enough to happen within a few steps of a few frames
    busy = {"mask_time_prob": 0.3, "mask_time_length": 3, "layerdrop": 0.3, "final_dropout": 0.2}
    return config | (busy if run.dropout else _NO_DROPOUT)


@functools.cache
def data_of(clips: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Clips of .15 to .6 s with labels, some missing, and categories, some unknown."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(2_400, 9_600, clips)
    signals = [speechlike(int(n), seed) for seed, n in enumerate(lengths)]
    labels = rng.random((clips, 3)).astype(np.float32)
    labels[rng.random((clips, 3)) < 0.15] = np.nan
    return signals, labels, rng.integers(-1, len(CATEGORIES), clips)


def new_trainee(run: Run, group: Group | None = None, model_seed: int = 1) -> Learner:
    """A learner at its start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config_of(run)))
        start = start_model(f"random:{path}", seed=model_seed)
    group = group or Alone()
    return Learner(
        start, CATEGORIES, run.settings, run.steps, "cpu", group, graph_bytes=run.graph_bytes
    )


def batches_of(run: Run) -> list[np.ndarray]:
    """Rows of every step."""
    rows: list[np.ndarray] = []
    for epoch in range(run.steps):
        rows += global_batches(epoch_order(run.clips, 0, epoch), run.batch_size)
    return rows[: run.steps]


def batch_of(run: Run, rows: np.ndarray, group: Group) -> Batch:
    """A global batch with the pieces of one process."""
    signals, labels, classes = data_of(run.clips)
    lengths_s = [len(signals[r]) / 16_000 for r in rows]
    cut = micro_batches(lengths_s, run.max_padded_s, run.pieces)
    mine = assign([padded_s(lengths_s, piece) for piece in cut], group.size)[group.rank]
    pieces = []
    for number in mine:
        kept = [int(i) for i in cut[number] if rows[i] not in run.absent]
        heard = [signals[rows[i]] for i in kept]
        if run.nan_clip in rows[kept]:
            place = rows[kept].tolist().index(run.nan_clip)
            heard[place] = heard[place] * np.float32(np.nan)
        pieces.append(MicroBatch(number=number, rows=kept, signals=heard))
    return Batch(labels=labels[rows], classes=classes[rows], pieces=pieces)


def train(run: Run, group: Group | None = None) -> tuple[Learner, list[StepResult]]:
    """Run all steps."""
    group = group or Alone()
    learner = new_trainee(run, group)
    return learner, [learner.step(batch_of(run, rows, group)) for rows in batches_of(run)]


def parameters_of(learner: Learner) -> dict[str, np.ndarray]:
    """Everything that training changes, under its name."""
    found = dict(learner.model.state_dict())
    if learner.average is not None:
        found |= {f"average.{i}": a for i, a in enumerate(learner.average.averages)}
    return {name: value.detach().numpy().copy() for name, value in found.items()}


Job = Callable[[Group], Any]


def in_processes(jobs: Sequence[tuple[Job, int]]) -> list[list[Any]]:
    """What each job returns in each process of a gloo group of its size (1 to 4)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(target=_work, args=(rank, folder, jobs), daemon=True)
            for rank in range(_WORKERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        codes = [worker.exitcode for worker in workers]
        assert codes == [0] * _WORKERS, codes
        results = [torch.load(_result(folder, r), weights_only=False) for r in range(_WORKERS)]
    return [
        [results[rank][number] for rank in range(size)] for number, (_, size) in enumerate(jobs)
    ]


def _result(folder: str, rank: int) -> str:
    return os.path.join(folder, f"result-{rank}.pt")


def _work(rank: int, folder: str, jobs: Sequence[tuple[Job, int]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=_WORKERS
    )
    groups = {size: torch.distributed.new_group(list(range(size))) for _, size in jobs}
    results = [job(TorchGroup(groups[size])) if rank < size else None for job, size in jobs]
    torch.save(results, _result(folder, rank))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
