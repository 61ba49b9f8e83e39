"""Tables of clips: CSV dialects, Parquet types, audformat's own files, errors that name the row."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any, Literal

import audformat
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysers.data.tables import read_clip_table, table_columns
from raysers.errors import ConfigError
from raysers.schemas import OBJECTS
from tests.s3 import Bucket

S = 10**9


def table(path: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> pa.Table:
    (path / name).write_bytes(text.encode(encoding))
    return read_clip_table([str(path / name)])[0]


def spans(clips: pa.Table) -> list[tuple[int | None, int | None]]:
    columns = (clips[name].cast(pa.int64()).to_pylist() for name in ("start", "end"))
    return list(zip(*columns, strict=True))


def test_minimal_csv(tmp_path: Path) -> None:
    clips = table(tmp_path, "file\na.wav\nsub/b c.wav\n/abs/d.wav\ns3://b/#1.wav\n")
    assert clips.schema.equals(OBJECTS)
    assert clips["file"].to_pylist() == [
        f"{tmp_path}/a.wav",
        f"{tmp_path}/sub/b c.wav",
        "/abs/d.wav",
        "s3://b/#1.wav",
    ]
    assert spans(clips) == [(None, None)] * 4


def test_text_stays_the_text_it_is(tmp_path: Path) -> None:
    rows = [
        ["03", 'it\'s, "quoted"', "1.0"],
        ["007", "two\nlines", ""],
        ["1e5", "semi;colon", "0.25"],
        ["NA", "", "nan"],
        ["True", "NaN", "0"],
    ]
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["file", "speaker", "transcript", "arousal"])
    writer.writerows([f"{i}.wav", *row] for i, row in enumerate(rows))
    clips = table(tmp_path, sink.getvalue())
    assert clips["speaker"].to_pylist() == [row[0] for row in rows]
    assert clips["transcript"].to_pylist() == [row[1] or None for row in rows]
    assert clips["arousal"].to_pylist() == [1.0, None, 0.25, None, 0.0]
    assert clips.schema.field("arousal").type == pa.float32()


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "newline"),
    [
        ("t.csv", ",", "utf-8", "\n"),
        ("t.csv", ",", "utf-8-sig", "\r\n"),
        ("t.csv", ";", "utf-8", "\r\n"),
        ("t.csv", "\t", "utf-8", "\n"),
        ("t.tsv", "\t", "utf-8", "\n"),
        ("t.csv", ",", "utf-16", "\n"),
    ],
)
def test_dialects(tmp_path: Path, name: str, delimiter: str, encoding: str, newline: str) -> None:
    rows = [["file", "speaker", "start"], ["grüße.wav", "03", "1.5"], ['"b.wav"', "04", ""]]
    text = newline.join(delimiter.join(row) for row in rows) + newline
    clips = table(tmp_path, text, name, encoding)
    assert clips["file"].to_pylist() == [f"{tmp_path}/grüße.wav", f"{tmp_path}/b.wav"]
    assert clips["speaker"].to_pylist() == ["03", "04"]
    assert spans(clips) == [(1_500_000_000, None), (None, None)]


def test_other_columns_are_dropped_and_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,age,speaker,valence,licence\na.wav,31,x,4.5,CC0\n")
    clips, notes = read_clip_table([str(tmp_path / "t.csv")])
    assert clips.column_names == [*OBJECTS.names, "speaker", "valence"]
    assert len(notes) == 2
    assert "age, licence" in notes[0]
    assert "valence" in notes[1]
    assert "4.5" in notes[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fil,start\na.wav,1\n", ["no column 'file'", "'fil', 'start'", "did you mean 'fil'"]),
        ("path,wav\na.wav,b.wav\n", ["several columns may be the file", "'path', 'wav'"]),
        ("x,y\n1,2\n", ["no column 'file'", "'x', 'y'"]),
        ("", ["empty"]),
        ("file,start,end\na.wav,0,1\nb.wav,2,1\n", ["row 2", "b.wav", "not after"]),
        ("file,start,end\na.wav,1,1\n", ["row 1", "not after"]),
        ("file,end\na.wav,0\n", ["row 1", "not after"]),
        ("file,start\na.wav,0\nb.wav,-0.5\n", ["row 2", "start", "-0.5"]),
        ("file,start\na.wav,soon\n", ["row 1", "start", "'soon'"]),
        ("file,start\na.wav,1500000000\n", ["row 1", "too large for seconds"]),
        ("file,start\na.wav,0\nb.wav,1\na.wav,\n", ["rows 1 and 3", "same clip", "a.wav"]),
        ("file,speaker\na.wav,1\n,2\n", ["row 2", "no file name"]),
        ("file,arousal\na.wav,high\n", ["arousal", "high"]),
        ("file,speaker\na.wav,1,2\n", ["line 2", "3 cells under 2 column names"]),
        ("file,file\na.wav,b.wav\n", ["'file' more than once"]),
    ],
)
def test_bad_tables_are_refused_with_table_and_row(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        table(tmp_path, text)
    message = str(raised.value)
    for word in [f"{tmp_path}/t.csv", *words]:
        assert word in message
    assert "\n" not in message


def test_same_file_with_other_segments_is_no_duplicate(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,start,end\na.wav,0,1\na.wav,1,2\na.wav,0,2\na.wav,1,\n")
    assert spans(clips) == [(0, S), (S, 2 * S), (0, 2 * S), (S, None)]


def noted(path: Path, text: str | bytes, name: str = "t.csv") -> tuple[list[Any], str]:
    """File names below `path` (or the spans, where there are some) and all notes."""
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    clips, notes = read_clip_table([str(path / name)])
    files = [file.removeprefix(f"{path}/") for file in clips["file"].to_pylist()]
    return files, "\n".join(notes)


ROWS = [f"{i:03d}.wav" for i in range(60)]


@pytest.mark.parametrize(
    ("name", "delimiter", "cells", "line"),
    [
        ("t.csv", ",", {10: '"open to the end'}, 12),
        ("t.csv", ",", {10: '"One', 40: 'or "two'}, 12),
        ("t.csv", ",", {10: '"One', 40: 'ends with "'}, 12),
        ("t.csv", ";", {10: '"One', 40: 'ends with "'}, 12),
        ("t.csv", ",", {10: '"Yes" he said, "no"'}, 12),
        ("t.csv", ",", {0: 'x"\n"', 59: '"'}, None),
    ],
)
def test_quotes_that_swallow_rows_are_refused_with_their_line(
    tmp_path: Path, name: str, delimiter: str, cells: dict[int, str], line: int | None
) -> None:
    lines = [f"{file}{delimiter}{cells.get(i, 'some words')}" for i, file in enumerate(ROWS)]
    with pytest.raises(ConfigError, match=rf"t\.csv, line {line or ''}"):
        table(tmp_path, "\n".join([f"file{delimiter}transcript", *lines]), name)


def test_open_quote_of_a_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 2: .* goes on over whole rows"):
        table(tmp_path, 'file,speaker\n"a.wav,1\nb.wav,2\nc.wav",3\n')
    with pytest.raises(ConfigError, match=r"line 2: .* goes on over whole rows"):
        table(tmp_path, 'file\n"a.wav\nb.wav"\n')


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_tab_separated_tables_have_no_quotes(tmp_path: Path, name: str) -> None:
    said = ['"Open at the start', 'He said "no" twice', '"Yes" he said, "no"', '"']
    lines = [f"{i}.wav\t{text}" for i, text in enumerate(said)]
    clips = table(tmp_path, "\n".join(["file\ttranscript", *lines]), name)
    assert clips["transcript"].to_pylist() == said


def test_tab_separated_tables_with_a_quoted_header_have_quotes(tmp_path: Path) -> None:
    text = '"file"\t"transcript"\n"a.wav"\t"say ""x"""\n'
    clips = table(tmp_path, text, "t.tsv")
    assert clips["file"].to_pylist() == [f"{tmp_path}/a.wav"]
    assert clips["transcript"].to_pylist() == ['say "x"']


