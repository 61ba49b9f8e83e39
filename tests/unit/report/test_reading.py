"""Reading the outputs of other jobs: what is found, what is sampled, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raysers.errors import ConfigError
from raysers.report.clips import read_map
from raysers.report.cost import cost_exhibit, speed, wall_s
from raysers.report.numbers import by_factor, correctness, learning
from raysers.report.reading import read_evidence
from tests.made_runs import (
    EVIL,
    MODELS,
    annotated,
    evaluated,
    studied,
    trained,
)


def test_a_study_lends_its_cells_the_names_readers_know(tmp_path):
    found = read_evidence([str(studied(tmp_path / "study"))])
    assert {v.model for v in found.values} == set(MODELS)
    rows = {(d.row, d.series) for d in by_factor(found.values, "frozen")}
    assert rows == {(m, s) for m in MODELS[:2] for s in ("fine-tuned", "frozen")}
    points = learning(found.curves)
    assert {(p.series, p.n) for p in points} == {(m, 3) for m in MODELS[:2]}
    assert any("failed" in note and EVIL[1] in note for note in found.notes)


def test_a_training_and_its_evaluation_are_one_model(tmp_path):
    run = trained(tmp_path / "tiny")
    scored = evaluated(tmp_path / "scored", models=[str(run)])
    found = read_evidence([str(run), str(scored)])
    shown = {(d.row, d.block) for d in correctness(found.values)}
    assert shown == {
        ("tiny", "emodb test"),
        ("tiny", "msp-podcast test1"),
        ("random-gaussian", "emodb test"),
    }


def test_embeddings_are_a_sample_that_no_cut_into_parts_changes(tmp_path):
    small = annotated(tmp_path / "small", part=7)
    large = annotated(tmp_path / "large", part=1000)
    one, other = (read_map(str(f), [str(f)], most=25) for f in (small, large))
    assert one is not None
    assert other is not None
    assert len(one.clip_id) == 25
    assert one.clip_id == other.clip_id
    assert np.array_equal(one.embedding, other.embedding)
    assert set(one.known["sex"]) == {"female", "male"}
    assert one.labelled


def test_what_runs_cost_is_told_per_device_hour(tmp_path):
    folders = [str(annotated(tmp_path / "a")), str(trained(tmp_path / "t"))]
    found = read_evidence(folders)
    scored, training = found.runs
    assert speed(scored) == pytest.approx(360 / 2)
    assert speed(training) == pytest.approx(2 * 3600 / (600 * 2))
    assert wall_s(scored) == 3665
    (grid,) = cost_exhibit(found).grids
    assert grid.rows[0][:4] == ["a", "annotate", "done", "1:01:05 h"]


def test_a_folder_without_a_run_is_refused_and_an_unfinished_run_is_noted(tmp_path):
    with pytest.raises(ConfigError, match=r"has no run\.json: give the --output"):
        read_evidence([str(tmp_path)])
    folder = evaluated(tmp_path / "run")
    document = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(document))
    assert any("incomplete" in note for note in read_evidence([str(folder)]).notes)
