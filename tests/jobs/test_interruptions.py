"""Commands that are interrupted, killed, or started twice: one owner, and always the same rows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from raysers.commands.archive import annotate as main
from tests.jobs import processes
from tests.jobs.conftest import comparable, link_clips, record_of, rows_of
from tests.places import needs_shared

pytestmark = [needs_shared, pytest.mark.timeout(600)]
JOB = "jobs/annotate.py"
RESUMES = "the same command resumes where it stopped"
#: How long a calm run takes at most on a busy machine; later moments hit nothing.
_MOST_S = {"local": 9.0, "1": 22.0}


@pytest.fixture(scope="module")
def clips(tmp_path_factory, emodb_files) -> Path:
    return link_clips(tmp_path_factory.mktemp("clips") / "audio", emodb_files[::2])


def command(
    clips: Path, out: object, workers: str = "local", model: str = ""
) -> tuple[object, ...]:
    """About ten shards of a network that needs some seconds."""
    chosen = ("--model", model or "random:w2v2-b-2", "--dtype", "fp32")
    return ("--input", clips, "--output", out, *chosen, "--shard-s", 5, "--workers", workers)


def resume(args: tuple[object, ...]) -> int:
    """The same command once more: here, unless it needs Ray."""
    if "local" in args:
        return main([str(a) for a in args])
    return processes.run(JOB, *args)[0]


@pytest.fixture(scope="module")
def calm(clips, tmp_path_factory) -> list[dict]:
    """Rows of a run that nothing happens to."""
    out = tmp_path_factory.mktemp("calm") / "out"
    assert resume(command(clips, out)) == 0
    return comparable(rows_of(out))


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("workers", ["local", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        pytest.param(signal.SIGINT, 130, id="int", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, id="term"),
    ],
)
def test_a_signal_ends_the_job_and_the_same_command_resumes(
    number, expected, workers, clips, calm, tmp_path
):
    out = tmp_path / "out"
    driver = processes.start(JOB, *command(clips, out, workers))
    deadline = time.monotonic() + 120
    while processes.parts_in(out) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    family = _family(driver.pid)
    driver.send_signal(number)
    code, _, errors = processes.finish(driver, timeout_s=60)
    assert code == expected, errors
    assert errors.strip().splitlines()[-1].endswith(RESUMES)
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert record_of(out)["status"] == "interrupted"
    assert not (out / "_claim.json").exists()
    assert workers != "local" or not list(out.glob("_attempts/*.json"))  # nothing is suspicious
    kept = {p: p.read_bytes() for p in (out / "annotations").glob("part-*")}
    assert len(kept) >= 2
    assert resume(command(clips, out, workers)) == 0
    assert {p: p.read_bytes() for p in kept} == kept
    assert comparable(rows_of(out)) == calm


def _victims(driver: subprocess.Popen[str], whom: str) -> list[psutil.Process]:
    if whom == "driver":
        return [psutil.Process(driver.pid)]
    if whom == "worker":
        return processes.model_workers(driver.pid)[:1]
    # without a raylet while it connects, Ray's core ends the driver before it can say anything
    while driver.poll() is None:
        family = _family(driver.pid)
        if any(processes.title(p).startswith("ray::Monitor") for p in family):
            return [p for p in family if p.name() == "raylet"]
        time.sleep(0.1)
    return []


_KILLS = [
    pytest.param(seed, workers, whom, marks=[pytest.mark.slow] if seed > 0 else [])
    for seed, (workers, whom) in enumerate(
        [
            *[("local", "driver")] * 4,
            *[("1", "driver"), ("1", "worker"), ("1", "raylet")] * 3,
        ]
    )
]


@pytest.mark.parametrize(("seed", "workers", "whom"), _KILLS)
def test_kill_9_at_a_random_moment_changes_no_row(seed, workers, whom, clips, calm, tmp_path):
    out = tmp_path / "out"
    driver = processes.start(JOB, *command(clips, out, workers))
    time.sleep(random.Random(seed).uniform(0.2, _MOST_S[workers]))
    family = _family(driver.pid) if driver.poll() is None else []
    for victim in _victims(driver, whom) if driver.poll() is None else []:
        victim.kill()
    code, _, errors = processes.finish(driver, timeout_s=240)
    if whom != "driver":
        assert "Traceback" not in errors
        assert code == 0 or errors.strip().splitlines()[-1].endswith(RESUMES)
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:  # Ray leaves its agents behind when its driver is killed
        assert whom == "driver"
        process.kill()
    assert resume(command(clips, out, workers)) == 0
    assert comparable(rows_of(out)) == calm
    assert record_of(out)["status"] == "done"
    assert not list(out.glob("_*"))


_PAIRS = [
    pytest.param(seed, store, other, marks=[pytest.mark.slow] if seed != 0 else [])
    for seed, (store, other) in enumerate(
        [(store, other) for _ in range(5) for other in (False, True) for store in ("local", "s3")]
    )
]


@pytest.mark.parametrize(("seed", "store", "other"), _PAIRS)
def test_two_commands_on_one_output_never_mix(
    seed, store, other, clips, checkpoint, tmp_path, request
):
    """Same and other settings, on a disk and in a bucket, at random distances."""
    bucket = request.getfixturevalue("s3") if store == "s3" else None
    out = f"{bucket.uri}/out" if bucket else str(tmp_path / "out")
    models = (checkpoint[0], "raysers-base" if other else checkpoint[0])
    first = processes.start(JOB, *command(clips, out, model=models[0]))
    time.sleep(random.Random(seed).choice([0.0, 1.0]) * random.Random(seed).uniform(0.0, 4.0))
    second = processes.start(JOB, *command(clips, out, model=models[1]))
    ended = [processes.finish(process) for process in (first, second)]
    if bucket:
        assert subprocess.run(
            [sys.executable, "-c", _COPY, out, str(tmp_path / "copy")], check=True, env=os.environ
        )
        out = str(tmp_path / "copy")
    record, rows = record_of(out), rows_of(out)
    codes = [code for code, _, _ in ended]
    assert 0 in codes, ended
    for code, _, errors in ended:
        if code:
            assert code == 2
            (line,) = [x for x in errors.strip().splitlines() if x.startswith("error")]
            assert "is in use by annotate on" in line or (other and "other settings" in line)
    assert record["status"] == "done"
    assert {row["model"] for row in rows} == {record["settings"]["model"]}
    winner = models[codes.index(0)] if 2 in codes else models[0]
    assert record["settings"]["model"] == winner
    owners = {record["run_id"], *(past["run_id"] for past in record["history"])}
    assert {row["run_id"] for row in rows} <= owners
    assert len(rows) == len({row["clip_id"] for row in rows}) == 15
    assert not Path(out, "_claim.json").exists()


_COPY = """
import sys
from pathlib import Path
from raysers.io import storage
source, target = sys.argv[1:]
for found in list(storage.list_objects(source)):
    place = Path(target) / found.uri.removeprefix(source).strip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(storage.read_bytes(found.uri))
