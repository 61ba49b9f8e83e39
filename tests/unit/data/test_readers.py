"""Tables as people have them: the same two clips in every format, and what is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from raysers.audio.decode import decode
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.shards import plan_part
from raysers.data.sources import list_inputs
from raysers.errors import ConfigError, ObjectChanged, ObjectMissing
from raysers.io import storage
from tests.s3 import Bucket

#: File, start and end in milliseconds, speaker.
CLIPS = [("a.wav", 200, 1200, "s1"), ("b.wav", 100, 1100, "s2")]


def wav(path: Path, seed: int = 0, seconds: float = 2.0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds))
    soundfile.write(path, noise, 16_000, subtype="PCM_16")
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wav(tmp_path / "wav/a.wav", 1)
    wav(tmp_path / "wav/b.wav", 2)
    return tmp_path


def rows(*uris: str, notes: list[str] | None = None) -> list[dict[str, Any]]:
    tables = [pa.Table.from_batches([b]) for b in list_inputs(list(uris), notes=notes)]
    return pa.concat_tables(tables, promote_options="default").to_pylist()


def clips(*uris: str) -> list[tuple[str, int | None, int | None, str | None]]:
    def ms(time: Any) -> int | None:
        return None if time is None else round(time.total_seconds() * 1000)

    found = rows(*uris)
    return [
        (Path(row["file"]).name, ms(row["start"]), ms(row["end"]), row.get("speaker"))
        for row in sorted(found, key=lambda row: row["file"])
    ]


def records() -> list[dict[str, Any]]:
    return [
        {"audio_filepath": f"wav/{f}", "offset": a / 1000, "duration": 1.0, "speaker": s}
        for f, a, _, s in CLIPS
    ]


def cuts() -> list[dict[str, Any]]:
    return [
        {
            "id": f"{s}-1", "start": a / 1000, "duration": 1.0, "channel": 0, "type": "MonoCut",
            "supervisions": [{"id": "x", "recording_id": f, "speaker": s, "text": "well"}],
            "recording": {
                "id": f, "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0,
                "sources": [{"type": "file", "channels": [0], "source": f"wav/{f}"}],
            },
        }
        for f, a, _, s in CLIPS
    ]  # fmt: skip


def lines(values: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def kaldi(folder: Path) -> None:
    (folder / "wav.scp").write_text("ra wav/a.wav\nrb wav/b.wav\n")
    (folder / "segments").write_text("u1 ra 0.2 1.2\nu2 rb 0.1 1.1\n")
    (folder / "utt2spk").write_text("u1 s1\nu2 s2\n")


def rttm(folder: Path) -> None:
    turns = (f"SPEAKER {f[0]} 1 {a / 1000} 1.0 <NA> <NA> {s} <NA> <NA>\n" for f, a, _, s in CLIPS)
    (folder / "turns.rttm").write_text(";; turns\n" + "".join(turns))


def database(connection: Any) -> None:
    connection.execute("CREATE TABLE clips (path TEXT, start_s REAL, end_s REAL, speaker TEXT)")
    for f, a, b, s in CLIPS:
        row = [f"wav/{f}", a / 1000, b / 1000, s]
        connection.execute("INSERT INTO clips VALUES (?, ?, ?, ?)", row)
    connection.execute("CREATE TABLE people (speaker TEXT, age INTEGER)")
    connection.commit()
    connection.close()


FORMS: dict[str, Callable[[Path], Any]] = {
    "nemo.jsonl": lambda d: (d / "nemo.jsonl").write_bytes(lines(records())),
    "nemo.jsonl.gz": lambda d: (d / "nemo.jsonl.gz").write_bytes(gzip.compress(lines(records()))),
    "array.json": lambda d: (d / "array.json").write_text(json.dumps(records())),
    "cuts.jsonl": lambda d: (d / "cuts.jsonl").write_bytes(lines(cuts())),
    "cuts.jsonl.gz": lambda d: (d / "cuts.jsonl.gz").write_bytes(gzip.compress(lines(cuts()))),
    "wav.scp": kaldi,
    "turns.rttm": rttm,
    "x.sqlite": lambda d: database(sqlite3.connect(d / "x.sqlite")),
    "x.db#clips": lambda d: database(sqlite3.connect(d / "x.db")),
    "x.duckdb": lambda d: database(duckdb.connect(str(d / "x.duckdb"))),
    "excel.csv": lambda d: (d / "excel.csv").write_bytes(
        "\ufeffPath;Start (s);End (s);speaker\r\nwav\\a.wav;0,2;1,2;s1\r\nwav\\b.wav;0,1;1,1;s2\r\n"
        .encode()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_same_clips_in_every_format(folder: Path, name: str) -> None:
    FORMS[name](folder)
    assert clips(str(folder / name)) == CLIPS


def test_lists_and_metadata_name_whole_files(folder: Path) -> None:
    whole = [("a.wav", None, None, None), ("b.wav", None, None, None)]
    (folder / "list.txt").write_text("wav/a.wav\nwav/b.wav\n")
    (folder / "x.m3u8").write_text("#EXTM3U\nwav/a.wav\n#EXTINF:1,x\nwav/b.wav\n")
    (folder / "metadata.jsonl").write_bytes(lines([{"file_name": f"wav/{f}"} for f in "ab"]))
    (folder / "hf.jsonl").write_bytes(
        lines([{"file_name": f"wav/{f}.wav", "transcription": "hi", "n": [1]} for f in "ab"])
    )
    assert clips(str(folder / "list.txt")) == clips(str(folder / "x.m3u8")) == whole
    assert clips(str(folder / "hf.jsonl")) == whole
    assert {row["transcript"] for row in rows(str(folder / "hf.jsonl"))} == {"hi"}


def test_whole_cuts_and_channels_of_lhotse(folder: Path) -> None:
    whole, right = cuts()
    whole |= {"start": 0, "duration": 2.0}
    right["channel"], right["recording"]["sources"][0]["channels"] = 1, [0, 1]
    (folder / "cuts.jsonl").write_bytes(lines([whole, right]))
    assert clips(str(folder / "cuts.jsonl"))[0] == ("a.wav", None, None, "s1")
    assert [row["channel"] for row in rows(str(folder / "cuts.jsonl"))] == [None, 2]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", b'{"file": "wav/a.wav"}\n{"file": \n', "line 2: .* one JSON object a line"),
        ("x.jsonl", b'{"file": "wav/a.wav"}\n[1]\n', "line 2: .* is not an object"),
        ("x.jsonl", b"[" * 100_000, "not JSON"),
        ("x.jsonl", lines([cuts()[0] | {"type": "MixedCut"}]), "line 1: a MixedCut"),
        ("x.jsonl", lines([{"recording": {"sources": []}}]), "line 1: a recording of 0 sources"),
        ("x.jsonl.gz", b"no gzip", "is damaged"),
        ("x.jsonl.gz", gzip.compress(lines(records()))[:-9], "is cut"),
        ("x.scp", b"u1 sph2pipe -f wav x.sph |\n", "line 1: a command in place of a file"),
        ("x.rttm", b"SPEAKER zz 1 0 1 <NA> <NA> s <NA> <NA>\n", "line 1: 'zz' is no audio file"),
        ("x.rttm", b"SPEAKER a 1 0\n", "line 1: .* is not 'SPEAKER recording"),
        ("x.db", b"no database", "neither a SQLite nor a DuckDB file"),
        ("x.sqlite", b"SQLite format 3\0" + b"x" * 100, "cannot be read"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_refused_with_their_line(
    folder: Path, name: str, data: bytes, words: str
) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ConfigError, match=words) as raised:
        rows(str(folder / name))
    assert str(folder / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_of_several_tables_of_a_database_is_named(folder: Path) -> None:
    connection = sqlite3.connect(folder / "x.db")
    for name in ("old", "new"):
        connection.execute(f"CREATE TABLE {name} (file TEXT)")
        connection.execute(f"INSERT INTO {name} VALUES ('wav/a.wav')")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match=r"holds old, new: name a table .* as .*x\.db#TABLE"):
        rows(str(folder / "x.db"))
    assert clips(f"{folder}/x.db#new") == [("a.wav", None, None, None)]


def test_recordings_of_an_rttm_are_also_below_the_folders_given(folder: Path) -> None:
    (folder / "turns").mkdir()
    rttm(folder / "turns")
    with pytest.raises(ConfigError, match="give the folder of its recordings"):
        rows(str(folder / "turns/turns.rttm"))
    wav(folder / "wav/c.wav", 3)
    assert clips(str(folder / "turns/turns.rttm"), str(folder / "wav")) == [
        *CLIPS,
        ("c.wav", None, None, None),
    ]


# audio inside Parquet ---------------------------------------------------------------------------


def hugging_face(path: Path, audio: list[bytes | None], group_rows: int = 100) -> str:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": data, "path": f"{i}.wav"} for i, data in enumerate(audio)]
    table = pa.table({"audio": pa.array(values, struct), "emotion": ["joy"] * len(audio)})
    pq.write_table(table, path, row_group_size=group_rows)
    return str(path)


def test_audio_inside_parquet(folder: Path, s3: Bucket) -> None:
    sounds = [wav(folder / f"{i}.wav", i, 1 + i / 10) for i in range(7)]
    uri = hugging_face(folder / "train.parquet", [*sounds, None], group_rows=3)
    for place in (uri, s3.put("hf/train.parquet", Path(uri).read_bytes())):
        (batch,) = list_inputs([place])
        manifest = probe_batch(batch, Segmenting())
        assert manifest["status"].to_pylist() == ["ok"] * 7 + ["missing"]
        assert manifest["num_bytes"].to_pylist() == [*map(len, sounds), None]
        for row, data in zip(manifest.to_pylist(), sounds, strict=False):
            source = storage.open_source(row["file"], etag=row["etag"])
            truth, _ = soundfile.read(io.BytesIO(data), dtype="float32")
            np.testing.assert_array_equal(decode(source, name=row["file"]), truth)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = pa.array([{"bytes": None, "path": f"wav/{f}.wav"} for f in "ab"], struct)
    pq.write_table(pa.table({"audio": values}), folder / "paths.parquet")
    assert [name for name, *_ in clips(str(folder / "paths.parquet"))] == ["a.wav", "b.wav"]
    with pytest.raises(ObjectMissing):
        storage.open_source(f"{uri}#00000099")
    with pytest.raises(ObjectChanged):
        storage.open_source(f"{uri}#00000001", etag="another")


def test_audio_inside_parquet_is_in_shards_by_row() -> None:
    """Else each clip would cost the reading of its row group."""
    lengths = np.random.default_rng(0).uniform(1, 10, 200)
    manifest = pa.table(
        {
            "file": [f"t.parquet#{i:08d}" for i in range(200)],
            "start": pa.array([0] * 200, pa.duration("ns")),
            "duration_s": lengths,
            "status": ["ok"] * 200,
        }
    )
    shards = plan_part(manifest, shard_s=300)
    assert np.array_equal(np.concatenate([shards.rows(i) for i in range(len(shards))]), range(200))


# places -----------------------------------------------------------------------------------------


def test_patterns(folder: Path, s3: Bucket) -> None:
    wav(folder / "deep/er/c.wav")
    wav(folder / "odd[1]?.wav")
    (folder / "list.txt").write_text("wav/a.wav\n")
    (folder / "deep/readme").write_text("x")
    for key in ("p/a.wav", "p/q/b.wav", "p/q/c.flac"):
        s3.put(key)
    for pattern, names in {
        f"{folder}/wav/*.wav": "ab", f"{folder}/**/*.wav": "abco", f"{folder}/*/a.*": "a",
        f"{folder}/de*": "c", f"{folder}/*.txt": "a", f"{folder}/odd[1]?.wav": "o",
        f"{folder}/wav/?.wav": "ab", f"{s3.uri}/p/**/*.wav": "ab", f"{s3.uri}/p/q/*": "bc",
    }.items():  # fmt: skip
        assert "".join(sorted(name[0] for name, *_ in clips(pattern))) == names, pattern
    with pytest.raises(ConfigError, match="nothing there matches"):
        rows(f"{folder}/*.mp3")
    with pytest.raises(ConfigError, match="no audio and no table matches"):
        rows(f"{folder}/deep/read*")


def test_a_list_on_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    stdin = io.TextIOWrapper(io.BytesIO(f"wav/a.wav\n{folder}/wav/b.wav\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert [name for name, *_ in clips("-")] == ["a.wav", "b.wav"]


def test_a_table_of_which_no_file_is_there_says_where_it_looked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tables").mkdir()
    table = folder / "tables/t.csv"
    table.write_text("file\nwav/a.wav\nwav/gone.wav\n")
    monkeypatch.chdir(folder)
    looked = rf"none of its 2 files is there; looked for {folder}/tables/wav/a\.wav \(there is "
    with pytest.raises(ConfigError, match=looked + f"{folder}/wav/a.wav"):
        list_inputs([str(table)])
    table.write_text("file\n" + "gone.wav\n" * 30 + "../wav/a.wav\n")
    list_inputs([str(table)])
    table.write_text("file\n/nowhere/a.wav\n")
    assert len(rows(str(table))) == 1


def test_leftovers_of_macos_are_counted(folder: Path, s3: Bucket) -> None:
    for name in ("._a.wav", "wav/._b.wav", "__MACOSX/wav/._c.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
        s3.put(f"m/{name}")
    s3.put("m/a.wav")
    for place in (str(folder), f"{s3.uri}/m"):
        notes: list[str] = []
        assert not [row for row in rows(place, notes=notes) if "._" in row["file"]]
        assert any("3 left out: a leftover of macOS" in note for note in notes), notes
