"""What `--input` may name: folders, tars, files, tables, together, locally and on S3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from raysers.data.manifest import is_manifest, write_manifest
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import LISTING, list_inputs
from raysers.errors import ConfigError, CredentialsError, TransientStorageError
from raysers.types import Status
from tests.s3 import Bucket, Faults
from tests.unit.data.test_tar import build


def make(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def rows(*uris: object, notes: list[str] | None = None) -> list[dict[str, object]]:
    batches = list_inputs(list(map(str, uris)), notes=notes)
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    return pa.concat_tables(tables, promote_options="default").to_pylist()


def files(*uris: object) -> list[object]:
    return sorted(str(row["file"]) for row in rows(*uris))


def test_a_folder_with_audio_tars_and_other_things(tmp_path: Path) -> None:
    for name in ("a.wav", "sub/b.FLAC", "c.m4a", "LICENSE", "x/readme", ".hidden.dat"):
        make(tmp_path / name)
    for i in range(12):
        make(tmp_path / f"{i}.dat")
    with open(bytes(tmp_path) + b"/gr\xfc\xdfe.wav", "wb"):
        pass
    make(tmp_path / "shards/s.tar", build([("m.wav", b"mm"), ("m.json", b"{}")]))
    make(tmp_path / "shards/broken.tar", b"no tar at all" * 100)
    make(tmp_path / "shards/packed.tar.gz", b"\x1f\x8b")
    for name in "ab":
        make(tmp_path / f"shards/{name}.tar", build([("b.txt", b"x")]))
    notes: list[str] = []
    found = {str(r["file"]).removeprefix(f"{tmp_path}/"): r for r in rows(tmp_path, notes=notes)}
    assert sorted(found) == [
        "a.wav", "c.m4a", "gr\\udcfc\\udcdfe.wav", "shards/broken.tar", "shards/packed.tar.gz",
        "shards/s.tar#m.wav", "sub/b.FLAC",
    ]  # fmt: skip
    assert found["shards/s.tar#m.wav"]["byte_size"] == 2
    assert found["shards/broken.tar"]["status"] == Status.UNSUPPORTED
    assert "decompress" in str(found["shards/packed.tar.gz"]["error"])
    assert (found["a.wav"]["status"], found["a.wav"]["num_bytes"]) == (None, 1)
    assert "not valid UTF-8" in str(found["gr\\udcfc\\udcdfe.wav"]["error"])
    first = f"{tmp_path}/shards/a.tar"
    assert sorted(notes) == [
        f"{tmp_path}: 2 tars without audio left out (the first: {first!r})",
        f"{tmp_path}: skipped 12 x .dat, 2 without suffix: no suffix of audio",
    ]


def test_batches_stream_in_bounded_size_with_one_schema(tmp_path: Path) -> None:
    for i in range(2100):
        make(tmp_path / f"{i % 9}" / f"{i}.wav", b"")
    batches = list(list_inputs([str(tmp_path)]))
    assert sum(batch.num_rows for batch in batches) == 2100
    assert max(batch.num_rows for batch in batches) <= 2000
    assert all(batch.schema.equals(LISTING) for batch in batches)
    audio = [str(make(tmp_path / f"{i}.wav")) for i in range(50)]
    members = build([(f"{j}.wav", b"x") for j in range(3)])
    tars = [str(make(tmp_path / f"{i}.tar", members)) for i in range(20)]
    assert [batch.num_rows for batch in list_inputs([*tars, *audio])] == [50] + [3] * 20
    with pytest.raises(ConfigError, match="no audio"):
        rows(*tars, make(tmp_path / "none.tar", build([("a.txt", b"x")])))


def test_inputs_that_overlap_are_listed_once_and_labels_win(tmp_path: Path) -> None:
    for name in ("x/a.wav", "x/b.wav", "x/y/c.wav"):
        make(tmp_path / name)
    make(tmp_path / "t.csv", b"file,start,end,speaker\nx/a.wav,0,1,s1\nx/a.wav,1,2,s1\n")
    make(tmp_path / "u.csv", b"file,start,end,speaker\nx/a.wav,1,2,s2\nx/b.wav,,,s3\n")
    found = rows(
        tmp_path / "x", tmp_path / "x/y", tmp_path / "x/y/c.wav", tmp_path / "t.csv",
        tmp_path / "u.csv", f"{tmp_path}/x/",
    )  # fmt: skip
    got = sorted((Path(str(r["file"])).name, str(r["end"]), r["speaker"]) for r in found)
    assert got == [
        ("a.wav", "0 days 00:00:01", "s1"),
        ("a.wav", "0 days 00:00:02", "s1"),
        ("b.wav", "None", "s3"),
        ("c.wav", "None", None),
    ]


def test_table_that_names_tar_members(tmp_path: Path) -> None:
    make(tmp_path / "s.tar", build([("m/1.wav", b"one"), ("m/2.wav", b"three")]))
    make(tmp_path / "odd.tar#1" / "plain.wav")
    names = ("s.tar#m/2.wav", "s.tar#m/1.wav", "s.tar#gone.wav", "odd.tar#1/plain.wav")
    make(tmp_path / "t.csv", "\n".join(["file,age", *(f"{name},1" for name in names)]).encode())
    notes: list[str] = []
    first, second, gone, plain = rows(tmp_path / "t.csv", notes=notes)
    data = (tmp_path / "s.tar").read_bytes()
    assert data[first["byte_offset"] :][:5] == b"three"  # type: ignore[misc]
    assert (second["byte_size"], second["num_bytes"]) == (3, 3)
    assert gone["status"] == Status.MISSING
    assert (plain["status"], plain["byte_offset"]) == (None, None)
    assert notes == [f"{tmp_path}/t.csv: columns not used: age"]


def test_folder_of_parts_is_a_table(tmp_path: Path) -> None:
    make(tmp_path / "x.wav")
    (tmp_path / "run" / "manifest").mkdir(parents=True)
    named = pa.table({"file": [f"{tmp_path}/x.wav"]})
    pq.write_table(named, tmp_path / "run/manifest/part-0.parquet")
    assert files(tmp_path / "run") == files(tmp_path / "run/manifest") == [f"{tmp_path}/x.wav"]
    table = probe_batch(next(list_inputs([str(tmp_path / "run")])), Segmenting())
    write_manifest(str(tmp_path / "ours" / "manifest"), table)
    for name in ("ours", "ours/manifest", "ours/manifest/part-00000.parquet"):
        assert is_manifest(str(tmp_path / name))
    for name in ("run", "", "nowhere"):
        assert not is_manifest(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "nothing there"),
        ("missing.wav", "nothing there"),
        ("missing/*.tar", "nothing there"),
        ("empty", "it holds nothing"),
        ("texts", "2 x .txt"),
        ("notes.txt", "none of its 1 files is there"),
        ("packed.tgz", "decompress"),
        ("fake.tar", "not a tar"),
        ("none.tar", "no audio"),
        ("header.csv", "no rows"),
        ("pickle.pkl", "not a folder"),
    ],
)
def test_inputs_that_cannot_be(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    for text in ("texts/a.txt", "texts/sub/b.txt", "notes.txt", "pickle.pkl", "packed.tgz"):
        make(tmp_path / text)
    make(tmp_path / "fake.tar", b"not a tar" * 200)
    make(tmp_path / "none.tar", build([("a.txt", b"x")]))
    make(tmp_path / "header.csv", b"file\n")
    with pytest.raises(ConfigError, match=words) as raised:
        rows(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_misspelt_input_is_found_before_anything_is_listed(tmp_path: Path) -> None:
    make(tmp_path / "a.wav")
    for uris, words in (
        ([str(tmp_path), str(tmp_path / "misspelt")], "nothing there"),
        ([], "--input"),
        (["magnet://b/x"], "not supported"),
    ):
        with pytest.raises(ConfigError, match=words):
            list_inputs(uris)


def test_s3_inputs(s3: Bucket, s3_faults: Faults) -> None:
    for key in ("in/a #1.wav", "in/sub/b.wav", "in/sub/", "single/x%20y.wav"):
        s3.put(key)
    s3.put("in/s.tar", build([("m.wav", b"mm")]))
    s3.put("in/labels.csv", b"file,speaker\na #1.wav,03\n")
    assert files(f"{s3.uri}/in/") == [
        f"{s3.uri}/in/{name}" for name in ("a #1.wav", "s.tar#m.wav", "sub/b.wav")
    ]
    assert files(f"{s3.uri}/single/x%20y.wav") == [f"{s3.uri}/single/x%20y.wav"]
    assert files(f"{s3.uri}/in/s.tar") == [f"{s3.uri}/in/s.tar#m.wav"]
    assert len(files(s3.uri)) == 4
    (row,) = rows(f"{s3.uri}/in/labels.csv")
    assert (row["file"], row["speaker"]) == (f"{s3.uri}/in/a #1.wav", "03")
    s3_faults.add("shut", 403, code="AccessDenied")
    for uri, words in (
        ("s3://no-such-bucket-here", "nothing there"),
        ("s3://no-such-bucket-here/x", "nothing there"),
        (f"{s3.uri}/sing", "nothing there"),
        (f"{s3.uri}/shut", "no permission"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            rows(uri)
        assert uri in str(raised.value)
    for status, code, error in (
        (403, "InvalidAccessKeyId", CredentialsError),
        (503, "SlowDown", TransientStorageError),
    ):
        s3_faults.clear()
        s3_faults.add("single", status, code=code)
        with pytest.raises(error):
            rows(f"{s3.uri}/single")


#: Formats under the suffix by which the sound library itself knows them.
SUFFIX_OF = {"VOC": "voc", "AVR": "avr", "PAF": "paf", "PVF": "pvf", "WVE": "wve"}
SUFFIX_OF |= {"SDS": "sds", "HTK": "htk", "IRCAM": "sf", "NIST": "sph"}


def test_rare_formats_are_found_and_read(tmp_path: Path) -> None:
    for fmt, suffix in SUFFIX_OF.items():
        path, subtype = tmp_path / f"x.{suffix}", "ALAW" if fmt == "WVE" else "PCM_16"
        soundfile.write(path, np.full(8000, 0.1), 8000, subtype=subtype, format=fmt)
    (batch,) = list_inputs([str(tmp_path)])
    found = probe_batch(batch, Segmenting())
    assert found["status"].to_pylist() == ["ok"] * len(SUFFIX_OF)
    assert found["duration_s"].to_pylist() == pytest.approx([1.0] * len(SUFFIX_OF), abs=0.005)


def test_links_in_linked_folders_are_not_entered(tmp_path: Path) -> None:
    """Without a limit, ten folders of links to each other are millions of paths."""
    for i in range(7):
        make(tmp_path / "pool" / str(i) / "x.wav")
        for j in range(7):
            (tmp_path / "pool" / str(i) / f"to{j}").symlink_to(tmp_path / "pool" / str(j))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "in").symlink_to(tmp_path / "pool")
    assert len(rows(tmp_path / "root")) == 7
    assert len(rows(tmp_path / "pool")) == 7 + 7 * 6
