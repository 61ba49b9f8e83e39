"""What several inputs of different kinds become in one manifest."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysers.data.segments import Segmenting
from raysers.engine.listing import ROWS_VERSION, index
from raysers.schemas import ANNOTATIONS, TRANSCRIPTS

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
    index([str(tmp_path / "other")], Segmenting()).write(str(tmp_path / "finished"))
    return {kind: str(tmp_path / kind) for kind in KINDS}


@pytest.mark.parametrize("kinds", [*permutations(KINDS)][::7], ids="-".join)
def test_any_mix_of_inputs_is_one_manifest_with_the_labels_of_each(inputs, kinds):
    rows = index([inputs[kind] for kind in kinds], Segmenting(), local=True).table().to_pylist()
    found = [(Path(r["file"]).stem, r["speaker"], r["arousal"], r["valence"]) for r in rows]
    assert sorted(found, key=str) == [
        ("a", "ann", 0.5, None),
        ("b", None, None, 0.25),
        ("c", None, None, None),
        ("d", None, None, None),
    ]
    assert {row["status"] for row in rows} == {"ok"}


ENDS_S = st.sampled_from([None, 0.5, 0.9, 0.9995, 1.0, 1.0004, 1.02, 1.05, 1.2])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.tuples(st.sampled_from([0.0, 0.25]), ENDS_S), min_size=1, max_size=8))
def test_every_row_of_a_table_is_a_clip_or_counted_in_a_warning(inputs, capsys, spans):
    folder = Path(inputs["folder"]).parent
    rows = "".join(f"a.wav,{start},{'' if end is None else end}\n" for start, end in spans)
    (folder / "t.csv").write_text(f"file,start,end\n{rows}")
    capsys.readouterr()
    clips = index([str(folder / "t.csv")], Segmenting(), local=True).table()
    merged = re.search(r"warning: (\d+) rows? name", capsys.readouterr().err)
    assert len(clips) + int(merged[1] if merged else 0) == len(spans)
    # all that end from the file's end to 100 ms behind it end with it, but for rounding of 1 ms
    at_end = {end for _, end in spans if end is None or 1.001 < end <= 1.1 or end == 1.0}
    starts = {start for start, end in spans if end in at_end}
    assert sum(row["end"].value == 10**9 for row in clips.to_pylist()) == len(starts)


def test_other_columns_are_another_version_of_the_rows():
    """Where an older output is resumed, its parts and new ones would have different columns."""
    clip = "file start end clip_id start_s end_s status error"
    level = "arousal dominance valence duration_s rms_db clipped_ratio"
    run = "model model_revision run_id created_at"
    assert (ROWS_VERSION, ANNOTATIONS.names, TRANSCRIPTS.names) == (
        3,
        f"{clip} {level} {run}".split(),
        f"{clip} text {run}".split(),
    )
