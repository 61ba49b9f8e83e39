"""Training from labelled clips to a model folder that annotate loads, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import soundfile as sf
from safetensors.numpy import load_file

from raysers.cli import as_plain, parse
from raysers.commands.archive import annotate
from raysers.commands.training import train
from raysers.engine.placement import here
from raysers.evaluation.scores import ccc
from raysers.training import trainer
from raysers.training.config import TrainingFlags
from raysers.training.loop import TrainingStopped
from raysers.training.trainer import run_training
from raysers.types import DIMENSIONS
from tests.jobs import processes
from tests.jobs.conftest import rows_of
from tests.jobs.voices import (
    break_in_the_middle,
    read_table,
    write_table,
    write_toy_config,
    write_voices,
)

#: Long enough for the toy to learn something.
EPOCHS = 6

#: Of an epoch: 15 clips in batches of at most 7.
STEPS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def labels(place) -> Path:
    """The table of the voices, one of whose training clips cannot be decoded."""
    table = write_voices(place / "voices")
    rows = read_table(table)
    broken = table.parent / "broken.flac"
    sf.write(broken, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    break_in_the_middle(broken)
    return write_table(table, [*rows, {**rows[-1], "file": broken.name, "split": "train"}])


@pytest.fixture(scope="module")
def command(place, labels) -> list[str]:
    """A small training with everything random left in."""
    config = write_toy_config(place)
    return [
        "--data", str(labels), "--backbone", f"random:{config}", "--epochs", str(EPOCHS),
        "--batch-size", "7", "--lr", "3e-3", "--category-weight", "0.3", "--max-failed", "0.1",
        "--ema", "0.9", "--noise-db", "10", "30", "--speed", "0.9", "1.0", "1.1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one(place, command, ray_session) -> Path:
    """The result of one worker: this process, with as many threads as Ray's CPUs."""
    _train_here(command, place / "one")
    return place / "one"


@pytest.fixture(scope="module")
def two(place, command, ray_session) -> Path:
    """The result of two workers."""
    out = place / "two"
    assert train([*command, "--output", str(out), "--workers", "2"]) == 0
    return out


def _train_here(command: list[str], out: Path, on_epoch: Callable | None = None) -> None:
    flags = parse(TrainingFlags, [*command, "--output", str(out)], description="")
    run_training(flags, as_plain(flags), on_epoch=on_epoch, placement=here(threads=4))


def _document(out: Path, name: str = "training.json") -> dict:
    return json.loads((out / name).read_text())


def _same(out: Path, calm: Path) -> bool:
    """The same bytes, and the same history but for what differs from run to run."""
    timed = ("wall_s", "audio_hours_per_s")
    history, expected = (
        [{k: v for k, v in r.items() if k not in timed} for r in _document(one)["history"]]
        for one in (out, calm)
    )
    weights = ((one / "model.safetensors").read_bytes() for one in (out, calm))
    return history == expected and next(weights) == next(weights)


def _assert_close(out: Path, calm: Path) -> None:
    """The same but for rounding, of which Adam makes steps where a gradient is next to nothing."""
    ours, theirs = (load_file(one / "model.safetensors") for one in (out, calm))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-4, rtol=0, err_msg=name)
        assert np.abs(value - theirs[name]).mean() < 2e-6, name
    losses = [[r["train_loss"] for r in _document(one)["history"]] for one in (out, calm)]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)


def test_one_and_two_workers_give_the_same_model(one, two):
    _assert_close(two, one)


