"""Fairness between the sexes (Wagner et al. 2022, sections 3.4 and 4.6).

The paper prints Eq. 2 garbled; meant is by how much the model shifts women's values against men's:
(mean prediction - mean label of women) - (the same of men). 0 is fair for both figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from raysers.evaluation.bootstrap import (
    Bootstrap,
    Draws,
    Integers,
    draw_metrics,
    interval,
    speakers_of,
)
from raysers.evaluation.correctness import main_subset
from raysers.evaluation.metrics import Floats, Metric, ccc, mean_error, per_dimension
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import Scores, Subset, base_subsets, group_subsets

GROUP_VALUE = "female - male"
#: Dataset and dimension of the mean over datasets and dimensions.
OVER_ALL, MEAN = "all", "mean"

#: Fairness figures: the difference, women minus men, of a metric (Eq. 1 and Eq. 2).
FAIRNESS: Mapping[str, tuple[str, Metric]] = {
    "sex_fairness_score": ("ccc", ccc),
    "sex_fairness_bias": ("mean_error", mean_error),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """Differences of one cell, their draws, and clips and speakers; [models, 3] each."""

    cell: Subset
    value: Mapping[str, Floats]
    drawn: Mapping[str, Draws]
    n: Integers
    speakers: Integers


def fairness_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """Score and bias of every model, dataset, split and dimension with clips of both sexes.

    Women and men are drawn independently. With several datasets there is also the mean over
    datasets (each by its main split) and dimensions, as the paper's section 4.6 reports it.
    """
    cells = base_subsets(scores)
    gaps = [gap for cell in cells if (gap := _gap(scores, cell, bootstrap)) is not None]
    rows = [row for gap in gaps for row in _gap_rows(scores, gap)]
    main = {gap.cell.dataset: main_subset(cells, gap.cell.dataset).key[:2] for gap in gaps}
    over = [gap for gap in gaps if gap.cell.key[:2] == main[gap.cell.dataset]]
    return rows + list(_mean_rows(scores, over) if len(over) > 1 else ())


def _gap(scores: Scores, cell: Subset, bootstrap: Bootstrap) -> _Gap | None:
    parts = {part.group_value: part for part in group_subsets(scores, cell, "sex")}
    if not {"female", "male"} <= set(parts):
        return None
    predictions = list(scores.predictions.values())
    sexes = [parts["female"], parts["male"]]
    women, men = (draw_metrics(scores, part, predictions, bootstrap) for part in sexes)
    there = [[np.isfinite(scores.truth + p)[s.rows] for p in predictions] for s in sexes]
    n = np.array([[one.sum(axis=0) for one in of] for of in there])
    known = np.array(
        [[speakers_of(scores, s, one) for one in of] for s, of in zip(sexes, there, strict=True)]
    )
    return _Gap(
        cell=Subset(
            dataset=cell.dataset,
            split=cell.split,
            group="sex",
            group_value=GROUP_VALUE,
            rows=np.concatenate([part.rows for part in sexes]),
        ),
        value={name: _difference(scores, sexes, metric) for name, (_, metric) in FAIRNESS.items()},
        drawn={name: women[of] - men[of] for name, (of, _) in FAIRNESS.items()},
        n=np.where(n.min(axis=0) > 0, n.sum(axis=0), 0),
        speakers=known.sum(axis=0),
    )


def _difference(scores: Scores, sexes: list[Subset], metric: Metric) -> Floats:
    women, men = (
        np.array(
            [
                per_dimension(metric, scores.truth[part.rows], prediction[part.rows])
                for prediction in scores.predictions.values()
            ]
        )
        for part in sexes
    )
    return np.asarray(women - men, np.float64)


def _gap_rows(scores: Scores, gap: _Gap) -> Iterator[Row]:
    for name in FAIRNESS:
        low, high = gap.drawn[name].interval()
        for m, model in enumerate(scores.predictions):
            value, bounds = gap.value[name][m], (low[m], high[m])
            yield from dimension_rows(
                gap.cell, model, name, value, gap.n[m], bounds, speakers=gap.speakers[m]
            )


def _mean_rows(scores: Scores, gaps: list[_Gap]) -> Iterator[Row]:
    for name in FAIRNESS:
        for m, model in enumerate(scores.predictions):
            defined = [np.isfinite(gap.value[name][m]) for gap in gaps]
            kept = [
                (g, d) for g, there in zip(gaps, defined, strict=True) for d in range(3) if there[d]
            ]
            if not kept:
                continue
            drawn = np.mean([gap.drawn[name].values[:, m, d] for gap, d in kept], axis=0)
            low, high = interval(drawn, min(int(gap.drawn[name].units[m, d]) for gap, d in kept))
            yield Row(
                model=model,
                dataset=OVER_ALL,
                split="",
                group="sex",
                group_value=GROUP_VALUE,
                dimension=MEAN,
                metric=name,
                value=float(np.mean([gap.value[name][m, d] for gap, d in kept])),
                ci_low=float(low),
                ci_high=float(high),
                n=int(sum(gap.n[m, d] for gap, d in kept)),
                speakers=sum({id(gap): int(gap.speakers[m].max()) for gap, _ in kept}.values()),
            )
