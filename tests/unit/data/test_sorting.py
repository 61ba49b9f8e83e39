"""Lists longer than memory come out as short ones do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysers.data import manifest as manifest_module
from raysers.data import sorting
from raysers.data.manifest import Manifest, collect, fingerprint
from raysers.errors import WriteError
from raysers.schemas import LABEL_FIELDS, MANIFEST
from raysers.types import clip_id

S = 10**9
SPEAKER = next(field for field in LABEL_FIELDS if field.name == "speaker")

#: file, start in seconds, speaker
Clips = list[tuple[str, int, str | None]]
clips = st.tuples(
    st.sampled_from([f"/{letter}ü/{i}.wav" for letter in "abc" for i in range(4)]),
    st.integers(0, 4),
    st.sampled_from([None, "ann"]),
)


def table_of(rows: Clips, *, labels: bool) -> pa.Table:
    fields = [*MANIFEST, SPEAKER] if labels else [*MANIFEST]
    return pa.Table.from_pylist(
        [
            {
                "file": file, "start": start * S, "end": (start + 1) * S, "duration_s": 1.0,
                "clip_id": clip_id(file, start * S, (start + 1) * S), "status": "ok", "error": "",
                "etag": "e", "codec": "WAV", "speaker": speaker,
            }
            for file, start, speaker in rows
        ],
        pa.schema(fields),
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, batches and parts of a few rows."""
    monkeypatch.setattr(sorting, "RUN_ROWS", 7)
    monkeypatch.setattr(sorting, "BATCH_ROWS", 2)
    monkeypatch.setattr(manifest_module, "PART_ROWS", 5)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
        assert (
            found.fingerprint
            == fingerprint(found.table())
            == Manifest.of(found.table()).fingerprint
        )


def test_tables_with_and_without_labels_are_one_list(small: None) -> None:
    plain = table_of([(f"/p{i}.wav", 0, None) for i in range(9)], labels=False)
    labelled = table_of([(f"/p{i}.wav", 0, "ann") for i in range(4, 12)], labels=True)
    found, repeated = collect([plain, labelled])
    speakers = found.table()["speaker"].to_pylist()
    assert (repeated, speakers.count("ann"), len(speakers)) == (5, 8, 12)


def test_nothing_stays_on_the_disk(small: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifest_module.tempfile, "tempdir", str(tmp_path))
    rows = table_of([(f"/{i}.wav", 0, None) for i in range(30)], labels=False)
    found, _ = collect([rows, rows])
    assert len(os.listdir(tmp_path)) == 1
    found.write(str(tmp_path / "out"))
    assert Manifest.stored(str(tmp_path / "out")).table().equals(found.table())
    del found
    assert os.listdir(tmp_path) == ["out"]

    def full_disk(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as here:
        here.setattr(manifest_module, "write_run", full_disk)
        with pytest.raises(WriteError, match=r"No space left on device: .*TMPDIR"):
            collect([rows, rows])
    assert os.listdir(tmp_path) == ["out"]

    def fails() -> object:
        yield rows
        yield rows
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(fails())
    assert os.listdir(tmp_path) == ["out"]
