"""What the end-to-end tests share: a small checkpoint, real clips, and reading outputs back."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import s3
from tests.places import SHARED_DATA
from tests.published import PlainModel, write_checkpoint


@pytest.fixture(scope="session")
def workers_environment() -> dict[str, str]:
    """Workers of `ray_session` reach the S3 server, with the faults that a test adds."""
    return s3.workers_environment()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> tuple[str, PlainModel]:
    """A published-layout checkpoint folder and its plain model."""
    folder = tmp_path_factory.mktemp("model") / "small"
    return str(folder), write_checkpoint(folder)


@pytest.fixture(scope="session")
def emodb_files() -> list[str]:
    """Thirty real clips of 1.2 to 8 s."""
    return sorted(map(str, (SHARED_DATA / "emodb" / "wav").glob("*.wav")))[::18]


@pytest.fixture
def no_cluster(monkeypatch) -> None:
    """Small jobs run in this process, also when an earlier test has started Ray in it."""
    monkeypatch.setattr("raysers.engine.listing.has_cluster", lambda: False)


@pytest.fixture
def clips_folder(tmp_path, emodb_files) -> Path:
    """A folder of the test's own with links to those clips, in two levels."""
    return link_clips(tmp_path / "audio", emodb_files)


def link_clips(folder: Path, files: list[str]) -> Path:
    """The folder, with links to files one level below."""
    (folder / "deep er").mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / "deep er" / Path(file).name).symlink_to(file)
    return folder


def rows_of(output, table: str = "annotations") -> list[dict]:
    """Every row of a local output's table."""
    parts = sorted(Path(output, table).glob("part-*.parquet"))
    return pa.concat_tables([pq.ParquetFile(p).read() for p in parts]).to_pylist() if parts else []


def comparable(rows: list[dict]) -> list[dict]:
    """Rows without what differs from run to run, by clip."""
    kept = [{k: v for k, v in r.items() if k not in ("run_id", "created_at")} for r in rows]
    return sorted(kept, key=lambda r: r["clip_id"])


def record_of(output) -> dict:
    """The run.json of a local output."""
    return json.loads(Path(output, "run.json").read_text())
