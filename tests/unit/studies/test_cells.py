"""Cells and the runs they share."""

from __future__ import annotations

import pytest

from raysers.errors import ConfigError
from raysers.studies.experiments import make_grid, with_absolute_backbones
from raysers.studies.study import PAPER, read_studies, read_study
from raysers.studies.units import Place, training_flags


def _grid(*names: str, scale: str = "full"):
    return make_grid(read_studies(names, scale), scale)


def _runs_of(grid, study: str) -> dict[str, str]:
    return {cell.cell: cell.run for cell in grid.cells if cell.study == study}


def test_what_studies_have_in_common_is_one_run():
    grid = _grid("backbones", "frozen", "seeds", "layers", "fraction", "pretraining")
    robust = _runs_of(grid, "backbones")["w2v2-L-robust"]
    assert _runs_of(grid, "frozen")["w2v2-L-robust-fine-tuned"] == robust
    assert _runs_of(grid, "layers")["w2v2-L-robust-24"] == robust
    assert _runs_of(grid, "fraction")["w2v2-L-robust-100-percent"] == robust
    assert _runs_of(grid, "pretraining")["w2v2-L-robust-pre-trained"] == robust
    assert _runs_of(grid, "seeds")["w2v2-b-seed-0"] == _runs_of(grid, "backbones")["w2v2-b"]
    # 8 backbones, 7 frozen, 2 x 2 further seeds, 7 further depths, 7 shares, 1 from random
    assert len(grid.runs) == 8 + 7 + 4 + 7 + 7 + 1


@pytest.mark.parametrize("scale", ["full", "small"])
def test_what_is_needed_comes_first(scale):
    grid = _grid(PAPER, scale=scale)
    order = list(grid.runs)
    for name, run in grid.runs.items():
        assert all(order.index(other) < order.index(name) for other in run.needs)


def test_looks_look_at_the_models_of_figure_2():
    grid = _grid("backbones", "robustness", "fairness", "embeddings")
    trained = set(_runs_of(grid, "backbones").values())
    assert {grid.runs[name].needs for name in _runs_of(grid, "robustness").values()} == {
        (name,) for name in trained
    }
    for study in ("fairness", "embeddings"):
        (look,) = _runs_of(grid, study).values()
        assert set(grid.runs[look].needs) == trained


def test_full_size_is_the_papers_recipe():
    grid, place = _grid("backbones"), Place(output="/out", in_domain="")
    flags = training_flags(grid.runs[_runs_of(grid, "backbones")["hubert-L"]], place)
    assert (flags.backbone, flags.epochs, flags.lr, flags.freeze) == ("hubert-L", 0, 0.0, "auto")
    cnn14 = training_flags(grid.runs[_runs_of(grid, "backbones")["cnn14"]], place)
    assert cnn14.backbone == "random:cnn14"


def test_small_networks_start_from_a_beginning_or_at_random():
    grid, place = _grid("pretraining", scale="small"), Place(output="/out", in_domain="")
    runs = _runs_of(grid, "pretraining")
    begun = grid.runs[runs["w2v2-L-robust-pre-trained"]]
    assert training_flags(begun, place).backbone == f"/out/runs/{begun.needs[0]}/backbone"
    random = grid.runs[runs["w2v2-L-robust-random"]]
    assert random.needs == ()
    assert training_flags(random, place).backbone == "random:/out/networks/w2v2-L-robust.json"
    assert training_flags(random, place).freeze == "none"


def test_every_training_of_the_paper_has_flags_that_go_together():
    for scale in ("full", "small"):
        grid = _grid(PAPER, scale=scale)
        place = Place(output="/out", in_domain="")
        trained = [run for run in grid.runs.values() if run.job in ("begin", "train")]
        assert len({training_flags(run, place).output for run in trained}) == len(trained)


def test_an_unknown_backbone_is_refused_with_its_key(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("models: [w2v2-XXL]")
    with pytest.raises(ConfigError, match="key 'models': 'w2v2-XXL': unknown model"):
        make_grid([read_study(str(path), "full")], "full")


def test_an_output_keeps_places_that_mean_the_same_everywhere(tmp_path, monkeypatch):
    path = tmp_path / "own.yaml"
    path.write_text("models: {own: ./network, new: 'random:../c.json', hub: hubert-L}")
    monkeypatch.chdir(tmp_path)
    study = with_absolute_backbones(read_study(str(path), "full"))
    monkeypatch.chdir("/")
    assert study.models == {
        "own": f"{tmp_path}/network",
        "new": f"random:{tmp_path.parent}/c.json",
        "hub": "hubert-L",
    }
    assert with_absolute_backbones(study) == study
