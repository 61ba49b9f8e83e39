"""Manifests: from real and broken files to rows, the same bytes each time, and back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import audformat
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile

from raysers.data import manifest as manifest_module
from raysers.data.manifest import (
    clips_of,
    fingerprint,
    read_manifest,
    sort_manifest,
    write_manifest,
)
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.errors import ClipError, ConfigError, CredentialsError
from raysers.io import storage
from raysers.schemas import MANIFEST
from raysers.types import Status, clip_id
from tests.places import SHARED_DATA, needs_shared
from tests.s3 import Bucket, Faults
from tests.unit.data.test_tar import build

S = 10**9


def wav(path: Path, seconds: float = 1.0, rate_hz: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (round(seconds * rate_hz), channels))
    soundfile.write(path, noise, rate_hz)
    return path


def index(*uris: object, segmenting: Segmenting | None = None, **options: object) -> pa.Table:
    batches = list_inputs([str(uri) for uri in uris])
    tables = [probe_batch(b, segmenting or Segmenting(), **options) for b in batches]  # type: ignore[arg-type]
    return sort_manifest(pa.concat_tables(tables, promote_options="default"))


def spans(table: pa.Table) -> list[tuple[int, int | None, str]]:
    start, end = (table[n].cast(pa.int64()).to_pylist() for n in ("start", "end"))
    return list(zip(start, end, table["status"].to_pylist(), strict=True))


def test_whole_files(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 1.5, 44_100, 2)
    wav(tmp_path / "b.flac", 0.25)
    table = index(tmp_path)
    assert table.schema.equals(MANIFEST)
    assert spans(table) == [(0, 1_500_000_000, "ok"), (0, 250_000_000, "ok")]
    first = table.slice(0, 1).to_pylist()[0]
    assert first["duration_s"] == 1.5
    assert (first["sample_rate_hz"], first["channels"]) == (44_100, 2)
    assert first["codec"].startswith("WAV")
    assert first["num_bytes"] == (tmp_path / "a.wav").stat().st_size
    assert first["clip_id"] == clip_id(f"{tmp_path}/a.wav", 0, 1_500_000_000)
    assert first["error"] == ""


def test_windows(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 2.6)
    table = index(tmp_path, segmenting=Segmenting(kind="window", window_s=1, hop_s=1, min_s=0.5))
    assert spans(table) == [(0, S, "ok"), (S, 2 * S, "ok"), (2 * S, 2_600_000_000, "ok")]
    assert table["duration_s"].to_pylist() == pytest.approx([1, 1, 0.6])
    assert len(set(table["clip_id"].to_pylist())) == 3


def truncated(path: Path, seconds: float, kept_s: float) -> Path:
    whole = wav(path, seconds).read_bytes()
    path.write_bytes(whole[: 44 + round(kept_s * 16_000) * 2])
    return path


def test_truncated_file_whole_and_in_windows(tmp_path: Path) -> None:
    truncated(tmp_path / "a.wav", 10, 3.5)
    assert spans(index(tmp_path)) == [(0, 3_500_000_000, "truncated")]
    table = index(tmp_path, segmenting=Segmenting(kind="window", window_s=2, hop_s=2, min_s=0.5))
    assert spans(table) == [
        (0, 2 * S, "ok"),
        (2 * S, 3_500_000_000, "ok"),
        (3_500_000_000, 10 * S, "truncated"),
    ]
    assert "promises 10.000 s" in table["error"][2].as_py()


def test_speech_segments(tmp_path: Path) -> None:
    wav(tmp_path / "quiet.wav", 1)
    wav(tmp_path / "speech.wav", 3)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")

    def find_speech(blocks: Iterable[np.ndarray]) -> list[tuple[int, int]]:
        heard = sum(map(len, blocks))
        return [] if heard == 16_000 else [(S // 2, S), (2 * S, 3 * S)]

    table = index(tmp_path, segmenting=Segmenting(kind="vad"), find_speech=find_speech)
    assert spans(table) == [
        (0, None, "unreadable"),
        (0, S, "empty"),
        (S // 2, S, "ok"),
        (2 * S, 3 * S, "ok"),
    ]
    assert table["error"][1].as_py() == "no speech found"
    with pytest.raises(ValueError, match="find_speech"):
        index(tmp_path, segmenting=Segmenting(kind="vad"))

    def fails(blocks: object) -> list[tuple[int, int]]:
        raise ClipError(Status.NOT_FINITE, "NaN")

    table = index(tmp_path / "quiet.wav", segmenting=Segmenting(kind="vad"), find_speech=fails)
    assert spans(table) == [(0, S, "not_finite")]


def test_segments_of_a_table_keep_their_identity(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 2)
    truncated(tmp_path / "cut.wav", 4, 2)
    (tmp_path / "t.csv").write_text(
        "file,start,end,speaker,arousal\n"
        "a.wav,0.5,1.5,03,.5\n"
        "a.wav,1,,03,\n"
        "a.wav,0,2.0005,03,\n"
        "a.wav,1.5,2.5,03,\n"
        "a.wav,2,3,03,\n"
        "a.wav,7,,03,\n"
        "a.wav,,,08,\n"
        "cut.wav,0,1,08,\n"
        "cut.wav,1,3,08,\n"
        "cut.wav,1,,08,\n"
        "gone.wav,1,2,08,\n"
    )
    table = index(tmp_path / "t.csv", segmenting=Segmenting(kind="window", window_s=1, hop_s=1))
    assert spans(table) == [
        (0, S, "ok"),  # the row without a segment, in windows
        (0, 2_000_500_000, "ok"),  # half a millisecond past the end is rounding
        (S // 2, 3 * S // 2, "ok"),
        # the row with an open end and the file's second window are one clip
        (S, 2 * S, "ok"),
        (3 * S // 2, 5 * S // 2, "truncated"),
        (2 * S, 3 * S, "empty"),
        (7 * S, 7 * S, "empty"),
        (0, S, "ok"),
        (S, 2 * S, "truncated"),
        (S, 3 * S, "truncated"),
        (S, 2 * S, "missing"),
    ]
    by_end = table.filter(pc.equal(table["status"], "ok"))
    assert by_end["duration_s"].to_pylist() == pytest.approx([1, 2, 1, 1, 1])
    assert set(table["speaker"].to_pylist()) == {"03", "08"}
    assert table["arousal"].to_pylist()[2] == 0.5
    ids = table["clip_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    # a table does not know sizes and versions; the manifest does
    assert table["etag"][0].as_py() == storage.stat(str(tmp_path / "a.wav")).etag


def test_missing_and_dangling_files_are_rows(tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    assert spans(index(tmp_path)) == [(0, None, "missing")]


def test_tar_members_and_their_refusals(tmp_path: Path) -> None:
    good = wav(tmp_path / "x.wav").read_bytes()
    members = [("ok.wav", good), ("../evil.wav", good), ("bad.wav", b"no"), ("cut.wav", good)]
    (tmp_path / "s.tar").write_bytes(build(members)[: -len(good) // 2 - 10240])
    table = index(tmp_path / "s.tar")
    found = dict(zip(table["file"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert found == {
        f"{tmp_path}/s.tar#ok.wav": "ok",
        f"{tmp_path}/s.tar#../evil.wav": "unsupported",
        f"{tmp_path}/s.tar#bad.wav": "unreadable",
        f"{tmp_path}/s.tar#cut.wav": "truncated",
        f"{tmp_path}/s.tar": "truncated",
    }
    (clip,) = (c for c in clips_of(table) if c.status == Status.OK)
    assert clip.byte_size == clip.num_bytes == len(good)
    source = storage.open_source(clip.file, byte_offset=clip.byte_offset, byte_size=clip.byte_size)
    assert not isinstance(source, str)
    assert soundfile.info(source).frames == 16_000


@needs_shared
def test_the_same_archive_in_a_folder_a_tar_and_on_s3_gives_the_same_headers(
    s3: Bucket, tmp_path: Path
) -> None:
    odd = sorted(p for p in (SHARED_DATA / "ci" / "odd").iterdir() if p.suffix != ".csv")
    with_suffix = [(p.name, p.read_bytes()) for p in odd]
    (tmp_path / "odd.tar").write_bytes(build(with_suffix))
    for name, data in with_suffix:
        s3.put(f"odd/{name}", data)
    columns = ["end", "duration_s", "sample_rate_hz", "channels", "codec", "num_bytes", "status"]
    tables = [
        index(SHARED_DATA / "ci" / "odd"),
        index(tmp_path / "odd.tar"),
        index(f"{s3.uri}/odd"),
        index(s3.put("odd.tar", (tmp_path / "odd.tar").read_bytes())),
    ]
    assert len(tables[0]) == len(odd)
    assert len(set(tables[0]["status"].to_pylist())) >= 5
    for table in tables[1:]:
        assert table.select(columns).equals(tables[0].select(columns))


# S3 ---------------------------------------------------------------------------------------------


def test_each_storage_fault_has_its_fate(s3: Bucket, s3_faults: Faults, tmp_path: Path) -> None:
    data = wav(tmp_path / "x.wav").read_bytes()
    for name in ("good", "gone", "shut", "slow", "resets"):
        s3.put(f"in/{name}.wav", data)
    s3_faults.add("gone.wav", 404, code="NoSuchKey")
    s3_faults.add("shut.wav", 403, code="AccessDenied")
    s3_faults.add("slow.wav", 503, code="SlowDown", times=3)
    s3_faults.add("resets.wav", "reset", times=3)
    table = index(f"{s3.uri}/in")
    assert dict(
        zip((os.path.basename(f) for f in table["file"].to_pylist()), spans(table), strict=True)
    ) == {
        "good.wav": (0, S, "ok"),
        "gone.wav": (0, None, "missing"),
        "shut.wav": (0, None, "forbidden"),
        "slow.wav": (0, S, "ok"),
        "resets.wav": (0, S, "ok"),
    }
    s3_faults.add("good.wav", 503)
    bad = next(row for row in index(f"{s3.uri}/in").to_pylist() if "good" in row["file"])
    assert (bad["status"], "503" in bad["error"]) == ("unreadable", True)
    s3_faults.clear()
    s3_faults.add("good.wav", 403, code="ExpiredToken")
    with pytest.raises(CredentialsError):
        index(f"{s3.uri}/in")


def test_header_of_a_long_recording_needs_little_of_it(
    s3: Bucket, s3_faults: Faults, tmp_path: Path
) -> None:
    data = wav(tmp_path / "long.wav", 400).read_bytes()
    assert len(data) > 12_000_000
    uri = s3.put("long.wav", data)
    table = index(uri)
    assert table["duration_s"].to_pylist() == [400.0]
    spans_asked = [s[6:].split("-") for _, _, s in s3_faults.seen if s]
    assert sum(int(b) - int(a) + 1 for a, b in spans_asked) <= 3 * 2**20


def test_table_rows_learn_size_and_version_from_the_read(s3: Bucket, tmp_path: Path) -> None:
    uri = s3.put("in/a #1.wav", wav(tmp_path / "x.wav").read_bytes())
    s3.put("in/t.csv", b"file\na #1.wav\n")
    (row,) = index(f"{s3.uri}/in/t.csv").to_pylist()
    info = storage.stat(uri)
    assert (row["num_bytes"], row["etag"]) == (info.num_bytes, info.etag)


# writing and reading ----------------------------------------------------------------------------


def many(count: int) -> pa.Table:
    files = [f"/data/{i:06d}.wav" for i in range(count)]
    columns = {
        "file": files,
        "start": pa.array([0] * count, pa.duration("ns")),
        "end": pa.array([S] * count, pa.duration("ns")),
        "clip_id": [clip_id(file, 0, S) for file in files],
        "duration_s": [1.0] * count,
        "sample_rate_hz": pa.array([16_000] * count, pa.int32()),
        "channels": pa.array([1] * count, pa.int32()),
        "codec": ["WAV/PCM_16"] * count,
        "num_bytes": [32_044] * count,
        "etag": ["e"] * count,
        "status": ["ok"] * count,
        "error": [""] * count,
        "byte_offset": pa.nulls(count, pa.int64()),
        "byte_size": pa.nulls(count, pa.int64()),
    }
    return pa.table(columns, schema=MANIFEST)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_same_input_same_manifest_byte_for_byte(tmp_path: Path) -> None:
    for i in range(40):
        wav(tmp_path / "in" / f"{i % 7}" / f"ü {i}.wav", 0.1 + i / 100)
    (tmp_path / "in" / "s.tar").write_bytes(build([("a.wav", b"x"), ("b.wav", b"y")]))
    for run, threads in (("one", 1), ("two", 16)):
        write_manifest(str(tmp_path / run), index(tmp_path / "in", threads=threads))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert list(tree(tmp_path / "one")) == ["part-00000.parquet"]


def test_parts_round_trip_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    table = many(250)
    shuffled = table.take(np.random.default_rng(0).permutation(250))
    write_manifest(str(tmp_path / "m"), shuffled)
    assert sorted(os.listdir(tmp_path / "m")) == [f"part-{i:05d}.parquet" for i in range(3)]
    assert read_manifest(str(tmp_path / "m")).equals(table)
    assert pq.read_schema(tmp_path / "m/part-00000.parquet").field("start").metadata
    ids = read_manifest(str(tmp_path / "m"), ["clip_id"])
    assert ids.column_names == ["clip_id"]
    # a smaller manifest in its place leaves no old part behind
    write_manifest(str(tmp_path / "m"), table.slice(0, 50))
    assert len(read_manifest(str(tmp_path / "m"))) == 50


def test_half_written_manifest_is_not_mistaken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    write_manifest(str(tmp_path), many(250))
    written: list[str] = []
    real = storage.write_atomic

    def dies_after_two(uri: str, data: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(uri)
        real(uri, data)

    monkeypatch.setattr(storage, "write_atomic", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(str(tmp_path), many(300))
    with pytest.raises(ConfigError, match="incomplete"):
        read_manifest(str(tmp_path))


def test_manifest_on_s3(s3: Bucket) -> None:
    table = many(10)
    write_manifest(f"{s3.uri}/run/manifest", table)
    assert read_manifest(f"{s3.uri}/run").equals(table)
    with pytest.raises(ConfigError, match="no manifest"):
        read_manifest(f"{s3.uri}/elsewhere")


def test_tables_that_are_no_manifest_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="clip_id"):
        read_manifest(str(tmp_path / "t.parquet"))
    (tmp_path / "u.parquet").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="in Parquet"):
        read_manifest(str(tmp_path / "u.parquet"))


def test_fingerprint() -> None:
    table = many(1000)
    mark = fingerprint(table)
    shuffled = table.take(np.random.default_rng(0).permutation(1000))
    in_chunks = pa.concat_tables(
        [shuffled.slice(0, 3), shuffled.slice(3, 500), shuffled.slice(503)]
    )
    labelled = table.append_column("speaker", pa.array(["x"] * 1000))
    assert mark == fingerprint(shuffled) == fingerprint(in_chunks) == fingerprint(labelled)
    assert len(mark) == 16
    marks = {mark, fingerprint(table.slice(0, 999))}
    for name, value in (
        ("etag", "f"),
        ("duration_s", 2.0),
        ("status", "empty"),
        ("num_bytes", None),
    ):
        values = table[name].to_pylist()
        values[500] = value
        at = table.schema.get_field_index(name)
        changed = table.set_column(
            at, MANIFEST.field(name), pa.array(values, MANIFEST.field(name).type)
        )
        marks.add(fingerprint(changed))
    assert len(marks) == 6


def test_fingerprint_changes_when_a_file_changes(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 1)
    before = fingerprint(index(tmp_path))
    assert fingerprint(index(tmp_path)) == before
    wav(tmp_path / "a.wav", 1.5)
    assert fingerprint(index(tmp_path)) != before


def test_clips_of() -> None:
    table = many(2)
    first, _ = clips_of(table)
    assert (first.file, first.start_ns, first.end_ns) == ("/data/000000.wav", 0, S)
    assert (first.byte_offset, first.status, first.duration_s) == (None, Status.OK, 1.0)
    bare = table.select(["clip_id", "file", "start", "end"])
    assert np.isnan(clips_of(bare)[0].duration_s)
    odd = pa.table(
        {"clip_id": ["i"], "file": ["f"], "start": pa.array([1], pa.duration("ns")),
         "end": pa.nulls(1, pa.duration("ns")), "duration_s": pa.nulls(1, pa.float64()),
         "status": ["missing"], "error": ["gone"]}
    )  # fmt: skip
    (clip,) = clips_of(odd)
    assert (clip.start_ns, clip.end_ns, clip.status, clip.error) == (1, None, "missing", "gone")


def test_audformat_opens_the_manifest(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 1)
    write_manifest(str(tmp_path / "m"), index(tmp_path))
    shutil.copy(tmp_path / "m" / "part-00000.parquet", tmp_path / "db.clips.parquet")
    (tmp_path / "db.yaml").write_text(
        "name: db\nsource: here\nusage: research\n"
        "tables: {clips: {type: segmented, columns: {status: {}, duration_s: {}}}}\n"
    )
    frame = audformat.Database.load(str(tmp_path))["clips"].get()
    assert frame["duration_s"].tolist() == [1.0]
    assert frame.index.get_level_values("end").total_seconds().tolist() == [1.0]


def test_segmenting_is_checked() -> None:
    for bad in ({"kind": "words"}, {"window_s": 0}, {"hop_s": -1.0}, {"min_s": -1.0}):
        with pytest.raises(ConfigError, match=r"--segment|--window-s"):
            Segmenting(**bad)  # type: ignore[arg-type]


def test_of_equal_clips_the_labelled_one_stays_in_any_order(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    bare = index(tmp_path)
    labelled = bare.append_column("speaker", pa.array(["s2"]))
    other = bare.append_column("speaker", pa.array(["s1"]))
    for tables in ([bare, labelled, other], [other, bare, labelled], [labelled, other, bare]):
        table = sort_manifest(pa.concat_tables(tables, promote_options="default"))
        assert table["speaker"].to_pylist() == ["s1"]


def test_csv_with_the_columns_of_a_manifest_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(MANIFEST.names) + "\n")
    assert not manifest_module.is_manifest(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("status", ["ok", "fine"], "status is unknown"),
        ("status", ["ok", None], "status is empty"),
        ("clip_id", ["x", "x"], "same clip_id"),
        ("clip_id", ["x", None], "clip_id is empty"),
        ("file", [None, "x"], "file is empty"),
        ("byte_offset", [None, -5], "byte_offset is negative"),
        ("num_bytes", [-1, 1], "num_bytes is negative"),
    ],
)
def test_manifests_of_others_are_checked(
    tmp_path: Path, column: str, values: list[object], words: str
) -> None:
    table = many(2)
    assert len(table) == 2
    place = table.schema.get_field_index(column)
    kind = MANIFEST.field(column)
    pq.write_table(
        table.set_column(place, kind, pa.array(values, kind.type)), tmp_path / "m.parquet"
    )
    with pytest.raises(ConfigError, match=words):
        read_manifest(str(tmp_path / "m.parquet"))


def test_damaged_manifest_is_the_users_to_mend(tmp_path: Path) -> None:
    pq.write_table(many(5000), tmp_path / "m.parquet")
    data = bytearray((tmp_path / "m.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "m.parquet").write_bytes(data)
    with pytest.raises(ConfigError, match="not a manifest in Parquet"):
        read_manifest(str(tmp_path / "m.parquet"))
