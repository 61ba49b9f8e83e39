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
from hypothesis import given
from hypothesis import strategies as st

from raysers.data.columnar import TimeColumnError, parse_ns, to_durations
from raysers.data.tables import read_clip_table, table_columns
from raysers.errors import ConfigError
from raysers.schemas import OBJECTS
from tests.s3 import Bucket

S = 10**9


def read(path: Path, text: str | bytes, name: str = "t.csv") -> tuple[pa.Table, str]:
    """The clips and all notes."""
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    clips, notes = read_clip_table([str(path / name)])
    return clips, "\n".join(notes)


def table(path: Path, text: str | bytes, name: str = "t.csv") -> pa.Table:
    return read(path, text, name)[0]


def names(path: Path | str, clips: pa.Table) -> list[str]:
    return [file.removeprefix(f"{path}/") for file in clips["file"].to_pylist()]


def spans(clips: pa.Table) -> list[tuple[int | None, int | None]]:
    columns = (clips[name].cast(pa.int64()).to_pylist() for name in ("start", "end"))
    return list(zip(*columns, strict=True))


def test_text_stays_the_text_it_is(tmp_path: Path) -> None:
    clips = table(tmp_path, "file\na.wav\nsub/b c.wav\n/abs/d.wav\ns3://b/#1.wav\n")
    assert clips.schema.equals(OBJECTS)
    assert names(tmp_path, clips) == ["a.wav", "sub/b c.wav", "/abs/d.wav", "s3://b/#1.wav"]
    assert spans(clips) == [(None, None)] * 4
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
        ("t.csv", ",", "utf-8", "\r"),
    ],
)
def test_dialects(tmp_path: Path, name: str, delimiter: str, encoding: str, newline: str) -> None:
    rows = [["file", "speaker", "start"], ["grüße.wav", "03", "1.5"], ['"b.wav"', "04", ""]]
    text = newline.join(delimiter.join(row) for row in rows) + newline
    clips = table(tmp_path, text.encode(encoding), name)
    assert names(tmp_path, clips) == ["grüße.wav", "b.wav"]
    assert clips["speaker"].to_pylist() == ["03", "04"]
    assert spans(clips) == [(1_500_000_000, None), (None, None)]


def test_what_is_read_otherwise_is_noted(tmp_path: Path) -> None:
    clips, notes = read(tmp_path, "file,age,speaker,valence,licence\na.wav,31,x,4.5,CC0\n")
    assert clips.column_names == [*OBJECTS.names, "speaker", "valence"]
    assert "columns not used: age, licence" in notes
    assert "valence reaches from 4.5 to 4.5" in notes
    _, notes = read(tmp_path, "file,speaker\ngrüße.wav,Jörg\n".encode("cp1252"))
    assert "not UTF-8, read as Windows-1252" in notes
    clips, notes = read(tmp_path, "file,speaker\n,\na.wav,1\n , \n\n")
    assert (names(tmp_path, clips), notes) == (
        ["a.wav"],
        f"{tmp_path}/t.csv: empty rows left out: 2",
    )


ROWS = [f"{i:03d}.wav" for i in range(60)]


