"""A sweep: what it leaves, what it refuses, and that no death loses a trial or runs it twice."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from raysers.commands.archive import annotate
from raysers.commands.training import tune
from raysers.tuning import results
from tests.jobs import processes
from tests.jobs.conftest import rows_of
from tests.jobs.voices import write_toy_config, write_voices

EPOCHS = 6

#: By the seed below in this order: two that learn, one far too low to.
RATES = (3e-3, 1e-2, 1e-9)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_voices(folder / "voices")
    write_toy_config(folder)
    (folder / "rates.yaml").write_text(f"lr: {[*RATES]}\n")
    (folder / "random.yaml").write_text(
        "lr: loguniform(1e-3, 1e-2)\n"
        "freeze: [none, cnn]\n"
        "warmup: {values: [0.1, 0.2], when: {freeze: cnn}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def command(place) -> list[str]:
    return [
        "--data", str(place / "voices/labels.csv"), "--backbone", f"random:{place}/config.json",
        "--epochs", str(EPOCHS), "--batch-size", "7",
    ]  # fmt: skip


#: A grid of three learning rates, one after the other, with early stopping.
GRID = ("--search", "grid", "--seed", "4", "--max-concurrent", "1", "--asha-grace", "2")


@pytest.fixture(scope="module")
def swept(place, command, ray_session) -> Path:
    out = place / "swept"
    space = ["--space", str(place / "rates.yaml"), "--output", str(out)]
    assert tune([*command, *space, *GRID]) == 0
    return out


def trials_of(out: Path) -> list[dict]:
    return rows_of(out, "trials")


def test_asha_stops_the_trial_whose_learning_rate_is_far_too_low(swept):
    trials = trials_of(swept)
    assert [t["param_lr"] for t in trials] == [*RATES]
    bad = trials[-1]
    assert (bad["status"], bad["epochs"]) == ("stopped", 2)
    assert bad["dev_ccc_mean"] < max(t["dev_ccc_mean"] for t in trials)
    assert (trials[0]["status"], trials[0]["epochs"]) == ("done", EPOCHS)
    assert not list(swept.glob("runs/*/state"))


def test_the_tables_say_what_the_trainings_say(swept):
    for trial in trials_of(swept):
        assert trial["attempts"] == 1
        if trial["status"] == "done":
            document = json.loads((swept / trial["path"] / "training.json").read_text())
            means = [record["dev_ccc_mean"] for record in document["history"]]
            best = max(means), int(np.argmax(means)) + 1
            assert (trial["dev_ccc_mean"], trial["best_epoch"]) == best
            assert document["settings"]["lr"] == trial["param_lr"]
    shown = {(r["cell"], r["epoch"]) for r in rows_of(swept, "curves") if r["dimension"] == "mean"}
    assert len(shown) == sum(trial["epochs"] for trial in trials_of(swept))
    record = json.loads((swept / "run.json").read_text())
    assert (record["status"], record["outcome"]["trials"]) == ("done", 3)
    assert "too few" in record["outcome"]["importance"]["note"]
    assert (swept / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (swept / "learning_curves.svg").read_bytes()


def test_best_is_the_model_folder_of_the_best_trial_and_annotates(swept, place):
    best = max((t for t in trials_of(swept)), key=lambda t: t["dev_ccc_mean"])
    weights = (swept / "best/model.safetensors").read_bytes()
    assert weights == (swept / best["path"] / "model.safetensors").read_bytes()
    card = (swept / "best/README.md").read_text()
    assert f"This is {best['trial']}, the best of the 3 trials" in card
    assert f"--lr {best['param_lr']}" in card  # the command that gives the same model
    out = place / "scored"
    args = ["--input", str(place / "voices/labels.csv"), "--output", str(out)]
    args += ["--model", str(swept / "best"), "--dtype", "fp32", "--workers", "local"]
    assert annotate(args) == 0
    told = {row["file"]: row["arousal"] for row in rows_of(swept / "best", "predictions")}
    found = {row["file"]: row["arousal"] for row in rows_of(out) if row["file"] in told}
    assert found == pytest.approx(told, abs=1e-5)


def test_a_finished_sweep_is_not_touched_by_its_command_or_by_another(
    swept, place, command, capsys
):
    before = {p: p.stat().st_mtime_ns for p in swept.rglob("*")}
    same = [*GRID, "--space", str(place / "rates.yaml"), "--output", str(swept)]
    assert tune([*command, *same]) == 0
    assert "nothing is left to train" in " ".join(capsys.readouterr().out.split())
    assert tune([*command, *same, "--dry-run", "--usd-per-hour", "2"]) == 0
    assert "USD" not in capsys.readouterr().out
    other = ["--space", str(place / "random.yaml"), "--output", str(swept), "--seed", "4"]
    assert tune([*command, *other]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "space was" in error
    assert "search was 'grid', now 'random'" in error
    assert {p: p.stat().st_mtime_ns for p in swept.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("search", "trials", "more", "kills"),
    [("random", 2, 1, 1), ("random", 12, 4, 3), ("optuna", 12, 4, 3)],
)
def test_kill_9_at_random_moments_and_the_same_command_equal_an_uninterrupted_sweep(
    search, trials, more, kills, place, command, ray_session, tmp_path
):
    """And `--trials` raised later, in a folder that was moved, runs only the new ones."""
    args = [*command, "--space", str(place / "random.yaml"), "--asha", "off", "--search", search]
    args += ["--max-concurrent", "2", "--checkpoint-steps", "1", "--epochs", "3"]
    out = tmp_path / "killed"
    killed = [*args, "--trials", str(trials), "--output", str(out)]
    address, rng = ray.get_runtime_context().gcs_address, random.Random(trials)
    for _ in range(kills):
        already = len(list(out.glob("runs/*/trial.json")))
        driver = processes.start("jobs/tune.py", *killed, env={"RAY_ADDRESS": address})
        deadline = time.monotonic() + 240
        while len(list(out.glob("runs/*/trial.json"))) < min(already + 2, trials):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3))
        driver.kill()
        driver.communicate()
    done = {path.name: r for path, r in _records(out).items() if r["status"] == "done"}
    assert tune(killed) == 0
    before = {path.name: record for path, record in _records(out).items()}
    assert len(before) == trials
    assert {name: before[name] for name in done} == done
    out = out.rename(tmp_path / "moved")
    assert tune([*args, "--trials", str(trials + more), "--output", str(out)]) == 0
    after = {path.name: record for path, record in _records(out).items()}
    assert len(after) == trials + more
    assert {name: after[name] for name in before} == before
    assert {after[name]["attempts"] for name in {*after} - {*before}} == {1}
    if search == "optuna":  # which chooses by what ended before, so another order is another choice
        return
    calm = tmp_path / "calm"
    assert tune([*args, "--trials", str(trials + more), "--output", str(calm)]) == 0
    varying = {"attempts", "wall_s"}
    ours, theirs = (
        [{k: v for k, v in trial.items() if k not in varying} for trial in trials_of(folder)]
        for folder in (out, calm)
    )
    assert ours == theirs
    for name in after:
        file = f"runs/{name}/model.safetensors"
        assert (out / file).read_bytes() == (calm / file).read_bytes()


def _records(out: Path) -> dict[Path, dict]:
    """What the trials' records say, by folder."""
    found = sorted(out.glob("runs/*/trial.json"))
    return {file.parent: json.loads(file.read_text()) for file in found}


