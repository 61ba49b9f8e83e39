"""EmoDB, on the real corpus and on a made tree."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from raysers.data.labelled import read_corpus, recognise
from raysers.errors import ConfigError
from tests.places import SHARED_DATA, needs_shared
from tests.unit.data.corpora import trees


@needs_shared
def test_the_real_corpus():
    root = SHARED_DATA / "emodb"
    assert recognise(str(root)) == "emodb"
    found, notes = read_corpus("emodb", str(root))
    rows = found.to_pylist()
    assert (len(rows), notes) == (535, [])
    # counts as published with the corpus
    assert Counter(row["emotion"] for row in rows) == {
        "anger": 127, "boredom": 81, "disgust": 46, "fear": 69, "happiness": 71, "neutral": 79,
        "sadness": 62,
    }  # fmt: skip
    assert len({row["speaker"] for row in rows}) == 10
    with (root / "manifest.csv").open(newline="") as file:
        listed = {line["file"]: line for line in csv.DictReader(file)}
    for row in rows:
        line = listed[row["file"].removeprefix(f"{root}/")]
        assert row["speaker"] == line["speaker"]
        assert row["sex"] == {"m": "male", "f": "female"}[line["sex"]]
        assert row["transcript"] == line["transcript"]


def test_a_is_fear_and_w_is_anger(tmp_path):
    for name in ("03a01Fa.wav", "08b10Ab.wav", "16a05Wc.wav", "._03a01Fa.wav"):
        trees.wav(tmp_path / "wav" / name)
    found, notes = read_corpus("emodb", str(tmp_path))
    rows = {row["file"].rpartition("/")[2]: row for row in found.to_pylist()}
    assert [rows[name]["emotion"] for name in sorted(rows)] == ["happiness", "fear", "anger"]
    assert [rows[name]["sex"] for name in sorted(rows)] == ["male", "female", "female"]
    assert rows["08b10Ab.wav"]["transcript"] == (
        "Die wird auf dem Platz sein, wo wir sie immer hinlegen."
    )
    assert any("3 clips of EmoDB" in note for note in notes)


def test_other_names_and_other_audio_beside_it(tmp_path):
    trees.wav(tmp_path / "03a01Fa.wav")  # the wav folder itself
    assert recognise(str(tmp_path)) == "emodb"
    for other in ("17a01Fa.wav", "song.flac", "more/03a01Ta.wav"):  # there is no speaker 17
        trees.text(tmp_path / other, "")
        assert recognise(str(tmp_path)) is None
        (tmp_path / other).unlink()
    trees.wav(tmp_path / "17a01Fa.wav")
    found, notes = read_corpus("emodb", str(tmp_path))
    assert found.num_rows == 1
    assert any("left out: 1 (17a01Fa.wav)" in note for note in notes)
    (tmp_path / "03a01Fa.wav").unlink()
    with pytest.raises(ConfigError, match="no file is named as EmoDB's are"):
        read_corpus("emodb", str(tmp_path))