def quoted(cells: dict[int, str], delimiter: str = ",") -> str:
    """60 rows with transcripts, some of them as given."""
    lines = [f"{file}{delimiter}{cells.get(i, 'some words')}" for i, file in enumerate(ROWS)]
    return "\n".join([f"file{delimiter}transcript", *lines])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fil,start\na.wav,1\n", "no column 'file', only 'fil', 'start'; did you mean 'fil'"),
        ("path,wav\na.wav,b.wav\n", "several columns may be the file: 'path', 'wav'"),
        ("x,y\n1,2\n", "no column 'file', only 'x', 'y'"),
        ("", "empty"),
        ("file,start,end\na.wav,0,1\nb.wav,2,1\n", "row 2: end 1 s is not after start 2 s of"),
        ("file,start,end\na.wav,1,1\n", "row 1: end 1 s is not after"),
        ("file,end\na.wav,0\n", "row 1: end 0 s is not after"),
        ("file,start\na.wav,0\nb.wav,-0.5\n", "row 2: start '-0.5'"),
        ("file,start\na.wav,soon\n", "row 1: start 'soon'"),
        ("file,start\na.wav,1500000000\n", "row 1: start 1500000000 is too large for seconds"),
        ("file,start\na.wav,0\nb.wav,1\na.wav,\n", "rows 1 and 3 are the same clip of"),
        ("file,speaker\na.wav,1\n,2\n", "row 2: no file name"),
        ("file,arousal\na.wav,high\n", "row 1: arousal is 'high'"),
        ('file,arousal\na.wav,1\nb.wav,"1,000.5"\n', "row 2: arousal is '1,000.5'"),
        ("file,speaker\na.wav,1,2\n", "line 2: 3 cells under 2 column names"),
        ("file,file\na.wav,b.wav\n", "'file' more than once"),
        ("file," + "x" * 200_000 + "\na.wav,1\n", "cannot be read as a table"),
        (b"file,speaker\na.wav,1\nb.wav,\x81\xff\n", "line 3: neither UTF-8 nor Windows-1252"),
        # times of which only a half is understood
        ("file,onset,begin,end\na,0,0,1\n", "several columns may be the start: 'onset', 'begin'"),
        ("file,start,end_s,end_ms\na,0,1,1000\n", "several columns may be the end"),
        ("file,begin,offset,duration,end\na,0,0,1,1\n", "several columns may be the end"),
        ("file,start_sample,end_sample\na,0,16000\n", "counts samples: store seconds"),
        ("file,end,duration\na,1,1.5\n", "row 1: the duration is longer than the end"),
        ("file,start,duration\na,1,0\n", "row 1: end 1 s is not after"),
        ("file,start_ms,end_ms\na,0,soon\n", "row 1: end_ms 'soon'"),
        ("file,start,end\na,2024-01-01T00:00:00,2\n", "row 1: start '2024-01-01T00:00:00' is not"),
        *(
            (f"file,end\na.wav,1\nb.wav,{text}\n", "row 2: end")  # beyond 64 bits
            for text in ("999999999999 days", "9999999999:00:00", "PT999999999999999S")
        ),
        # quotes that swallow rows
        (quoted({10: '"open to the end'}), "line 12"),
        (quoted({10: '"One', 40: 'or "two'}), "line 12"),
        (quoted({10: '"One', 40: 'ends with "'}), "line 12"),
        (quoted({10: '"One', 40: 'ends with "'}, ";"), "line 12"),
        (quoted({10: '"Yes" he said, "no"'}), "line 12"),
        (quoted({0: 'x"\n"', 59: '"'}), "line "),
        ('file,speaker\n"a.wav,1\nb.wav,2\nc.wav",3\n', "goes on over whole rows"),
        ('file\n"a.wav\nb.wav"\n', "goes on over whole rows"),
        # names that name no file
        ("file,speaker\na.wav,1\nC:\\data\\a.wav,2\n", "row 2: 'C:\\\\data\\\\a.wav' is a path of"),
        ("file,speaker\na.wav,1\nc:/data/a.wav,2\n", "is a path of a Windows drive"),
        ("file,speaker\na.wav,1\nmagnet://x/a.wav,2\n", "row 2: 'magnet://x/a.wav': magnet:// is"),
        ("file,speaker\na.wav,1\na\0.wav,2\n", "row 2: the file name holds a control character"),
        ("file,speaker\na.wav,1\n  ,2\n", "row 2: no file name"),
    ],
)
def test_bad_tables_are_refused_with_table_and_row(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        table(tmp_path, text)
    message = str(raised.value)
    assert f"{tmp_path}/t.csv" in message
    assert words in message
    assert "\n" not in message


def test_tables_with_tabs_have_quotes_where_the_header_has(tmp_path: Path) -> None:
    said = ['"Open at the start', 'He said "no" twice', '"Yes" he said, "no"', '"']
    lines = [f"{i}.wav\t{text}" for i, text in enumerate(said)]
    for name in ("t.tsv", "t.csv"):
        clips = table(tmp_path, "\n".join(["file\ttranscript", *lines]), name)
        assert clips["transcript"].to_pylist() == said
    clips = table(tmp_path, '"file"\t"transcript"\n"a.wav"\t"say ""x"""\n', "t.tsv")
    assert names(tmp_path, clips) == ["a.wav"]
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
        *(
            (head, "0.5,1.5", (0.5, 1.5))
            for head in (
                "start,end", "begin,end", "start_time,end_time", "Start (s),End (s)",
                "onset,offset",
            )
        ),
        *(
            (head, "0.5,1", (0.5, 1.5))
            for head in ("onset,duration", "offset,duration", "start,duration")
        ),
        ("StartTime,EndTime", "00:00:00.5,00:00:01.5", (0.5, 1.5)),
        ("start_ms,end_ms", "500,1500", (0.5, 1.5)),
        ("start_ms,end", "500,1.5", (0.5, 1.5)),
        ("start [milliseconds],duration_seconds", "500,1", (0.5, 1.5)),
        ("start,duration_s", "0.5,", (0.5, None)),
        ("start,duration", ",1", (None, 1.0)),
        ("end,dur", "1.5,1", (0.5, 1.5)),
        ("start,end,duration", "0.5,1.5,99", (0.5, 1.5)),
        ("start,end,start_s,end_s", "0.5,1.5,9,10", (0.5, 1.5)),
        ("start,end", "NaT,NA", (None, None)),
        ("start,end", "0 days,NaT", (0.0, None)),
        ("begin", "0.5", (0.5, None)),
        ("offset", "0.5", (0.5, None)),
        ("duration", "1.5", (None, None)),
    ],
)  # fmt: skip
def test_names_of_the_time_columns(
    tmp_path: Path, head: str, row: str, expected_s: tuple[float | None, ...]
) -> None:
    clips = table(tmp_path, f"file,{head}\na.wav,{row}\n")
    assert spans(clips) == [tuple(s if s is None else round(s * S) for s in expected_s)]


