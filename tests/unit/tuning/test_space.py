"""What a search space may say, and how a bad one is refused."""

from __future__ import annotations

import math

import pytest

from raysers.errors import ConfigError
from raysers.training.config import TrainingFlags
from raysers.tuning.points import Range, active, grid
from raysers.tuning.space import read_space

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
        layers: logint(1, 12)
        optimiser: [adam, adamw]
        epochs: 3
        crop_s: [[1, 2], [0.5, 4]]
        target-weights: [1, 1, 2]
        head-dropout: [null, 0.1]
        gradient_checkpointing: [true, false]
        """,
    )
    values = {flag.name: flag.values for flag in space.flags}
    assert values["lr"] == Range(low=1e-5, high=1e-3, log=True)
    assert values["weight_decay"] == (0.0, 1e-4)  # which YAML reads as a word
    assert values["batch_size"] == Range(low=8, high=32, whole=True)
    assert values["optimiser"] == ("adam", "adamw")
    assert values["epochs"] == (3,)
    assert values["crop_s"] == ((1.0, 2.0), (0.5, 4.0))
    assert values["target_weights"] == ((1.0, 1.0, 2.0),)
    assert values["head_dropout"] == (None, 0.1)
    assert values["gradient_checkpointing"] == (True, False)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("optimizer: [adam]", "optimizer", "did you mean 'optimiser'?"),
        ("zzz: [1]", "zzz", "raysers train --help"),
        ("lr: logunifrom(1e-5, 1e-3)", "lr", "did you mean loguniform?"),
        ("lr: loguniform(1e-3, 1e-5)", "lr", "lower number first"),
        ("lr: loguniform(0, 1)", "lr", "above 0"),
        ("lr: uniform(1)", "lr", "two numbers"),
        ("lr: uniform(0.1, nan)", "lr", "lower number first"),
        ("lr: __import__('os').system('true')", "lr", "neither a value nor a range"),
        ("lr: uniform(-1, 1)", "lr", "0 or more"),
        ("batch-size: int(1.5, 3)", "batch-size", "whole numbers"),
        ("batch-size: uniform(8, 32)", "batch-size", "a whole number"),
        ("epochs: uniform(100, 200)", "epochs", "write int(100, 200)"),  # 0.37 of it is whole
        ("layers: loguniform(2, 12)", "layers", "write logint(2, 12)"),
        ("optimiser: [adam, addam]", "optimiser", "one of recipe, adam, adamw, sgd"),
        ("warmup: [0.1, 2]", "warmup", "0 to below 1"),
        ("freeze: []", "freeze", "empty"),
        ("lr: [1e-3, 0.001]", "lr", "twice"),
        ("data: [a, b]", "data", "command line"),
        ("workers: [1, 2]", "workers", "--workers-per-trial"),
        ("warmup: {values: uniform(0, 0.3), when: {freeze: cnn}}", "warmup", "quotes"),
        ("warmup: {values: [0, 0.1], when: {freze: cnn}}\nfreeze: [cnn, none]", "warmup", "freeze"),
        ("warmup: {values: [0, 0.1], when: {freeze: all}}\nfreeze: [cnn, none]", "warmup", "never"),
        ("warmup: {values: [0, 0.1], when: {lr: 1}}\nlr: uniform(1, 2)", "warmup", "list"),
        ("lr: [1e-3]", "", "nothing to search"),
        ("- lr", "", "no mapping"),
        ("lr: [", "", "cannot be read"),
        ("batch-size: [2]\nbatch_size: [3]", "batch_size", "twice"),
    ],
)
def test_bad_spaces_are_refused_with_the_key_and_the_way_out(tmp_path, text, key, words):
    with pytest.raises(ConfigError) as caught:
        space_of(tmp_path, text)
    message = str(caught.value)
    assert key in message
    assert words in message
    assert "\n" not in message


def test_a_flag_whose_condition_does_not_hold_is_no_part_of_a_point(tmp_path):
    space = space_of(
        tmp_path,
        "freeze: [cnn, none]\nwarmup: {values: [0, 0.1, 0.2], when: {freeze: [cnn]}}\n",
    )
    assert active(space, {"freeze": "none", "warmup": 0.1}) == {"freeze": "none"}
    points = grid(space)
    assert len(points) == 4  # three with cnn, one without
    assert [p for p in points if p["freeze"] == "none"] == [{"freeze": "none"}]


def test_a_grid_has_every_point_once_and_no_continuous_range(tmp_path):
    space = space_of(tmp_path, "layers: int(2, 4)\nbatch-size: [8, 16]\n")
    found = {(p["layers"], p["batch_size"]) for p in grid(space)}
    assert found == {(n, b) for n in (2, 3, 4) for b in (8, 16)}
    with pytest.raises(ConfigError, match="key 'lr' is a range without steps: list its values"):
        grid(space_of(tmp_path, "lr: uniform(0.1, 0.2)"))


@pytest.mark.parametrize(
    "values",
    [
        Range(low=1e-5, high=1e-3, log=True),
        Range(low=-1, high=3),
        Range(low=1, high=12, whole=True),
        Range(low=1, high=1000, whole=True, log=True),
    ],
)
def test_ranges_go_from_end_to_end_evenly_on_their_scale(values):
    ends = values.at(0.0), values.at(1.0)
    assert ends == pytest.approx((values.low, values.high))
    drawn = [values.at((i + 0.5) / 4800) for i in range(4800)]
    assert min(drawn) >= values.low
    assert max(drawn) <= values.high
    middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    below = sum(value <= middle for value in drawn) / len(drawn)
    assert below == pytest.approx(0.5, abs=0.05)
    if values.whole and not values.log:
        counts = [drawn.count(n) for n in range(1, 13)]
        assert max(counts) - min(counts) <= 2