"""


def test_a_part_of_another_run_does_not_count(clips, checkpoint, tmp_path, capsys):
    """Parts copied from a run with other settings are scored again, foreign ones are refused."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    args = command(clips, mine, model=checkpoint[0])
    assert resume(args) == 0
    assert resume(command(clips, theirs, model="raysers-base")) == 0
    capsys.readouterr()
    expected = comparable(rows_of(mine))
    parts = sorted((mine / "annotations").iterdir())
    parts[0].write_bytes((theirs / "annotations" / parts[0].name).read_bytes())
    parts[2].write_bytes(parts[1].read_bytes())  # of this run, but of another shard
    assert resume(args) == 0
    assert "2 shards left" in capsys.readouterr().out
    assert comparable(rows_of(mine)) == expected
    extra = mine / "annotations" / "part-000999.parquet"
    extra.write_bytes(parts[0].read_bytes())
    assert resume(args) == 1
    assert "part-000999.parquet, which this run did not write" in capsys.readouterr().err
    metadata = pq.read_schema(parts[0]).metadata
    assert json.dumps(sorted(k.decode() for k in metadata)) == '["raysers"]'


@pytest.fixture(scope="module")
def growing(tmp_path_factory, emodb_files) -> tuple[Path, list[str], list[dict]]:
    """A folder, the files to be added to it, and the rows of both steps when nothing happens."""
    home = tmp_path_factory.mktemp("growing")
    folder, later = link_clips(home / "audio", emodb_files[::4]), emodb_files[2::4]
    args = (*command(folder, home / "out"), "--extend")
    assert resume(args) == 0
    link_clips(folder, later)
    assert resume(args) == 0
    return folder, later, comparable(rows_of(home / "out"))


@pytest.mark.parametrize(
    "moment",
    ["list", *(pytest.param(one, marks=pytest.mark.slow) for one in ("score", "stop"))],
)
def test_files_that_were_added_are_scored_once_whatever_happens(moment, growing, tmp_path):
    """Killed once the longer list is there, and while it is scored; and stopped by Ctrl-C."""
    folder, later, expected = growing
    for file in later:
        (folder / "deep er" / Path(file).name).unlink()
    args = (*command(folder, tmp_path), "--extend")
    assert resume(args) == 0
    before = {p: p.read_bytes() for p in tmp_path.glob("*/part-*")}
    link_clips(folder, later)
    driver = processes.start(JOB, *args)
    done = processes.parts_in(tmp_path)
    if moment == "list":
        processes.kill_when(driver, (tmp_path / "manifest/part-00001.parquet").exists)
    elif moment == "score":
        processes.kill_when(driver, lambda: processes.parts_in(tmp_path) > done)
    else:
        while processes.parts_in(tmp_path) == done and driver.poll() is None:
            time.sleep(0.01)
        driver.send_signal(signal.SIGINT)
        assert processes.finish(driver)[0] == 130
        assert record_of(tmp_path)["status"] == "interrupted"
    assert resume(args[:-1]) == 0  # what has begun needs no flag
    assert {p: p.read_bytes() for p in before} == before
    assert comparable(rows_of(tmp_path)) == expected
    record = record_of(tmp_path)
    assert record["status"] == "done"
    assert record["outcome"]["clips"] == len(expected) == len(list(folder.rglob("*.wav")))
