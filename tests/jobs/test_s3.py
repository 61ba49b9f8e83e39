"""The job on object storage: a real S3 server process, and a proxy that injects its bad days."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raysers.commands.archive import annotate as main
from tests.jobs import processes
from tests.jobs.conftest import rows_of
from tests.places import SHARED_DATA, needs_shared
from tests.published import score_files

pytestmark = needs_shared
HERE = ("--workers", "local")
#: Names that break sloppy URL handling.
ODD_NAMES = (
    "a b.wav",
    "50%20.wav",
    "x#y.wav",
    "q?v=1.wav",
    'it\'s "q".wav',
    "ünï–c.wav",
    "a+b&c.wav",
)


def run(*args: object) -> int:
    return main([str(a) for a in args])


def _rows(bucket: Any, prefix: str) -> list[dict[str, Any]]:
    keys = [k for k in sorted(bucket.keys()) if k.startswith(f"{prefix}/annotations/part-")]
    tables = [pq.ParquetFile(pa.BufferReader(bucket.get(key))).read() for key in keys]
    return pa.concat_tables(tables).to_pylist()


def _tar_of(files: list[str]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for file in files:
            tar.add(file, arcname=f"inner/{Path(file).name}")
    return sink.getvalue()


@pytest.fixture
def archive(s3, emodb_files) -> dict[str, str]:
    """Objects with odd names, a tar shard and plain ones; which real file each clip is."""
    clips = {}
    for name, file in zip(ODD_NAMES, emodb_files, strict=False):
        clips[s3.put(f"in/{name}", Path(file).read_bytes())] = file
    members = emodb_files[len(ODD_NAMES) : len(ODD_NAMES) + 5]
    tar = s3.put("in/shards/000.tar", _tar_of(members))
    clips |= {f"{tar}#inner/{Path(m).name}": m for m in members}
    for file in emodb_files[12:16]:
        clips[s3.put(f"in/deep/er/{Path(file).name}", Path(file).read_bytes())] = file
    return clips


def test_in_and_out_of_s3_with_odd_keys_and_tar_members(s3, archive, checkpoint):
    s3.put("in/broken.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    model, plain = checkpoint
    for file in Path(model).iterdir():
        s3.put(f"model/{file.name}", file.read_bytes())
    args = (
        "--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", "--model", f"{s3.uri}/model",
        "--dtype", "fp32", "--max-failed", 0.1, *HERE,
    )  # fmt: skip
    assert run(*args) == 0
    rows = {r["file"]: r for r in _rows(s3, "out")}
    expected = score_files(plain, sorted(set(archive.values())))
    assert rows.pop(f"{s3.uri}/in/broken.wav")["status"] == "unreadable"
    assert set(rows) == set(archive)
    for file, row in rows.items():
        got = [row["arousal"], row["dominance"], row["valence"]]
        np.testing.assert_allclose(got, expected[archive[file]][:3], atol=1e-5, rtol=0)
    keys = s3.keys()
    assert {"out/run.json", "out/db.yaml", "out/manifest/part-00000.parquet"} <= set(keys)
    assert not [k for k in keys if "_attempts" in k or "probe" in k]


def test_a_bad_day_of_the_store_changes_no_row_and_each_refusal_finds_its_clip(
    s3, s3_faults, archive, checkpoint
):
    for pattern, fault in [
        (r"a b\.wav", 503),
        (r"x#y\.wav", "reset"),
        (r"000\.tar", "reset"),
        (r"a\+b&c\.wav", 500),
        (r"ünï–c\.wav", "less"),
        (r"deep/er/", "less"),
        (r"out/annotations/part-000000", 503),
    ]:
        s3_faults.add(pattern, fault, times=2)
    args = ("--input", f"{s3.uri}/in", "--model", checkpoint[0], "--dtype", "fp32", *HERE)
    assert run(*args, "--output", f"{s3.uri}/out") == 0
    assert {r["file"]: r["status"] for r in _rows(s3, "out")} == dict.fromkeys(archive, "ok")

    names = list(archive)
    s3_faults.clear()
    s3_faults.add(r"50%20\.wav", 403, code="AccessDenied")
    s3_faults.add(r"ünï–c\.wav", 404, code="NoSuchKey")
    s3_faults.add(r"x#y\.wav", 500)
    s3_faults.add(r"q\?v=1\.wav", "less", method="GET")
    assert run(*args, "--output", f"{s3.uri}/again", "--max-failed", 0.5) == 0
    fates = {r["file"]: r["status"] for r in _rows(s3, "again") if r["status"] != "ok"}
    assert fates == {
        names[1]: "forbidden",
        names[2]: "unreadable",
        names[3]: "unreadable",
        names[5]: "missing",
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_bad_answer_in_ten_changes_no_row(s3, s3_faults, tmp_path, monkeypatch):
    """Refused, reset, cut and stalled answers, bodies cut with a matching Content-Length."""
    emodb = SHARED_DATA / "emodb" / "wav"
    monkeypatch.setenv("RAYSERS_S3_MAX_ATTEMPTS", "10")  # as by default; the tests' 4 are too few
    args = ("--model", "raysers-base", "--workers", "local")
    assert (
        processes.run("jobs/annotate.py", "--input", emodb, "--output", tmp_path / "out", *args)[0]
        == 0
    )
    for file in sorted(emodb.glob("*.wav")):
        s3.put(f"in/{file.name}", file.read_bytes())
    s3_faults.draws.seed(0)
    s3_faults.bad_one_in = 10
    code, _, errors = processes.run(
        "jobs/annotate.py", "--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", *args
    )
    s3_faults.bad_one_in = 0
    assert code == 0, errors

    def by_name(rows: list[dict]) -> dict[str, dict]:
        return {
            Path(r["file"]).name: {k: v for k, v in r.items() if k not in _BY_PLACE} for r in rows
        }

    expected = by_name(rows_of(tmp_path / "out"))
    assert len(expected) == len(list(emodb.glob("*.wav"))) > 500
    assert by_name(_rows(s3, "out")) == expected


#: Columns that follow from where a file is and when it was read.
_BY_PLACE = ("clip_id", "file", "run_id", "created_at")


def test_a_store_that_stays_down_stops_the_job_and_the_same_command_goes_on(
    s3, s3_faults, archive, checkpoint, ray_session, capsys
):
    args = ["--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", "--model", checkpoint[0]]
    args += ["--workers", "1"]
    down = s3_faults.add(r"out/annotations/part-", 503, method="PUT")
    assert main(args) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "503" in error
    assert b'"status": "failed"' in s3.get("out/run.json")
    assert down is not None
    s3_faults.clear()
    assert main(args) == 0
    assert {r["file"]: r["status"] for r in _rows(s3, "out")} == dict.fromkeys(archive, "ok")


def test_an_outage_stops_the_job_and_the_same_command_goes_on(s3, s3_faults, archive, checkpoint):
    """In a process of its own: it has not read anything from the store before."""
    down = s3_faults.add(r"/in/.*\.(wav|tar)", 503, method="GET")
    args = ("--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", "--model", checkpoint[0])
    code, _, err = processes.run("jobs/annotate.py", *args, *HERE)
    assert code == 1
    assert f"storage outage: of s3://{s3.name}" in err
    assert "Traceback" not in err
    assert down.hits < 100
    s3_faults.clear()
    assert run(*args, *HERE) == 0
    assert {r["file"]: r["status"] for r in _rows(s3, "out")} == dict.fromkeys(archive, "ok")


def test_bad_credentials_and_missing_buckets_end_with_exit_2_and_one_line(
    s3, s3_faults, archive, checkpoint, capsys
):
    s3_faults.add(r"/in/?", 403, code="InvalidAccessKeyId")
    s3_faults.add(rf"{s3.name}\?", 403, code="InvalidAccessKeyId")
    given = ["--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", "--model", checkpoint[0]]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "AWS_ACCESS_KEY_ID" in error
    s3_faults.clear()
    missing = ["--input", f"{s3.uri}/in", "--output", "s3://no-such-bucket-at-all/x"]
    assert main([*missing, "--model", checkpoint[0]]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "no-such-bucket-at-all" in error


@pytest.mark.slow
def test_with_requester_pays_every_request_says_so_on_the_driver_and_on_workers(
    s3, s3_faults, archive, checkpoint, ray_session
):
    """Listing, headers, a model folder, a tar's members, parts and the claim."""
    for file in Path(checkpoint[0]).iterdir():
        s3.put(f"model/{file.name}", file.read_bytes())
    args = ("--input", f"{s3.uri}/in", "--output", f"{s3.uri}/out", "--model", f"{s3.uri}/model")
    address = ray.get_runtime_context().gcs_address
    code, _, err = processes.run(
        "jobs/annotate.py", *args, "--requester-pays", env={"RAY_ADDRESS": address}
    )
    assert code == 0, err
    assert {method for method, _, _ in s3_faults.seen} >= {"GET", "PUT"}
    assert s3_faults.count("list-type=2") > 0
    assert {headers.get("x-amz-request-payer") for headers in s3_faults.headers} == {"requester"}