def test_long_cells_are_read_up_to_a_limit(tmp_path: Path) -> None:
    long = "lorem ipsum, dolor\n" * 100_000
    clips = table(tmp_path, f'file,transcript\na.wav,"{long}"\nb.wav,ok\n')
    assert clips["transcript"].to_pylist() == [long, "ok"]
    with pytest.raises(ConfigError, match="line 2: longer than 16,777,216 characters"):
        table(tmp_path, f"file,transcript\na.wav,{'x' * 2**24}\n")
    with pytest.raises(ConfigError, match=r"line 2: field larger than field limit \(16777216\)"):
        table(tmp_path, 'file,transcript\na.wav,"' + "xxxxxxx\n" * (2**21 + 1) + '"\n')


@pytest.mark.parametrize(
    ("head", "row", "expected_s"),
    [
        ("start,end", "0.5,1.5", (0.5, 1.5)),
        ("begin,end", "0.5,1.5", (0.5, 1.5)),
        ("start_time,end_time", "0.5,1.5", (0.5, 1.5)),
        ("StartTime,EndTime", "00:00:00.5,00:00:01.5", (0.5, 1.5)),
        ("Start (s),End (s)", "0.5,1.5", (0.5, 1.5)),
        ("start_ms,end_ms", "500,1500", (0.5, 1.5)),
        ("start_ms,end", "500,1.5", (0.5, 1.5)),
        ("start [milliseconds],duration_seconds", "500,1", (0.5, 1.5)),
        ("onset,offset", "0.5,1.5", (0.5, 1.5)),
        ("onset,duration", "0.5,1", (0.5, 1.5)),
        ("offset,duration", "0.5,1", (0.5, 1.5)),
        ("start,duration", "0.5,1", (0.5, 1.5)),
        ("start,duration_s", "0.5,", (0.5, None)),
        ("start,duration", ",1", (None, 1.0)),
        ("end,dur", "1.5,1", (0.5, 1.5)),
        ("start,end,duration", "0.5,1.5,99", (0.5, 1.5)),
        ("start,end,start_ms", "0.5,1.5,500", (0.5, 1.5)),
        ("start,end", "NaT,NA", (None, None)),
        ("start,end", "0 days,NaT", (0.0, None)),
        ("begin", "0.5", (0.5, None)),
        ("offset", "0.5", (0.5, None)),
        ("duration", "1.5", (None, None)),
        ("gender", "female", (None, None)),
    ],
)
def test_names_of_the_time_columns(
    tmp_path: Path, head: str, row: str, expected_s: tuple[float | None, ...]
) -> None:
    clips = table(tmp_path, f"file,{head}\na.wav,{row}\n")
    assert spans(clips) == [tuple(s if s is None else round(s * S) for s in expected_s)]


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        ("onset,begin,end", "0,0,1", ["several columns may be the start", "'onset', 'begin'"]),
        ("start,end_s,end_ms", "0,1,1000", ["several columns may be the end"]),
        ("begin,offset,duration,end", "0,0,1,1", ["several columns may be the end"]),
        ("start_sample,end_sample", "0,16000", ["counts samples", "store seconds"]),
        ("end,duration", "1,1.5", ["row 1", "duration is longer than the end"]),
        ("start,duration", "1,0", ["row 1", "not after"]),
        ("start_ms,end_ms", "0,soon", ["row 1", "end_ms", "'soon'"]),
        ("start,end", "2024-01-01T00:00:00,2", ["row 1", "is not a time"]),
    ],
)
def test_times_that_are_only_half_understood_are_refused(
    tmp_path: Path, head: str, row: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        table(tmp_path, f"file,{head}\na.wav,{row}\n")
    assert [word for word in words if word not in str(raised.value)] == []


def test_labels_as_spreadsheets_write_them(tmp_path: Path) -> None:
    text = "file;gender;arousal;valence\na.wav;female;0,4;NA\nb.wav;m;N/A;-\nc.wav;; 1 ;1e-1\n"
    clips = table(tmp_path, text)
    assert clips["sex"].to_pylist() == ["female", "m", None]
    assert clips["arousal"].to_pylist() == pytest.approx([0.4, None, 1.0])
    assert clips["valence"].to_pylist() == pytest.approx([None, None, 0.1])
    both = table(tmp_path, "file,gender,sex\na.wav,x,male\n")
    assert both["sex"].to_pylist() == ["male"]
    with pytest.raises(ConfigError, match=r"row 2: arousal is '1,000\.5'"):
        table(tmp_path, 'file,arousal\na.wav,1\nb.wav,"1,000.5"\n')


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("a.wav ", "a.wav"),
        (" sub\\a.wav", "sub/a.wav"),
        ("sub\\..\\a.wav", "a.wav"),
        ("  lead.wav", "  lead.wav"),
        ("back\\slash.wav", "back\\slash.wav"),
        ("u\u0308.wav", "\u00fc.wav"),
        ("o\u0308.wav", "o\u0308.wav"),
        ("\u00f6.wav", "o\u0308.wav"),
        ("\u00e4.wav", "\u00e4.wav"),  # of neither form there is a file
    ],
)
def test_file_names_are_spelled_as_the_files_that_exist(
    tmp_path: Path, cell: str, file: str
) -> None:
    for name in (
        "a.wav",
        "sub/a.wav",
        "  lead.wav",
        "back\\slash.wav",
        "\u00fc.wav",
        "o\u0308.wav",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files, notes = noted(tmp_path, f"file,speaker\n{cell},1\n")
    assert files == [file]
    assert ("accents: 1" in notes) == (file != cell)


def test_file_names_on_s3_are_spelled_as_the_first_that_exists(s3: Bucket) -> None:
    s3.put("t/sub/a.wav", b"x")
    uri = s3.put("t/t.csv", b"file\nsub\\a.wav\nsub\\b.wav\nplain.wav\n")
    clips, notes = read_clip_table([uri])
    assert clips["file"].to_pylist() == [
        f"{s3.uri}/t/{n}" for n in ("sub/a.wav", "sub/b.wav", "plain.wav")
    ]
    assert "accents: 2" in notes[0]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("C:\\data\\a.wav", "Windows drive"),
        ("c:/data/a.wav", "Windows drive"),
        ("https://example.org/a.wav", "https:// is not supported"),
        ("a\0.wav", "control character"),
        ("  ", "no file name"),
    ],
)
def test_file_names_that_name_no_file_are_refused_with_row(
    tmp_path: Path, cell: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"t\.csv, row 2: .*{words}"):
        table(tmp_path, f"file,speaker\na.wav,1\n{cell},2\n")


