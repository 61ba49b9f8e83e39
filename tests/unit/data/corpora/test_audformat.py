"""audformat databases: what audformat itself writes, and what it would pass over in silence."""

from __future__ import annotations

from pathlib import Path

import audformat
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raysers.data.labelled import read_corpus, read_labelled, recognise
from raysers.data.sources import list_inputs
from raysers.errors import ConfigError
from tests.unit.data.corpora import trees

FILES = ["audio/001.wav", "audio/002.wav", "audio/003.wav"]


def database(root: Path, storage_format: str = "parquet") -> audformat.Database:
    """Three files; ratings on 1..5 of two, in splits; sexes in a misc table."""
    db = audformat.Database("made", source="here", usage="unrestricted", languages=["de"])
    for name in ("arousal", "valence"):
        db.schemes[name] = audformat.Scheme("float", minimum=1, maximum=5)
    db.schemes["emotion"] = audformat.Scheme("str", labels=["anger", "happy"])
    db.schemes["age"] = audformat.Scheme("int")
    db.schemes["gender"] = audformat.Scheme("str", labels=["female", "male"])
    db["speaker"] = audformat.MiscTable(pd.Index([3, 8], name="speaker", dtype="Int64"))
    db["speaker"]["gender"] = audformat.Column(scheme_id="gender")
    db["speaker"]["gender"].set(["male", "female"])
    db.schemes["speaker"] = audformat.Scheme("int", labels="speaker")
    db.splits["train"] = audformat.Split("train")
    db.splits["eval"] = audformat.Split("test")
    db["files"] = audformat.Table(audformat.filewise_index(FILES))
    db["files"]["speaker"] = audformat.Column(scheme_id="speaker")
    db["files"]["speaker"].set([3, 8, 8])
    for name, split, file, values in (
        ("emotion.train.gold_standard", "train", FILES[0], (2.0, 5.0, "anger")),
        ("emotion.eval.gold_standard", "eval", FILES[1], (4.5, 1.0, "happy")),
    ):
        db[name] = audformat.Table(audformat.filewise_index([file]), split_id=split)
        for column, value in zip(("arousal", "valence", "emotion"), values, strict=True):
            db[name][column] = audformat.Column(scheme_id=column)
            db[name][column].set([value])
    db["emotion"] = audformat.Table(audformat.filewise_index(FILES))
    db["emotion"]["emotion"] = audformat.Column(scheme_id="emotion")
    db["emotion"]["emotion"].set(["happy", "happy", "anger"])
    db.save(str(root), storage_format=storage_format)
    return db


@pytest.mark.parametrize("storage_format", ["parquet", "csv"])
def test_what_audformat_writes(tmp_path, storage_format):
    database(tmp_path, storage_format)
    assert recognise(str(tmp_path)) == "audformat"
    found, notes = read_corpus("audformat", str(tmp_path))
    rows = {row["file"]: row for row in found.to_pylist()}
    # the consensus tables are the labels; the table of all ratings makes no clip and no label
    assert set(rows) == {str(tmp_path / name) for name in FILES[:2]}
    first, second = rows[str(tmp_path / FILES[0])], rows[str(tmp_path / FILES[1])]
    assert (first["arousal"], first["valence"], first.get("dominance")) == (0.25, 1.0, None)
    assert (second["arousal"], second["valence"]) == (0.875, 0.0)
    assert (first["emotion"], second["emotion"]) == ("anger", "happiness")
    assert (first["split"], second["split"]) == ("train", "test")
    assert [(r["speaker"], r["sex"]) for r in (first, second)] == [("3", "male"), ("8", "female")]
    assert (first["corpus"], first["language"], first["start"]) == ("made", "deu", None)
    assert any("emotion.eval.gold_standard" in note for note in notes)


