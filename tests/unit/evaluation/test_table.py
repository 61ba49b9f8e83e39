"""The printed tables: figures as they are, within 100 columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from raysers.evaluation.evaluate import assess
from raysers.evaluation.rows import WIDTH, number, print_metrics, short_names
from raysers.evaluation.scores import Categories, Scores
from tests.unit.evaluation.worlds import only, options, speakers_world


def printed(rows) -> list[str]:
    console = Console(width=WIDTH, highlight=False, markup=False, record=True, quiet=False)
    with console.capture() as capture:
        print_metrics(rows, console)
    return capture.get().splitlines()


@pytest.fixture(scope="module")
def made() -> Scores:
    world = speakers_world()
    names = {"good": "/models/a long/way/to/w2v2-L-robust", "poor": "s3://bucket/run/wav-lm"}
    return Scores(
        clip_id=world.clip_id,
        truth=world.truth,
        columns={**world.columns, "corpus": ["msp-podcast"] * 240, "split": ["test1"] * 240},
        predictions={names[k]: v for k, v in world.predictions.items()},
    )


def test_every_kind_of_result_is_printed_in_100_columns(made):
    rows, _ = assess(made, options(draws=100, by=("sex", "speaker"), speaker_samples=10))
    lines = printed(rows)
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    one = only(
        rows, metric="ccc", group="", model=next(iter(made.predictions)), dimension="valence"
    )
    assert f"{number(one.value)} [{number(one.ci_low)}, {number(one.ci_high)}]" in text
    assert ".635" in text  # the paper's
    for title in ("CCC", "Pearson", "absolute", "fairness score", "fairness bias", "paired", "rank", "per speaker"):  # fmt: skip  # noqa: E501
        assert title in text
    assert "w2v2-L-robust - wav-lm" in text
    assert "more groups are in the table on disk" in text  # 12 speakers and two sexes


def test_categories_are_printed_with_their_groups(made):
    names, (model, *_) = ("anger", "fear"), made.predictions
    emotions = ["anger", "fear", "surprise"] * 80
    sure = np.tile([[0.95, 0.05], [0.95, 0.05], [0.05, 0.95]], (80, 1))
    predicted = {model: Categories(names=names, probabilities=sure)}
    columns = {**made.columns, "emotion": emotions}
    world = replace(made, columns=columns, categories=predicted, deviations={model: made.truth})
    rows, _ = assess(world, options(draws=20, by=("sex",)))
    lines = printed(rows)
    assert max(map(len, lines)) <= WIDTH
    at = next(i for i, line in enumerate(lines) if line.startswith("emotion categories"))
    assert lines[at + 1].split() == ["uar", "macro_f1", "accuracy", "ece"]
    # anger is right, fear and surprise never; anger's precision is 1/2
    assert [value for value in lines[at + 3].split() if "[" not in value and "]" not in value] == [
        "w2v2-L-robust", ".333", ".222", ".333", ".617",
    ]  # fmt: skip
    text = "\n".join(lines)
    assert (
        "msp-podcast test1, sex female (120 clips, 6 speakers)"
        in text.partition("emotion categories")[2]
    )
    assert "uar_known" in text
    assert "90 % intervals" in text


def test_short_names_stay_different():
    found = short_names(["/a/model", "/b/model", "/c/other", "hub/one"])
    assert found == {"/a/model": "/a/model", "/b/model": "/b/model", "/c/other": "other", "hub/one": "one"}  # fmt: skip  # noqa: E501