def test_other_encodings_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "grüße.wav").touch()
    files, notes = noted(tmp_path, "file,speaker\ngrüße.wav,Jörg\n".encode("cp1252"))
    assert files == ["grüße.wav"]
    assert "not UTF-8, read as Windows-1252" in notes
    with pytest.raises(ConfigError, match="line 3: neither UTF-8 nor Windows-1252"):
        noted(tmp_path, b"file,speaker\na.wav,1\nb.wav,\x81\xff\n")
    assert noted(tmp_path, b"file,speaker\ra.wav,1\rb.wav,2\r") == (["a.wav", "b.wav"], "")
    assert noted(tmp_path, b"\xef\xbb\xbffile\r\na.wav\r\n\r\n") == (["a.wav"], "")
    files, notes = noted(tmp_path, b"file,speaker\n,\na.wav,1\n , \n\n")
    assert (files, notes) == (["a.wav"], f"{tmp_path}/t.csv: empty rows left out: 2")


def test_all_duplicates_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        table(tmp_path, "file\na.wav\nb.wav\n./a.wav\nx/../b.wav\nc.wav\na.wav\n")
    message = str(raised.value)
    assert f"rows 1, 3 and 6 are the same clip of {tmp_path}/a.wav" in message
    assert f"rows 2 and 4 are the same clip of {tmp_path}/b.wav" in message
    with pytest.raises(ConfigError, match="and 95 more clips"):
        table(tmp_path, "file\n" + "".join(f"{i % 100}.wav\n" for i in range(200)))


