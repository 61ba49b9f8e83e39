"""What robustness costs: the paper's eight perturbations and the clips themselves, against
annotating the same clips.

Both sides are the engine's stage in this process, without Ray, with the model loaded once: nine
versions cost nine forward passes, and what perturbing adds must stay within 3 %. Shards are scored
one after the other, so perturbing may overlap only with the model's work on its own shard.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raysers.data.shards import plan_shards
from raysers.engine.job import shard_blocks
from raysers.engine.worker import ShardStage
from raysers.robustness.suites import chosen
from raysers.robustness.task import Perturbed
from raysers.schemas import ANNOTATIONS, ROBUSTNESS
from tests.benchmarks import corpus
from tests.benchmarks.engine import stage_settings
from tests.benchmarks.layout import ScoringWorker
from tests.benchmarks.measure import Line, Scale, alternate, cores, fresh, judged

#: The most that nine versions may cost of one.
TARGET = 9.3
MODELS = ("default", "random:w2v2-b")


def robustness(scale: Scale) -> Iterator[Line]:
    """One line per model: seconds of both sides, their ratio, decodes per clip."""
    for model in MODELS:
        # a full-size model takes minutes for what the default one does in seconds
        clips = scale.clips if model == "default" else max(8, scale.clips // 8)
        yield fresh(_measured, model, clips, scale.repeats)


def _measured(model: str, clips: int, repeats: int) -> Line:
    from raysers.cli import DEFAULT_MODEL

    name = DEFAULT_MODEL if model == "default" else model
    manifest = corpus.manifest_of([str(path) for path in corpus.emodb(clips)])
    plan = plan_shards(manifest, shard_s=1800.0)
    blocks = shard_blocks(manifest, plan, range(len(plan)))
    worker = ScoringWorker(name, cores())
    worker.max_padded_s = 12.0
    rows, _ = chosen((), "paper", ())
    versions = Perturbed(rows=tuple(rows))
    sides = {
        "annotate": lambda: _scored(worker, blocks, None),
        "robustness": lambda: _scored(worker, blocks, versions),
    }
    _scored(worker, blocks[:1], None)  # first forward passes are slow
    lines = alternate(sides, {"annotate": repeats, "robustness": repeats})
    one, nine = lines["annotate"], lines["robustness"]
    about = {
        "bench": "robustness",
        "model": name,
        "clips": manifest.num_rows,
        "annotate_s": one["wall_s"],
        "robustness_s": nine["wall_s"],
        "decodes_per_clip": nine["decoded"] / manifest.num_rows,
        "padding_waste": nine["padding_waste"],
        "x_real_time": nine["audio_s"] / nine["wall_s"],
    }
    return judged(about, ratio=nine["wall_s"] / one["wall_s"], target=TARGET, lower=True)


def _scored(worker: ScoringWorker, blocks: list[pa.Table], versions: Perturbed | None) -> Line:
    """Every block through a stage of its own."""
    worker.schema = ANNOTATIONS if versions is None else ROBUSTNESS
    totals = {"audio_s": 0.0, "padded_s": 0.0, "decoded": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(stage_settings(folder, cores()), versions=versions)
        stage = ShardStage(settings, worker, _silent)
        began = time.perf_counter()
        for block in blocks:
            summary: dict[str, Any] = stage(block).to_pylist()[0]
            for key, column in (("audio_s", "scored_s"), ("padded_s",) * 2, ("decoded",) * 2):
                totals[key] += float(np.asarray(summary[column]))
        wall_s = time.perf_counter() - began
    waste = 1 - totals["audio_s"] / totals["padded_s"]
    return {**totals, "wall_s": wall_s, "padding_waste": waste}


def _silent(shard: int, audio_s: float, statuses: dict[str, int]) -> None:
    """Progress that nobody watches."""
