"""Folds, leaks, subsets and the shuffled control."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysers.data.labelled import read_labelled
from raysers.data.splits import (
    check_leakage,
    fold_splits,
    leaks,
    shuffle_labels,
    take_fraction,
)
from raysers.errors import ConfigError
from tests.places import SHARED_DATA, needs_shared

NAMES = ("corpus", "speaker", "session", "sex", "split")


def clips(*rows: tuple[str | None, ...]) -> pa.Table:
    """Clips of (corpus, speaker, session, sex, split)."""
    columns = {name: [row[i] for row in rows] for i, name in enumerate(NAMES)}
    types = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    ids = pa.array([f"{i:032x}" for i in range(len(rows))])
    arousal = pa.array(np.linspace(0, 1, len(rows)), pa.float32())
    emotion = pa.array([f"e{i}" for i in range(len(rows))])
    where = {
        "file": pa.array([f"/corpus/{i:03d}.wav" for i in range(len(rows))]),
        "start": pa.array([0] * len(rows), pa.duration("ns")),
        "end": pa.nulls(len(rows), pa.duration("ns")),
    }
    return pa.table({"clip_id": ids, **types, "arousal": arousal, "emotion": emotion, **where})


def dev_of(table: pa.Table, name: str) -> set[str]:
    return {row[name] for row in table.to_pylist() if row["split"] == "dev"}


@needs_shared
def test_emodb_falls_into_five_folds_of_a_woman_and_a_man():
    table = read_labelled([str(SHARED_DATA / "emodb")]).table
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    for fold, pair in enumerate(
        [{"03", "08"}, {"09", "10"}, {"11", "13"}, {"12", "14"}, {"15", "16"}]
    ):
        split = fold_splits(shuffled, 5, fold)
        assert dev_of(split, "speaker") == pair
        assert set(split["split"].to_pylist()) == {"train", "dev"}
        assert check_leakage(split, allow=False) == []


def test_iemocap_folds_are_sessions_also_where_only_one_actor_has_clips():
    rows = [
        ("iemocap", f"Ses0{s}{sex}", f"Ses0{s}", {"F": "female", "M": "male"}[sex], None)
        for s in range(1, 6)
        for sex in "FM"
        if (s, sex) != (1, "F")
    ]
    for fold in range(5):
        split = fold_splits(clips(*rows), 5, fold)
        assert leaks(split) == []
    devs = [dev_of(fold_splits(clips(*rows[1:]), 4, fold), "session") for fold in range(4)]
    assert devs == [{"Ses02"}, {"Ses03"}, {"Ses04"}, {"Ses05"}]


def test_speakers_who_share_sessions_stay_together_and_unknown_ones_are_trained_on():
    table = clips(
        (None, "a", "s1", "female", None),
        (None, "b", "s1", "male", None),
        (None, "b", "s2", "male", None),
        (None, "c", "s3", "male", None),
        (None, None, None, None, "dev"),
        (None, "d", "s4", "male", "test"),
        ("msp-podcast", None, "0001", None, None),
    )
    for fold, dev in ((0, {"a", "b"}), (1, {"c"})):
        split = fold_splits(table, 2, fold)
        assert leaks(split) == []
        assert dev_of(split, "speaker") == dev
        rows = split.to_pylist()
        assert [rows[i]["split"] for i in (4, 5, 6)] == ["train", "test", "train"]


@pytest.mark.parametrize(("women", "men", "folds"), [(2, 2, 4), (3, 3, 5), (1, 6, 7), (3, 4, 3)])
def test_every_fold_gets_speakers_and_the_sexes_are_spread(women: int, men: int, folds: int):
    sexes = ["female"] * women + ["male"] * men
    table = clips(*(("x", f"{i:02d}", None, sex, None) for i, sex in enumerate(sexes)))
    devs = [dev_of(fold_splits(table, folds, fold), "speaker") for fold in range(folds)]
    assert sum(map(len, devs)) == women + men == len(set().union(*devs))
    for found in (devs, [d & {f"{i:02d}" for i in range(women)} for d in devs]):
        sizes = [len(dev) for dev in found]
        assert max(sizes) - min(sizes) <= 1


def test_folds_that_cannot_be_are_refused():
    nobody = clips(("x", None, None, None, None))
    with pytest.raises(ConfigError, match="fold 0 is empty, no speaker is"):
        fold_splits(nobody, 2, 0)
    two = clips(("x", "a", None, "male", None), ("x", "b", None, "male", None))
    with pytest.raises(ConfigError, match="fold 2 is empty, only 2 speakers"):
        fold_splits(two, 3, 2)
    for folds, fold in ((1, 0), (2, 2), (2, -1)):
        with pytest.raises(ConfigError, match="give 2 or more"):
            fold_splits(two, folds, fold)


def test_a_speaker_on_both_sides_is_a_leak_but_not_between_tests():
    table = clips(
        ("emodb", "03", None, "male", "train"),
        ("emodb", "03", None, "male", "dev"),
        ("emodb", "08", None, "female", "train"),
        ("other", "08", None, "female", "dev"),  # another corpus' 08 is somebody else
        ("msp-podcast", "7", "0001", None, "test1"),
        ("msp-podcast", "7", "0001", None, "test3"),
        ("msp-podcast", "9", "0002", None, "train"),
        ("msp-podcast", "9", "0005", None, "test2"),
    )
    assert [str(leak) for leak in leaks(table)] == [
        "speaker 03 of emodb is in train and in dev (1 clips)",
        "speaker 9 of msp-podcast is in train and in test2 (1 clips)",
    ]


def test_unknown_speakers_leak_by_podcast_and_are_no_speaker():
    table = clips(
        ("msp-podcast", None, "0001", None, "train"),
        ("msp-podcast", None, "0002", None, "dev"),
        ("msp-podcast", "5", "0001", None, "dev"),
        ("msp-podcast", None, "0003", None, "train"),
        ("msp-podcast", None, "0003", None, "test1"),
    )
    assert [str(leak) for leak in leaks(table)] == [
        "podcast 0003 of msp-podcast is in train and in test1 (1 clips)"
    ]


def test_iemocap_leaks_by_session_and_mosi_by_video():
    table = clips(
        ("iemocap", "Ses01F", "Ses01", "female", "train"),
        ("iemocap", "Ses01M", "Ses01", "male", "dev"),
        ("cmu-mosi", "ann", "v1", None, "train"),
        ("cmu-mosi", "bob", "v1", None, "test"),
        ("cmu-mosi", "cyd", "v2", None, "train"),
        ("cmu-mosi", "cyd", "v3", None, "dev"),
    )
    assert [leak.group.kind + " " + leak.group.name for leak in leaks(table)] == [
        "speaker cyd",
        "video v1",
        "session Ses01",
    ]


def test_a_copy_of_iemocap_without_sessions_leaks_by_speaker():
    table = clips(
        ("iemocap", "Ses01F", None, "female", "train"),
        ("iemocap", "Ses01F", None, "female", "dev"),
    )
    assert [leak.group.kind for leak in leaks(table)] == ["speaker"]


def test_of_nobody_known_the_same_file_on_both_sides_is_a_leak():
    table = clips(*[(None, None, None, None, split) for split in ("train", "dev", "dev")])
    place = table.column_names.index("file")
    table = table.set_column(place, "file", pa.array(["/a.wav", "/a.wav", "/b.wav"]))
    (leak,) = leaks(table)
    assert "/a.wav" in str(leak)


def test_clips_without_labels_judge_nothing():
    table = clips(("c", "s", None, None, "train"), ("c", "s", None, None, "test3"))
    assert len(leaks(table)) == 1
    unlabelled = table.set_column(6, "arousal", pa.array([0.5, None], pa.float32()))
    unlabelled = unlabelled.set_column(7, "emotion", pa.array(["e0", None]))
    assert leaks(unlabelled) == []


def test_leaks_are_refused_by_name_unless_allowed():
    rows = [("x", f"s{i}", None, None, split) for i in range(5) for split in ("train", "dev")]
    with pytest.raises(ConfigError) as caught:
        check_leakage(clips(*rows), allow=False)
    message = str(caught.value)
    assert "speaker s0 of x" in message
    assert "speaker s2 of x" in message
    assert "s3" not in message
    assert "and 2 more" in message
    assert "--allow-leakage" in message
    assert len(check_leakage(clips(*rows), allow=True)) == 5
    assert check_leakage(clips(*rows[::2]), allow=False) == []


@settings(max_examples=30, deadline=None)
@given(small=st.floats(0.01, 1), large=st.floats(0.01, 1), seed=st.integers(0, 9), mix=st.randoms())
def test_fractions_are_nested_and_blind_to_order(
    small: float, large: float, seed: int, mix: random.Random
) -> None:
    small, large = sorted((small, large))
    table = clips(*[("x", "a", None, None, "train")] * 60)
    some = take_fraction(table, small, seed)["clip_id"].to_pylist()
    more = take_fraction(table, large, seed)["clip_id"].to_pylist()
    assert set(some) <= set(more)
    assert some == sorted(some)  # the rows' order is kept
    assert len(more) == max(1, round(large * 60))
    order = list(range(60))
    mix.shuffle(order)
    again = take_fraction(table.take(pa.array(order)), small, seed)
    assert set(again["clip_id"].to_pylist()) == set(some)


def test_fractions_differ_by_seed_and_impossible_ones_are_refused():
    table = clips(*[("x", "a", None, None, "train")] * 60)
    picks = [tuple(take_fraction(table, 0.2, seed)["clip_id"].to_pylist()) for seed in range(5)]
    assert len(set(picks)) == 5
    for fraction in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="--train-fraction"):
            take_fraction(table, fraction, 0)


def test_shuffled_labels_are_the_same_labels_on_other_clips():
    table = clips(*[("x", f"s{i}", None, None, "train") for i in range(200)])
    shuffled = shuffle_labels(table, 3)
    assert shuffled["clip_id"].equals(table["clip_id"])
    assert shuffled["speaker"].equals(table["speaker"])
    before, after = table.to_pylist(), shuffled.to_pylist()
    assert sorted(r["arousal"] for r in after) == sorted(r["arousal"] for r in before)
    # dimension and category move together
    emotion_of = {r["arousal"]: r["emotion"] for r in before}
    assert all(emotion_of[r["arousal"]] == r["emotion"] for r in after)
    moved = np.array([r["arousal"] for r in after])
    assert abs(np.corrcoef(moved, [r["arousal"] for r in before])[0, 1]) < 0.25
    # blind to the order of the rows
    order = pa.array(np.random.default_rng(0).permutation(200))
    again = shuffle_labels(table.take(order), 3)
    by_id = dict(zip(again["clip_id"].to_pylist(), again["arousal"].to_pylist(), strict=True))
    assert all(by_id[r["clip_id"]] == r["arousal"] for r in after)
    assert not shuffle_labels(table, 4)["arousal"].equals(shuffled["arousal"])
