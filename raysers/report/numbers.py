"""The numbers of each figure, chosen from the tables of the runs; nothing is drawn here.

A figure is dots on rows or lines over a number. Which value goes where is decided by these
functions alone, so a picture cannot show what its table does not hold. Trainings that differ in
their seed only are one value: their mean, from their lowest to their highest bound, because the
interval of one training says what other speakers would change, not what another seed would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.fairness import OVER_ALL
from raysers.report.values import CONTESTANTS, NAN, SEED, Value, main_splits, number_in, of_studies
from raysers.robustness.measures import OVERALL
from raysers.types import DIMENSIONS
from raysers.words.fusion_scores import DIFFERENCE, FUSED

_RANKS = "speaker_spearman"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A mark of a dot chart.

    Attributes:
        block: the panel it is in, from top to bottom: a dataset.
        column: the panel from left to right: a dimension.
        row: the line in the panel: a model, a perturbation, a speaker.
        series: which of several marks in one line; empty when there is one.
        value: with `low` and `high`, its 95 % interval, or of several seeds as `over_seeds`
            says; NaN: none.
        paper: the paper's value of the same; NaN: none.
        n: clips (or speakers) behind it.
    """

    block: str
    column: str
    row: str
    series: str = ""
    value: float
    low: float = NAN
    high: float = NAN
    paper: float = NAN
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a line chart: panel, line, place along the axis, value with its bounds."""

    column: str
    series: str
    x: float
    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0


def correctness(values: Sequence[Value]) -> list[Dot]:
    """Figure 2: CCC by dataset, dimension and model; the random baseline is a separate row."""
    chosen = [v for v in of_studies(values, "backbones") if v.model not in CONTESTANTS]
    rows = [v for v in chosen if v.metric == "ccc" and not v.group and v.dataset != OVER_ALL]
    rows = over_seeds(main_splits(rows))
    return _random_last(_last(_dot(v, block=_place(v), row=v.model) for v in rows))


def fusion(values: Sequence[Value]) -> list[Dot]:
    """Figure 6: CCC of fused scores minus that of the acoustic model, and of either head."""
    rows = [v for v in values if v.metric == DIFFERENCE and v.model == FUSED]
    return _last(
        _dot(v, block=_place(v), row=f"{v.group_value}, {v.backbone}".removesuffix(", "))
        for v in over_seeds(main_splits(rows))
    )


def by_factor(values: Sequence[Value], study: str) -> list[Dot]:
    """Figures 7 and 9: CCC by model, once for each value of what the study varies."""
    rows = [v for v in values if v.study == study and v.metric == "ccc" and not v.group]
    rows = [v for v in rows if v.model != RANDOM and v.dataset != OVER_ALL]
    rows = over_seeds(main_splits(rows))
    return _last(_dot(v, block=_place(v), row=v.model, series=v.factor_value) for v in rows)


def robustness_by_model(values: Sequence[Value]) -> list[Dot]:
    """Figure 3: mean share of unchanged scores over the small perturbations, by model."""
    rows = [v for v in of_studies(values, "robustness") if v.metric == OVERALL and not v.group]
    rows = over_seeds(v for v in rows if v.dimension in DIMENSIONS)
    return _random_last(_last(_dot(v, block=_place(v), row=v.model) for v in rows))


def robustness_by_change(values: Sequence[Value]) -> list[Dot]:
    """Figure 3: share of unchanged scores by perturbation; each model is a series."""
    name = f"{OVERALL}_"
    rows = [v for v in of_studies(values, "robustness") if v.metric.startswith(name)]
    rows = [v for v in rows if not v.group and v.model != RANDOM and v.dimension in DIMENSIONS]
    rows = over_seeds(rows)
    changes = (v.metric.removeprefix(name).replace("_", " ") for v in rows)
    return _last(
        _dot(v, block=_place(v), row=change, series=v.model)
        for v, change in zip(rows, changes, strict=True)
    )


def fairness(values: Sequence[Value], metric: str) -> list[Dot]:
    """Figure 4: CCC of women minus that of men, or the shift of their values, by model."""
    rows = [v for v in of_studies(values, "backbones", "fairness") if v.metric == metric]
    rows = [v for v in main_splits(rows) if v.dimension in DIMENSIONS and v.model != RANDOM]
    return _last(_dot(v, block=_place(v), row=v.model) for v in over_seeds(rows))


def speakers(values: Sequence[Value]) -> list[Dot]:
    """Figure 5: CCC of every speaker, those with the lowest mean first; models are series."""
    found = of_studies(values, "backbones", "speakers")
    rows = over_seeds(main_splits([v for v in found if v.metric == "speaker_ccc"]))
    means: dict[tuple[str, str], list[float]] = {}
    for v in rows:
        means.setdefault((_place(v), v.group_value), []).append(v.value)
    order = {key: _mean(numbers) for key, numbers in means.items()}
    models = {model: i for i, model in enumerate(dict.fromkeys(v.model for v in rows))}
    rows = sorted(
        rows,
        key=lambda v: (
            _place(v),
            order[_place(v), v.group_value],
            v.group_value,
            models[v.model],
        ),
    )
    return _last(_dot(v, block=_place(v), row=v.group_value, series=v.model) for v in rows)


def speaker_ranks(values: Sequence[Value]) -> list[Dot]:
    """Figure 5: rank correlation of the speakers between two models."""
    rows = [v for v in of_studies(values, "backbones", "speakers") if v.metric == _RANKS]
    pairs = over_seeds(rows)
    return _last(_dot(v, block=_place(v), row=f"{v.model} and {v.group_value}") for v in pairs)


def over_numbers(values: Sequence[Value], study: str) -> list[Point]:
    """Figures 13 and 14: CCC over layers or share of data; lines are models and datasets.

    Values of several seeds are one point: their mean, with the lowest and highest bound.
    """
    rows = [v for v in values if v.study == study and v.metric == "ccc" and not v.group]
    rows = [v for v in main_splits(rows) if v.model != RANDOM and v.dataset != OVER_ALL]
    models = len({v.model for v in rows}) > 1
    data = len({v.dataset for v in rows}) > 1
    groups: dict[tuple[str, str, float], list[Value]] = {}
    for v in rows:
        parts = [v.model] * models + [v.dataset] * data or [v.dataset]
        x = number_in(v.factor_value)
        if not math.isnan(x):
            groups.setdefault((v.dimension, ", ".join(parts), x), []).append(v)
    return sorted(map(_pooled, groups, groups.values()), key=lambda p: (p.column, p.series, p.x))


def _pooled(key: tuple[str, str, float], same: Sequence[Value]) -> Point:
    mean = mean_of(same)
    return Point(
        column=key[0],
        series=key[1],
        x=key[2],
        value=mean.value,
        low=mean.ci_low,
        high=mean.ci_high,
        n=mean.seeds,
    )


def learning(rows: Iterable[Mapping[str, Any]], study: str = "seeds") -> list[Point]:
    """Figure 12: mean dev CCC over the seeds by epoch, with one standard deviation to each side.

    Args:
        rows: of `schemas.CURVES`.
        study: whose cells are seeds of the same training.
    """
    groups: dict[tuple[str, str, float], dict[int, float]] = {}
    for row in rows:
        if row["study"] == study and row["dimension"] in DIMENSIONS and row["ccc"] is not None:
            key = row["dimension"], row["model"], float(row["epoch"])
            groups.setdefault(key, {})[row["seed"]] = float(row["ccc"])
    points = []
    for dimension, model, epoch in sorted(groups):
        found = list(groups[dimension, model, epoch].values())
        mean, sd = _mean(found), _sd(found)
        points.append(
            Point(
                column=dimension,
                series=model,
                x=epoch,
                value=mean,
                low=mean - sd,
                high=mean + sd,
                n=len(found),
            )
        )
    return points


def _dot(v: Value, *, block: str, row: str, series: str = "") -> Dot:
    return Dot(
        block=block,
        column=v.dimension,
        row=row,
        series=series,
        value=v.value,
        low=v.ci_low,
        high=v.ci_high,
        paper=v.paper,
        n=v.n,
    )


def _last(dots: Iterable[Dot]) -> list[Dot]:
    """Of what was measured twice, the last, in the place of the first."""
    return list({(d.block, d.row, d.series, d.column): d for d in dots}.values())


def _random_last(dots: Iterable[Dot]) -> list[Dot]:
    return sorted(dots, key=lambda d: d.row == RANDOM)


def _place(v: Value) -> str:
    return f"{v.dataset} {v.split}".strip()


def _mean(numbers: Sequence[float]) -> float:
    there = [n for n in numbers if not math.isnan(n)]
    return sum(there) / len(there) if there else NAN


def _sd(numbers: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1); NaN of one."""
    if len(numbers) < 2:
        return NAN
    mean = _mean(numbers)
    return math.sqrt(sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1))


def blocks(dots: Iterable[Dot]) -> Iterator[tuple[str, list[Dot]]]:
    """Dots by block, in their order."""
    found: dict[str, list[Dot]] = {}
    for one in dots:
        found.setdefault(one.block, []).append(one)
    yield from found.items()


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
