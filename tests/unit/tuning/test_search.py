"""Where trials are: the same wherever they are asked from, and better where trials were good."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raysers.errors import ConfigError
from raysers.tuning.points import Parameter, Range, Space
from raysers.tuning.search import GridSearch, Observation, OptunaSearch, RandomSearch, grid_search

LR = Range(low=1e-5, high=1.0, log=True)


def searched(name, values, **when):
    return Parameter(name=name, written="", values=values, when=when)


SPACE = Space(
    flags=(
        searched("freeze", ("cnn", "none")),
        searched("lr", LR),
        searched("warmup", Range(low=0.0, high=0.3), freeze=("cnn",)),
    )
)


def test_random_points_depend_on_seed_and_number_alone():
    search = RandomSearch(space=SPACE, seed=3)
    points = [search.point(n, []) for n in range(200)]
    assert points == [search.point(n, []) for n in reversed(range(200))][::-1]
    assert points != [RandomSearch(space=SPACE, seed=4).point(n, []) for n in range(200)]
    with_cnn = [p for p in points if p["freeze"] == "cnn"]
    assert 70 < len(with_cnn) < 130
    assert all(("warmup" in p) == (p["freeze"] == "cnn") for p in points)
    logs = np.log10([p["lr"] for p in points])
    assert np.histogram(logs, 5, (-5, 0))[0].min() > 20  # evenly on the logarithm


def test_another_flag_in_the_space_does_not_move_the_others():
    more = Space(flags=(*SPACE.flags, searched("ema", Range(low=0.0, high=0.9))))
    for number in range(20):
        point = RandomSearch(space=more, seed=3).point(number, [])
        del point["ema"]
        assert point == RandomSearch(space=SPACE, seed=3).point(number, [])


def test_a_grid_in_the_order_of_the_seed_has_every_point():
    space = Space(flags=(searched("layers", (1, 2, 3)), searched("freeze", ("cnn", "none"))))
    orders = [grid_search(space, seed) for seed in (0, 1)]
    assert all(isinstance(order, GridSearch) for order in orders)
    as_sets = [{tuple(p.items()) for p in order.points} for order in orders]
    assert as_sets[0] == as_sets[1]
    assert len(orders[0].points) == 6
    assert orders[0].points != orders[1].points


def score(point):
    """Best at lr 1e-3 with a frozen front; a made-up task with one hill."""
    bonus = 0.2 if point["freeze"] == "cnn" else 0.0
    return 0.7 - 0.15 * abs(math.log10(point["lr"]) + 3) + bonus


def swept(search, trials, shown=()):
    shown = list(shown)
    for number in range(len(shown), trials):
        point = search.point(number, shown)
        shown.append(Observation(point=point, scores={1: score(point)}, state="complete"))
    return shown


def best(shown):
    return max(one.scores[1] for one in shown)


def test_optuna_beats_its_random_start_and_random_search():
    pytest.importorskip("optuna")
    gains, against = [], []
    for seed in range(4):
        found = swept(OptunaSearch(space=SPACE, seed=seed, start=6), 20)
        assert [one.point for one in found[:6]] == [
            RandomSearch(space=SPACE, seed=seed).point(n, []) for n in range(6)
        ]
        gains.append(best(found) - best(found[:6]))
        against.append(best(found) - best(swept(RandomSearch(space=SPACE, seed=seed), 20)))
    assert min(gains) >= 0
    assert np.mean(gains) > 0.02
    assert np.mean(against) > 0


def test_optuna_goes_on_from_records_as_if_never_interrupted():
    pytest.importorskip("optuna")
    whole = swept(OptunaSearch(space=SPACE, seed=1, start=4), 9)
    resumed = swept(OptunaSearch(space=SPACE, seed=1, start=4), 9, whole[:6])
    assert [one.point for one in resumed] == [one.point for one in whole]


def refuse_high_rates(point):
    if point["lr"] > 1e-4:
        raise ConfigError("--lr is too high")


def test_optuna_draws_again_what_does_not_go_together():
    """And in the same way in the next command; where all goes together nothing is another."""
    pytest.importorskip("optuna")
    strict = OptunaSearch(space=SPACE, seed=0, start=4, check=refuse_high_rates)
    free = OptunaSearch(space=SPACE, seed=0, start=4)
    shown = swept(free, 8)
    loose = [free.point(n, shown) for n in range(8, 16)]
    drawn = [strict.point(n, shown) for n in range(8, 16)]
    assert max(point["lr"] for point in loose) > 1e-4
    assert max(point["lr"] for point in drawn) <= 1e-4
    assert drawn == [strict.point(n, shown) for n in range(8, 16)]
    kept = [(a, b) for a, b in zip(loose, drawn, strict=True) if a["lr"] <= 1e-4]
    assert all(a == b for a, b in kept)


def test_optuna_gives_up_on_a_space_where_nothing_goes_together():
    pytest.importorskip("optuna")

    def refuse(point):
        raise ConfigError("--loss mse needs --batch-size 8")

    search = OptunaSearch(space=SPACE, seed=0, start=0, check=refuse)
    with pytest.raises(ConfigError, match="trial 0: no values that go together: --loss mse needs"):
        search.point(0, [])
