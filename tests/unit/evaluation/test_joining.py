"""Which prediction belongs to which label."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.errors import ConfigError
from raysers.evaluation.join import join, with_dataset_names
from raysers.types import NS_PER_S, clip_id

SPAN = pa.duration("ns")


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


def test_the_same_clip_ids_join_in_any_order():
    predictions = table(WHOLE[::-1], [0.7, 0.8, 0.9])
    values, found = joined(table(WHOLE), predictions)
    assert values == pytest.approx([0.9, 0.8, 0.7])
    assert (found.by_id, found.by_path, found.unlabelled, found.unpredicted) == (3, 0, 0, 0)


def test_a_moved_corpus_joins_by_the_path_below_its_root():
    moved = [(f"s3://bucket/deep/corpus{f.removeprefix('/a')}", s, e) for f, s, e in WHOLE]
    values, found = joined(table(WHOLE), table(moved, [0.7, 0.8, 0.9]))
    assert values == pytest.approx([0.7, 0.8, 0.9])
    assert (found.by_id, found.by_path) == (0, 3)


def test_the_end_of_the_file_is_an_open_end():
    known = [(f, s, 2.5 + i) for i, (f, s, _) in enumerate(WHOLE)]
    assert joined(table(WHOLE), table(known))[0] == pytest.approx([0, 0.1, 0.2])
    assert joined(table(known), table(WHOLE))[0] == pytest.approx([0, 0.1, 0.2])


def test_a_window_is_not_the_label_of_the_whole_recording():
    windows = [("/a/x/1.wav", 0, 10), ("/a/x/1.wav", 10, 20), ("/a/x/2.wav", 0, 7)]
    values, found = joined(table(WHOLE), table(windows, [0.5, 0.6, 0.7]))
    assert math.isnan(values[0])
    assert values[1] == pytest.approx(0.7)
    assert found.unlabelled == 2


def test_a_whole_file_is_not_one_of_its_segments():
    segments = [("/a/x/1.wav", 0, 1), ("/a/x/1.wav", 1, 2), ("/a/x/2.wav", 0, 1)]
    values, _ = joined(table(segments), table(WHOLE[:2], [0.5, 0.6]))
    assert np.isnan(values[:2]).all()
    assert values[2] == pytest.approx(0.6)


def test_segments_join_by_their_times():
    segments = [("/a/x/1.wav", 0, 1), ("/a/x/1.wav", 1, 2), ("/a/x/1.wav", 2, None)]
    moved = [("/b/x/1.wav", 2, 2.7), ("/b/x/1.wav", 1, 2), ("/b/x/1.wav", 0, 1.5)]
    values, _ = joined(table(segments), table(moved, [0.3, 0.2, 0.1]))
    assert values[1:] == pytest.approx([0.2, 0.3])
    assert math.isnan(values[0])


def test_the_same_name_in_another_folder_is_another_clip():
    values, found = joined(table(WHOLE), table([("/b/x/1.wav", 0, None), ("/b/z/1.wav", 0, None)]))
    assert values[0] == 0
    assert np.isnan(values[1:]).all()
    assert found.unlabelled == 1


def test_another_speakers_file_of_the_same_name_is_not_taken_where_any_file_is_the_same():
    labels = table([("/d/sam/1.wav", 0, None), ("/d/sam/2.wav", 0, None)])
    both = [("/d/bea/1.wav", 0, 1), ("/d/sam/1.wav", 0, 1), ("/d/bea/2.wav", 0, 1)]
    values, found = joined(labels, table(both, [0.1, 0.5, 0.2]))
    assert values[0] == 0.5
    assert math.isnan(values[1])
    assert (found.unlabelled, found.moved) == (2, ())


def test_of_several_folders_the_one_named_like_the_labels_is_theirs_and_is_told():
    labels = table([("/d/sam/1.wav", 0, None), ("/d/sam/2.wav", 0, None)])
    moved = [("/new/bea/1.wav", 0, 1), ("/new/sam/1.wav", 0, 1), ("/new/bea/2.wav", 0, 1)]
    values, found = joined(labels, table(moved, [0.1, 0.5, 0.2]))
    assert values[0] == 0.5
    assert math.isnan(values[1])
    assert found.moved == ("/new/sam/",)


def test_failed_predictions_are_counted_and_have_no_scores():
    ok, failed = table(WHOLE[:1], [0.5]), table(WHOLE[1:2], [None], status="unreadable")
    odd = table(WHOLE[2:], [math.nan])
    values, found = joined(table(WHOLE), pa.concat_tables([ok, failed, odd]))
    assert values[0] == 0.5
    assert np.isnan(values[1:]).all()
    assert found.statuses == {"ok": 1, "unreadable": 1, "not_finite": 1}
    assert found.failed_share == pytest.approx(2 / 3)


def test_nothing_in_common_is_refused_with_counts_and_examples():
    with pytest.raises(
        ConfigError, match=r"none of the 2 clips .* 3 labelled .*/q/1.wav"
    ) as caught:
        join(table(WHOLE), {"m": table([("/q/1.wav", 0, 1), ("/q/2.wav", 0, 1)])})
    assert "\n" not in str(caught.value)


def test_a_clip_predicted_twice_is_refused():
    twice = table([("/b/x/1.wav", 0, 2), ("/c/x/1.wav", 0, 2)])
    with pytest.raises(ConfigError, match=r"more than once \(first: /a/x/1.wav\)"):
        join(table(WHOLE), {"m": twice})


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
    scores, coverage = join(labels, {"m": predictions, "n": table(WHOLE)})
    assert coverage["m"].statuses == {"ok": 2, "not_finite": 1}
    assert list(scores.categories) == list(scores.deviations) == ["m"]
    found = scores.categories["m"]
    assert tuple(found.names) == ("happiness", "anger")
    np.testing.assert_allclose(
        found.probabilities, [[np.nan, np.nan], [0.8, 0], [0.8, 0.2]], rtol=1e-6
    )
    np.testing.assert_allclose(scores.deviations["m"][:, 0], [np.nan, 0.2, 0.1], rtol=1e-6)
    assert scores.emotions().tolist() == ["sadness", "fear", "anger"]


def test_a_model_of_categories_alone_has_scores():
    nothing = [None] * 3
    predictions = table(WHOLE, nothing, p_anger=pa.array([1, 0, None], pa.float32()))
    scores, coverage = join(table(WHOLE), {"m": predictions})
    assert coverage["m"].statuses == {"ok": 2, "not_finite": 1}
    assert scores.categories["m"].probabilities[:2, 0].tolist() == [1, 0]


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
    named = with_dataset_names(table(WHOLE))
    assert named["corpus"].to_pylist() == ["a"] * 3
    some = table(WHOLE, corpus=pa.array([None, "", "emodb"], pa.string()))
    assert with_dataset_names(some)["corpus"].to_pylist() == ["x", "x", "emodb"]
