"""One owner of a folder at a time, on disks and on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from raysers.errors import ConfigError, RaysersError, RefusedError
from raysers.io import marks, storage
from raysers.io.marks import CLAIM_NAME, Claim, Owner


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3").uri


def hold(folder: str, wait: str = "sys.stdin.read()") -> subprocess.Popen[str]:
    """A process that claims the folder; returns when it has it, or has been refused."""
    script = f"""
import sys, time
from raysers.errors import RefusedError
from raysers.io.marks import Claim
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
        storage.read_bytes(storage.join(folder, CLAIM_NAME))


def test_an_owner_elsewhere_is_alive_while_it_renews_its_claim(folder, capfd):
    process = hold(folder, wait="time.sleep(0)")
    process.communicate()
    owner = replace(Owner.this_process("annotate"), machine="elsewhere", host="node-7")
    uri = storage.join(folder, CLAIM_NAME)
    assert storage.put_if(uri, owner.to_bytes())
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(Claim.take, folder, "annotate", expiry_s=20.0)
        while "waiting" not in capfd.readouterr().err:
            time.sleep(0.05)
        renewed = replace(owner, renewals=1).to_bytes()
        assert storage.put_if(uri, renewed, storage.read_versioned(uri)[1])
        with pytest.raises(RefusedError, match="annotate on node-7"):
            second.result(timeout=10)


def test_a_store_without_conditions_has_claims_with_a_warning(s3, s3_faults, monkeypatch, capfd):
    """Its renewals and takeovers are written plainly; an owner that lives is still respected."""
    monkeypatch.setattr(marks, "SETTLE_S", 0.1)
    s3_faults.add("_claim", 501, code="NotImplemented", method="PUT", conditional=True)
    output = f"{s3.uri}/out"
    first = Claim.take(output, "annotate", renew_s=0.1)
    assert "no conditional writes" in capfd.readouterr().err
    with pytest.raises(RefusedError, match="annotate on"):
        Claim.take(output, "train")
    deadline = time.monotonic() + 10
    while not json.loads(storage.read_bytes(storage.join(output, CLAIM_NAME)))["renewals"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.verify()
    first.release()
    assert s3.keys() == []


def test_a_live_owner_keeps_its_claim_even_stopped_and_a_dead_one_loses_it_at_once(folder):
    process = hold(folder)
    for signal_ in (signal.SIGSTOP, signal.SIGCONT):
        process.send_signal(signal_)
        with pytest.raises(RefusedError, match=f"process {process.pid}"):
            Claim.take(folder, "annotate", expiry_s=1.0)
    process.kill()
    process.wait()
    began = time.monotonic()
    Claim.take(folder, "annotate").release()
    assert time.monotonic() - began < 10


def is_lost(claim_: Claim) -> bool:
    try:
        claim_.verify()
    except RaysersError as error:
        return "taken over by another run" in str(error)
    return False


@pytest.mark.parametrize("renewed", [False, True])
def test_an_owner_notices_that_its_claim_was_taken_over(folder, renewed):
    """By its next renewal, or, where it was suspended, when it next asks."""
    uri = storage.join(folder, CLAIM_NAME)
    first = Claim.take(folder, "annotate", renew_s=0.1 if renewed else 3600.0)
    first.verify()
    data, etag = storage.read_versioned(uri)
    owner = replace(Owner(**json.loads(data)), machine="elsewhere", host="node-7")
    if renewed:
        storage.write_atomic(uri, Owner.this_process("train").to_bytes())
    else:  # what looks like an owner elsewhere does not renew its claim
        assert storage.put_if(uri, owner.to_bytes(), etag)
        first.verify()
        second = Claim.take(folder, "train", expiry_s=1.0)
        first.renew_s = 0.0
    deadline = time.monotonic() + 10
    while not is_lost(first):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.release()
    assert json.loads(storage.read_bytes(uri))["job"] == "train"
    if not renewed:
        second.verify()
        second.release()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("place", "words"),
    [
        *[(place, "cannot be written") for place in ("file", "file/below", "/proc/no", "x" * 300)],
        ("s3/denied", "AccessDenied"),
        ("s3://no-such-bucket-here/out", "NoSuchBucket"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    tmp_path, s3, s3_faults, place, words
):
    s3_faults.add("/denied/", 403, code="AccessDenied", method="PUT")
    (tmp_path / "file").touch()
    remote = place.startswith("s3")
    output = place.replace("s3/", f"{s3.uri}/") if remote else str(tmp_path / place)
    with pytest.raises(ConfigError, match=words) as raised:
        Claim.take(output, "annotate")
    assert output in str(raised.value)
    assert "\n" not in str(raised.value)


def test_claims_make_folders_and_need_no_deletes(tmp_path, s3, s3_faults):
    Claim.take(str(tmp_path / "a/b"), "annotate").release()
    assert os.listdir(tmp_path / "a/b") == []
    s3_faults.add("_claim", 403, code="AccessDenied", method="DELETE")
    hold(f"{s3.uri}/out").communicate()
    Claim.take(f"{s3.uri}/out", "annotate").release()
