"""Pieces of work through Ray Tune: what is recorded, retried, stopped, and never run twice."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from raysers.errors import ConfigError, TrainingDiverged, WriteError
from raysers.run import Run
from raysers.tuning.trials import Piece, Share, TrialRecord, failure, run_pieces, stored

EPOCHS = 4

#: Piece 7 needs piece 5.
NEEDS = {7: ("piece-5",)}


def work(path: str, number: int, report) -> dict:
    """Better with every number; some go wrong. Each owns its folder, as a training does."""
    with Run.open("piece", path):
        folder = Path(path)
        with (folder / "calls").open("a") as file:
            file.write("called\n")
        for epoch in range(1, EPOCHS):
            report({"epoch": epoch, "score": number / 10})
        if number == 3:
            raise ValueError("never good")
        if number == 4 and len((folder / "calls").read_text().split()) == 1:
            os._exit(9)  # as if killed, once: its claim stays behind
        if number == 5 and not (folder.parent / "package").exists():
            raise ConfigError("package is missing")
        if number == 6:
            raise TrainingDiverged("not a number")
        return {"pid": os.getpid()}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pieces")


def pieces(place: Path, numbers, needs=NEEDS):
    for n in numbers:
        path = str(place / f"piece-{n}")
        yield Piece(
            name=f"piece-{n}", path=path, call=partial(work, path, n), notes={"number": n},
            needs=needs.get(n, ()),
        )  # fmt: skip


def asha() -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=EPOCHS - 1, grace_period=1,
        reduction_factor=2, stop_last_trials=False,
    )  # fmt: skip


#: Of earlier runs, better than piece 0 but not than the others.
EARLIER = (20, 21, 22)

#: In the order in which they are drawn, one at a time.
DRAWN = [*EARLIER, 60, 0, 3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def ended(place, ray_session) -> dict[int, TrialRecord]:
    """Three pieces of earlier runs, one that was interrupted, one that is bad, three that fail."""
    for n in EARLIER:
        reports = tuple({"epoch": e, "score": 0.1} for e in range(1, EPOCHS))
        path = str(place / f"piece-{n}")
        TrialRecord(name=f"piece-{n}", path=path, status="done", reports=reports).save()
    path = str(place / "piece-60")
    TrialRecord(name="piece-60", path=path, status="running", attempts=1).save()
    return run(place)


def run(place: Path) -> dict[int, TrialRecord]:
    heard: list[TrialRecord] = []
    found = run_pieces(
        pieces(place, DRAWN), Share(at_once=1, cpus_each=1), total=len(DRAWN), retries=1,
        scheduler=asha(), on_ended=heard.append,
    )  # fmt: skip
    assert [one.name for one in found] == [f"piece-{n}" for n in DRAWN]
    assert sorted(one.name for one in heard) == sorted(one.name for one in found)
    return dict(zip(DRAWN, found, strict=True))


def calls(place: Path, number: int) -> int:
    file = place / f"piece-{number}" / "calls"
    return len(file.read_text().split()) if file.exists() else 0


def test_an_interrupted_piece_is_called_again_and_done(ended, place):
    found = ended[60]
    assert (found.status, found.attempts, found.failures) == ("done", 2, 0)
    assert [report["epoch"] for report in found.reports] == [1, 2, 3]
    assert found == stored(str(place / "piece-60"))
    assert (found.notes, calls(place, 60)) == ({"number": 60}, 1)


def test_the_scheduler_hears_of_earlier_runs_and_stops_what_is_worse(ended, place):
    """As the first of all, piece 0 would go on."""
    assert ended[0].status == "stopped"
    assert [report["epoch"] for report in ended[0].reports] == [1]
    assert [calls(place, n) for n in (0, *EARLIER)] == [1, 0, 0, 0]


def test_failures_are_retried_then_recorded_and_the_rest_goes_on(ended, place):
    bad, died, repeats = (ended[n] for n in (3, 4, 6))
    assert (bad.status, bad.error) == ("failed", "ValueError: never good")
    assert (bad.attempts, bad.failures, calls(place, 3)) == (2, 2, 2)
    assert (died.status, died.error, died.failures, calls(place, 4)) == ("done", "", 1, 2)
    assert (repeats.status, repeats.error) == ("failed", "not a number")
    assert calls(place, 6) == 1


def test_no_folder_stays_claimed_however_its_piece_ended(ended, place):
    assert {one.status for one in ended.values()} == {"done", "stopped", "failed"}
    assert list(place.rglob("_claim.json")) == []


def test_what_failed_for_a_missing_package_is_done_by_the_next_command_and_nothing_else(
    ended, place
):
    """No command tries it twice, and what needs it waits for the next one too."""
    assert (ended[5].status, ended[5].error) == ("failed", "package is missing")
    assert ended[7].error == "it needs piece-5, which failed: package is missing"
    before = [calls(place, n) for n in DRAWN]
    assert before[-3:] == [1, 1, 0]
    (place / "package").touch()
    again = run(place)
    assert (again[5].status, again[5].error, again[5].attempts) == ("done", "", 2)
    assert again[7].status == "done"
    others = [n for n in DRAWN if n not in (5, 7)]
    assert [again[n] for n in others] == [ended[n] for n in others]
    after = [calls(place, n) for n in DRAWN]
    assert after == [*before[:-3], 2, 1, 1]
    assert run(place) == again
    assert [calls(place, n) for n in DRAWN] == after


def test_what_lies_outside_of_a_piece_is_counted_in_one_command_only():
    outside = [WriteError("disk full"), ConfigError("no hub"), OSError(28, "No space left")]
    for error in outside:
        failed = TrialRecord(name="a", path="/a", status="failed", failures=3, **failure(error))
        assert failed.is_over(1)
        assert not failed.is_final(1)
        assert failed.again().failures == 0
    own = TrialRecord(
        name="a", path="/a", status="failed", failures=2, **failure(ValueError("bad"))
    )
    assert own.is_final(1)
    assert own.again() == own
