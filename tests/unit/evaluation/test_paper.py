"""The paper's numbers: right ones, beside the right rows, and what cannot be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raysers.evaluation.published import paper_numbers, with_paper
from raysers.evaluation.rows import Row
from tests.places import SHARED_DATA, needs_shared

SIZES = {("msp-podcast", "test1"): 12902, ("iemocap", "all"): 10039, ("cmu-mosi", "test"): 685}


def row(dataset="msp-podcast", split="test1", **changes) -> Row:
    given = {"model": "w2v2-L-robust", "dimension": "arousal", "metric": "ccc", "value": 0.5}
    given |= {"dataset": dataset, "split": split, "n": SIZES.get((dataset, split), 100)}
    return Row(**{**given, **changes})


def paper_of(one: Row, **kwargs) -> float:
    return with_paper([one], **kwargs)[0][0].paper


@pytest.mark.parametrize(
    ("one", "value"),
    [
        (row(), 0.745),
        (row(model="hubert-L", dimension="dominance"), 0.655),
        (row("iemocap", "all", dimension="valence"), 0.448),
        (row("cmu-mosi", "test", dimension="valence", model="CNN14"), 0.046),
        (
            row(
                "iemocap",
                "all",
                metric="ccc_drop",
                group="dataset",
                group_value="msp-podcast test1",
            ),
            0.11,
        ),
        (row(model="w2v2-L", dimension="valence", metric="sex_fairness_bias", group="sex"), 0.086),
        (row(model="/models/W2V2-l-ROBUST/@abc123"), 0.745),
    ],
)
def test_a_row_of_the_paper_has_its_number(one, value):
    assert paper_of(one) == value


@pytest.mark.parametrize(
    "one",
    [
        row(split="test2"),
        row(split="all"),
        row("iemocap", "test"),
        row("emodb", "test"),
        row(model="w2v2-L-robust-12"),
        row(model="random:w2v2-L-robust"),
        row(model="random:/configs/w2v2-L-robust"),
        row(metric="pearson"),
        row("iemocap", "all", metric="ccc_drop", group="dataset", group_value="emodb all"),
        row(group="sex", group_value="female"),
        row(group="model", group_value="hubert-L"),
    ],
)
def test_another_row_has_none(one):
    assert np.isnan(paper_of(one))


def test_the_backbone_a_model_was_trained_from_counts():
    one = row(model="s3://bucket/run7")
    assert np.isnan(paper_of(one))
    assert paper_of(one, names={"s3://bucket/run7": "w2v2-L-robust"}) == 0.745
    assert np.isnan(paper_of(one, names={"s3://bucket/run7": "random:w2v2-L-robust"}))


def test_what_cannot_be_compared_is_said():
    assert with_paper([row()])[1] == []
    assert "300 clips here, 12,902 in the paper" in with_paper([row(n=300)])[1][0]
    assert np.isnan(paper_of(row(n=300)))
    assert with_paper([row(n=12850)])[1] == []  # a few unreadable files
    assert paper_of(row(n=12850)) == 0.745
    assert "not comparable" in with_paper([row(split="test2")])[1][0]
    assert "emodb is not in the paper" in with_paper([row("emodb", "all")])[1][0]
    assert "mine is not one of the paper's models" in with_paper([row(model="mine")])[1][0]


@needs_shared
def test_the_numbers_are_those_of_the_reference():
    folder = SHARED_DATA.parent / "reference"
    places = {
        "MSP-Podcast v1.7 test-1": ("msp-podcast", "test1"),
        "IEMOCAP (all)": ("iemocap", "all"),
        "MOSI test": ("cmu-mosi", "test"),
    }
    values = paper_numbers().values
    checked = set()
    for known in json.loads((folder / "paper_reference.json").read_text()):
        place = places.get(known.get("dataset") or "")
        if known["quantity"] != "CCC" or not place or known["section"] not in ("4.1", "4.2"):
            continue
        dimension = known["dimension"].replace("sentiment", "valence")
        key = ("ccc", known["model"], *place, dimension)
        assert values[key] == known["value"]
        checked.add(key)
    for known in json.loads((folder / "ser_tests_ccc.json").read_text())["rows"]:
        if "test-1" in known["dataset"] and known["model"] in paper_numbers().models.values():
            key = ("ccc", known["model"], "msp-podcast", "test1", known["dimension"])
            assert values[key] == pytest.approx(known["ccc"], abs=5e-4)
            checked.add(key)
    assert checked == {key for key in values if key[0] == "ccc"}