def test_segments_take_what_is_known_of_their_file(tmp_path):
    db = database(tmp_path / "x")
    index = audformat.segmented_index(
        [FILES[0], FILES[0], FILES[2]], ["0s", "1.5s", "0s"], ["1.5s", pd.NaT, "2s"]
    )
    db["parts.dev.gold_standard"] = audformat.Table(index)
    db["parts.dev.gold_standard"]["arousal"] = audformat.Column(scheme_id="arousal")
    db["parts.dev.gold_standard"]["arousal"].set([1.0, 3.0, None])
    db.drop_tables("emotion.train.gold_standard")
    db.save(str(tmp_path / "y"))
    found = read_corpus("audformat", str(tmp_path / "y"))[0].to_pylist()
    rows = [r for r in found if r["split"] == "dev"]
    spans = [(r["start"].total_seconds(), r["end"] and r["end"].total_seconds()) for r in rows]
    assert spans == [(0, 1.5), (1.5, None), (0, 2)]
    assert [r["arousal"] for r in rows] == [0.0, 0.5, None]
    assert [(r["speaker"], r["sex"]) for r in rows] == [
        ("3", "male"),
        ("3", "male"),
        ("8", "female"),
    ]


HEADER = {
    "name": "by-hand",
    "source": "here",
    "usage": "research",
    "schemes": {
        "arousal": {"dtype": "float", "minimum": 0, "maximum": 1},
        "valence": {"dtype": "float", "minimum": 0, "maximum": 1},
        "plain": {"dtype": "float"},
        "emotion": {"dtype": "str", "labels": {"anger": "loud", "calm": None}},
        "speaker": {"dtype": "str", "labels": {"a": {"gender": "female"}, "b": {}}},
    },
}


def by_hand(root: Path, columns: dict[str, str], data: dict[str, list], **table: object) -> Path:
    """A database with one table `t`, its Parquet without any metadata of pandas."""
    about = {n: ({"scheme_id": s} if s else {}) for n, s in columns.items()}
    tables = {"t": {"type": "filewise", "columns": about, **table}}
    trees.text(root / "db.yaml", yaml.safe_dump({**HEADER, "tables": tables}, sort_keys=False))
    pq.write_table(pa.table(data), root / "db.t.parquet")
    return root


def test_parquet_is_by_name_and_inline_labels_tell_the_sex(tmp_path):
    root = by_hand(
        tmp_path,
        {"arousal": "arousal", "valence": "valence", "who": "speaker"},
        {"more": [1, 2], "valence": [0.25, None], "who": ["a", "b"], "file": ["x.wav", "/y.wav"],
         "arousal": [1.0, 0.0]},
    )  # fmt: skip
    rows = read_corpus("audformat", str(root))[0].to_pylist()
    assert [(r["arousal"], r["valence"]) for r in rows] == [(1.0, 0.25), (0.0, None)]
    assert [(r["speaker"], r["sex"]) for r in rows] == [("a", "female"), ("b", None)]
    assert [r["file"] for r in rows] == [str(root / "x.wav"), "/y.wav"]


def test_a_csv_in_another_order_than_the_yaml_is_refused(tmp_path):
    """audformat exchanges the two in silence; a reader by name would disagree with it."""
    root = by_hand(tmp_path, {"arousal": "arousal", "valence": "valence"}, {"file": ["x"]})
    (root / "db.t.parquet").unlink()
    trees.text(root / "db.t.csv", "file,valence,arousal\nx.wav,0.1,0.9\n")
    theirs = audformat.Database.load(str(root))["t"].get()
    assert theirs["arousal"].tolist() == [0.1]
    with pytest.raises(ConfigError, match=r"db\.t\.csv: its columns are file, valence, arousal"):
        read_corpus("audformat", str(root))