CELLS = st.text(st.sampled_from('ab ,;\t"\n\r|ü'), max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(CELLS, min_size=1, max_size=6),
    st.sampled_from(",;|"),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.one_of(st.none(), st.tuples(st.floats(0, 1), st.sampled_from(['"', "\n", ",", ""]))),
)
def test_no_row_is_dropped_without_an_error_or_a_count(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    delimiter: str,
    line_end: str,
    quoting: Literal[0, 1],
    bend: tuple[float, str] | None,
) -> None:
    """Against Python's csv and pandas, also where one character was changed."""
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows(
        [["file", "transcript"], *([f"{i}.wav", text] for i, text in enumerate(texts))]
    )
    content = sink.getvalue()
    if bend is not None:
        head = len(f"file{delimiter}transcript{line_end}") + 4
        place = head + int(bend[0] * (len(content) - head))
        content = content[:place] + bend[1] + content[place + 1 :]
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(content.encode())
    try:
        clips, notes = read_clip_table([str(path)])
    except ConfigError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert bend is not None or any("\n" in t or "\r" in t for t in texts)
        assert re.search(r"(line|rows?) \d+", refused)
        return
    skipped = sum(int(note.rpartition(" ")[2]) for note in notes if "empty rows" in note)
    rows = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
    rows = [row for row in rows[1:] if row]
    assert len(clips) + skipped == len(rows)
    said = [row[1] or None for row in rows if any(map(str.strip, row))]
    assert clips["transcript"].to_pylist() == said
    frame = pd.read_csv(path, sep=delimiter, keep_default_na=False, dtype=str, encoding="utf-8")
    assert len(said) <= len(frame) <= len(rows)  # pandas skips lines of blanks


