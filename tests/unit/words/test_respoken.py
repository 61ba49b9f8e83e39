"""Re-spoken clips: who is compared with whom, distances of distributions, and CCC on both sides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import correctness_rows
from raysers.evaluation.scores import Scores, ccc
from raysers.types import DIMENSIONS
from raysers.words.spoken import (
    RESPOKEN,
    respoken_rows,
    respoken_table,
)
from tests.unit.evaluation.worlds import only

FEW = Bootstrap(draws=100)


def scored(ids, values, **more) -> pa.Table:
    """Arousal rises with the values, dominance is constant, valence is the value."""
    values = np.asarray(values, float)
    columns = {"arousal": values / 2, "dominance": np.full(len(ids), 0.4), "valence": values}
    return pa.table({"clip_id": list(ids), **columns, **more})


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """90 clips of 9 speakers; model "a" uses the text a little, "b" not at all."""
    rng = np.random.default_rng(1)
    truth = rng.beta(4, 4, (90, 3)).astype(np.float32)
    original = {m: truth + rng.normal(0, s, truth.shape) for m, s in (("a", 0.05), ("b", 0.15))}
    respoken = {
        "a": 0.4 + np.array([0, 0, 0.6]) * (truth - 0.5) + rng.normal(0, 0.03, truth.shape),
        "b": 0.5 + rng.normal(0, 0.03, truth.shape),
    }
    original, respoken = (
        {m: v.astype(np.float32) for m, v in side.items()} for side in (original, respoken)
    )
    ids = [f"c{i:03d}" for i in range(90)]
    known = {"speaker": [f"s{i % 9}" for i in range(90)], "corpus": ["made"] * 90}

    def table(values, **more):
        return pa.table({"clip_id": ids} | dict(zip(DIMENSIONS, values.T, strict=True)) | more)

    labels = table(truth, split=["test"] * 90, **known)
    sides = ({m: table(v) for m, v in side.items()} for side in (original, respoken))
    found = respoken_table(labels, *sides, dict(zip(ids, ids, strict=True)))
    rows = respoken_rows(found, labels, FEW)
    columns = {name: labels[name].to_pylist() for name in ("speaker", "corpus", "split")}
    scores = {
        side: Scores(clip_id=ids, truth=truth, predictions=predictions, columns=columns)
        for side, predictions in (("original", original), ("respoken", respoken))
    }
    return SimpleNamespace(
        rows=rows, scores=scores, truth=truth, original=original, respoken=respoken
    )


def test_clips_are_linked_and_voices_averaged():
    labels = scored(["x", "y", "z"], [0.1, 0.5, 0.9])
    original = scored(["z", "y", "x"], [0.8, 0.5, 0.2], status=["ok", "ok", "ok"])
    again = scored(
        ["x-1", "x-2", "y-1", "y-2", "z-1", "stray"],
        [0.3, 0.5, 0.6, 0.1, 0.7, 0.0],
        status=["ok", "ok", "ok", "model_error", "too_short", "ok"],
    )
    link = {f"{clip}-{voice}": clip for clip in "xyz" for voice in "12"} | {"stray": "elsewhere"}
    found = respoken_table(labels, {"m": original}, {"m": again}, link, "run")
    assert found.schema.equals(RESPOKEN)
    assert found["clip_id"].to_pylist() == ["x", "y"]  # z failed when it was re-spoken
    for column, values in (
        ("valence_respoken", [0.4, 0.6]),
        ("valence_original", [0.2, 0.5]),
        ("valence", [0.1, 0.5]),
    ):
        assert found[column].to_pylist() == pytest.approx(values)
    assert found["model"].to_pylist() == ["m", "m"]


def test_nothing_in_common_is_refused():
    labels = scored(["x"], [0.1])
    with pytest.raises(ConfigError, match="no clip has scores of both"):
        respoken_table(labels, {"m": labels}, {"m": scored(["r"], [0.2])}, {"r": "elsewhere"})


def test_both_sides_have_the_ccc_that_an_evaluation_gives_them(world):
    for side, scores in world.scores.items():
        plain = correctness_rows(scores, draws=100)
        for metric in ("ccc", "pearson", "mae"):
            for model in "ab":
                which = {"metric": metric, "model": model, "dimension": "valence", "n": 90}
                ours = only(world.rows, group="speech", group_value=side, **which)
                theirs = only(plain, **which)
                assert ours.value == pytest.approx(theirs.value, rel=1e-12)
                bounds = pytest.approx((theirs.ci_low, theirs.ci_high), abs=1e-9)
                assert (ours.ci_low, ours.ci_high) == bounds


def test_what_is_compared_with_what(world):

    def of(model, group_value, metric, dimension="valence"):
        which = {"group": "speech", "model": model, "group_value": group_value}
        return only(world.rows, metric=metric, dimension=dimension, **which)

    before, after = world.original["a"][:, 2], world.respoken["a"][:, 2]
    assert of("a", "respoken, original", "ccc").value == pytest.approx(ccc(before, after))
    assert of("a", "respoken - original", "mean_shift").value == pytest.approx(
        after.mean() - before.mean()
    )
    lost = of("a", "respoken - original", "ccc_difference")
    assert lost.value == pytest.approx(
        of("a", "respoken", "ccc").value - of("a", "original", "ccc").value
    )
    assert lost.ci_low < lost.value < lost.ci_high < 0
    assert of("a", "respoken", "sd").value == pytest.approx(after.std())
    assert of("a", "respoken", "mean").value == pytest.approx(after.mean())
    assert of("a", "labels", "mean").value == pytest.approx(world.truth[:, 2].mean())
    edges = [-10, *np.arange(1, 10) / 10, 10]
    counts = [np.histogram(side, edges)[0] for side in (after, before)]
    distance = of("a", "respoken, original", "js_distance")
    assert distance.value == pytest.approx(jensenshannon(*counts, base=2), abs=1e-9)
    assert 0 < distance.ci_low < distance.ci_high < 1