@pytest.mark.parametrize(
    ("columns", "data", "message"),
    [
        ({"arousal": "arousal"}, {"arousal": [0.5, 1.5]}, "row 2: arousal is 1.5, off its scale"),
        ({"arousal": "plain"}, {"arousal": [0.5, 4.0]}, "row 2: arousal is 4, and its scheme has"),
        ({"arousal": "arousal"}, {"valence": [0.5, 0.5]}, "has no column 'arousal'"),
        ({"emotion": "emotion"}, {"emotion": ["anger", "rage"]}, "row 2: emotion is 'rage', which"),
        ({"who": "speaker"}, {"who": ["a", "b"]}, "no table with arousal"),
        ({"arousal": "missing"}, {"arousal": [1.0, 1.0]}, "names the scheme 'missing'"),
    ],
)
def test_what_audformat_takes_in_silence_is_refused(tmp_path, columns, data, message):
    root = by_hand(tmp_path, columns, {"file": ["a.wav", "b.wav"], **data})
    with pytest.raises(ConfigError) as caught:
        read_corpus("audformat", str(root))
    assert message in str(caught.value)


def test_times_in_plain_numbers(tmp_path):
    data = {"file": ["a.wav"], "start": [10**9], "end": [2 * 10**9], "arousal": [0.5]}
    root = by_hand(tmp_path, {"arousal": "arousal"}, data, type="segmented")
    (row,) = read_corpus("audformat", str(root))[0].to_pylist()
    assert (row["start"].total_seconds(), row["end"].total_seconds()) == (1.0, 2.0)
    data |= {"start": [1.0], "end": [2.5]}
    by_hand(tmp_path, {"arousal": "arousal"}, data, type="segmented")
    with pytest.raises(ConfigError, match="start holds fractions"):
        read_corpus("audformat", str(root))
    (root / "db.t.parquet").unlink()
    trees.text(root / "db.t.csv", "file,start,end,arousal\na.wav,1.0,2.5,0.5\n")
    with pytest.raises(ConfigError, match=r"line 2: start is '1.0': write a duration"):
        read_corpus("audformat", str(root))


def test_missing_and_pickled_tables(tmp_path):
    root = by_hand(tmp_path, {"arousal": "arousal"}, {"file": ["a"], "arousal": [0.5]})
    (root / "db.t.parquet").rename(root / "db.t.pkl")
    with pytest.raises(ConfigError, match=r"db\.t\.pkl is a pickle"):
        read_corpus("audformat", str(root))
    (root / "db.t.pkl").unlink()
    with pytest.raises(ConfigError, match=r"there is no db\.t\.parquet"):
        read_corpus("audformat", str(root))
    trees.text(root / "db.yaml", "name: [")
    with pytest.raises(ConfigError, match="cannot be read: line 2"):
        read_corpus("audformat", str(root))


def add(db: audformat.Database, name: str, file: str, arousal: float) -> None:
    db[name] = audformat.Table(audformat.filewise_index([file]))
    db[name]["arousal"] = audformat.Column(scheme_id="arousal")
    db[name]["arousal"].set([arousal])


def test_tables_that_differ(tmp_path):
    db = database(tmp_path / "x")
    add(db, "other.gold_standard", FILES[0], 3.0)
    add(db, "laryngo.emotion.gold_standard", "laryngo/001.wav", 1.0)  # another sensor's copy
    db.save(str(tmp_path / "y"))
    found, notes = read_corpus("audformat", str(tmp_path / "y"))
    assert found.num_rows == 2
    assert any("tables differ in arousal (1)" in note for note in notes)
    add(db, "emotion.dev.gold_standard", FILES[0], 1.0)
    db.save(str(tmp_path / "z"))
    with pytest.raises(ConfigError, match=r"audio/001.wav is in \w+ here and in \w+ in the"):
        read_corpus("audformat", str(tmp_path / "z"))