def test_labels_as_spreadsheets_write_them(tmp_path: Path) -> None:
    text = "file;gender;arousal;valence\na.wav;female;0,4;NA\nb.wav;m;N/A;-\nc.wav;; 1 ;1e-1\n"
    clips = table(tmp_path, text)
    assert clips["sex"].to_pylist() == ["female", "m", None]
    assert clips["arousal"].to_pylist() == pytest.approx([0.4, None, 1.0])
    assert clips["valence"].to_pylist() == pytest.approx([None, None, 0.1])
    both = table(tmp_path, "file,gender,sex\na.wav,x,male\n")
    assert both["sex"].to_pylist() == ["male"]


THERE = (
    "a.wav", "sub/a.wav", "  lead.wav", "back\\slash.wav", "\u00fc.wav", "o\u0308.wav",
)  # fmt: skip


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
    for name in THERE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clips, notes = read(tmp_path, f"file,speaker\n{cell},1\n")
    assert names(tmp_path, clips) == [file]
    assert ("accents: 1" in notes) == (file != cell)


def test_all_duplicates_are_named(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,start,end\na.wav,0,1\na.wav,1,2\na.wav,0,2\na.wav,1,\n")
    assert spans(clips) == [(0, S), (S, 2 * S), (0, 2 * S), (S, None)]
    with pytest.raises(ConfigError) as raised:
        table(tmp_path, "file\na.wav\nb.wav\n./a.wav\nx/../b.wav\nc.wav\na.wav\n")
    message = str(raised.value)
    assert f"rows 1, 3 and 6 are the same clip of {tmp_path}/a.wav" in message
    assert f"rows 2 and 4 are the same clip of {tmp_path}/b.wav" in message
    with pytest.raises(ConfigError, match="and 95 more clips"):
        table(tmp_path, "file\n" + "".join(f"{i % 100}.wav\n" for i in range(200)))


CELLS = st.text(st.sampled_from('ab ,;\t"\n\r|ü'), max_size=6)


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
    """Against Python's csv, also where one character was changed."""
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
    refused = ""
    try:
        clips, notes = read(tmp_path_factory.mktemp("t"), content)
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert bend is not None or any("\n" in t or "\r" in t for t in texts)
        assert re.search(r"(line|rows?) \d+", refused)
        return
    rows = [row for row in csv.reader(io.StringIO(content, newline=""), delimiter=delimiter) if row]
    said = [row[1] or None for row in rows[1:] if any(map(str.strip, row))]
    assert clips["transcript"].to_pylist() == said
    skipped = re.search(r"empty rows left out: (\d+)", notes)
    assert len(clips) + int(skipped[1] if skipped else 0) == len(rows) - 1


# audformat and Parquet --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_that_audformat_wrote(tmp_path: Path, kind: str) -> None:
    database = audformat.Database("db", source="here", usage="research")
    database.schemes["arousal"] = audformat.Scheme("float", minimum=0, maximum=1)
    database.schemes["speaker"] = audformat.Scheme("str", labels=["03", "08"])
    index = audformat.segmented_index(
        ["a.wav", "a.wav", "b.wav"], ["0s", "1.25s", "0s"], ["1.25s", "2.000000001s", pd.NaT]
    )
    database["segments"] = audformat.Table(index)
    database["files"] = audformat.Table(audformat.filewise_index(["a.wav", "b.wav"]))
    for name, count in (("segments", 3), ("files", 2)):
        for column, values in (("arousal", [0.25, None, 1.0]), ("speaker", ["03", "08", "03"])):
            database[name][column] = audformat.Column(scheme_id=column)
            database[name][column].set(values[:count])
    database.save(str(tmp_path), storage_format=kind)
    segments, notes = read_clip_table([str(tmp_path / f"db.segments.{kind}")])
    assert notes == []
    assert names(tmp_path, segments) == ["a.wav", "a.wav", "b.wav"]
    assert spans(segments) == [(0, 1_250_000_000), (1_250_000_000, 2_000_000_001), (0, None)]
    assert segments["arousal"].to_pylist() == [0.25, None, 1.0]
    assert segments["speaker"].to_pylist() == ["03", "08", "03"]
    files, _ = read_clip_table([str(tmp_path / f"db.files.{kind}")])
    assert spans(files) == [(None, None)] * 2


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
    assert (clips["valence"].type, clips["file"].type) == (pa.float32(), pa.string())
    assert "nested" in notes[0]
    frame = pd.DataFrame(
        {"file": ["a.wav"], "start": pd.to_timedelta(["1.5s"]), "end": pd.to_timedelta([None])}
    )
    frame.set_index(["file", "start", "end"]).assign(sex="f").to_parquet(tmp_path / "t.pq")
    clips, _ = read_clip_table([str(tmp_path / "t.pq")])
    assert spans(clips) == [(1_500_000_000, None)]
    assert clips["sex"].to_pylist() == ["f"]


def test_damaged_and_hostile_parquet_is_refused(tmp_path: Path) -> None:
    bad_text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    write(tmp_path / "utf.parquet", {"file": bad_text})
    write(tmp_path / "list.parquet", {"file": [["a.wav"]]})
    ends = pa.array([1, 2**60], pa.duration("s"))
    write(tmp_path / "end.parquet", {"file": ["a.wav", "b.wav"], "end": ends})
    write(tmp_path / "page.parquet", {"file": [f"{i}.wav" for i in range(5000)]})
    data = bytearray((tmp_path / "page.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "page.parquet").write_bytes(data)
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 no")
    name = "n" * 1_000_000 + ".wav"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 600_000, pa.int32()), [name])
    bomb = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"file": column}), bomb, compression="zstd", store_schema=False)
    assert bomb.stat().st_size < 2_000_000
    for name, words in {
        "utf": "cannot be read", "list": "not text", "end": "row 2: end", "junk": "cannot be read",
        "page": "cannot be read as a table", "bomb": "unpacks to more than",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{name}\.parquet.*{words}"):
            read_clip_table([str(tmp_path / f"{name}.parquet")])


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
    # the first name that exists settles the spelling of all
    s3.put("t/sub/a.wav", b"x")
    uri = s3.put("t/t.csv", b"file;speaker\nsub\\a.wav;03\nsub\\b.wav;\nplain.wav;\n")
    clips, notes = read_clip_table([uri])
    assert names(f"{s3.uri}/t", clips) == ["sub/a.wav", "sub/b.wav", "plain.wav"]
    assert clips["speaker"].to_pylist()[0] == "03"
    assert "accents: 2" in notes[0]


# times, checked against pandas, which audformat users write with ---------------------------------


@given(st.integers(0, 10**15))
def test_times_that_pandas_writes(ns: int) -> None:
    delta = pd.Timedelta(ns, unit="ns")
    assert parse_ns(str(delta)) == ns
    assert parse_ns(delta.isoformat()) == ns


TIMES = {
    "1.5": 1.5, "0": 0, "2": 2, "1,25": 1.25, "3s": 3, " 1.5 ": 1.5, "1e-1": 0.1,
    "00:01:02.5": 62.5, "1:02:03": 3723, "01:02,500": 62.5, "100:00:00": 360_000, "1 day": 86_400,
    "2 days 00:00:01": 172_801, "PT1M2.5S": 62.5, "P1DT1S": 86_401, "0.1234567891": 0.123456789,
    **dict.fromkeys(("", " ", "NaT", "nan", "None", "<NA>")),
}  # fmt: skip
NO_TIMES = [
    "-1",
    "abc",
    "1:2:3:4",
    "-1 days +23:59:59",
    "inf",
    "1500000000",
    "1 2",
    "P",
    "PT",
    "1.5.5",
]


def test_times_as_text() -> None:
    found = {text: parse_ns(text) for text in TIMES}
    assert found == {text: s if s is None else round(s * S) for text, s in TIMES.items()}
    for text in NO_TIMES:
        with pytest.raises(ValueError, match=r"time|seconds"):
            parse_ns(text)


def test_columns_of_times_of_every_type() -> None:
    for column in (
        pa.array([0, 1_500_000, None], pa.duration("us")),
        pa.array([0.0, 1.5, float("nan")]),
        pa.array([0.0, 1.5, None], pa.float32()),
        pa.array(["0", "1.5", ""], pa.large_string()),
        pa.array(["0", "1.5", None]).dictionary_encode(),
    ):
        found = to_durations(pa.chunked_array([column[:1], column[1:]]))
        assert found.type == pa.duration("ns")
        assert found.cast(pa.int64()).to_pylist() == [0, 1_500_000_000, None]
    for bad in ([0.0, -1.0], [0, 1_500_000_000], ["0", "x"], pa.array([0, -5], pa.duration("ns"))):
        with pytest.raises(TimeColumnError) as raised:
            to_durations(pa.chunked_array([bad]))
        assert raised.value.row == 1
