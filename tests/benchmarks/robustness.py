"""What robustness costs: the paper's eight perturbations and the clips themselves, against
annotating the same clips.

Both sides are the engine's worker in this process, without Ray, with the model loaded once: nine
versions cost nine forward passes, and what perturbing adds must stay within 3 %. Shards are scored
one after the other, so perturbing may overlap only with the model's work on its own shard.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_MODEL
from raysers.robustness.task import Perturbed, RobustnessTask, chosen
from tests.benchmarks import corpus
from tests.benchmarks.engine import WarmWorker, blocks_of
from tests.benchmarks.measure import Line, Scale, alternate, fresh, judged

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
    name = DEFAULT_MODEL if model == "default" else model
    manifest = corpus.manifest_of([str(path) for path in corpus.emodb(clips)])
    blocks = blocks_of(manifest)
    scoring = AnnotateTask.load(name, dtype="auto", max_padded_s=12.0)
    rows, _ = chosen((), "paper", ())
    nine_versions = RobustnessTask(scoring=scoring, perturbed=Perturbed(rows=tuple(rows)))
    one, nine = WarmWorker(scoring), WarmWorker(nine_versions)
    sides = {
        "annotate": lambda: _in_turn(one, blocks),
        "robustness": lambda: _in_turn(nine, blocks),
    }
    for worker in (one, nine):
        worker.run(blocks[:1])  # first forward passes are slow
    lines = alternate(sides, dict.fromkeys(sides, repeats))
    plain, varied = lines["annotate"], lines["robustness"]
    about = {
        "bench": "robustness",
        "model": name,
        "clips": manifest.num_rows,
        "annotate_s": plain["wall_s"],
        "robustness_s": varied["wall_s"],
        "decodes_per_clip": varied["decoded"] / manifest.num_rows,
        "padding_waste": varied["padding_waste"],
        "x_real_time": varied["scored_s"] / varied["wall_s"],
    }
    return judged(about, ratio=varied["wall_s"] / plain["wall_s"], target=TARGET, lower=True)


def _in_turn(worker: WarmWorker, blocks: list[pa.Table]) -> Line:
    """Shards one after the other; their figures added up."""
    lines = [worker.run([block]) for block in blocks]
    totals = {name: sum(line[name] for line in lines) for name in lines[0]}
    return {**totals, "padding_waste": 1 - totals["scored_s"] / totals["padded_s"]}
