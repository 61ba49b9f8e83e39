"""Which CPU layout is fastest: one worker with all threads or many with one, and which budget.

The defaults of `engine.placement.choose_placement` and `models.scorer.auto_padded_s` are to be
chosen from this table. Workers are the engine's, but without Ray: they stay alive over all
budgets, so that only the scoring is compared.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import pyarrow as pa

from tests.benchmarks import corpus
from tests.benchmarks.end_to_end import MODELS
from tests.benchmarks.engine import WarmWorker
from tests.benchmarks.measure import Line, Scale, cores, medians

BUDGETS_S = (3.0, 6.0, 12.0, 24.0, 48.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Running workers that share the machine in one way."""

    name: str
    pipes: list[Connection]

    def run(self, blocks: Sequence[pa.Table], budget_s: float) -> float:
        """Wall seconds until every block is scored; each worker gets an equal part of them."""
        for i, pipe in enumerate(self.pipes):
            pipe.send((blocks[i :: len(self.pipes)], budget_s))
        spans = [pipe.recv() for pipe in self.pipes]
        return float(max(end for _, end in spans) - min(start for start, _ in spans))


def layout(scale: Scale) -> Iterator[Line]:
    """One line per model, layout and budget, then the best of each layout."""
    manifest = corpus.manifest_of([str(path) for path in corpus.emodb(scale.layout_clips)])
    for model in MODELS:
        lines = _scan(model, manifest, scale.repeats)
        yield from lines
        for name in dict.fromkeys(line["layout"] for line in lines):
            mine = [line for line in lines if line["layout"] == name]
            best = max(mine, key=lambda line: line["x_real_time"])
            yield {**best, "bench": "layout best"}


def _scan(model: str, manifest: pa.Table, repeats: int) -> list[Line]:
    audio_s = float(np.sum(manifest["duration_s"].to_numpy()))
    blocks = _equal_blocks(manifest, 2 * cores())
    layouts = [_start(model, 1, cores()), _start(model, cores(), 1)]
    for one in layouts:  # first forward passes are slow
        one.run(blocks, BUDGETS_S[0])
    points = [(budget_s, one) for budget_s in BUDGETS_S for one in layouts]
    turns = [
        {(b, one.name): {"wall_s": one.run(blocks, b)} for b, one in points} for _ in range(repeats)
    ]
    for one in layouts:
        for pipe in one.pipes:
            pipe.send(None)
    about = {"bench": "layout", "model": model, "clips": manifest.num_rows}
    return [
        {
            **about,
            "layout": one.name,
            "max_padded_s": b,
            "x_real_time": audio_s / medians([turn[b, one.name] for turn in turns])["wall_s"],
            "fastest_x_real_time": audio_s / min(turn[b, one.name]["wall_s"] for turn in turns),
        }
        for b, one in points
    ]


def _equal_blocks(manifest: pa.Table, blocks: int) -> list[pa.Table]:
    """Shards with the same mixture of lengths, longest first."""
    order = np.argsort(-manifest["duration_s"].to_numpy(), kind="stable")
    return [
        manifest.take(rows).append_column("shard", pa.array(np.full(len(rows), i)))
        for i, rows in enumerate(order[i::blocks] for i in range(blocks))
    ]


def _start(model: str, workers: int, threads: int) -> _Layout:
    spawn = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(workers):
        here, there = spawn.Pipe()
        spawn.Process(target=_work, args=(there, model, threads), daemon=True).start()
        pipes.append(here)
    return _Layout(name=f"{workers} x {threads} threads", pipes=pipes)


def _work(pipe: Connection, model: str, threads: int) -> None:
    from raysers.annotation import AnnotateTask

    task = AnnotateTask.load(model, dtype="auto", max_padded_s=BUDGETS_S[0])
    worker = WarmWorker(task, threads=threads)
    while (order := pipe.recv()) is not None:
        blocks, worker.model.max_padded_s = order
        start = time.time()
        worker.run(blocks)
        pipe.send((start, time.time()))
