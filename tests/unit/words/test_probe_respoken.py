"""Re-spoken clips: who is compared with whom, distances of distributions, and CCC on both sides."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from raysers.errors import ConfigError
from raysers.evaluation.correctness import correctness_rows
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.metrics import ccc
from raysers.words.respoken import histogram, jensen_shannon, respoken_rows
from raysers.words.sentence_pairs import RESPOKEN, Pairs, respoken_pairs
from tests.unit.evaluation.worlds import only

FEW = Bootstrap(draws=100)


def scored(ids, values, **more) -> pa.Table:
    """Arousal rises with the values, dominance is constant, valence is the value."""
    values = np.asarray(values, float)
    columns = {"arousal": values / 2, "dominance": np.full(len(ids), 0.4), "valence": values}
    return pa.table({"clip_id": list(ids), **columns, **more})


def world(clips=90, seed=1) -> Pairs:
    rng = np.random.default_rng(seed)
    truth = rng.beta(4, 4, (clips, 3))
    ids = tuple(f"c{i:03d}" for i in range(clips))
    original = {m: truth + rng.normal(0, s, truth.shape) for m, s in (("a", 0.05), ("b", 0.15))}
    respoken = {
        "a": 0.4 + np.array([0, 0, 0.6]) * (truth - 0.5) + rng.normal(0, 0.03, truth.shape),
        "b": 0.5 + rng.normal(0, 0.03, truth.shape),
    }
    return Pairs(
        clip_id=ids,
        truth=truth,
        original=original,
        respoken=respoken,
        columns={
            "speaker": [f"s{i % 9}" for i in range(clips)],
            "corpus": ["made"] * clips,
            "split": ["test"] * clips,
        },
    )


def test_clips_are_linked_and_voices_averaged():
    labels = scored(["x", "y", "z"], [0.1, 0.5, 0.9], speaker=["s1", "s2", "s3"])
    original = scored(["z", "y", "x"], [0.8, 0.5, 0.2], status=["ok", "ok", "ok"])
    again = scored(
        ["x-1", "x-2", "y-1", "y-2", "z-1", "stray"],
        [0.3, 0.5, 0.6, 0.1, 0.7, 0.0],
        status=["ok", "ok", "ok", "model_error", "too_short", "ok"],
    )
    link = {f"{clip}-{voice}": clip for clip in "xyz" for voice in "12"} | {"stray": "elsewhere"}
    found = respoken_pairs(labels, {"m": original, "other": original}, {"m": again}, link)
    assert list(found.clip_id) == ["x", "y"]  # z failed when it was re-spoken
    assert found.respoken["m"][:, 2] == pytest.approx([0.4, 0.6])
    assert found.original["m"][:, 2] == pytest.approx([0.2, 0.5])
    assert found.truth[:, 2] == pytest.approx([0.1, 0.5])
    assert found.columns["speaker"] == ["s1", "s2"]
    table = found.table("run")
    assert table.schema.equals(RESPOKEN)
    assert table["valence_respoken"].to_pylist() == pytest.approx([0.4, 0.6])
    assert table["model"].to_pylist() == ["m", "m"]


def test_nothing_in_common_is_refused():
    labels = scored(["x"], [0.1])
    with pytest.raises(ConfigError, match="no clip has scores of both"):
        respoken_pairs(labels, {"m": labels}, {"m": scored(["r"], [0.2])}, {"r": "elsewhere"})
    with pytest.raises(ConfigError, match="no clip has scores of both"):
        respoken_pairs(labels, {"m": labels}, {"n": labels}, {"x": "x"})


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12).filter(
        lambda pairs: sum(p for p, _ in pairs) and sum(q for _, q in pairs)
    )
)
def test_distance_is_scipys_and_symmetric(counts):
    p, q = np.array(counts, float).T
    found = jensen_shannon(p, q)
    assert found == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)
    assert found == pytest.approx(jensen_shannon(q, p))
    assert 0 <= found <= 1


def test_distance_ends_and_bins():
    assert jensen_shannon(np.array([3.0, 0]), np.array([0, 5.0])) == 1
    assert math.isnan(jensen_shannon(np.zeros(2), np.array([0, 5.0])))
    values = np.array([[-0.3, 0.05, 0.1], [0.95, 1.7, np.nan]])
    assert histogram(values).argmax(axis=-1).tolist() == [[0, 0, 1], [9, 9, 0]]
    assert histogram(values).sum() == 5


def test_both_sides_have_the_ccc_that_an_evaluation_gives_them():
    found = world()
    rows = respoken_rows(found, FEW)
    for side, predictions in (("original", found.original), ("respoken", found.respoken)):
        plain = correctness_rows(found.scores(predictions), draws=100)
        for metric in ("ccc", "pearson", "mae"):
            for model in "ab":
                which = {"metric": metric, "model": model, "dimension": "valence", "n": 90}
                ours = only(rows, group="speech", group_value=side, **which)
                theirs = only(plain, **which)
                assert ours.value == theirs.value
                assert (ours.ci_low, ours.ci_high) == (theirs.ci_low, theirs.ci_high)


def test_what_is_compared_with_what():
    found = world()
    rows = respoken_rows(found, FEW)

    def of(model, group_value, metric, dimension="valence"):
        which = {"group": "speech", "model": model, "group_value": group_value}
        return only(rows, metric=metric, dimension=dimension, **which)

    before, after = found.original["a"][:, 2], found.respoken["a"][:, 2]
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
    assert of("a", "labels", "mean").value == pytest.approx(found.truth[:, 2].mean())
    edges = [-10, *np.arange(1, 10) / 10, 10]
    counts = [np.histogram(side, edges)[0] for side in (after, before)]
    distance = of("a", "respoken, original", "js_distance")
    assert distance.value == pytest.approx(jensenshannon(*counts, base=2), abs=1e-9)
    assert 0 < distance.ci_low < distance.ci_high < 1
