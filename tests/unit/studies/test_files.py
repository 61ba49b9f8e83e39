"""Study files: what they say at each scale, and what is refused with the offending key."""

from __future__ import annotations

import pytest
import yaml

from raysers.errors import ConfigError
from raysers.studies.study import PAPER, read_studies, read_study, study_names

GOOD = """
about: a question
models: [w2v2-b]
factor: freeze
values:
  all: {}
  head: {freeze: backbone, lr: 1e-3}
seeds: [0, 3]
train: {epochs: 2}
small:
  values: {all: {}}
  train: {batch-size: 4}
"""


def _written(tmp_path, text: str, name: str = "own.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_the_paper_s_studies_are_all_there_at_both_scales():
    for scale in ("full", "small"):
        names = [study.name for study in read_studies([PAPER], scale)]
        assert names == [
            "backbones", "pretraining", "frozen", "seeds", "layers", "fraction", "robustness",
            "fairness", "speakers", "embeddings", "fusion", "probe",
        ]  # fmt: skip


def test_the_built_in_studies_ask_what_the_paper_asked():
    """Sections 3.2, 5.1, 6.1 and 6.3 of Wagner et al. 2022."""
    studies = {study.name: study for study in read_studies([PAPER], "full")}
    assert len(studies["backbones"].models) == 8
    assert studies["pretraining"].values["random"]["epochs"] == 50
    assert len(studies["seeds"].seeds) == 3
    assert set(studies["seeds"].models) == {"cnn14", "w2v2-b"}
    assert 0.075 in [v.get("train_fraction") for v in studies["fraction"].values.values()]


def test_a_file_is_read_with_values_of_the_flags_kinds(tmp_path):
    study = read_study(_written(tmp_path, GOOD), "full")
    assert study.name == "own"
    assert study.values["head"] == {"freeze": "backbone", "lr": 1e-3}
    assert (study.seeds, study.train) == ((0, 3), {"epochs": 2})


def test_small_replaces_and_merges(tmp_path):
    study = read_study(_written(tmp_path, GOOD), "small")
    assert list(study.values) == ["all"]
    assert study.train == {"epochs": 2, "batch_size": 4}


def test_what_was_used_is_written_as_a_study_that_reads_the_same(tmp_path):
    for name in study_names():
        for scale in ("full", "small"):
            study = read_study(name, scale)
            again = read_study(_written(tmp_path, study.written(), f"{name}.yaml"), "full")
            assert again == study


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modles": ["w2v2-b"]}, "'modles' is unknown: did you mean 'models'?"),
        ({"models": []}, "key 'models'"),
        ({"models": [{"a": 1}]}, "key 'models'"),
        ({"models": ["a/x", "b/x"]}, "two of one name"),
        ({"job": "dance"}, "key 'job' is 'dance'"),
        ({"values": {"x": {"epochs": "many"}}}, "key 'values': 'x': 'epochs'"),
        ({"values": {"x": {"epoch": 3}}}, "did you mean 'epochs'?"),
        ({"values": {"x": {}, "y": {}}, "factor": ""}, "needs 'factor'"),
        ({"values": {"x": {"weights": "none"}}}, "'weights' is 'none'"),
        ({"train": {"data": ["/x"]}}, "'data' is no flag of train"),
        ({"train": {"seed": 1}}, "write it into 'seeds'"),
        ({"train": {"backbone": "tiny"}}, "write it into 'models'"),
        ({"seeds": [1, 1]}, "key 'seeds'"),
        ({"seeds": list(range(2000))}, "at most 1,000"),
        ({"together": "yes"}, "key 'together'"),
        ({"best": True}, "key 'best' is for jobs that look"),
        ({"flags": {"suite": "small"}}, "no flag of train"),
        ({"job": "robustness", "flags": {"suite": "huge"}}, "'suite' is 'huge'"),
        ({"job": "robustness", "flags": {"perturbations": ["gian"]}}, "did you mean gain?"),
        ({"job": "evaluate", "flags": {"by": "sex"}}, "'by' is 'sex': write a list"),
        ({"job": "robustness", "together": True}, "is for evaluate and probe"),
        ({"small": {"small": {}}}, "key 'small': 'small' is unknown"),
    ],
)
def test_a_bad_file_is_refused_with_its_key(tmp_path, change, told):
    document = yaml.safe_load(GOOD) | {"values": {"": {}}} | change
    path = _written(tmp_path, yaml.safe_dump(document))
    with pytest.raises(ConfigError) as caught:
        read_study(path, "full")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "", "!!python/object:os.system {}"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        read_study(_written(tmp_path, text), "full")


def test_an_unknown_study_is_told_its_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'backbones'"):
        read_studies(["backbone"], "full")
