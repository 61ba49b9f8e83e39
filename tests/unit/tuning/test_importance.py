"""What mattered in a sweep, on made-up trials whose answer is known."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from raysers.tuning.importance import Axis, Tried, importance

AXES = [
    Axis(name="lr", numeric=True, log=True),
    Axis(name="freeze", numeric=False),
    Axis(name="seed", numeric=True),
]


def trials(count, *, rng=None):
    """The score follows lr, a little freeze, and not seed."""
    rng = rng or np.random.default_rng(5)
    found = []
    for number in range(count):
        lr, freeze = 10 ** rng.uniform(-5, -2), rng.choice(["cnn", "none"])
        score = 0.5 + 0.1 * (np.log10(lr) + 5) + 0.03 * (freeze == "cnn")
        found.append(
            Tried(
                number=number,
                status="stopped" if number % 4 == 3 else "done",
                score=score,
                values={"lr": lr, "freeze": freeze, "seed": int(rng.integers(100))},
                curve=[(1, score - 0.2), (2, None), (3, score)],
            )
        )
    return [*found, Tried(number=count, status="failed", score=None, values=found[0].values)]


@pytest.mark.parametrize("package", ["optuna", None])
def test_the_flag_that_decides_is_first_and_the_one_that_does_nothing_is_last(package, monkeypatch):
    if package and not importlib.util.find_spec(package):
        pytest.skip("not installed")
    if package is None:
        monkeypatch.setitem(sys.modules, "optuna", None)  # as if not installed
    found = importance(trials(24), AXES, seed=0)
    assert found.method == ("fANOVA" if package else "rank correlation")
    shares = {share.name: share for share in found.shares}
    assert found.shares[0].name == "lr"
    assert shares["lr"].value > 0.6
    assert shares["seed"].value < 0.35
    for share in found.shares:
        assert 0 <= share.ci_low <= share.value <= share.ci_high <= 1.001
    assert found.note == "24 trials, 6 of them stopped early"


def test_without_forests_numbers_have_spearmans_correlation(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    tried = trials(15)
    found = {share.name: share.value for share in importance(tried, AXES, seed=0).shares}
    scores = [trial.score for trial in tried[:-1]]
    for name in ("lr", "seed"):
        expected = spearmanr([trial.values[name] for trial in tried[:-1]], scores).statistic
        assert found[name] == pytest.approx(abs(expected))


def test_few_trials_say_nothing_and_some_come_with_a_warning():
    assert importance(trials(5), AXES, seed=0).shares == []
    assert "too few" in importance(trials(5), AXES, seed=0).note
    assert "few, so trust the intervals" in importance(trials(8), AXES, seed=0).note
