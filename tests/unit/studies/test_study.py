"""Study files, their cells, and the experiments that cells share."""

from __future__ import annotations

import pytest
import yaml

from raysers.errors import ConfigError
from raysers.studies.experiments import Place, make_grid, training_flags
from raysers.studies.study import PAPER, STUDIES, Model, read_studies, read_study

GOOD = """
about: a question
models: {a: w2v2-b, b: {backbone: w2v2-L, only: [head], batch_size: 8}}
factor: freeze
values:
  all: {}
  head: {freeze: backbone, lr: 1e-3}
seeds: [0, 3]
train: {epochs: 2}
small:
  train: {batch-size: 4}
"""


def written(tmp_path, text: str, name: str = "own.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def grid_of(*names: str, scale: str = "full"):
    return make_grid(read_studies(names, scale), scale)


def runs_of(grid, study: str) -> dict[str, str]:
    return {cell.cell: cell.run for cell in grid.cells if cell.study == study}


def test_a_file_is_read_with_values_of_the_flags_kinds_and_written_as_it_was_used(tmp_path):
    study = read_study(written(tmp_path, GOOD), "full")
    assert study.name == "own"
    assert study.values["head"] == {"freeze": "backbone", "lr": 1e-3}
    assert study.models["b"] == Model(backbone="w2v2-L", only=("head",), train={"batch_size": 8})
    assert (study.seeds, study.train) == ((0, 3), {"epochs": 2})
    small = read_study(written(tmp_path, GOOD), "small")
    assert small.train == {"epochs": 2, "batch_size": 4}
    for name in STUDIES:
        for scale in ("full", "small"):
            study = read_study(name, scale)
            again = read_study(written(tmp_path, study.written(), f"{name}.yaml"), "full")
            assert again == study


def test_bad_files_and_unknown_names_are_refused_in_one_line_with_the_key(tmp_path):
    for change, told in (
        ({"modles": ["w2v2-b"]}, "'modles' is unknown: did you mean 'models'?"),
        ({"models": []}, "key 'models'"),
        ({"models": ["a/x", "b/x"]}, "two of one name"),
        ({"models": {"a": {"backbone": "w2v2-b", "only": ["y"]}}}, "list some of 'values'"),
        ({"job": "dance"}, "key 'job' is 'dance'"),
        ({"values": {"x": {"epoch": 3}}}, "did you mean 'epochs'?"),
        ({"values": {"x": {}, "y": {}}, "factor": ""}, "needs 'factor'"),
        ({"values": {"x": {"weights": "none"}}}, "'weights': 'none' does not fit"),
        ({"train": {"data": ["/x"]}}, "'data' is no flag of train"),
        ({"seeds": [1, 1]}, "key 'seeds'"),
        ({"seeds": list(range(2000))}, "at most 1,000"),
        ({"together": True}, "key 'together' is for evaluate and probe"),
        ({"flags": {"suite": "small"}}, "write 'train'"),
        ({"job": "robustness", "flags": {"perturbations": ["gian"]}}, "did you mean gain?"),
        ({"job": "evaluate", "flags": {"by": "sex"}}, "'sex' does not fit: give a list of words"),
        ({"small": {"small": {}}}, "key 'small': 'small' is unknown"),
    ):
        document = yaml.safe_load(GOOD) | {"models": ["w2v2-b"], "values": {"": {}}} | change
        with pytest.raises(ConfigError) as caught:
            read_study(written(tmp_path, yaml.safe_dump(document)), "full")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    for text in ("- a\n- b", "a: [", "", "!!python/object:os.system {}"):
        with pytest.raises(ConfigError, match="--study"):
            read_study(written(tmp_path, text), "full")
    with pytest.raises(ConfigError, match="did you mean 'backbones'"):
        read_studies(["backbone"], "full")
    study = read_study(written(tmp_path, "models: [w2v2-XXL]"), "full")
    with pytest.raises(ConfigError, match="key 'models': 'w2v2-XXL': unknown model"):
        make_grid([study], "full")


def test_what_studies_have_in_common_is_one_run():
    grid = grid_of("backbones", "pretraining", "frozen", "layers", "robustness", "embeddings")
    backbones, pretraining = runs_of(grid, "backbones"), runs_of(grid, "pretraining")
    robust = backbones["w2v2-L-robust"]
    assert runs_of(grid, "frozen")["w2v2-L-robust-fine-tuned"] == robust
    assert runs_of(grid, "layers")["w2v2-L-robust-24"] == robust
    assert pretraining["w2v2-L-robust-pre-trained"] == robust
    assert pretraining["cnn14-random"] == backbones["cnn14"]
    # 8 backbones, 1 from random weights, 7 frozen, 7 further depths, and the analyses
    assert sum(run.job == "train" for run in grid.runs.values()) == 8 + 1 + 7 + 7
    for study, trained in (("embeddings", pretraining), ("robustness", backbones)):
        analysed = {grid.runs[name].needs[0] for name in runs_of(grid, study).values()}
        assert analysed == set(trained.values())


@pytest.mark.parametrize("scale", ["full", "small"])
def test_trainings_of_the_paper_come_first_and_have_flags_that_go_together(scale):
    grid, place = grid_of(PAPER, scale=scale), Place(output="/out")
    order = list(grid.runs)
    for name, run in grid.runs.items():
        assert all(order.index(other) < order.index(name) for other in run.needs)
    trained = [run for run in grid.runs.values() if run.job == "train"]
    assert len({training_flags(run, place).output for run in trained}) == len(trained)
    flags = training_flags(grid.runs[runs_of(grid, "backbones")["hubert-L"]], place)
    if scale == "full":  # the paper's recipe
        assert (flags.backbone, flags.epochs, flags.lr, flags.freeze) == (
            "hubert-L",
            0,
            0.0,
            "auto",
        )
    else:
        assert flags.backbone == "random:/out/networks/hubert-L.json"
        whisper = [
            training_flags(grid.runs[run], place) for run in runs_of(grid, "pretraining").values()
        ]
        assert [one.backbone for one in whisper[:2]] == ["raysers-base", "random:raysers-base"]


def test_an_output_keeps_places_that_mean_the_same_everywhere(tmp_path, monkeypatch):
    text = "models: {own: ./network, new: 'random:../c.json', hub: hubert-L}"
    monkeypatch.chdir(tmp_path)
    study = read_study(written(tmp_path, text), "full")
    assert [model.backbone for model in study.models.values()] == [
        f"{tmp_path}/network", f"random:{tmp_path.parent}/c.json", "hubert-L",
    ]  # fmt: skip
