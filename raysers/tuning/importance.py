"""Which of the searched flags made trials good or bad, with how sure that is.

With few trials, or trials that a search has crowded around good points, every such number is weak:
the intervals say how weak.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Fewer trials than this say nothing about several flags.
LEAST_TRIALS = 6
#: Below this many the reader is warned.
FEW_TRIALS = 20

#: Draws behind an interval: forests take their time, ranks do not.
_FOREST_DRAWS, _RANK_DRAWS = 20, 500
_TREES = 32

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A searched flag: its name, whether it is a number, and whether on a logarithmic scale."""

    name: str
    numeric: bool
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A trial.

    Attributes:
        number: from 0.
        status: done, stopped or failed.
        score: best mean CCC on dev; None without.
        values: of every flag, as it was in the trial.
        curve: (epoch, mean CCC on dev or None).
    """

    number: int
    status: str
    score: float | None
    values: Mapping[str, Any]
    curve: Sequence[tuple[int, float | None]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Importance of a flag, 0..1, with the 95 % interval over drawn sets of trials."""

    name: str
    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """What mattered: by which method, the largest first, and what the reader should know."""

    method: str
    shares: list[Share]
    note: str


def importance(tried: Sequence[Tried], axes: Sequence[Axis], *, seed: int) -> Importance:
    """How much of the difference between trials goes back to each flag.

    With optuna and scikit-learn: functional ANOVA of a random forest (Hutter et al. 2014), shares
    of the variance that add up to at most 1. Without: the absolute rank correlation of numbers
    (Spearman), and the correlation ratio of the ranks for choices, each flag by itself.

    Failed trials are left out; stopped ones count with what they had reached.
    """
    used = [trial for trial in tried if trial.status != "failed" and trial.score is not None]
    measure, method = _ranks, "rank correlation"
    if _has_forest():
        measure, method = _fanova, "fANOVA"
    scores = np.array([trial.score for trial in used], np.float64)
    enough = len(used) >= LEAST_TRIALS and len(set(scores.tolist())) > 1
    if not enough or not axes:
        note = f"{len(used)} trials with a score: too few to say what mattered"
        return Importance(method=method, shares=[], note=note)
    columns = np.stack([_column(axis, used) for axis in axes], 1)
    values = measure(columns, scores, axes, seed)
    draws = _FOREST_DRAWS if measure is _fanova else _RANK_DRAWS
    low, high = _interval(measure, columns, scores, axes, seed, draws)
    shares = [
        Share(name=axis.name, value=v, ci_low=min(a, v), ci_high=max(b, v))
        for axis, v, a, b in zip(axes, values.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    stopped = sum(trial.status == "stopped" for trial in used)
    return Importance(
        method=method,
        shares=sorted(shares, key=lambda share: -share.value),
        note=_note(len(used), stopped),
    )


def _note(trials: int, stopped: int) -> str:
    words = f"{trials} trials"
    if stopped:
        words += f", {stopped} of them stopped early"
    if trials < FEW_TRIALS:
        words += "; few, so trust the intervals more than the order"
    return words


def _interval(
    measure: Callable[..., Floats],
    columns: Floats,
    scores: Floats,
    axes: Sequence[Axis],
    seed: int,
    draws: int,
) -> tuple[Floats, Floats]:
    """2.5th and 97.5th percentile over sets of as many trials, drawn with replacement."""
    rng = np.random.default_rng(seed)
    found = []
    for draw in range(draws):
        rows = rng.integers(len(scores), size=len(scores))
        if len(set(scores[rows].tolist())) > 1:
            found.append(measure(columns[rows], scores[rows], axes, seed + draw))
    low, high = np.percentile(np.stack(found), [2.5, 97.5], axis=0)
    return low, high


def _column(axis: Axis, used: Sequence[Tried]) -> Floats:
    """A flag's values as numbers: logarithms where the scale is, choices by their order."""
    values = [trial.values[axis.name] for trial in used]
    if not axis.numeric:
        names = sorted(set(map(str, values)))
        return np.array([names.index(str(value)) for value in values], np.float64)
    column = np.array([float(value) for value in values], np.float64)
    return np.log(np.maximum(column, floor_of(column.tolist()))) if axis.log else column


def floor_of(values: Sequence[float]) -> float:
    """What stands for 0 on a logarithmic scale: a tenth of the smallest value above it."""
    return min((value for value in values if value > 0), default=1.0) / 10


def _has_forest() -> bool:
    return all(importlib.util.find_spec(name) for name in ("optuna", "sklearn"))


def _fanova(columns: Floats, scores: Floats, axes: Sequence[Axis], seed: int) -> Floats:
    import optuna
    from optuna import distributions as kinds
    from optuna.importance import FanovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    varied = [i for i in range(len(axes)) if np.ptp(columns[:, i]) > 0]
    shape: dict[str, Any] = {}
    for i in varied:
        low, high = float(columns[:, i].min()), float(columns[:, i].max())
        shape[axes[i].name] = (
            kinds.FloatDistribution(low, high)
            if axes[i].numeric
            else kinds.CategoricalDistribution(tuple(range(int(high) + 1)))
        )
    for row, score in zip(columns, scores, strict=True):
        params = {axes[i].name: row[i] if axes[i].numeric else int(row[i]) for i in varied}
        trial = optuna.trial.create_trial(params=params, distributions=shape, value=float(score))
        study.add_trial(trial)
    found: Mapping[str, float] = {}
    if varied:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = FanovaImportanceEvaluator(n_trees=_TREES, seed=seed).evaluate(study)
    return np.array([float(found.get(axis.name, 0.0)) for axis in axes])


def _ranks(columns: Floats, scores: Floats, axes: Sequence[Axis], seed: int) -> Floats:
    ranked = _ranked(scores)
    values = [
        _spearman(column, ranked) if axis.numeric else _ratio(column, ranked)
        for axis, column in zip(axes, columns.T, strict=True)
    ]
    return np.array(values)


def _spearman(column: Floats, ranked: Floats) -> float:
    own = _ranked(column)
    if own.std() == 0 or ranked.std() == 0:
        return 0.0
    return abs(float(np.corrcoef(own, ranked)[0, 1]))


def _ratio(column: Floats, ranked: Floats) -> float:
    """Correlation ratio: standard deviation of the choices' means over that of all."""
    means = {value: float(ranked[column == value].mean()) for value in set(column.tolist())}
    between = np.array([means[value] for value in column.tolist()])
    return float(between.std() / ranked.std()) if ranked.std() else 0.0


def _ranked(values: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), np.float64)


def known(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)
