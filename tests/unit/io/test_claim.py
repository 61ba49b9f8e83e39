"""One owner of a folder at a time, on disks and on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from raysers.errors import ConfigError, RaysersError, RefusedError
from raysers.io import claim, storage
from raysers.io.claim import NAME, Claim, Owner


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3").uri


def hold(folder: str, wait: str = "sys.stdin.read()") -> subprocess.Popen[str]:
    """A process that claims the folder; returns when it has it, or has been refused."""
    script = f"""
import sys, time
from raysers.errors import RefusedError
from raysers.io.claim import Claim
try:
    claim = Claim.take({folder!r}, "annotate", renew_s=0.2)
except RefusedError as error:
    print(error, flush=True)
    sys.exit(2)
print("held", flush=True)
{wait}
claim.release()
"""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    process.said = process.stdout.readline().strip()  # type: ignore[attr-defined]
    return process


def test_of_many_that_start_at_once_one_owns_the_folder(folder):
    with ThreadPoolExecutor(6) as pool:
        processes = list(pool.map(lambda _: hold(folder), range(6)))
    owners = [p for p in processes if p.said == "held"]
    assert len(owners) == 1
    refusals = {p.said for p in processes if p.said != "held"}
    (line,) = refusals
    assert f"--output {folder} is in use by annotate on " in line
    assert f"(process {owners[0].pid}) since 20" in line
    for process in processes:
        process.communicate()
    with pytest.raises(RaysersError):
        storage.read_bytes(storage.join(folder, NAME))


def test_the_claim_of_a_dead_process_is_taken_over_at_once(folder):
    process = hold(folder)
    with pytest.raises(RefusedError, match=f"process {process.pid}"):
        Claim.take(folder, "annotate")
    process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    process.wait()
    Claim.take(folder, "annotate").release()
    assert time.monotonic() - began < 10


def test_a_stopped_process_keeps_its_claim(folder):
    process = hold(folder)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(RefusedError):
        Claim.take(folder, "annotate", expiry_s=1.0)
    process.send_signal(signal.SIGCONT)
    process.communicate()


def foreign(folder: str) -> Owner:
    """The owner in the claim, as if it lived on another machine."""
    data, etag = storage.read_versioned(storage.join(folder, NAME))
    owner = replace(Owner(**json.loads(data)), machine="elsewhere", host="node-7")
    assert storage.put_if(storage.join(folder, NAME), owner.to_bytes(), etag)
    return owner


def test_an_owner_elsewhere_is_alive_while_it_renews_its_claim(folder, capfd):
    process = hold(folder, wait="time.sleep(0)")
    process.communicate()
    owner = replace(Owner.this_process("annotate"), machine="elsewhere", host="node-7")
    uri = storage.join(folder, NAME)
    assert storage.put_if(uri, owner.to_bytes())
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(Claim.take, folder, "annotate", expiry_s=20.0)
        while "waiting" not in capfd.readouterr().err:
            time.sleep(0.05)
        renewed = replace(owner, renewals=1).to_bytes()
        assert storage.put_if(uri, renewed, storage.read_versioned(uri)[1])
        with pytest.raises(RefusedError, match="annotate on node-7"):
            second.result(timeout=10)


def test_a_claim_from_elsewhere_that_is_not_renewed_expires_and_its_owner_notices(folder):
    first = Claim.take(folder, "annotate", renew_s=3600.0)
    foreign(folder)
    first.verify()
    second = Claim.take(folder, "annotate", expiry_s=1.0)
    first.renew_s = 0.0  # as after a suspension: the claim is read again
    with pytest.raises(RaysersError, match="taken over by another run"):
        first.verify()
    first.release()
    second.verify()
    assert storage.read_bytes(storage.join(folder, NAME))
    second.release()


def test_a_renewal_notices_a_takeover(folder):
    first = Claim.take(folder, "annotate", renew_s=0.1)
    uri = storage.join(folder, NAME)
    storage.write_atomic(uri, Owner.this_process("train").to_bytes())
    deadline = time.monotonic() + 10
    with suppress(RaysersError):
        while time.monotonic() < deadline:
            first.verify()
            time.sleep(0.05)
        pytest.fail("the takeover was not noticed")
    first.release()
    assert json.loads(storage.read_bytes(uri))["job"] == "train"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "a/b", "x" * 300])
def test_a_disk_folder_is_made_or_refused_in_one_line(tmp_path, place):
    (tmp_path / "file").touch()
    output = str(tmp_path / place)
    if place == "a/b":
        Claim.take(output, "annotate").release()
        assert os.listdir(output) == []
        return
    with pytest.raises(ConfigError, match="cannot be written") as raised:
        Claim.take(output, "annotate")
    assert output in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("place", "words"),
    [("denied", "AccessDenied"), ("s3://no-such-bucket-here/out", "NoSuchBucket")],
)
def test_a_bucket_that_cannot_be_written_is_refused_in_one_line(s3, s3_faults, place, words):
    s3_faults.add("/denied/", 403, code="AccessDenied", method="PUT")
    output = place if place.startswith("s3") else f"{s3.uri}/{place}"
    with pytest.raises(ConfigError, match=words) as raised:
        Claim.take(output, "annotate")
    assert output in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_bucket_that_allows_no_deletes_serves_the_next_run(s3, s3_faults):
    s3_faults.add("_claim", 403, code="AccessDenied", method="DELETE")
    output = f"{s3.uri}/out"
    process = hold(output)
    process.communicate()
    Claim.take(output, "annotate").release()


def test_a_store_without_conditions_has_claims_with_a_warning(s3, s3_faults, monkeypatch, capfd):
    """Its renewals and takeovers are written plainly; an owner that lives is still respected."""
    monkeypatch.setattr(claim, "SETTLE_S", 0.1)
    s3_faults.add("_claim", 501, code="NotImplemented", method="PUT", conditional=True)
    output = f"{s3.uri}/out"
    first = Claim.take(output, "annotate", renew_s=0.1)
    assert "no conditional writes" in capfd.readouterr().err
    with pytest.raises(RefusedError, match="annotate on"):
        Claim.take(output, "train")
    deadline = time.monotonic() + 10
    while not json.loads(storage.read_bytes(storage.join(output, NAME)))["renewals"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.verify()
    first.release()
    assert s3.keys() == []