def rated_twice(root: Path, columns: tuple[str, str]) -> Path:
    """One table whose two columns are both of the scheme arousal: 1 and 5 on 1..5."""
    db = audformat.Database("made", source="here", usage="unrestricted")
    db.schemes["arousal"] = audformat.Scheme("float", minimum=1, maximum=5)
    db["ratings"] = audformat.Table(audformat.filewise_index(FILES[:1]))
    for column, value in zip(columns, (1.0, 5.0), strict=True):
        db["ratings"][column] = audformat.Column(scheme_id="arousal")
        db["ratings"][column].set([value])
    db.save(str(root))
    trees.wav(root / FILES[0])
    return root


def test_no_single_raters_column_is_taken_for_the_label(tmp_path):
    with pytest.raises(ConfigError, match=r"several columns of arousal \(r1, r2\)"):
        read_corpus("audformat", str(rated_twice(tmp_path / "raters", ("r1", "r2"))))
    root = rated_twice(tmp_path / "named", ("arousal.std", "arousal"))
    named = read_corpus("audformat", str(root))[0]
    assert named["arousal"].to_pylist() == [1.0]  # of the column called so: (5 - 1) / 4


@pytest.mark.parametrize("storage_format", ["csv", "parquet"])
def test_a_database_is_read_as_one_wherever_an_input_is(tmp_path, storage_format):
    db = audformat.Database("x")
    db.schemes["arousal"] = audformat.Scheme("float", minimum=1, maximum=7)
    db.schemes["gender"] = audformat.Scheme(labels=["female", "male"])
    starts, ends = ["0s", "0.2s", "0.7s"], ["0.5s", "0.9s", pd.NaT]
    spans = audformat.segmented_index(["a.wav", "a.wav", "b.wav"], starts, ends)
    db["segments"] = audformat.Table(spans)
    db["segments"]["arousal"] = audformat.Column(scheme_id="arousal")
    db["segments"]["arousal"].set([1, 4, 7])
    db["files"] = audformat.Table(audformat.filewise_index(["a.wav", "b.wav"]))
    db["files"]["gender"] = audformat.Column(scheme_id="gender")
    db["files"]["gender"].set(["female", "male"])
    db.save(str(tmp_path), storage_format=storage_format)
    for name in ("a.wav", "b.wav"):
        trees.wav(tmp_path / name, 1.0)

    def rows(place, **how):
        batches = list_inputs([str(place)], **how)
        return pa.Table.from_batches(batches).to_pylist()

    for place in (tmp_path, tmp_path / "db.yaml", tmp_path / f"db.segments.{storage_format}"):
        found = rows(place)
        assert [row["start"].total_seconds() for row in found] == [0, 0.2, 0.7]
        assert [row["arousal"] for row in found] == [0, 0.5, 1]
        assert [row["sex"] for row in found] == ["female", "female", "male"]
        labelled = read_labelled([str(place)]).table
        assert labelled["arousal"].to_pylist() == [0, 0.5, 1]
    files = rows(tmp_path / f"db.files.{storage_format}")
    assert [(row["start"], row["sex"]) for row in files] == [(None, "female"), (None, "male")]
    assert len(rows(tmp_path, databases=False)) == 2
    assert len(read_labelled([str(tmp_path)], corpus="none").table) == 2


def test_a_database_without_labels_gives_its_segments(tmp_path):
    db = audformat.Database("x")
    db["segments"] = audformat.Table(audformat.segmented_index(["a.wav"], ["0.2s"], ["0.9s"]))
    db["files"] = audformat.Table(audformat.filewise_index(["a.wav"]))
    db.save(str(tmp_path), storage_format="parquet")
    (row,) = pa.Table.from_batches(list_inputs([str(tmp_path)])).to_pylist()
    assert (row["start"].total_seconds(), row["end"].total_seconds()) == (0.2, 0.9)
    with pytest.raises(ConfigError, match="no table with arousal"):
        read_labelled([str(tmp_path)])
    other = trees.text(tmp_path / "db.other.csv", "file\na.wav\n")
    with pytest.raises(ConfigError, match="no table 'other'"):
        list(list_inputs([str(other)]))
