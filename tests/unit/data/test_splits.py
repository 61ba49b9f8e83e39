"""Folds, leaks, subsets, the shuffled control, and the identities that they follow from."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.data.labelled import read_labelled
from raysers.data.splits import (
    check_leakage,
    fold_splits,
    identities,
    leaks,
    shuffle_labels,
    take_fraction,
)
from raysers.errors import ConfigError
from tests.places import SHARED_DATA, needs_shared

NAMES = ("corpus", "speaker", "session", "sex", "split")
Row = tuple[str | None, ...]


def clips(*rows: Row) -> pa.Table:
    """Clips of (corpus, speaker, session, sex, split)."""
    columns = {
        name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(NAMES)
    }
    columns |= {
        "clip_id": pa.array([f"{i:032x}" for i in range(len(rows))]),
        "arousal": pa.array(np.linspace(0, 1, len(rows)), pa.float32()),
        "emotion": pa.array([f"e{i}" for i in range(len(rows))]),
        "file": pa.array([f"/corpus/{i:03d}.wav" for i in range(len(rows))]),
        "start": pa.array([0] * len(rows), pa.duration("ns")),
        "end": pa.nulls(len(rows), pa.duration("ns")),
    }
    return pa.table(columns)


def dev_of(table: pa.Table, name: str) -> set[str]:
    return {row[name] for row in table.to_pylist() if row["split"] == "dev"}


@needs_shared
def test_emodb_falls_into_five_folds_of_a_woman_and_a_man():
    table = read_labelled([str(SHARED_DATA / "emodb")]).table
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    pairs = [{"03", "08"}, {"09", "10"}, {"11", "13"}, {"12", "14"}, {"15", "16"}]
    for fold, pair in enumerate(pairs):
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
    assert not any(leaks(fold_splits(clips(*rows), 5, fold)) for fold in range(5))
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
        assert split["split"].take([4, 5, 6]).to_pylist() == ["train", "test", "train"]


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
    with pytest.raises(ConfigError, match="fold 0 is empty, no speaker is known"):
        fold_splits(clips(("x", None, None, None, None)), 2, 0)
    two = clips(("x", "a", None, "male", None), ("x", "b", None, "male", None))
    with pytest.raises(ConfigError, match="fold 2 is empty, only 2 speakers"):
        fold_splits(two, 3, 2)
    for folds, fold in ((1, 0), (2, 2), (2, -1)):
        with pytest.raises(ConfigError, match="give 2 or more"):
            fold_splits(two, folds, fold)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            [
                ("emodb", "03", None, "male", "train"),
                ("emodb", "03", None, "male", "dev"),
                ("emodb", "08", None, "female", "train"),
                ("other", "08", None, "female", "dev"),  # another corpus' 08 is somebody else
                ("msp-podcast", "7", "0001", None, "test1"),
                ("msp-podcast", "7", "0001", None, "test3"),
                ("msp-podcast", "9", "0002", None, "train"),
                ("msp-podcast", "9", "0005", None, "test2"),
            ],
            [
                "speaker 03 of emodb is in train and in dev (1 clips)",
                "speaker 9 of msp-podcast is in train and in test2 (1 clips)",
            ],
            id="speakers, not between tests",
        ),
        pytest.param(
            [
                ("msp-podcast", None, "0001", None, "train"),
                ("msp-podcast", None, "0002", None, "dev"),
                ("msp-podcast", "5", "0001", None, "dev"),
                ("msp-podcast", None, "0003", None, "train"),
                ("msp-podcast", None, "0003", None, "test1"),
            ],
            ["podcast 0003 of msp-podcast is in train and in test1 (1 clips)"],
            id="podcasts of unknown speakers",
        ),
        pytest.param(
            [
                ("iemocap", "Ses01F", "Ses01", "female", "train"),
                ("iemocap", "Ses01M", "Ses01", "male", "dev"),
                ("cmu-mosi", "ann", "v1", None, "train"),
                ("cmu-mosi", "bob", "v1", None, "test"),
                ("cmu-mosi", "cyd", "v2", None, "train"),
                ("cmu-mosi", "cyd", "v3", None, "dev"),
            ],
            [
                "speaker cyd of cmu-mosi is in train and in dev (1 clips)",
                "video v1 of cmu-mosi is in train and in test (1 clips)",
                "session Ses01 of iemocap is in train and in dev (1 clips)",
            ],
            id="sessions and videos",
        ),
        pytest.param(
            [("iemocap", "Ses01F", None, None, "train"), ("iemocap", "Ses01F", None, None, "dev")],
            ["speaker Ses01F of iemocap is in train and in dev (1 clips)"],
            id="iemocap without sessions",
        ),
    ],
)
def test_leaks(rows: list[Row], expected: list[str]) -> None:
    assert [str(leak) for leak in leaks(clips(*rows))] == expected


def test_the_same_file_leaks_and_clips_without_labels_do_not():
    table = clips(*[(None, None, None, None, split) for split in ("train", "dev", "dev")])
    files = pa.array(["/a.wav", "/a.wav", "/b.wav"])
    (leak,) = leaks(table.set_column(table.column_names.index("file"), "file", files))
    assert "/a.wav" in str(leak)
    table = clips(("c", "s", None, None, "train"), ("c", "s", None, None, "test3"))
    assert len(leaks(table)) == 1
    for name, column in (
        ("arousal", pa.array([0.5, None], pa.float32())),
        ("emotion", pa.array(["e0", None])),
    ):
        table = table.set_column(table.column_names.index(name), name, column)
    assert leaks(table) == []


def test_leaks_are_refused_by_name_unless_allowed():
    rows = [("x", f"s{i}", None, None, split) for i in range(5) for split in ("train", "dev")]
    with pytest.raises(ConfigError) as caught:
        check_leakage(clips(*rows), allow=False)
    message = str(caught.value)
    for words in ("speaker s0 of x", "speaker s2 of x", "and 2 more", "--allow-leakage"):
        assert words in message
    assert "s3" not in message
    assert len(check_leakage(clips(*rows), allow=True)) == 5
    assert check_leakage(clips(*rows[::2]), allow=False) == []


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
    picks = {tuple(take_fraction(table, 0.2, seed)["clip_id"].to_pylist()) for seed in range(5)}
    assert len(picks) == 5
    for fraction in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="--train-fraction"):
            take_fraction(table, fraction, 0)


def test_shuffled_labels_are_the_same_labels_on_other_clips():
    table = clips(*[("x", f"s{i}", None, None, "train") for i in range(200)])
    shuffled = shuffle_labels(table, 3)
    assert shuffled.select(["clip_id", "speaker"]).equals(table.select(["clip_id", "speaker"]))
    before, after = (t.select(["arousal", "emotion"]).to_pylist() for t in (table, shuffled))
    # dimension and category move together
    assert sorted(before, key=str) == sorted(after, key=str)
    moved, still = ([row["arousal"] for row in rows] for rows in (after, before))
    assert abs(np.corrcoef(moved, still)[0, 1]) < 0.25
    # blind to the order of the rows
    order = pa.array(np.random.default_rng(0).permutation(200))
    again = shuffle_labels(table.take(order), 3).sort_by("clip_id")
    assert again["arousal"].equals(shuffled["arousal"])
    assert not shuffle_labels(table, 4)["arousal"].equals(shuffled["arousal"])


# identities: one for every clip, the same wherever its corpus lies ------------------------------

SPANS = [(0, None), (0, 5), (5, None)]


def spans_of(*files: str, corpora: list[str | None] | None = None) -> list[str]:
    """Identities of three spans of every file."""
    rows = [(file, *span) for file in files for span in SPANS]
    columns = {
        "file": pa.array([row[0] for row in rows], pa.string()),
        "start": pa.array([row[1] for row in rows], pa.duration("ns")),
        "end": pa.array([row[2] for row in rows], pa.duration("ns")),
    }
    if corpora is not None:
        columns["corpus"] = pa.array([c for c in corpora for _ in SPANS], pa.string())
    return identities(pa.table(columns))


@pytest.mark.parametrize(
    ("names", "before", "after"),
    [
        *(
            (("one/1.wav", "one/2.wav", "two/1.wav"), "/data/", root)
            for root in ("/b/", "/a/deeper/", "s3://bucket/x/", "/b.tar#inside/")
        ),
        (("1.wav", "2.wav"), "/data/", "/z/b.tar#"),  # a flat corpus in a tar
        (("ab1.wav", "ab2.wav"), "/a/", "/c/"),  # names that begin alike are no folders
    ],
)
def test_moving_a_corpus_changes_no_identity(names, before, after):
    known = spans_of(*(before + name for name in names))
    assert len(set(known)) == 3 * len(names)
    assert spans_of(*(after + name for name in names)) == known


def test_channels_are_clips_of_their_own_and_no_stream_is_the_first():
    files = pa.array(["/a/1.wav"] * 4)
    spans = {name: pa.nulls(4, pa.duration("ns")) for name in ("start", "end")}
    table = pa.table({"file": files, **spans, "channel": [None, 1, 2, 2]})
    assert len(set(identities(table))) == 3
    assert identities(table)[0] == identities(table.drop_columns(["channel"]))[0]
    streams = identities(table.append_column("audio_stream", pa.array([0, 0, 0, 1])))
    assert streams[:3] == identities(table)[:3]
    assert len(set(streams)) == 4


def test_each_corpus_has_its_own_folder():
    files = ("/a/x/1.wav", "/a/x/2.wav", "/b/1.wav", "/b/2.wav")
    corpora = ["one", "one", None, None]
    both = spans_of(*files, corpora=corpora)
    assert len(set(both)) == 12
    assert spans_of("/z/1.wav", "/z/2.wav", *files[2:], corpora=corpora) == both
    assert spans_of(*files[:2], corpora=corpora[:2]) == both[:6]
    assert spans_of() == []
