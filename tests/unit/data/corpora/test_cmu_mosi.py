"""CMU-MOSI: two label tables, numbering from 1, one split per video."""

from __future__ import annotations

from collections import Counter

import pytest

from raysers.data.corpora.spontaneous import SPLIT_OF
from raysers.data.labelled import read_corpus, recognise
from raysers.errors import ConfigError
from tests.unit.data.corpora import trees


def rows_of(root) -> dict[str, dict]:
    rows = read_corpus("cmu-mosi", str(root))[0].to_pylist()
    return {"/".join(row["file"].rsplit("/", 2)[1:]): row for row in rows}


def test_the_raw_tree(tmp_path):
    root = trees.mosi(tmp_path / "CMU_MOSI")
    assert recognise(str(root)) == "cmu-mosi"
    rows = rows_of(root)
    assert len(rows) == 6
    first, second = rows["Segmented/_dI--eQ6qVU_1.wav"], rows["Segmented/_dI--eQ6qVU_2.wav"]
    assert (first["valence"], second["valence"]) == (0.0, 0.75)
    assert not {"arousal", "dominance", "emotion"} & set(first)
    assert (first["transcript"], second["transcript"]) == ("FIRST OF _dI--eQ6qVU", "SECOND, THEN")
    assert {first["session"], first["speaker"]} == {"_dI--eQ6qVU"}
    for video, split in trees.MOSI_VIDEOS.items():
        assert rows[f"Segmented/{video}_1.wav"]["split"] == split
    # an id with an underscore of its own
    assert rows["Segmented/Dg_0XKD0Mf4_2.wav"]["session"] == "Dg_0XKD0Mf4"
    assert any("6 of the 2,199 segments" in note for note in read_corpus("cmu-mosi", str(root))[1])


def test_the_standard_split_is_52_10_31_videos_apart():
    assert Counter(SPLIT_OF.values()) == {"train": 52, "dev": 10, "test": 31}
    assert {len(video) for video in SPLIT_OF} == {11}  # as every id of that site


def test_label_csv_and_its_mode_wins_over_the_standard_split(tmp_path):
    root = trees.mosi_label_csv(
        tmp_path,
        [
            '_dI--eQ6qVU,1,"well, A",-1.5,,,,Negative,test',
            "2iD-tVS8NPw,0012,b,3.0,,,,Positive,validation",
            "GWuJjcEuzt8,3,c,0.0,,,,Neutral,",
        ],
    )
    assert recognise(str(root)) == "cmu-mosi"
    rows = rows_of(root)
    assert [rows[f]["split"] for f in sorted(rows)] == ["dev", "train", "test"]
    assert [rows[f]["valence"] for f in sorted(rows)] == [1.0, 0.5, 0.25]
    assert rows["_dI--eQ6qVU/1.wav"]["transcript"] == "well, A"
    assert rows["2iD-tVS8NPw/0012.wav"]["session"] == "2iD-tVS8NPw"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.1,2.0,2iD-tVS8NPw,0,1.0", "line 2: segment 0 of 2iD-tVS8NPw: these numbers count"),
        ("0.1,2.0,2iD-tVS8NPw,2,3.5", "line 2: sentiment is 3.5, off its scale of -3 to 3"),
        ("0.1,2.0,2iD-tVS8NPw,2,good", "line 2: sentiment is 'good'"),
        ("0.1,2.0,2iD-tVS8NPw,2,", "line 2: no sentiment"),
        ("0.1,2.0,2iD-tVS8NPw,two,1.0", "line 2: segment is 'two'"),
        ("2iD-tVS8NPw,2,1.0", "line 2: write start, end, video, segment, sentiment"),
        ("0.1,2.0,2iD-tVS8NPw,1,1.0", "line 2: segment 1 of 2iD-tVS8NPw a second time"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    root = trees.mosi(tmp_path, f"0.1,2.0,2iD-tVS8NPw,1,1.0\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_corpus("cmu-mosi", str(root))
    assert message in str(caught.value)
    assert "OpinionLevelSentiment.csv" in str(caught.value)


def test_missing_pieces_are_named(tmp_path):
    head = "video_id,clip_id,label,mode\n2iD-tVS8NPw,1,1.0,"
    for table, words in (
        ("", "no Labels/OpinionLevelSentiment.csv and no label.csv"),
        ("video_id,text,label\n", "no column 'clip_id'"),
        (head + "fold2\n", "line 2: mode is 'fold2'"),
        (head + "train\n", "no wav of its 1 segments"),
    ):
        if table:
            trees.text(tmp_path / "label.csv", table)
        with pytest.raises(ConfigError, match=words):
            read_corpus("cmu-mosi", str(tmp_path))
    videos = trees.mosi_label_csv(tmp_path, ["2iD-tVS8NPw,1,b,3.0,,,,Positive,train"], ".mp4")
    with pytest.raises(ConfigError, match=r"clips are \.mp4: extract a \.wav"):
        read_corpus("cmu-mosi", str(videos))


def test_unknown_videos_and_lost_segments_are_told(tmp_path):
    root = trees.mosi(tmp_path, "0,1,new--video0,1,1.0\n0,1,2iD-tVS8NPw,1,1\n0,1,2iD-tVS8NPw,9,1\n")
    trees.wav(root / "Raw/Audio/WAV_16000/Segmented/new--video0_1.wav")
    found, notes = read_corpus("cmu-mosi", str(root))
    assert found.num_rows == 2
    assert any("segments without audio, left out: 1 (2iD-tVS8NPw_9)" in n for n in notes)
    assert any("videos of no standard split: 1 (new--video0)" in n for n in notes)


def test_the_same_table_of_another_corpus_is_not_taken_for_it(tmp_path):
    rows = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"
    rows += "video_0001,1,x,-0.8,,,,Negative,train\n"
    (tmp_path / "label.csv").write_text(rows)
    assert recognise(str(tmp_path)) is None
    with pytest.raises(ConfigError, match="not of CMU-MOSI"):
        read_corpus("cmu-mosi", str(tmp_path))
