"""Writes on a condition, on disks and on a real S3 server: one winner, whatever is retried."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raysers.errors import ConditionsUnsupported, ObjectMissing, WriteError
from raysers.io import local, storage
from tests.s3 import Bucket, Faults

RACERS = 20


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3").uri


def test_an_object_is_written_only_where_it_is_absent_or_has_the_version(folder: str) -> None:
    uri = f"{folder}/new/claim"
    first = storage.put_if(uri, b"one")
    assert storage.read_versioned(uri) == (b"one", first)
    assert storage.put_if(uri, b"two") is None
    assert storage.put_if(uri, b"one") == first, "a retried request finds its own content"
    second = storage.put_if(uri, b"three", first)
    assert storage.read_versioned(uri) == (b"three", second)
    assert storage.put_if(uri, b"four", first) is None
    assert storage.put_if(uri, b"three", first) == second
    assert storage.read_bytes(uri) == b"three"
    storage.delete(uri)
    assert storage.put_if(uri, b"four", second) is None
    for call in (storage.read_versioned, storage.read_bytes):
        with pytest.raises(ObjectMissing):
            call(uri)
    assert storage.put_if(uri, b"") is not None
    assert storage.read_versioned(uri)[0] == b""


def test_same_size_at_the_same_moment_is_another_version(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    _, etag = storage.read_versioned(str(path))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert storage.put_if(str(path), b"mine", etag) is None


def race(uri: str, attempt: str) -> list[str]:
    """Names of the winners among 4 processes of 5 threads that run `attempt` at one moment."""
    script = f"""
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from raysers.io import storage
uri, start = {uri!r}, threading.Barrier(5)
def work(number):
    name = f"{{sys.argv[1]}}-{{number}}".encode()
    start.wait()
    return name.decode() if {attempt} else ""
storage.is_folder(uri)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(5) as pool:
    print(*pool.map(work, range(5)))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(RACERS // 5)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(RACERS) as pool:
        outputs = list(pool.map(lambda p: p.communicate("go\n")[0], processes))
    assert not any(process.returncode for process in processes)
    return " ".join(outputs).split()


@pytest.mark.parametrize("how", ["create", "replace"])
def test_exactly_one_of_many_processes_wins(
    how: str, folder: str, request: pytest.FixtureRequest
) -> None:
    if folder.startswith("s3://"):
        request.getfixturevalue("s3_faults").one_at_a_time = True
    uri = f"{folder}/claim"
    if how == "create":
        winners = race(uri, "storage.put_if(uri, name) is not None")
    else:
        etag = storage.put_if(uri, b"first")
        winners = race(uri, f"storage.put_if(uri, name, {etag!r}) is not None")
    assert len(winners) == 1
    assert storage.read_bytes(uri).decode() == winners[0]


def test_an_answer_that_is_lost_is_still_a_success(s3: Bucket, s3_faults: Faults) -> None:
    """The store has written, the answer never arrives, and the retry finds the object there."""
    for name in ("created", "replaced"):
        uri, etag = f"{s3.uri}/{name}", None
        if name == "replaced":
            etag = storage.read_versioned(s3.put(name, b"old"))[1]
        fault = s3_faults.add(f"/{name}", "reset", method="PUT", times=1)
        won = storage.put_if(uri, b"mine", etag)
        assert (bool(won), fault.hits, s3.get(name)) == (True, 1, b"mine")


def test_refusals_are_write_errors(s3: Bucket, s3_faults: Faults) -> None:
    s3_faults.add("/claim", 403, code="AccessDenied", method="PUT")
    with pytest.raises(WriteError, match="AccessDenied"):
        storage.put_if(f"{s3.uri}/claim", b"x")
    with pytest.raises(WriteError, match="/proc/claim"):
        storage.put_if("/proc/claim", b"x")
    with pytest.raises(WriteError, match="no-such-bucket"):
        storage.put_if("s3://no-such-bucket-here/claim", b"x")


def test_stores_without_conditions_or_versions_say_so(s3: Bucket, s3_faults: Faults) -> None:
    uri = s3.put("claim", b"old")
    s3_faults.add("/claim", 409, code="ConditionalRequestConflict", method="PUT", times=2)
    _, etag = storage.read_versioned(uri)
    assert storage.put_if(uri, b"newer", etag), "a conflict is retried"
    s3_faults.clear()
    s3_faults.add("/claim", 501, code="NotImplemented", method="PUT")
    for version in (None, etag):
        with pytest.raises(ConditionsUnsupported, match="claim"):
            storage.put_if(uri, b"x", version)
    assert s3_faults.count("/claim", "PUT") == 2, "not retried"
    s3_faults.clear()
    s3_faults.add("/claim", "headers", headers={"etag": ""})
    with pytest.raises(ConditionsUnsupported, match="versions"):
        storage.put_if(uri, b"new", storage.read_versioned(uri)[1])


def test_disks_without_links_or_locks_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such disks cannot be made here, so the system calls answer as they do there."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    uri = str(tmp_path / "claim")
    assert storage.put_if(uri, b"one")
    monkeypatch.setattr(local.os, "link", unsupported)
    monkeypatch.setattr(local.fcntl, "flock", unsupported)
    for version in (None, storage.read_versioned(uri)[1]):
        with pytest.raises(ConditionsUnsupported):
            storage.put_if(uri, b"two", version)
    assert storage.read_bytes(uri) == b"one"
    assert [info.uri for info in storage.list_objects(str(tmp_path))] == [uri]
    assert not list(tmp_path.glob(".part-*"))
