"""What several inputs of different kinds become in one manifest."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from raysers.data.manifest import write_manifest
from raysers.data.segments import Segmenting
from raysers.engine.plan import index

KINDS = ("labels.csv", "more.parquet", "folder", "finished")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    """A table with labels, one with others, a plain folder and a finished manifest."""
    for name in ("a", "b", "folder/c", "other/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sf.write(tmp_path / f"{name}.wav", np.full(16_000, 0.1), 16_000)
    (tmp_path / "labels.csv").write_text("file,speaker,arousal\na.wav,ann,0.5\n")
    table = {"file": ["b.wav"], "valence": [0.25]}
    pq.write_table(pa.table(table), tmp_path / "more.parquet")
    write_manifest(str(tmp_path / "finished"), index([str(tmp_path / "other")], Segmenting()))
    return {kind: str(tmp_path / kind) for kind in KINDS}


@pytest.mark.parametrize("kinds", permutations(KINDS), ids="-".join)
def test_any_mix_of_inputs_is_one_manifest_with_the_labels_of_each(inputs, kinds):
    rows = index([inputs[kind] for kind in kinds], Segmenting(), local=True).to_pylist()
    found = [(Path(r["file"]).stem, r["speaker"], r["arousal"], r["valence"]) for r in rows]
    assert sorted(found, key=str) == [
        ("a", "ann", 0.5, None),
        ("b", None, None, 0.25),
        ("c", None, None, None),
        ("d", None, None, None),
    ]
    assert {row["status"] for row in rows} == {"ok"}
