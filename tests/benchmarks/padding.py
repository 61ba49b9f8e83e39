"""How much of what the model computes is padding, as the engine cuts its batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from tests.benchmarks import corpus
from tests.benchmarks.engine import NullTask, WarmWorker, blocks_of
from tests.benchmarks.measure import Line, Scale, judged

TARGET = 0.05
#: Budgets from a CPU's to a big GPU's.
_BUDGETS_S = (12.0, 120.0, 960.0)


def padding(scale: Scale) -> Iterator[Line]:
    """One line per length distribution and budget."""
    emodb = corpus.manifest_of([str(path) for path in corpus.emodb(535)])
    yield from _wastes("emodb", emodb)
    with tempfile.TemporaryDirectory() as folder:
        files = corpus.skewed_files(Path(folder) / "skewed", scale.skewed_clips)
        yield from _wastes("log-normal 0.3-300 s", corpus.manifest_of([str(Path(files[0]).parent)]))


def _wastes(name: str, manifest: pa.Table) -> Iterator[Line]:
    for budget_s in _BUDGETS_S:
        line = {
            "bench": "padding",
            "lengths": name,
            "clips": manifest.num_rows,
            "max_padded_s": budget_s,
        }
        # through the worker itself, with a model that only counts
        found = WarmWorker(NullTask(max_padded_s=budget_s)).run(blocks_of(manifest))
        yield judged(line, ratio=found["padding_waste"], target=TARGET, lower=True)


def padding_waste(batches: Sequence[Sequence[int]], durations_s: Sequence[float]) -> float:
    """Share of the padded seconds that is padding, 0 (none) to below 1.

    >>> padding_waste([[0, 1]], [4.0, 2.0])
    0.25
    """
    padded_s = sum(len(batch) * max(durations_s[i] for i in batch) for batch in batches if batch)
    heard_s = sum(durations_s[i] for batch in batches for i in batch)
    return 1.0 - heard_s / padded_s if padded_s > 0 else 0.0