def _stop(record: dict) -> None:
    raise TrainingStopped(f"enough of {record['epoch']}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_in_the_callers_process_gives_the_same_bytes(workers, one, command, place):
    """An epoch here, the others by Ray Train; with another number of workers but for rounding."""
    out = place / f"on with {workers}"
    with pytest.raises(TrainingStopped, match="enough of 1"):
        _train_here(command, out, _stop)
    assert _document(out, "run.json")["status"] == "stopped"
    assert _saved_steps(out) == [STEPS]
    assert train([*command, "--output", str(out), "--workers", str(workers)]) == 0
    if workers == 1:
        assert _same(out, one)
    else:
        _assert_close(out, one)


def _train_workers() -> list[psutil.Process]:
    """Processes of Ray Train's workers below this one."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if "TrainWorker" in processes.title(process)]


def _saved_steps(out: Path) -> list[int]:
    return [int(mark.parent.name) for mark in out.glob("state/*/state.json")]


def _when_saved(out: Path, act: Callable[[], object]) -> threading.Thread:
    """Act in a thread as soon as the first state is saved."""

    def watch() -> None:
        while not _saved_steps(out):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_kill_9_of_a_worker_in_mid_run_gives_the_same_model(place, command, two, capsys):
    out = place / "worker-killed"

    def kill_one() -> None:
        _train_workers()[0].kill()

    thread = _when_saved(out, kill_one)
    args = [*command, "--output", str(out), "--workers", "2", "--checkpoint-steps", "2"]
    assert train(args) == 0
    thread.join(timeout=10)
    assert "workers died and were started again after step" in capsys.readouterr().err
    assert _same(out, two)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "callback"])
def test_a_training_on_ray_that_is_stopped_saves_its_step_and_resumes(how, place, command, two):
    out = place / how
    args = [*command, "--output", str(out), "--workers", "2"]
    if how == "callback":
        flags = parse(TrainingFlags, args, description="")
        with pytest.raises(TrainingStopped, match="enough of 1"):
            run_training(flags, as_plain(flags), on_epoch=_stop)
    else:
        thread = _when_saved(out, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(args) == 143
        thread.join(timeout=10)
    status = {"SIGTERM": "interrupted", "callback": "stopped"}[how]
    assert _document(out, "run.json")["status"] == status
    (step,) = _saved_steps(out)
    assert STEPS <= step <= EPOCHS * STEPS
    assert train(args) == 0
    assert _same(out, two)


@pytest.mark.slow
@pytest.mark.timeout(600)  # three starts of workers, and of the fixture's, on a busy machine
def test_kill_9_of_the_driver_then_the_same_command_gives_the_same_model(
    place, command, two, tmp_path
):
    """In one cluster, so that workers have as many threads each time: then not a bit differs."""
    out = place / "driver-killed"
    args = [*command, "--output", str(out), "--workers", "2", "--checkpoint-steps", "1"]
    address = ray.get_runtime_context().gcs_address
    driver = processes.start(
        "jobs/train.py", *args, env={"RAY_ADDRESS": address, "TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 240
    while not _saved_steps(out):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = _train_workers()
    for worker in workers:
        worker.suspend()  # or they finish so small a training before they miss their driver
    assert len(workers) == 2
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlive their driver"
    assert 0 < max(_saved_steps(out)) < EPOCHS * STEPS
    assert _document(out, "run.json")["status"] == "running"
    assert not (out / "training.json").exists()
    assert train(args) == 0
    assert _same(out, two)


def test_the_record_says_what_was_trained_and_what_was_passed_over(one):
    document = _document(one)
    history, outcome = document["history"], document["outcome"]
    best = 1 + int(np.argmax([record["dev_ccc_mean"] for record in history]))
    assert [r["epoch"] for r in history if r["kept"]][-1] == outcome["kept_epoch"] == best
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["step"] == EPOCHS * STEPS
    assert outcome["failed_clips"] == 1
    (why,) = document["failed_clips"].values()
    assert "broken.flac" in why
    assert document["data"]["speakers"]["dev"] == {"ann": 7, "cid": 7}
    assert document["data"]["categories"] == ["high", "low"]
    assert document["settings"]["lr"] == 3e-3


def test_annotate_with_the_result_gives_the_dev_scores_of_the_card(one, labels):
    out = one.parent / "scored"
    args = ["--input", str(labels), "--output", str(out), "--model", str(one), "--workers", "local"]
    assert annotate([*args, "--dtype", "fp32", "--max-failed", "0.1"]) == 0
    scored = {row["file"]: row for row in rows_of(out)}
    stored = pq.read_table(one / "predictions" / "part-00000.parquet").to_pylist()
    truth = {str(labels.parent / row["file"]): row for row in read_table(labels)}
    assert {row["file"] for row in stored} == {f for f, r in truth.items() if r["split"] == "dev"}
    for row in stored:
        for name in (*DIMENSIONS, "p_high", "p_low"):
            assert row[name] == pytest.approx(scored[row["file"]][name], abs=1e-5)
        assert row["emotion"] == scored[row["file"]]["emotion"]
    metrics = pq.read_table(one / "metrics" / "part-00000.parquet").to_pylist()
    kept = str(_document(one)["outcome"]["kept_epoch"])
    for name in ("arousal", "dominance"):
        pairs = [(float(truth[row["file"]][name]), row[name]) for row in stored]
        expected = ccc(*zip(*pairs, strict=True))
        for group, value, most in (("", "", 1e-6), ("epoch", kept, 1e-4)):
            where = {"model": "one", "metric": "ccc", "split": "dev", "dimension": name}
            where |= {"group": group, "group_value": value}
            (found,) = [row["value"] for row in metrics if where.items() <= row.items()]
            assert found == pytest.approx(expected, abs=most)


def test_the_folder_holds_everything_and_no_state(one):
    names = {str(p.relative_to(one)) for p in one.rglob("*") if p.is_file()}
    (events,) = (name for name in names if name.startswith("tensorboard/"))
    assert names - {events} == {
        "config.json", "preprocessor_config.json", "model.safetensors", "README.md",
        "training.json", "learning_curve.png", "learning_curve.svg", "run.json",
        "metrics/part-00000.parquet", "predictions/part-00000.parquet",
        "manifest/part-00000.parquet",
    }  # fmt: skip
    assert "arousal" in (one / "README.md").read_text()
    from tensorboardX.proto.event_pb2 import Event

    content, steps = (one / events).read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        steps += [event.step for v in event.summary.value if v.tag == "dev/ccc_arousal"]
        content = content[16 + size :]
    assert steps == list(range(1, EPOCHS + 1))


def test_a_finished_run_is_only_read_and_not_continued_with_other_settings(one, command, capsys):
    before = {p: p.stat().st_mtime_ns for p in one.rglob("*")}
    args = [*command, "--output", str(one), "--workers", "1"]
    assert train(args) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert train([*args, "--lr", "1e-4"]) == 2
    error = capsys.readouterr().err
    assert "lr was 0.003, now 0.0001" in error
    assert len(error.strip().splitlines()) == 1
    assert {p: p.stat().st_mtime_ns for p in one.rglob("*")} == before


@pytest.mark.slow
def test_too_many_clips_that_cannot_be_decoded_end_with_exit_3(place, command, ray_session, capsys):
    """An error of Ray Train's workers reaches the driver."""
    out = place / "strict"
    args = [*command, "--output", str(out), "--max-failed", "0.01", "--epochs", "1"]
    assert train([*args, "--workers", "1"]) == 3
    error = capsys.readouterr().err
    assert "1 of 29 clips" in error
    assert "broken.flac" in error
    assert _document(out, "run.json")["status"] == "failed"


def test_a_loss_that_is_not_a_number_ends_with_exit_1_and_names_the_step(
    place, command, capsys, monkeypatch
):
    monkeypatch.setattr(trainer, "run_training", partial(run_training, placement=here(threads=1)))
    args = [*command, "--output", str(place / "diverged"), "--lr", "1e30", "--optimiser", "sgd"]
    assert train(args) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: epoch 1, step ")
    assert "--lr" in error


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--data is empty: give labelled data"),
        (("--data", "{tmp}/nowhere"), "nowhere"),
        (("--data", "{tmp}/no-train.csv"), "no train clips"),
        (("--data", "{tmp}/unsplit.csv"), "--folds"),
        (("--data", "{tmp}/no-dev.csv"), "--keep last"),
        (("--data", "{tmp}/beyond.csv"), "rescale"),
        (("--data", "{tmp}/leaking.csv"), "--allow-leakage"),
        (("--data", "{labels}", "--folds", "9", "--fold", "8"), "--folds 9"),
        (("--data", "{labels}", "--fold", "1"), "--fold"),
        (("--data", "{labels}", "--train", "{labels}"), "--data"),
        (("--dev", "{labels}"), "--data"),
        (("--data", "{labels}", "--backbone", "random:w2v2-l-robst"), "did you mean"),
        (("--data", "{labels}", "--backbone", "w2v2-b"), "facebook/wav2vec2-base"),
        (("--data", "{labels}", "--train-fraction", "0"), "--train-fraction"),
        (("--data", "{labels}", "--front-steps", "3"), "--front mel"),
        (("--data", "{labels}", "--patience", "2", "--keep", "last"), "--keep best"),
        (("--data", "{labels}", "--workers", "1000"), "--workers"),
        (("--data", "{labels}", "--track", "mlflow"), "MLFLOW_TRACKING_URI"),
        # before the data is looked at
        (("--data", "{tmp}/nowhere", "--output", "/proc/here"), "/proc/here"),
        (("--data", "{labels}", "--train-fracton", "1"), "--train-fraction"),
    ],
)
def test_bad_commands_end_with_exit_2_and_one_clear_line_and_write_nothing(
    args, words, labels, tmp_path, capsys, ray_session, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = [{**r, "file": str(labels.parent / r["file"])} for r in read_table(labels)[:-1]]
    _bad_tables(tmp_path, rows)
    given = [a.format(tmp=tmp_path, labels=labels) for a in args]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "out")]
    if "--backbone" not in given:
        given += ["--backbone", "random:tiny"]
    before = sorted(tmp_path.rglob("*"))
    assert train(given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def _bad_tables(place: Path, rows: list[dict[str, str]]) -> None:
    changed = {
        "no-train": [r | {"split": "dev"} for r in rows],
        "unsplit": [r | {"split": ""} for r in rows],
        "no-dev": [r | {"split": "train"} for r in rows],
        "beyond": [r | {"arousal": "1.5"} for r in rows],
        "leaking": [*rows[1:], rows[0] | {"split": "train"}],
    }
    for name, table in changed.items():
        write_table(place / f"{name}.csv", table)


def test_too_many_clips_without_labels_end_with_exit_3_and_write_nothing(
    labels, tmp_path, capsys, ray_session
):
    rows = [{**r, "file": str(labels.parent / r["file"])} for r in read_table(labels)[:-1]]
    rows[20] |= dict.fromkeys(DIMENSIONS, "")
    table = write_table(tmp_path / "some.csv", rows)
    out = tmp_path / "out"
    args = ["--data", str(table), "--output", str(out), "--backbone", "random:tiny"]
    assert train([*args, "--max-failed", "0.01"]) == 3
    assert "no label 1" in capsys.readouterr().err
    assert not out.exists()
