"""Pieces of work through Ray Tune: what is recorded, retried, stopped, and never run twice."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from raysers.distributed.trials import Ended, Piece, Share, run_pieces, stored
from raysers.errors import ConfigError, RaysersError

EPOCHS = 4


def work(path: str, number: int, report) -> dict:
    """Better with every number; some go wrong."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "calls").open("a") as file:
        file.write("called\n")
    for epoch in range(1, EPOCHS):
        report({"epoch": epoch, "score": number / 10})
    if number == 3:
        raise ValueError("never good")
    if number == 4 and len((folder / "calls").read_text().split()) == 1:
        os._exit(9)  # as if killed, once
    if number == 5:
        raise ConfigError("certain to repeat")
    return {"pid": os.getpid()}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pieces")


def pieces(place: Path, numbers):
    for n in numbers:
        path = str(place / f"piece-{n}")
        yield Piece(name=f"piece-{n}", path=path, call=partial(work, path, n), notes={"number": n})


def asha() -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=EPOCHS - 1, grace_period=1,
        reduction_factor=2, stop_last_trials=False,
    )  # fmt: skip


#: Of earlier runs, better than piece 0 but not than the others.
EARLIER = (20, 21, 22)

#: In the order in which they are drawn, one at a time.
DRAWN = [*EARLIER, 60, 0, 3, 4, 5]


@pytest.fixture(scope="module")
def ended(place, ray_session) -> dict[int, Ended]:
    """Three pieces of earlier runs, one that was interrupted, one that is bad, three that fail."""
    for n in EARLIER:
        reports = tuple({"epoch": e, "score": 0.1} for e in range(1, EPOCHS))
        path = str(place / f"piece-{n}")
        Ended(name=f"piece-{n}", path=path, status="done", reports=reports).save()
    path = str(place / "piece-60")
    Ended(name="piece-60", path=path, status="running", attempts=1).save()
    return run(place)


def run(place: Path) -> dict[int, Ended]:
    heard: list[Ended] = []
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
    bad, died, repeats = (ended[n] for n in (3, 4, 5))
    assert (bad.status, bad.error) == ("failed", "ValueError: never good")
    assert (bad.attempts, bad.failures, calls(place, 3)) == (2, 2, 2)
    assert (died.status, died.error, died.failures, calls(place, 4)) == ("done", "", 1, 2)
    assert (repeats.status, repeats.error) == ("failed", "certain to repeat")
    assert calls(place, 5) == 1


def test_the_same_pieces_again_run_nothing(ended, place):
    before = [calls(place, n) for n in DRAWN]
    assert run(place) == ended
    assert [calls(place, n) for n in DRAWN] == before


def test_more_retries_make_only_those_final_that_would_repeat(ended):
    assert not ended[3].is_final(2)
    assert ended[5].is_final(2)
    assert ended[0].is_final(0)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "trial.json").write_text("{")
    with pytest.raises(RaysersError, match=r"trial.json is damaged"):
        stored(str(tmp_path))
    assert stored(str(tmp_path / "nothing")) is None
