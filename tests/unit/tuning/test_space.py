"""What a search space may say, how a bad one is refused, and which points it gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raysers.errors import ConfigError
from raysers.training.config import TrainingFlags
from raysers.tuning.space import Parameter, Range, Space, read_space

BASE = TrainingFlags(output="/nowhere", data=("/data",))


def space_of(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return read_space(str(file), BASE)


def test_every_kind_of_value_is_read(tmp_path):
    space = space_of(
        tmp_path,
        """
        --lr: loguniform(1e-5, 1e-3)
        weight-decay: [0, 1e-4]
        batch_size: int(8, 32)
        optimiser: [adam, adamw]
        epochs: 3
        crop_s: [[1, 2], [0.5, 4]]
        target-weights: [1, 1, 2]
        head-dropout: [null, 0.1]
        gradient_checkpointing: [true, false]
        """,
    )
    assert {flag.name: flag.values for flag in space.flags} == {
        "lr": Range(low=1e-5, high=1e-3, log=True),
        "weight_decay": (0.0, 1e-4),  # which YAML reads as a word
        "batch_size": Range(low=8, high=32, whole=True),
        "optimiser": ("adam", "adamw"),
        "epochs": (3,),
        "crop_s": ((1.0, 2.0), (0.5, 4.0)),
        "target_weights": ((1.0, 1.0, 2.0),),
        "head_dropout": (None, 0.1),
        "gradient_checkpointing": (True, False),
    }


def test_bad_spaces_are_refused_in_one_line_with_the_way_out(tmp_path):
    for text, words in (
        ("optimizer: [adam]", "did you mean 'optimiser'?"),
        ("lr: logunifrom(1e-5, 1e-3)", "did you mean loguniform?"),
        ("lr: loguniform(1e-3, 1e-5)", "lower number first"),
        ("lr: loguniform(0, 1)", "above 0"),
        ("lr: uniform(1)", "two numbers"),
        ("lr: __import__('os').system('true')", "neither a value nor a range"),
        ("lr: uniform(-1, 1)", "0 or more"),
        ("lr: [.inf, 0.1]", "inf does not fit: give a number"),
        ("layers: loguniform(2, 12)", "write logint(2, 12)"),
        ("optimiser: [adam, addam]", "one of recipe, adam, adamw, sgd"),
        ("freeze: []", "empty"),
        ("lr: [1e-3, 0.001]", "twice"),
        ("data: [a, b]", "command line"),
        ("workers: [1, 2]", "--workers-per-trial"),
        ("warmup: {values: uniform(0, 0.3), when: {freeze: cnn}}", "quotes"),
        ("warmup: {values: [0, 0.1], when: {freze: cnn}}\nfreeze: [cnn, none]", "'freeze'"),
        ("warmup: {values: [0, 0.1], when: {freeze: all}}\nfreeze: [cnn, none]", "never"),
        ("warmup: {values: [0, 0.1], when: {lr: 1}}\nlr: uniform(1, 2)", "list"),
        ("lr: [1e-3]", "nothing to search"),
        ("- lr", "no mapping"),
        ("batch-size: [2]\nbatch_size: [3]", "twice"),
    ):
        with pytest.raises(ConfigError) as caught:
            space_of(tmp_path, text)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_ranges_go_from_end_to_end_evenly_on_their_scale():
    for values in (
        Range(low=1e-5, high=1e-3, log=True),
        Range(low=1, high=12, whole=True),
        Range(low=1, high=1000, whole=True, log=True),
    ):
        low, high = values.low, values.high
        assert (values.at(0.0), values.at(1.0)) == pytest.approx((low, high))
        drawn = [values.at((i + 0.5) / 4800) for i in range(4800)]
        middle = math.sqrt(low * high) if values.log else (low + high) / 2
        assert np.mean([value <= middle for value in drawn]) == pytest.approx(0.5, abs=0.05)
        if values.whole and not values.log:
            assert {drawn.count(n) for n in range(1, 13)} == {400}


def flag(name, values, **when):
    return Parameter(name=name, written="", values=values, when=when)


SPACE = Space(
    flags=(
        flag("freeze", ("cnn", "none")),
        flag("lr", Range(low=1e-5, high=1.0, log=True)),
        flag("warmup", (0.0, 0.1, 0.2), freeze=("cnn",)),
    )
)


def test_random_points_depend_on_seed_number_and_flag_alone():
    points = [SPACE.random(3, number) for number in range(200)]
    assert points != [SPACE.random(4, number) for number in range(200)]
    assert 70 < sum("warmup" in point for point in points) < 130
    assert all(("warmup" in point) == (point["freeze"] == "cnn") for point in points)
    logs = np.log10([point["lr"] for point in points])
    assert np.histogram(logs, 5, (-5, 0))[0].min() > 20
    more = Space(flags=(*SPACE.flags, flag("ema", Range(low=0.0, high=0.9))))
    for number, point in enumerate(points):
        assert {k: v for k, v in more.random(3, number).items() if k != "ema"} == point


def test_a_grid_has_every_point_once_in_an_order_of_the_seed():
    space = Space(
        flags=(SPACE.flags[0], flag("layers", Range(low=1, high=3, whole=True)), SPACE.flags[2])
    )
    first, second = space.grid(0), space.grid(1)
    as_sets = [{tuple(point.items()) for point in points} for points in (first, second)]
    assert as_sets[0] == as_sets[1]
    assert len(first) == len(as_sets[0]) == 3 * (3 + 1)  # three warm-ups with cnn, none without
    assert first != second
    with pytest.raises(ConfigError, match="key 'lr' is a range without steps: list its values"):
        SPACE.grid(0)


def score(point) -> float:
    """Best at lr 1e-3 with frozen convolutions."""
    return 0.7 - 0.15 * abs(math.log10(point["lr"]) + 3) + 0.2 * (point["freeze"] == "cnn")


def test_optuna_begins_with_the_known_points_and_finds_better_ones(tmp_path):
    pytest.importorskip("optuna")
    points = [SPACE.random(0, number) for number in range(6)]
    search, scores = SPACE.search(points, seed=3000), []
    for number in range(20):
        config = search.suggest(str(number))
        assert config["number"] == number
        if number < len(points):
            assert config["point"] == points[number]
        scores.append(score(config["point"]))
        search.on_trial_complete(str(number), {"score": scores[-1]})
    assert max(scores) > max(scores[: len(points)])
    assert sum(scores[6:]) / 14 > sum(scores[:6]) / 6
    search.save(str(tmp_path / "search"))  # as Tune does in every run
