"""MSP-Podcast as its releases spell it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysers.data.labelled import read_corpus, recognise
from raysers.errors import ConfigError
from tests.s3 import Bucket
from tests.unit.data.corpora import trees

#: (release, label file, audio folder, dev word, test word)
RELEASES = [
    ("1.6", "label/labels_concensus.csv", "Audios", "Validation", "Test"),
    ("1.8", "Labels/labels_concensus.csv", "Audios", "Validation", "Test1"),
    ("1.9", "labels/labels_concensus.csv", "Audios", "Development", "Test2"),
    ("1.10", "Labels/labels_consensus.csv", "Audios", "Validation", "Test1"),
    ("1.12", "Labels/labels_consensus.csv", "Audios", "Development", "Test1"),
    ("copy", "Labels/labels_consensus.csv", "Audio", "Development", "Test1"),
]


def by_name(root: Path) -> tuple[dict[str, dict], tuple[str, ...]]:
    found, notes = read_corpus("msp-podcast", str(root))
    return {row["file"].rpartition("/")[2]: row for row in found.to_pylist()}, notes


@pytest.mark.parametrize(("release", "labels", "audio", "dev", "test"), RELEASES)
def test_every_release(tmp_path, release, labels, audio, dev, test):
    root = trees.msp_podcast(
        tmp_path / f"MSP-PODCAST-Publish-{release}",
        [
            # from a public readme of the corpus
            f"MSP-PODCAST_0001_0008.wav,N,2.2,4.0,2.6,30,Male,{test}",
            f"MSP-PODCAST_0002_0033.wav,A,7,1,6.4,127,Female,{dev}",
            "MSP-PODCAST_0003_0100_0001.wav,X,4,4,4,Unknown,Unknown,Train",
        ],
        labels=labels,
        audio=audio,
    )
    assert recognise(str(root)) == "msp-podcast"
    rows, notes = by_name(root)
    assert notes == []
    first = rows["MSP-PODCAST_0001_0008.wav"]
    # 2.2, 4.0, 2.6 on 1..7 are activation, VALENCE, dominance
    assert first["arousal"] == pytest.approx(0.2)
    assert first["valence"] == pytest.approx(0.5)
    assert first["dominance"] == pytest.approx(1.6 / 6)
    assert (first["speaker"], first["sex"], first["split"]) == ("30", "male", test.lower())
    assert [first[n] for n in ("emotion", "session", "corpus")] == [
        "neutral",
        "0001",
        "msp-podcast",
    ]
    second = rows["MSP-PODCAST_0002_0033.wav"]
    assert (second["arousal"], second["valence"], second["split"]) == (1.0, 0.0, "dev")
    assert (second["sex"], second["emotion"]) == ("female", "anger")
    unknown = rows["MSP-PODCAST_0003_0100_0001.wav"]
    assert (unknown["speaker"], unknown["sex"], unknown["session"]) == (None, None, "0003")
    assert (unknown["emotion"], unknown["split"]) == ("no_agreement", "train")
    assert first["num_bytes"] == 44 + 2 * 800


def test_test3_is_rows_without_labels_and_lost_wavs_are_told_apart(tmp_path):
    root = trees.msp_podcast(
        tmp_path / "MSP-PODCAST-1.11",
        [
            "MSP-PODCAST_0001_0001.wav,H,4,4,4,1,Female,Train",
            "MSP-PODCAST_0001_0002.wav,H,4,4,4,1,Female,Train",
        ],
        also=("MSP-PODCAST_0900_0001.wav", "MSP-PODCAST_0901_0001.wav"),
    )
    (root / "Audios/MSP-PODCAST_0001_0002.wav").unlink()
    trees.text(
        root / "Partitions.txt",
        "Train; MSP-PODCAST_0001_0001.wav\nno fields\nTest3; MSP-PODCAST_0900_0001.wav\n",
    )
    rows, notes = by_name(root)
    assert set(rows) == {f"MSP-PODCAST_{n}_0001.wav" for n in ("0001", "0900", "0901")}
    test3 = rows["MSP-PODCAST_0900_0001.wav"]
    assert (test3["split"], test3["arousal"], test3["speaker"]) == ("test3", None, None)
    assert rows["MSP-PODCAST_0901_0001.wav"]["split"] is None
    lost, without = notes
    assert "rows without a wav" in lost
    assert "1 (MSP-PODCAST_0001_0002.wav)" in lost
    assert "wavs without a row: 2 (" in without
    assert "1 of them Test3" in without


def test_speaker_ids_and_transcripts_fill_in(tmp_path):
    root = trees.msp_podcast(
        tmp_path / "r", ["MSP-PODCAST_0001_0001.wav,S,1,1,1,Unknown,Unknown,Train"]
    )
    trees.text(
        root / "Speaker_ids.txt",
        "Speaker_12; Male\nSpeaker_13; Female\n\nMSP-PODCAST_0001_0001.wav; 13\n",
    )
    trees.text(root / "Transcripts/MSP-PODCAST_0001_0001.txt", "Well,  that is\nsad.\n")
    (row,) = read_corpus("msp-podcast", str(root))[0].to_pylist()
    assert (row["speaker"], row["sex"]) == ("13", "female")
    assert row["transcript"] == "Well, that is sad."


def test_consensus_in_json_and_columns_by_name(tmp_path):
    record = {"EmoClass": "D", "EmoAct": 2.5, "EmoVal": 1, "EmoDom": 7.0}
    record |= {"SpkrID": 12, "Gender": "Female", "Split_Set": "Development"}
    root = trees.msp_json(tmp_path / "r", {"MSP-PODCAST_0001_0001.wav": record})
    table = tmp_path / "t/Labels/labels_consensus.csv"
    names = ["Split_Set", "EmoDom", "FileName", "EmoVal", "SpkrID", "EmoAct", "EmoClass", "Gender"]
    cells = {**record, "FileName": "MSP-PODCAST_0001_0001.wav"}
    trees.text(table, "\n".join([",".join(names), ",".join(str(cells[n]) for n in names)]))
    trees.wav(tmp_path / "t/Audios/MSP-PODCAST_0001_0001.wav")
    for place in (root, tmp_path / "t"):
        (row,) = read_corpus("msp-podcast", str(place))[0].to_pylist()
        assert (row["arousal"], row["valence"], row["dominance"]) == (0.25, 0.0, 1.0)
        assert (row["speaker"], row["sex"], row["split"]) == ("12", "female", "dev")
    del record["EmoAct"]
    trees.msp_json(root, {"MSP-PODCAST_0001_0001.wav": record})
    with pytest.raises(ConfigError, match=r"MSP-PODCAST_0001_0001.wav has no column 'EmoAct'"):
        read_corpus("msp-podcast", str(root))


GOOD = "MSP-PODCAST_0001_0001.wav,S,1,1,1,3,Male,Train"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("MSP-PODCAST_0001_0002.wav,S,1,high,1,3,Male,Train", "line 3: EmoVal is 'high'"),
        ("MSP-PODCAST_0001_0002.wav,S,1,1,7.5,3,Male,Train", "line 3: EmoDom is 7.5, off"),
        ("MSP-PODCAST_0001_0002.wav,S,0.5,1,7,3,Male,Train", "line 3: EmoAct is 0.5, off"),
        ("MSP-PODCAST_0001_0002.wav,S,1,1,1,3,Male,Holdout", "line 3: Split_Set is 'Holdout'"),
        ("MSP-PODCAST_0001_0002.wav,S,1,1,1,3,Male", "line 3: 7 cells under 8 column names"),
        (GOOD, "line 3: MSP-PODCAST_0001_0001.wav a second time"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    root = trees.msp_podcast(tmp_path / "r", [GOOD, row])
    with pytest.raises(ConfigError) as caught:
        read_corpus("msp-podcast", str(root))
    assert message in str(caught.value)
    assert "Labels/labels_consensus.csv" in str(caught.value)


def test_missing_pieces_are_named(tmp_path):
    root = tmp_path / "r"
    trees.wav(root / "Audios/MSP-PODCAST_0001_0001.wav")
    with pytest.raises(ConfigError, match=r"no label folder \(Labels, labels, label\)"):
        read_corpus("msp-podcast", str(root))
    trees.text(root / "Labels.zip", "PK")
    with pytest.raises(ConfigError, match=r"unpack .*Labels.zip"):
        read_corpus("msp-podcast", str(root))
    trees.text(root / "Labels/labels_detailed.csv", "x")
    with pytest.raises(ConfigError, match=r"no labels_consensus.csv or labels_concensus.csv"):
        read_corpus("msp-podcast", str(root))
    trees.text(root / "Labels/labels_consensus.csv", "FileName,EmoAct,EmoDom,Split_Set\n")
    with pytest.raises(ConfigError, match="no column 'EmoVal'"):
        read_corpus("msp-podcast", str(root))
    trees.msp_podcast(tmp_path / "empty", [GOOD])
    (tmp_path / "empty/Audios/MSP-PODCAST_0001_0001.wav").unlink()
    with pytest.raises(ConfigError, match="no wavs in Audios or Audio"):
        read_corpus("msp-podcast", str(tmp_path / "empty"))
    trees.wav(tmp_path / "empty/Audios/a.wav").rename(
        os.fsdecode(os.fsencode(tmp_path / "empty/Audios") + b"/MSP-\xff.wav")
    )
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        read_corpus("msp-podcast", str(tmp_path / "empty"))


def test_a_release_in_a_bucket(tmp_path, s3: Bucket):
    root = trees.msp_podcast(tmp_path / "r", [GOOD], also=("MSP-PODCAST_0009_0001.wav",))
    trees.text(root / "Transcripts/MSP-PODCAST_0001_0001.txt", "So.")
    trees.text(root / "Partitions.txt", "Test3; MSP-PODCAST_0009_0001.wav\n")
    for path in root.rglob("*.*"):
        if path.is_file():
            s3.put(f"corpora/msp #1/{path.relative_to(root)}", path.read_bytes())
    uri = f"{s3.uri}/corpora/msp #1"
    assert recognise(uri) == "msp-podcast"
    rows = read_corpus("msp-podcast", uri)[0].to_pylist()
    assert [row["file"] for row in rows] == [
        f"{uri}/Audios/MSP-PODCAST_0001_0001.wav",
        f"{uri}/Audios/MSP-PODCAST_0009_0001.wav",
    ]
    assert [row["split"] for row in rows] == ["train", "test3"]
    assert rows[0]["transcript"] == "So."
    assert all(row["etag"] for row in rows)
