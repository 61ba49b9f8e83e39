"""Manifests: the same bytes each time, sorted however long, extended, and checked when read."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import audformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysers.data import manifest as manifest_module
from raysers.data import sorting
from raysers.data.manifest import (
    Manifest,
    clips_of,
    collect,
    fingerprint,
    read_manifest,
    write_manifest,
)
from raysers.data.shards import plan_shards
from raysers.errors import ConfigError, WriteError
from raysers.io import storage
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import Status, clip_id
from tests.s3 import Bucket
from tests.unit.data.test_segments import index, wav
from tests.unit.data.test_tar import build

S = 10**9
SPEAKER = next(field for field in LABEL_FIELDS if field.name == "speaker")

#: file, start in seconds, speaker
Clips = list[tuple[str, int, str | None]]


def table_of(rows: Clips, *, labels: bool = False, seconds: int = 1) -> pa.Table:
    schema = pa.schema([*MANIFEST, SPEAKER] if labels else MANIFEST)
    end = seconds * S
    return pa.Table.from_pylist(
        [
            {
                "file": file, "start": start * S, "end": start * S + end, "duration_s": seconds,
                "clip_id": clip_id(file, start * S, start * S + end), "status": "ok", "error": "",
                "etag": "e", "codec": "WAV", "speaker": speaker, "num_bytes": 32_044,
            }
            for file, start, speaker in rows
        ],
        schema,
    )  # fmt: skip


def many(count: int, folder: str = "data", seconds: int = 1) -> pa.Table:
    return table_of([(f"/{folder}/{i:06d}.wav", 0, None) for i in range(count)], seconds=seconds)


def tree(folder: Path | str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_same_input_same_manifest_byte_for_byte(tmp_path: Path) -> None:
    for i in range(40):
        wav(tmp_path / "in" / f"{i % 7}" / f"ü {i}.wav", 0.1 + i / 100)
    (tmp_path / "in" / "s.tar").write_bytes(build([("a.wav", b"x"), ("b.wav", b"y")]))
    for run, threads in (("one", 1), ("two", 16)):
        write_manifest(str(tmp_path / run), index(tmp_path / "in", threads=threads))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert list(tree(tmp_path / "one")) == ["part-00000.parquet"]
    before = fingerprint(index(tmp_path / "in"))
    wav(tmp_path / "in/3/ü 3.wav", 1.5)
    assert fingerprint(index(tmp_path / "in")) != before


def test_parts_round_trip_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    table, place = many(250), str(tmp_path / "m")
    write_manifest(place, table.take(np.random.default_rng(0).permutation(250)))
    assert sorted(os.listdir(place)) == [f"part-{i:05d}.parquet" for i in range(3)]
    assert read_manifest(place).equals(table)
    assert pq.read_schema(tmp_path / "m/part-00000.parquet").field("start").metadata
    assert read_manifest(place, ["clip_id"]).column_names == ["clip_id"]
    # a smaller manifest in its place leaves no old part behind
    write_manifest(place, table.slice(0, 50))
    assert len(read_manifest(place)) == 50


def dying(monkeypatch: pytest.MonkeyPatch, parts: int, manifest: Manifest, place: str) -> None:
    """Write so many parts and die."""
    write, left = storage.write_atomic, [parts]

    def dies(uri: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(uri, data)

    with monkeypatch.context() as here:
        here.setattr(storage, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            manifest.write(place)


def test_half_written_manifest_is_not_mistaken_for_a_whole_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    write_manifest(str(tmp_path), many(250))
    dying(monkeypatch, 2, Manifest.of(many(300)), str(tmp_path))
    with pytest.raises(ConfigError, match="incomplete"):
        read_manifest(str(tmp_path))


def test_an_extension_moves_nothing_before_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    place = str(tmp_path / "manifest")
    first = Manifest.of(many(250, seconds=30))
    first.write(place)
    before, shards = tree(place), plan_shards(first, shard_s=600)
    # files that sort before and after those that are there
    added = pa.concat_tables([many(130, "a", 30), many(5, "z", 30)])
    grown = Manifest.stored(place).extended(Manifest.of(added))
    grown.write(place)
    assert tree(place).items() > before.items()
    stored = Manifest.stored(place)
    assert stored.table().equals(grown.table())
    assert stored.fingerprints == [first.fingerprint, grown.fingerprint]
    assert first.fingerprint != grown.fingerprint
    longer = plan_shards(stored, shard_s=600)
    for name in ("clips", "seconds", "firsts", "after_s"):
        of_first = getattr(shards, name)
        assert getattr(longer, name)[: len(of_first)].tolist() == of_first.tolist()
    assert longer.clips.sum() == 385
    again = stored.extended(Manifest.of(many(3, "b")))
    again.write(place)
    assert Manifest.stored(place).fingerprints == [*stored.fingerprints, again.fingerprint]
    assert len(read_manifest(place)) == 388
    Path(place, "part-00001.parquet").unlink()
    with pytest.raises(ConfigError, match="incomplete"):
        read_manifest(place)


def test_an_extension_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifest_module, "PART_ROWS", 100)
    place = str(tmp_path / "manifest")
    first = Manifest.of(many(150))
    first.write(place)
    dying(monkeypatch, 3, Manifest.stored(place).extended(Manifest.of(many(350, "a"))), place)
    assert len(tree(place)) == 5  # three of the four new parts
    assert Manifest.stored(place).fingerprint == first.fingerprint
    short = Manifest.stored(place).extended(Manifest.of(many(20, "b")))
    short.write(place)
    assert Manifest.stored(place).fingerprint == short.fingerprint
    assert len(read_manifest(place)) == 170


def test_manifest_on_s3(s3: Bucket) -> None:
    table = many(10)
    write_manifest(f"{s3.uri}/run/manifest", table)
    assert read_manifest(f"{s3.uri}/run").equals(table)
    with pytest.raises(ConfigError, match="no manifest"):
        read_manifest(f"{s3.uri}/elsewhere")


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    kind = MANIFEST.field(name)
    place = table.schema.get_field_index(name)
    return table.set_column(place, kind, pa.array(values, kind.type))


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
    for name, value in {"etag": "f", "duration_s": 2.0, "status": "no", "num_bytes": None}.items():
        values = table[name].to_pylist()
        values[500] = value
        marks.add(fingerprint(with_column(table, name, values)))
    assert len(marks) == 6


def test_clips_of() -> None:
    first, _ = clips_of(many(2))
    assert (first.file, first.start_ns, first.end_ns) == ("/data/000000.wav", 0, S)
    assert (first.byte_offset, first.status, first.duration_s) == (None, Status.OK, 1.0)
    bare = many(2).select(["clip_id", "file", "start", "end"])
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
def test_manifests_of_others_are_checked(tmp_path, column, values, words) -> None:
    pq.write_table(with_column(many(2), column, values), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=words):
        read_manifest(str(tmp_path / "m.parquet"))


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "other.parquet")
    pq.write_table(many(5000), tmp_path / "damaged.parquet")
    data = bytearray((tmp_path / "damaged.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "damaged.parquet").write_bytes(data)
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    for name, words in {
        "other": "clip_id", "damaged": "not a manifest in Parquet", "junk": "in Parquet",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            read_manifest(str(tmp_path / f"{name}.parquet"))
    (tmp_path / "t.csv").write_text(",".join(MANIFEST.names) + "\n")
    assert not manifest_module.is_manifest(str(tmp_path / "t.csv"))


# lists longer than memory come out as short ones do ----------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, batches and parts of a few rows."""
    monkeypatch.setattr(sorting, "RUN_ROWS", 7)
    monkeypatch.setattr(sorting, "BATCH_ROWS", 2)
    monkeypatch.setattr(sorting, "MERGED_BATCHES", 3)
    monkeypatch.setattr(manifest_module, "PART_ROWS", 5)