# audformat --------------------------------------------------------------------------------------


def audformat_database() -> audformat.Database:
    database = audformat.Database("db", source="here", usage="research")
    database.schemes["arousal"] = audformat.Scheme("float", minimum=0, maximum=1)
    database.schemes["speaker"] = audformat.Scheme("str", labels=["03", "08"])
    segments = audformat.segmented_index(
        ["a.wav", "a.wav", "b.wav"],
        ["0s", "1.25s", "0s"],
        ["1.25s", "2.000000001s", pd.NaT],
    )
    database["segments"] = audformat.Table(segments)
    database["files"] = audformat.Table(audformat.filewise_index(["a.wav", "b.wav"]))
    for name, count in (("segments", 3), ("files", 2)):
        for column, values in (("arousal", [0.25, None, 1.0]), ("speaker", ["03", "08", "03"])):
            database[name][column] = audformat.Column(scheme_id=column)
            database[name][column].set(values[:count])
    return database


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_that_audformat_wrote(tmp_path: Path, kind: str) -> None:
    audformat_database().save(str(tmp_path), storage_format=kind)
    segments, notes = read_clip_table([str(tmp_path / f"db.segments.{kind}")])
    assert notes == []
    assert segments["file"].to_pylist() == [f"{tmp_path}/{f}.wav" for f in "aab"]
    assert spans(segments) == [(0, 1_250_000_000), (1_250_000_000, 2_000_000_001), (0, None)]
    assert segments["arousal"].to_pylist() == [0.25, None, 1.0]
    assert segments["speaker"].to_pylist() == ["03", "08", "03"]
    files, _ = read_clip_table([str(tmp_path / f"db.files.{kind}")])
    assert spans(files) == [(None, None)] * 2


# Parquet ----------------------------------------------------------------------------------------


