"""The robustness of a model as a picture, in the manner of the paper's Figure 3.

The same rows give the same bytes, see `raysers.plotting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from raysers import plotting
from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.rows import Row
from raysers.plotting import COLOURS, INK, SOFT
from raysers.robustness.changes import Comparison
from raysers.robustness.measures import MEAN, OVERALL
from raysers.robustness.numbers import ser_tests_share
from raysers.robustness.table import MOST_PANELS, place, rows_by_place
from raysers.types import DIMENSIONS

_LINE_IN, _EDGES_IN = 0.36, 1.5
_OFFSETS = dict(zip(DIMENSIONS, (-0.22, 0.0, 0.22), strict=True))


def robustness_figure(
    rows: Sequence[Row], model: str, how: Comparison | None = None
) -> dict[str, bytes]:
    """Share of unchanged scores by perturbation and dimension, with the published ones.

    Args:
        rows: of the metrics table; groups are left out, datasets and splits have a panel each.
        model: named in the title.
        how: as scores were compared.

    Returns:
        The picture as `png` and `svg`; nothing without a perturbation to show.
    """
    shown = [r for r in rows if r.metric.startswith(f"{OVERALL}_") and not r.group]
    panels = [list(rows) for _, rows in groupby(rows_by_place(shown), key=place)]
    if not panels:
        return {}
    return plotting.picture(lambda: _draw(panels[:MOST_PANELS], model, how or Comparison()))


def _draw(panels: Sequence[Sequence[Row]], model: str, how: Comparison) -> Any:
    lines = [len({row.metric for row in rows}) for rows in panels]
    height_in = sum(_EDGES_IN + _LINE_IN * count for count in lines)
    figure = plotting.new_figure(height_in)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=lines)[:, 0]
    for axis, rows in zip(axes, panels, strict=True):
        _draw_panel(axis, rows, model, how)
    _legend(figure)
    return figure


def _draw_panel(axis: Any, rows: Sequence[Row], model: str, how: Comparison) -> None:
    metrics = list(dict.fromkeys(row.metric for row in rows))
    mine = {(r.metric, r.dimension): r for r in rows if r.model != RANDOM}
    random = [r.value for r in rows if r.model == RANDOM]
    for y, metric in enumerate(metrics):
        _draw_line(axis, y, metric, mine, how)
    if random:
        chance = sum(random) / len(random)
        plotting.guide(axis, chance)
    _finish(axis, metrics, mine, model)
    axis.set_xlabel(f"share of scores that {how.text}", loc="right")


def _draw_line(
    axis: Any, y: int, metric: str, mine: Mapping[tuple[str, str], Row], how: Comparison
) -> None:
    for dimension in DIMENSIONS:
        row = mine.get((metric, dimension))
        if row is None:
            continue
        height, colour = y + _OFFSETS[dimension], COLOURS[dimension]
        plotting.interval(axis, row.value, (row.ci_low, row.ci_high), height, colour)
    mean = mine.get((metric, MEAN))
    name = metric.removeprefix(f"{OVERALL}_")
    beside = ser_tests_share([name], threshold=how.threshold, tone_snr=how.tone_snr)
    for value, marker in ((mean.paper if mean else math.nan, "D"), (beside, "|")):
        plotting.published(axis, value, y, marker=marker)


def _finish(
    axis: Any, metrics: Sequence[str], mine: Mapping[tuple[str, str], Row], model: str
) -> None:
    names = [m.removeprefix(f"{OVERALL}_").replace("_", " ") for m in metrics]
    plotting.name_rows(axis, names)
    axis.set_xlim(-0.01, 1.02)
    axis.grid(axis="x")
    first = next(iter(mine.values()))
    short = model.rstrip("/").rpartition("/")[2]
    title = f"Robustness of {short}: {first.dataset} {first.split}, {first.n:,} clips"
    plotting.panel_title(axis, title)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    marks: list[Any] = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[d], label=d) for d in DIMENSIONS
    ]
    for marker, label in (("D", "paper, mean"), ("|", "ser-tests, mean")):
        marks.append(
            Line2D([], [], marker=marker, linestyle="", color=INK, mfc="none", label=label)
        )
    marks.append(Line2D([], [], color=SOFT, lw=0.8, linestyle=(0, (2, 3)), label="random"))
    figure.legend(
        handles=marks,
        loc="outside lower left",
        ncols=len(marks),
        frameon=False,
        columnspacing=1.2,
        handlelength=1.2,
        handletextpad=0.5,
    )