@pytest.mark.parametrize(
    ("space", "args", "words"),
    [
        ("lr: loguniform(1e-5, 1e-3)", ("--search", "grid"), "list its values"),
        ("layers: [1, 40]", (), "key 'layers'"),
        ("lr: [1e-3, 1e-4]", ("--workers", "2"), "--workers-per-trial"),
        ("lr: [1e-3, 1e-4]", ("--max-concurrent", "99"), "--max-concurrent 99"),
        ("front-steps: [0, 5]", (), "--front mel"),
        ("lr: [1e-3, 1e-4]", ("--data", "/nowhere"), "/nowhere"),
        ("lr: [1e-3, 1e-4]", ("--keep", "last"), "--keep"),
    ],
)
def test_bad_commands_end_with_exit_2_and_one_clear_line_and_write_nothing(
    space, args, words, place, command, tmp_path, capsys, ray_session
):
    file = tmp_path / "space.yaml"
    file.write_text(space)
    out = tmp_path / "out"
    assert tune([*command, "--space", str(file), "--output", str(out), *args]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_a_dry_run_shows_the_trials_and_their_cost_and_writes_nothing(
    place, command, tmp_path, capsys, ray_session, monkeypatch
):
    """It is measured where trials would train, not in this process."""
    monkeypatch.delattr(results, "run_training")
    out = tmp_path / "out"
    args = ["--space", str(place / "random.yaml"), "--trials", "4", "--usd-per-hour", "2"]
    args += ["--workers-per-trial", "2"]
    assert tune([*command, *args, "--dry-run", "--output", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "trial 3" in printed
    assert "x real time a trial, measured in training with one worker, times 2" in printed
    assert f"{4 * EPOCHS} epochs" in printed
    assert "USD" in printed
    assert not out.exists()


@pytest.mark.slow
def test_a_sweep_in_s3(s3, tmp_path):
    table, config = write_voices(tmp_path / "voices"), write_toy_config(tmp_path)
    s3.put("space.yaml", b"lr: [0.003, 0.01]")
    code, _, error = processes.run(
        "jobs/tune.py", "--space", f"{s3.uri}/space.yaml", "--search", "grid", "--data", table,
        "--backbone", f"random:{config}", "--epochs", 1, "--output", f"{s3.uri}/sweep",
    )  # fmt: skip
    assert code == 0, error
    keys = s3.keys()
    for name in ("model.safetensors", "config.json", "README.md", "training.json"):
        assert f"sweep/best/{name}" in keys
    assert {"sweep/trials/part-00000.parquet", "sweep/learning_curves.svg"} <= set(keys)
    assert not [key for key in keys if "/state/" in key]
    record = json.loads(s3.get("sweep/run.json"))
    assert record["outcome"]["statuses"] == {"done": 2}
