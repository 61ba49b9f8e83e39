"""Trainings of one model that differ in their seed only, as one value with the spread of them.

The interval of one training says what other speakers would change, not what another seed would; so
the interval of several is one standard deviation to each side of their mean, and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from raysers.evaluation.figures_values import NAN, SEED, Value


def one_of_seeds(values: Iterable[Value]) -> list[Value]:
    """Values of the cells of a study that differ in their seed only as one, in the first's place.

    `seeds` counts them; of what was measured twice with the same seed, the last counts.
    """
    groups: dict[tuple[str, ...], dict[int, Value]] = {}
    for v in values:
        factor_value = "" if v.factor == SEED else v.factor_value
        key = (
            v.study, v.backbone, factor_value, v.model, v.dataset, v.split, v.group, v.group_value,
            v.dimension, v.metric,
        )  # fmt: skip
        groups.setdefault(key, {})[v.seed] = v
    return [_pooled(list(by_seed.values())) for by_seed in groups.values()]


def _pooled(same: Sequence[Value]) -> Value:
    there = [v for v in same if not math.isnan(v.value)]
    if len(there) < 2:
        return (there or same)[-1]
    mean, sd = mean_and_sd([v.value for v in there])
    return replace(there[-1], value=mean, ci_low=mean - sd, ci_high=mean + sd, seeds=len(there))


def mean_and_sd(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation of a sample (n - 1); NaN where there is none."""
    if not numbers:
        return NAN, NAN
    mean = sum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, NAN
    return mean, math.sqrt(sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1))


def seeds_in_words(counts: Iterable[int]) -> str:
    """What the values and intervals of several seeds are; empty when each is of one.

    >>> seeds_in_words([3, 3]), seeds_in_words([1, 2, 3]), seeds_in_words([1])
    ('mean of 3 seeds ± one standard deviation', 'of 2 to 3 seeds, mean ± one standard deviation', '')
    """
    found = sorted(set(counts))
    several = [n for n in found if n > 1]
    if not several:
        return ""
    named = f"{several[0]} to {several[-1]}" if len(several) > 1 else str(several[0])
    spread = "\N{PLUS-MINUS SIGN} one standard deviation"
    return (
        f"mean of {named} seeds {spread}"
        if several == found
        else f"of {named} seeds, mean {spread}"
    )


def bounds_in_short(counts: Iterable[int]) -> str:
    """What the bounds in a table are, for its head.

    >>> bounds_in_short([1]), bounds_in_short([3, 2]), bounds_in_short([1, 3])
    ('95 %', '± 1 sd', '95 %, of seeds ± 1 sd')
    """
    several = [n > 1 for n in counts]
    if not any(several):
        return "95 %"
    return "\N{PLUS-MINUS SIGN} 1 sd" if all(several) else "95 %, of seeds \N{PLUS-MINUS SIGN} 1 sd"
