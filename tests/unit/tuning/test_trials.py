"""Trials on Ray Tune: what is recorded, retried, stopped, and never run twice."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import pytest

from raysers.errors import ConfigError, TrainingDiverged
from raysers.run import Run
from raysers.tuning.flags import TuningFlags
from raysers.tuning.results import importance
from raysers.tuning.space import Parameter, Range, Space
from raysers.tuning.sweep import make_scheduler
from raysers.tuning.trials import (
    Trial,
    TrialRecord,
    TrialResources,
    choose_resources,
    run_trials,
    stored,
)

EPOCHS = 3
FLAGS = TuningFlags(output="/o", data=("/d",), space="s", asha_grace=1, asha_reduction=2)


def work(path: str, number: int, report) -> dict:
    """Better with every number; some go wrong. Each owns its folder, as a training does."""
    with Run.open("toy", path):
        folder = Path(path)
        with (folder / "calls").open("a") as file:
            file.write("called\n")
        for epoch in range(1, EPOCHS + 1):
            report({"epoch": epoch, "score": number / 10, "dev_ccc_mean": number / 10})
        if number == 3:
            raise ValueError("never good")
        if number == 4 and len((folder / "calls").read_text().split()) == 1:
            os._exit(9)  # as if killed, once: its claim stays behind
        if number == 5 and not (folder.parent / "package").exists():
            raise ConfigError("package is missing")
        if number == 6:
            raise TrainingDiverged("not a number")
        return {"number": number}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trials")


#: Of earlier runs, better than trial 0 but not than the others.
EARLIER = (20, 21, 22)
NUMBERS = [*EARLIER, 60, 0, 3, 4, 5, 6]


def run(place: Path) -> dict[int, TrialRecord]:
    def make(config) -> Trial:
        number = config["number"]
        path = str(place / f"trial-{number}")
        call = partial(work, path, number)
        return Trial(name=f"trial-{number}", path=path, call=call, notes={"number": number})

    ended: list[str] = []

    def on_ended(record: TrialRecord) -> str:
        ended.append(record.name)
        return ""

    run_trials(
        make, NUMBERS, TrialResources(at_once=1, cpus_each=1), total=len(NUMBERS), retries=1,
        scheduler=make_scheduler(FLAGS, EPOCHS + 1), on_ended=on_ended,
    )  # fmt: skip
    assert len(set(ended)) == len(ended)
    return {number: stored(str(place / f"trial-{number}")) for number in NUMBERS}


@pytest.fixture(scope="module")
def ended(place, ray_session) -> dict[int, TrialRecord]:
    """Three trials of earlier runs, one that was interrupted, one that is bad, four that fail."""
    for n in EARLIER:
        history = tuple({"epoch": e, "score": 0.1} for e in range(1, EPOCHS + 1))
        path = str(place / f"trial-{n}")
        TrialRecord(name=f"trial-{n}", path=path, status="done", history=history).save()
    TrialRecord(name="trial-60", path=str(place / "trial-60"), attempts=1).save()
    return run(place)


def calls(place: Path, number: int) -> int:
    file = place / f"trial-{number}" / "calls"
    return len(file.read_text().split()) if file.exists() else 0


def test_an_interrupted_trial_is_called_again_and_done(ended, place):
    found = ended[60]
    assert (found.status, found.attempts, found.failures) == ("done", 2, 0)
    assert [epoch["epoch"] for epoch in found.history] == [1, 2, 3]
    assert (found.notes, found.result, calls(place, 60)) == ({"number": 60}, {"number": 60}, 1)


def test_the_scheduler_sees_earlier_trials_and_stops_what_is_worse(ended, place):
    """As the first of all, trial 0 would continue."""
    assert ended[0].status == "stopped"
    assert [epoch["epoch"] for epoch in ended[0].history] == [1]
    assert [calls(place, n) for n in (0, *EARLIER)] == [1, 0, 0, 0]


def test_failures_are_retried_then_recorded_and_the_others_continue(ended, place):
    bad, died, repeats = (ended[n] for n in (3, 4, 6))
    assert (bad.status, bad.error) == ("failed", "ValueError: never good")
    assert (bad.attempts, bad.failures, calls(place, 3)) == (2, 2, 2)
    assert (died.status, died.error, died.attempts, calls(place, 4)) == ("done", "", 2, 2)
    assert (repeats.status, repeats.error, calls(place, 6)) == ("failed", "not a number", 1)
    assert list(place.rglob("_claim.json")) == []


def test_the_next_command_retries_what_failed_for_a_missing_package_and_nothing_else(ended, place):
    assert (ended[5].status, ended[5].error) == ("failed", "package is missing")
    before = [calls(place, n) for n in NUMBERS]
    (place / "package").touch()
    again = run(place)
    assert (again[5].status, again[5].error, again[5].attempts) == ("done", "", 2)
    others = [n for n in NUMBERS if n != 5]
    assert [again[n] for n in others] == [ended[n] for n in others]
    assert [calls(place, n) for n in NUMBERS] == [
        n + (number == 5) for n, number in zip(before, NUMBERS, strict=True)
    ]


CPUS = [{"CPU": 4.0}, {"CPU": 4.0}]
GPUS = [{"CPU": 0.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


def test_trials_at_once_and_more_than_the_cluster_holds_is_refused_by_flag():
    for nodes, trials, workers, most, at_once, cpus, gpus, here in (
        (CPUS, 100, 1, 0, 8, 1, 0, 4),
        (CPUS, 3, 1, 0, 3, 2, 0, 2),  # few trials get several threads
        (CPUS, 100, 1, 16, 16, 0.5, 0, 8),
        ([{"CPU": 64.0}], 100, 1, 0, 8, 8, 0, 8),
        (GPUS, 100, 1, 0, 8, 1, 1, 4),
        ([{"CPU": 64.0, "GPU": 8.0}], 3, 1, 0, 3, 1, 1, 3),
        (CPUS, 100, 3, 0, 2, 0, 0, 1),  # the workers hold the CPUs
        (GPUS, 100, 4, 0, 2, 0, 0, 1),
    ):
        found = choose_resources(trials, workers, most, nodes)
        assert (found.at_once, found.cpus_each, found.gpus_each) == (at_once, cpus, gpus)
        assert found.processes_here == here
        assert found.placement.workers == workers
    for workers, most, flag in ((9, 0, "--workers-per-trial 9"), (1, 9, "--max-concurrent 9")):
        with pytest.raises(ConfigError, match=flag):
            choose_resources(100, workers, most, GPUS)


def scored(number: int) -> TrialRecord:
    """The score follows lr, a little freeze, and not seed."""
    point = {"freeze": ("cnn", "none")[number % 2], "lr": 10 ** -(2 + number * 7 % 23 / 8),
             "seed": number * 5 % 11}  # fmt: skip
    score = 0.1 * (math.log10(point["lr"]) + 5) + 0.02 * (point["freeze"] == "cnn")
    return TrialRecord(
        name=f"trial-{number}", path="/p", status="stopped" if number % 4 == 3 else "done",
        history=({"epoch": 1, "dev_ccc_mean": score},), notes={"number": number, "point": point},
    )  # fmt: skip


def test_the_flag_that_decides_is_the_most_important():
    pytest.importorskip("sklearn")
    pytest.importorskip("optuna")
    lr, seed = Range(low=1e-5, high=1e-2, log=True), Range(low=0, high=10, whole=True)
    space = Space(flags=tuple(
        Parameter(name=name, written="", values=values, when={})
        for name, values in (("freeze", ("cnn", "none")), ("lr", lr), ("seed", seed))
    ))  # fmt: skip
    found = importance(
        [*map(scored, range(24)), TrialRecord(name="f", path="/p", status="failed")], space, 0
    )
    shares = {share["name"]: share["value"] for share in found["shares"]}
    assert max(shares, key=shares.get) == "lr"
    assert shares["lr"] > 0.6
    assert shares["seed"] < 0.3
    assert found["note"] == "24 trials, 6 of them stopped early"
    few = importance([scored(n) for n in range(5)], space, 0)
    assert (few["shares"], "too few" in few["note"]) == ([], True)