def write(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_parquet_types_are_cast(tmp_path: Path) -> None:
    uri = write(
        tmp_path / "t.parquet",
        {
            "file": pa.array(["a.wav", "b.wav"], pa.large_string()).dictionary_encode(),
            "start": pa.array([0.5, None]),
            "end": pa.array([1, 2]),
            "speaker": pa.array([3, 4]),
            "emotion": pa.array(["joy", None]).dictionary_encode(),
            "valence": pa.array([0.1, 0.2]),
            "nested": pa.array([{"file": "x"}, None]),
        },
    )
    clips, notes = read_clip_table([uri])
    assert spans(clips) == [(S // 2, S), (None, 2 * S)]
    assert clips["speaker"].to_pylist() == ["3", "4"]
    assert clips["emotion"].to_pylist() == ["joy", None]
    assert clips["valence"].type == pa.float32()
    assert clips["file"].type == pa.string()
    assert "nested" in notes[0]


def test_pandas_index_and_timedeltas(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"file": ["a.wav"], "start": pd.to_timedelta(["1.5s"]), "end": pd.to_timedelta([None])}
    )
    frame.set_index(["file", "start", "end"]).assign(sex="f").to_parquet(tmp_path / "t.pq")
    clips, _ = read_clip_table([str(tmp_path / "t.pq")])
    assert spans(clips) == [(1_500_000_000, None)]
    assert clips["sex"].to_pylist() == ["f"]


def test_broken_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match=r"t\.parquet cannot be read"):
        read_clip_table([str(tmp_path / "t.parquet")])
    uri = write(tmp_path / "u.parquet", {"file": [["a.wav"]]})
    with pytest.raises(ConfigError, match="not text"):
        read_clip_table([uri])


def test_parts_are_one_table(tmp_path: Path) -> None:
    first = write(tmp_path / "part-0.parquet", {"file": ["a.wav"], "sex": ["f"]})
    second = write(tmp_path / "part-1.parquet", {"file": ["b.wav"]})
    clips, _ = read_clip_table([first, second])
    assert clips["sex"].to_pylist() == ["f", None]
    third = write(tmp_path / "part-2.parquet", {"file": ["a.wav"]})
    with pytest.raises(ConfigError, match="rows 1 and 3"):
        read_clip_table([first, second, third])


def test_tables_on_s3(s3: Bucket, tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", {"file": ["a #1.wav", "../b.wav"], "start": [0.0, 1.0]})
    uri = s3.put("data/t x/t.parquet", (tmp_path / "t.parquet").read_bytes())
    clips, _ = read_clip_table([uri])
    assert clips["file"].to_pylist() == [f"{s3.uri}/data/t x/a #1.wav", f"{s3.uri}/data/b.wav"]
    assert table_columns(uri) == ["file", "start"]
    uri = s3.put("data/t.csv", b"file;speaker\nx.wav;03\n")
    clips, _ = read_clip_table([uri])
    assert clips["file"].to_pylist() == [f"{s3.uri}/data/x.wav"]
    assert clips["speaker"].to_pylist() == ["03"]


def test_parquet_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    name = "n" * 1_000_000 + ".wav"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 600_000, pa.int32()), [name])
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"file": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(ConfigError, match="unpacks to more than"):
        read_clip_table([str(path)])


def test_damaged_parquet_pages_are_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"file": [f"{i}.wav" for i in range(5000)]}), path)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"t\.parquet cannot be read as a table"):
        read_clip_table([str(path)])


def test_endless_csv_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"t\.csv cannot be read as a table"):
        table(tmp_path, "file," + "x" * 200_000 + "\na.wav,1\n")


@pytest.mark.parametrize("text", ["999999999999 days", "9999999999:00:00", "PT999999999999999S"])
def test_times_beyond_64_bits_name_their_row(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"t\.csv, row 2: end"):
        table(tmp_path, f"file,end\na.wav,1\nb.wav,{text}\n")


def test_durations_beyond_64_bits_name_their_row(tmp_path: Path) -> None:
    ends = pa.array([1, 2**60], pa.duration("s"))
    uri = write(tmp_path / "t.parquet", {"file": ["a.wav", "b.wav"], "end": ends})
    with pytest.raises(ConfigError, match=r"t\.parquet, row 2: end"):
        read_clip_table([uri])
    ends = pa.array([1, None], pa.duration("ms"))
    uri = write(tmp_path / "u.parquet", {"file": ["a.wav", "b.wav"], "end": ends})
    assert spans(read_clip_table([uri])[0]) == [(None, 1_000_000), (None, None)]


def test_text_that_is_no_utf8_is_the_users_to_mend(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    uri = write(tmp_path / "t.parquet", {"file": bad})
    with pytest.raises(ConfigError, match=r"t\.parquet cannot be read"):
        read_clip_table([uri])
