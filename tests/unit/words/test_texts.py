"""Texts to speak: what is read is what was written, whatever the file."""

from __future__ import annotations

import csv
import io
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysers.errors import ConfigError
from raysers.models.tts import espeak_voices
from raysers.words.texts import read_texts, template_names, template_texts

ODD = [
    'He said "no", then left',
    "<b>bold</b> & \\n %s {output} $(id)",
    "😀 great 👩‍👩‍👧",
    "one line\nand another",
    "שלום, עולם",
    "مرحبا; بالعالم",
    "null",
    "  spaces around  ",
    "007",
    "-rf",
]


def write_csv(path, rows, delimiter=",", encoding="utf-8"):
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    path.write_text(sink.getvalue(), encoding, newline="")
    return str(path)


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [("a.csv", ",", "utf-8"), ("b.csv", ";", "utf-8-sig"), ("c.tsv", "\t", "utf-8")],
)
def test_texts_of_tables_come_back_as_they_are(tmp_path, name, delimiter, encoding):
    rows = [["text", "sentiment"], *([text, str(i)] for i, text in enumerate(ODD))]
    table, notes = read_texts(write_csv(tmp_path / name, rows, delimiter, encoding))
    assert table["text"].to_pylist() == ODD
    assert table["sentiment"].to_pylist() == [str(i) for i in range(len(ODD))]
    assert notes == []


def test_a_plain_file_has_one_text_a_line(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes('\ufeffOne, two\r\n\r\n  \nשלום\n"quoted"\u2028still here'.encode())
    table, _ = read_texts(str(path))
    # U+2028 separates lines for some programs, not for people who press enter
    assert table["text"].to_pylist() == ["One, two", "שלום", '"quoted"\u2028still here']


def test_labels_become_numbers_and_ids_stay_texts(tmp_path):
    rows = [
        ["clip_id", "file", "text", "speaker", "valence", "arousal", "duration_s", "voice"],
        ["abc", "a.wav", "one", "03", "0.25", "nan", "9", "mine"],
        ["def", "b.wav", "two", "04", "", "0.5", "9", "mine"],
        ["ghi", "c.wav", "", "04", "", "0.5", "9", "mine"],
        ["def", "b.wav", "two", "04", "", "0.5", "9", "mine"],
    ]
    table, notes = read_texts(write_csv(tmp_path / "t.csv", rows))
    # what the spoken clips have of their own is not taken from elsewhere
    assert table.to_pydict() == {
        "text": ["one", "two"],
        "source_clip_id": ["abc", "def"],
        "source_file": ["a.wav", "b.wav"],
        "speaker": ["03", "04"],
        "valence": [0.25, None],
        "arousal": [None, 0.5],
    }
    assert table["valence"].type == pa.float32()
    assert [note.partition(": ")[2] for note in notes] == [
        "1 rows without a text are left out",
        "1 rows that repeat another one are left out",
    ]


def test_columns_of_parquet_keep_their_kind(tmp_path):
    table = pa.table(
        {
            "transcript": ["null", "🎭\0b"],
            "sentiment": pa.array([1, -1], pa.int8()),
            "topic": pa.array(["x", "y"]).dictionary_encode(),
            "weight": [0.5, 2.0],
            "tokens": [["a"], ["b"]],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    read, notes = read_texts(str(tmp_path / "t.parquet"))
    expected = table.drop_columns("tokens").rename_columns(["text", "sentiment", "topic", "weight"])
    assert read.to_pylist() == expected.to_pylist()
    assert notes == [f"{tmp_path}/t.parquet: columns not used: tokens"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"words,topic\na,b\n", "no column 'text', only 'words', 'topic'"),
        (b"text,text\na,b\n", "'text' more than once"),
        (b"text,valence\na,high\n", "column 'valence'"),
        (b"text\n\xff\xfe\xfa\n", "not UTF-8"),
        (b"text,topic\n,a\n", "none of its 1 rows has a text"),
        (b"text,topic\na,b,c\n", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_texts(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recognised_texts_of_a_transcription_are_spoken(tmp_path):
    names = ("clip_id", "status", "text")
    rows = [("a", "ok", "hello there"), ("b", "ok", ""), ("c", "truncated", None)]
    for folder, table in (
        ("transcripts", pa.table(list(map(pa.array, zip(*rows, strict=True))), names=names)),
        ("manifest", pa.table({"clip_id": list("abc"), "speaker": ["s1", "s2", "s3"]})),
    ):
        (tmp_path / folder).mkdir()
        pq.write_table(table, tmp_path / folder / "part-000000.parquet")
    table, _ = read_texts(str(tmp_path))
    assert table.to_pylist() == [{"text": "hello there", "source_clip_id": "a", "speaker": "s1"}]


@pytest.mark.parametrize("name", template_names())
def test_every_built_in_set_is_balanced_and_without_contradictions(name):
    rows = template_texts(name).to_pylist()
    by_sentiment = defaultdict(set)
    for row in rows:
        by_sentiment[row["sentiment"]].add(row["text"])
        assert row["text"] == row["text"].strip()
        if "template" in row:
            assert row["text"].lower() == row["template"].lower().replace(
                "{word}", row["word"].lower()
            ).replace("{thing}", row.get("slot") or "")
    assert set(by_sentiment) <= {"negative", "neutral", "positive"}
    assert len(by_sentiment["positive"]) == len(by_sentiment["negative"]) >= 1
    assert sum(map(len, by_sentiment.values())) == len({row["text"] for row in rows}) == len(rows)
    assert {row["language"] for row in rows} <= set(espeak_voices())


def test_negation_turns_the_sentiment_round():
    plain = {r["word"]: r["sentiment"] for r in template_texts("context").to_pylist()}
    for row in template_texts("negation").to_pylist():
        assert {plain[row["word"]], row["sentiment"]} == {"positive", "negative"}