clips = st.tuples(
    st.sampled_from([f"/{letter}ü/{i}.wav" for letter in "abc" for i in range(4)]),
    st.integers(0, 4),
    st.sampled_from([None, "ann"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(clips, max_size=6), max_size=12), st.integers(0, 12))
def test_runs_on_disk_are_merged_into_one_sorted_list(
    small: None, tables: list[Clips], limit: int
) -> None:
    given_rows = [row for rows in tables for row in rows]
    best: dict[tuple[str, int], str | None] = {}
    for file, start, speaker in given_rows:  # of equal clips the labelled one stays
        best[file, start] = best.get((file, start)) or speaker
    expected = [(*key, best[key]) for key in sorted(best)][: limit or None]
    found, repeated = collect((table_of(rows, labels=True) for rows in tables), limit=limit)
    rows = found.table().to_pylist()
    assert [(r["file"], r["start"].value // S, r["speaker"]) for r in rows] == expected
    assert repeated == len(given_rows) - len(best)
    assert [len(part) for part in found.parts()][:-1] == [5] * (len(found) - 1)
    if expected:
        marks = {found.fingerprint, fingerprint(found.table())}
        assert len(marks) == 1


def test_tables_with_and_without_labels_are_one_list(small: None) -> None:
    plain = table_of([(f"/p{i}.wav", 0, None) for i in range(9)])
    labelled = table_of([(f"/p{i}.wav", 0, "ann") for i in range(4, 12)], labels=True)
    other = table_of([(f"/p{i}.wav", 0, "bob") for i in range(4, 12)], labels=True)
    for tables in ([plain, labelled, other], [other, plain, labelled]):
        found, repeated = collect(tables)
        speakers = found.table()["speaker"].to_pylist()
        assert (repeated, speakers.count("ann"), len(speakers)) == (13, 8, 12)


def test_nothing_stays_on_the_disk(small: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = many(30)
    found, _ = collect([rows, rows])
    assert len(os.listdir(tmp_path)) == 1
    found.write(str(tmp_path / "out"))
    assert Manifest.stored(str(tmp_path / "out")).table().equals(found.table())
    del found
    assert os.listdir(tmp_path) == ["out"]

    def full_disk(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as here:
        here.setattr(sorting, "to_parquet", full_disk)
        with pytest.raises(WriteError, match=r"No space left on device: .*TMPDIR"):
            collect([rows, rows])
    assert os.listdir(tmp_path) == ["out"]
