"""Which prediction belongs to which label."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.errors import ConfigError
from raysers.evaluation.evaluate import with_training_clips
from raysers.evaluation.join import Predictions, join
from raysers.evaluation.scores import with_dataset_names
from raysers.types import NS_PER_S, clip_id

SPAN = pa.duration("ns")
NAN = math.nan


def table(clips, values=None, status="ok", **columns) -> pa.Table:
    """`clips` as (file, start_s, end_s or None); arousal 0, .1, .2 ... unless given."""
    values = [i / 10 for i in range(len(clips))] if values is None else values
    spans = [(f, int(s * NS_PER_S), None if e is None else int(e * NS_PER_S)) for f, s, e in clips]
    return pa.table(
        {
            "file": pa.array([f for f, _, _ in spans], pa.string()),
            "start": pa.array([s for _, s, _ in spans], SPAN),
            "end": pa.array([e for _, _, e in spans], SPAN),
            "clip_id": pa.array([clip_id(*span) for span in spans], pa.string()),
            "status": pa.array([status] * len(clips), pa.string()),
            **{d: pa.array(values, pa.float32()) for d in ("arousal", "dominance", "valence")},
            **columns,
        }
    )


def joined(labels, predictions) -> tuple[list[float], dict]:
    """Predicted arousal beside every label, and the coverage."""
    scores, coverage = join(labels, {"m": predictions})
    return scores.predictions["m"][:, 0].round(5).tolist(), coverage["m"]


WHOLE = [("/a/x/1.wav", 0, None), ("/a/x/2.wav", 0, None), ("/a/y/1.wav", 0, None)]
KNOWN = [(f, s, 2.5 + i) for i, (f, s, _) in enumerate(WHOLE)]
SEGMENTS = [("/a/x/1.wav", 0, 1), ("/a/x/1.wav", 1, 2), ("/a/x/1.wav", 2, None)]
SAM = [("/d/sam/1.wav", 0, None), ("/d/sam/2.wav", 0, None)]
#: Labelled clips, predicted clips with arousal 0, .1, .2 ..., what is beside each label.
CASES = {
    "ids in any order": (WHOLE, WHOLE[::-1], [0.2, 0.1, 0]),
    "a moved corpus, by the path below its root": (
        WHOLE, [(f"s3://b/deep/c{f.removeprefix('/a')}", s, e) for f, s, e in WHOLE], [0, 0.1, 0.2],
    ),
    "a part of a moved corpus, of which another part has the same names": (
        [("/a/1.wav", 0, 1), ("/a/test/1.wav", 0, 1), ("/a/test/2.wav", 0, 1)],
        [("/b/test/1.wav", 0, 1), ("/b/test/2.wav", 0, 1)],
        [NAN, 0, 0.1],
    ),
    "an open label is the end of the file": (WHOLE, KNOWN, [0, 0.1, 0.2]),
    "so is an open prediction": (KNOWN, WHOLE, [0, 0.1, 0.2]),
    "a window is not the label of the whole recording": (
        WHOLE, [("/a/x/1.wav", 0, 10), ("/a/x/1.wav", 10, 20), ("/a/x/2.wav", 0, 7)],
        [NAN, 0.2, NAN],
    ),
    "a whole file is not one of its segments": (
        [*SEGMENTS[:2], ("/a/x/2.wav", 0, 1)], WHOLE[:2], [NAN, NAN, 0.1],
    ),
    "segments, by their times": (
        SEGMENTS, [("/b/x/1.wav", 2, 2.7), ("/b/x/1.wav", 1, 2), ("/b/x/1.wav", 0, 1.5)],
        [NAN, 0.1, 0],
    ),
    "the same name in another folder is another clip": (
        WHOLE, [("/b/x/1.wav", 0, None), ("/b/z/1.wav", 0, None)], [0, NAN, NAN],
    ),
    "another speaker's file of the same name is not taken where any file is the same": (
        SAM, [("/d/bea/1.wav", 0, 1), ("/d/sam/1.wav", 0, 1), ("/d/bea/2.wav", 0, 1)], [0.1, NAN],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "predicted", "expected"), CASES.values(), ids=CASES)
def test_a_prediction_stands_beside_the_label_of_its_clip(labels, predicted, expected):
    values, found = joined(table(labels), table(predicted))
    assert values == pytest.approx(expected, nan_ok=True)
    count = int(np.isfinite(expected).sum())
    assert found.by_id + found.by_path == count
    assert (found.unlabelled, found.unpredicted) == (len(predicted) - count, len(labels) - count)


def parts(channels=None, streams=None) -> dict[str, pa.Array]:
    """Columns of channels and streams, those that are given."""
    given = {"channel": channels, "audio_stream": streams}
    return {name: pa.array(of, pa.int32()) for name, of in given.items() if of is not None}


def other_ids(clips) -> pa.Array:
    """Ids as of another list of the same clips."""
    return pa.array([f"other {number}" for number in range(len(clips))], pa.string())


def test_channels_and_streams_have_labels_of_their_own():
    clips = [("/a/1.wav", 0, None)] * 4 + [("/a/2.wav", 0, None)]
    channels, streams, order = [1, 1, 2, 2, None], [None, 1, 0, 1, None], [3, 0, 4, 2, 1]
    written = [streams[i] or 0 for i in order]  # no stream is the first one
    values, found = joined(
        table(clips, **parts(channels, streams) | {"clip_id": pa.array(list("abcde"))}),
        table(
            [(*clips[i][:2], 2) for i in order],
            [i / 10 for i in order],
            **parts([channels[i] for i in order], written) | {"clip_id": other_ids(order)},
        ),
    )
    assert values == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert found.unlabelled == found.unpredicted == 0


def test_an_open_label_ends_with_its_channel():
    labels = [("/a/1.wav", 0, None), ("/a/1.wav", 5, 9)]
    predicted = [("/a/1.wav", 0, 10), ("/a/1.wav", 5, 9)]
    ids = {"clip_id": other_ids(predicted)}
    values, _ = joined(table(labels, **parts([1, 2])), table(predicted, **parts([1, 2]) | ids))
    assert values == pytest.approx([0, 0.1])


def test_scores_of_the_mean_are_not_those_of_a_channel():
    labels = table([("/a/1.wav", 0, 2)] * 2, **parts([1, 2]) | {"clip_id": pa.array(["a", "b"])})
    with pytest.raises(ConfigError, match="only one of the two has a column channel"):
        joined(labels, table([("/a/1.wav", 0, 2)]))
    both = table([("/a/1.wav", 0, 2)] * 2, **parts([1, 2]) | {"clip_id": pa.array(["a", "b"])})
    with pytest.raises(ConfigError, match="only one of the two has a column channel"):
        joined(table([("/a/1.wav", 0, 2), ("/a/2.wav", 0, 2)]), both)


def test_of_several_folders_the_one_named_like_the_labels_is_theirs_and_is_told():
    moved = [("/new/bea/1.wav", 0, 1), ("/new/sam/1.wav", 0, 1), ("/new/bea/2.wav", 0, 1)]
    values, found = joined(table(SAM), table(moved, [0.1, 0.5, 0.2]))
    assert values == pytest.approx([0.5, NAN], nan_ok=True)
    assert found.moved == ("/new/sam/",)


def test_failed_predictions_are_counted_and_have_no_scores():
    ok, failed = table(WHOLE[:1], [0.5]), table(WHOLE[1:2], [None], status="unreadable")
    values, found = joined(table(WHOLE), pa.concat_tables([ok, failed, table(WHOLE[2:], [NAN])]))
    assert values == pytest.approx([0.5, NAN, NAN], nan_ok=True)
    assert found.statuses == {"ok": 1, "unreadable": 1, "not_finite": 1}
    assert found.failed_share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([("/q/1.wav", 0, 1), ("/q/2.wav", 0, 1)], r"none of the 2 clips .* 3 labelled .*/q/1.wav"),
        ([("/b/x/1.wav", 0, 2), ("/c/x/1.wav", 0, 2)], r"more than once \(first: /a/x/1.wav\)"),
    ],
)
def test_nothing_in_common_and_clips_predicted_twice_are_refused(predicted, message):
    with pytest.raises(ConfigError, match=message):
        join(table(WHOLE), {"m": table(predicted)})


def test_categories_and_deviations_come_along():
    predictions = table(
        WHOLE[::-1],
        arousal_sd=pa.array([0.1, 0.2, None], pa.float32()),
        emotion=pa.array(["happy", "joy", None]),
        p_happy=pa.array([0.7, 0.2, None], pa.float32()),
        p_joy=pa.array([0.1, 0.6, None], pa.float32()),
        p_ang=pa.array([0.2, None, None], pa.float32()),  # another fold's model has no such
    )
    labels = table(WHOLE, emotion=pa.array(["sad", "fear", "anger"]))
    alone = table(WHOLE, [None] * 3, p_anger=pa.array([1, 0, None], pa.float32()))
    scores, coverage = join(labels, {"m": predictions, "n": table(WHOLE), "alone": alone})
    assert coverage["m"].statuses == coverage["alone"].statuses == {"ok": 2, "not_finite": 1}
    assert list(scores.categories) == ["m", "alone"]
    assert list(scores.deviations) == ["m"]
    found = scores.categories["m"]
    assert tuple(found.names) == ("happiness", "anger")
    expected = [[NAN, NAN], [0.8, 0], [0.8, 0.2]]
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.deviations["m"][:, 0], [NAN, 0.2, 0.1], rtol=1e-6)
    assert scores.emotions().tolist() == ["sadness", "fear", "anger"]


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(st.tuples(NAMES, NAMES, NAMES).map("/".join), min_size=2, max_size=12, unique=True)


@given(PATHS, st.randoms(use_true_random=False))
def test_moving_and_shuffling_a_corpus_never_changes_the_join(paths, random):
    labels = table([(f"/old/root/{p}.wav", 0, None) for p in paths])
    order = list(range(len(paths)))
    random.shuffle(order)
    moved = table([(f"/new/{paths[i]}.wav", 0, 1) for i in order], [i / 100 for i in order])
    assert joined(labels, moved)[0] == pytest.approx([i / 100 for i in range(len(paths))])


def test_clips_without_a_corpus_are_named_after_the_folder_they_share():
    assert with_dataset_names(table(WHOLE))["corpus"].to_pylist() == ["a"] * 3
    some = table(WHOLE, corpus=pa.array([None, "", "emodb"], pa.string()))
    assert with_dataset_names(some)["corpus"].to_pylist() == ["x", "x", "emodb"]


def test_clips_that_the_built_in_model_was_trained_on_are_known_by_their_names():
    files = ["/x/03a01Fa.wav", "s3://b/e.tar#wav/16b10Wb.flac", "/x/03a01Fa.wav.txt", "/x/1.wav"]
    rows = table([(file, 0, 1) for file in files])
    own = Predictions(model="raysers-base@898205b0", revision="", folders=(), table=rows)
    assert with_training_clips(own).table["trained_on"].to_pylist() == [1, 1, 0, 0]
    other = replace(own, model="/models/raysers-base")
    assert "trained_on" not in with_training_clips(other).table.column_names
