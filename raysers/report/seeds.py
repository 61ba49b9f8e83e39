"""Trainings of one model that differ in their seed only, as one value.

It is their mean, and its interval goes from their lowest to their highest bound: that of one
training says what other speakers would change, not what another seed would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.report.values import NAN, SEED, Value


def over_seeds(values: Iterable[Value]) -> list[Value]:
    """Of the seeds of a study's cells one value, in the place of the first; models say how many.

    Of what was measured twice with the same seed, the last counts.
    """
    groups: dict[tuple[str, ...], dict[int, Value]] = {}
    for v in values:
        factor_value = "" if v.factor == SEED else v.factor_value
        key = (
            v.study, v.backbone, factor_value, v.model, v.dataset, v.split, v.group, v.group_value,
            v.dimension, v.metric,
        )  # fmt: skip
        groups.setdefault(key, {})[v.seed] = v
    return _named([mean_of(list(by_seed.values())) for by_seed in groups.values()])


def mean_of(same: Sequence[Value]) -> Value:
    """The mean of the values there are, with the lowest and the highest bound."""
    there = [v for v in same if not math.isnan(v.value)]
    if len(there) < 2:
        return (there or same)[-1]
    return replace(
        there[-1],
        value=sum(v.value for v in there) / len(there),
        ci_low=min((v.ci_low for v in there if not math.isnan(v.ci_low)), default=NAN),
        ci_high=max((v.ci_high for v in there if not math.isnan(v.ci_high)), default=NAN),
        seeds=len(there),
    )


def _named(values: Sequence[Value]) -> list[Value]:
    """The values with the number of seeds in the model's name, the same all over a dataset."""
    counts: dict[tuple[str, ...], list[int]] = {}
    for v in values:
        counts.setdefault(_panel(v), []).append(v.seeds)
    return [replace(v, model=v.model + _in_words(v, counts[_panel(v)])) for v in values]


def _panel(v: Value) -> tuple[str, ...]:
    return v.study, v.model, v.dataset, v.split


def _in_words(v: Value, counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    if most == 1 or v.model == RANDOM:
        return ""
    return f", {most} seeds" if least == most else f", {least} to {most} seeds"
