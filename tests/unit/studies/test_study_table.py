"""What the terminal says of a study's cells."""

from __future__ import annotations

import io

import pyarrow as pa
from rich.console import Console

from raysers.schemas import CELLS, STUDY_METRICS
from raysers.studies.table import print_cells


def _metric(cell: str, split: str, dimension: str, value: float | None, **other) -> dict:
    return {
        "study": "s", "cell": cell, "model": "toy", "dataset": "home", "split": split, "group": "",
        "group_value": "", "dimension": dimension, "metric": "ccc", "value": value,
    } | other  # fmt: skip


def _cell(cell: str, status: str = "done", **other) -> dict:
    return {"study": "s", "cell": cell, "kind": "train", "status": status, "error": ""} | other


METRICS = pa.Table.from_pylist(
    [
        _metric("a", "dev", "arousal", 0.9),
        _metric("a", "test", "arousal", 0.5),
        _metric("a", "test", "valence", None),
        _metric("a", "test", "arousal", 0.1, model="random-gaussian"),
        _metric("a", "test", "arousal", 0.2, group="sex", group_value="female"),
        _metric("a", "all", "arousal", 0.3, dataset="abroad"),
        _metric("b", "dev", "arousal", 0.7),
    ],
    schema=STUDY_METRICS,
)


def test_every_cell_is_a_line_and_failed_ones_say_why():
    cells = pa.Table.from_pylist(
        [
            _cell("a", wall_s=3.0),
            _cell("b\x1b[31m", "failed", error="no\nclips"),
            _cell("c", "waiting"),
            _cell("d", kind="robustness", wall_s=12.4),
        ],
        schema=CELLS,
    )
    console = Console(file=io.StringIO(), width=120, markup=False)
    print_cells(cells, METRICS, console)
    said = console.file.getvalue()
    lines = said.splitlines()
    assert len(lines) == 1 + 2 + 3  # a has two datasets
    assert ".500" in lines[1] or ".500" in lines[2]
    assert "failed: no" in said
    assert "clips" in said
    assert "\x1b" not in said
    assert "robustness done in 12 s" in said
