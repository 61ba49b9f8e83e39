"""Evaluation, archive report and robustness summary of a million clips without speakers.

Every job runs alone in a fresh process, once over a tenth of the rows and once over all of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raysers.data.manifest import write_manifest
from raysers.schemas import ANNOTATIONS
from raysers.types import DIMENSIONS
from tests.benchmarks.measure import Line, Scale, fresh, judged, rss_bytes
from tests.benchmarks.planning import some_rows
from tests.made_runs import record, write

TARGET_S = 60.0
#: Most memory of a whole process, by job.
TARGET_BYTES = {"evaluate": 3e9, "report": 2e9, "robustness": 3e9}


def rows(scale: Scale) -> Iterator[Line]:
    """Per job its time, its memory, and its time over ten times that of a tenth of the rows."""
    found: dict[str, list[Line]] = {name: [] for name in TARGET_BYTES}
    for count in (scale.rows // 10, scale.rows):
        with tempfile.TemporaryDirectory() as folder:
            fresh(_make, folder, count)
            for name, lines in found.items():
                lines.append(fresh(_run, name, folder, count))
    for name, (tenth, whole) in found.items():
        line = {"bench": "rows", "rows": scale.rows, "against": name, **whole}
        yield _below({**line, "measure": "time"}, whole["wall_s"], TARGET_S)
        yield _below({**line, "measure": "memory"}, whole["peak_bytes"], TARGET_BYTES[name])
        yield _below({**line, "measure": "growth"}, whole["wall_s"], 10 * tenth["wall_s"])


def _below(line: Line, found: float, most: float) -> Line:
    return judged(line, ratio=found / most, target=1.0, lower=True)


def _make(folder: str, count: int) -> None:
    """An annotation of synthetic clips, with labels in its manifest."""
    rng, clips = np.random.default_rng(0), some_rows(0, count)
    labels = {d: rng.beta(4, 4, count).astype(np.float32) for d in DIMENSIONS}
    scores = {d: v + rng.normal(0, 0.1, count).astype(np.float32) for d, v in labels.items()}
    constant = {"model": "some-model", "model_revision": "1", "run_id": "bench"}
    levels = {"rms_db": rng.normal(-25, 5, count), "clipped_ratio": np.zeros(count)}
    known = {name: clips[name] for name in clips.column_names} | scores | levels
    known |= {name: [text] * count for name, text in constant.items()}
    known |= {f.name: pa.nulls(count, f.type) for f in ANNOTATIONS if f.name not in known}
    table = pa.table({name: known[name] for name in ANNOTATIONS.names}).cast(ANNOTATIONS)
    place = record(Path(folder) / "annotated", "annotate")
    write(place, "annotations", table)
    for name, values in labels.items():
        clips = clips.append_column(name, pa.array(values))
    write_manifest(f"{place}/manifest", clips)


def _run(name: str, folder: str, count: int) -> Line:
    began, began_cpu_s = time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        {"evaluate": _evaluate, "report": _report, "robustness": _robustness}[name](folder, count)
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - began_cpu_s,
        "peak_bytes": rss_bytes("VmHWM"),
    }


def _evaluate(folder: str, count: int) -> None:
    from raysers.commands.analyses import evaluate as main

    place = f"{folder}/annotated"
    _require(main([place, "--labels", f"{place}/manifest", "-o", f"{folder}/evaluated"]))


def _report(folder: str, count: int) -> None:
    from raysers.commands.analyses import report as main

    _require(main([f"{folder}/annotated", "-o", f"{folder}/page", "--audio", "none"]))


def _require(code: int) -> None:
    if code:
        sys.exit(f"exit code {code}")


def _robustness(folder: str, count: int) -> None:
    """The metrics of the paper's eight perturbations."""
    from raysers.evaluation.scores import Scores
    from raysers.robustness.comparison import Change, Comparison
    from raysers.robustness.perturbations import CLEAN
    from raysers.robustness.summary import robustness_rows
    from raysers.robustness.task import SUITES

    rng = np.random.default_rng(0)
    clean = rng.beta(4, 4, (count, 3))
    found = {name: clean + rng.normal(0, 0.02, clean.shape) for name in SUITES["paper"]}
    scores = Scores(
        clip_id=[f"{i:08d}" for i in range(count)], truth=clean, predictions={CLEAN: clean} | found
    )
    changes = [Change(name=name, versions=(name,), against=CLEAN) for name in found]
    robustness_rows("some-model", scores, changes, Comparison())
