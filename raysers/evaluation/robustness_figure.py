"""The robustness of a model as a picture, in the manner of the paper's Figure 3.

The same rows give the same bytes: no dates, no random ids, and the font that comes with matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from raysers.evaluation.baseline import NAME as RANDOM
from raysers.evaluation.robustness import MEAN, OVERALL
from raysers.evaluation.robustness_changes import Comparison
from raysers.evaluation.robustness_numbers import ser_tests_share
from raysers.evaluation.robustness_table import place, rows_by_place
from raysers.evaluation.rows import Row
from raysers.types import DIMENSIONS

#: Okabe & Ito's vermilion, blue and green: told apart by readers with any colour vision.
_COLOURS = dict(zip(DIMENSIONS, ("#D55E00", "#0072B2", "#009E73"), strict=True))
_INK, _SOFT, _FAINT = "#222222", "#6B6B6B", "#E4E4E4"
_DPI = 160
_MOST_PANELS = 6
_WIDTH_IN, _LINE_IN, _EDGES_IN = 7.2, 0.36, 1.5
_OFFSETS = dict(zip(DIMENSIONS, (-0.22, 0.0, 0.22), strict=True))

_STYLE = {
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "raysers",
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _INK,
    "ytick.major.size": 0,
}


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
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        figure = _draw(panels[:_MOST_PANELS], model, how or Comparison())
        FigureCanvasAgg(figure)
        return {
            "png": _bytes_of(figure, format="png", dpi=_DPI, metadata={"Software": None}),
            "svg": _bytes_of(figure, format="svg", metadata={"Date": None, "Creator": None}),
        }


def _bytes_of(figure: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, facecolor="white", **how)
    return file.getvalue()


def _draw(panels: Sequence[Sequence[Row]], model: str, how: Comparison) -> Any:
    from matplotlib.figure import Figure

    lines = [len({row.metric for row in rows}) for rows in panels]
    height_in = sum(_EDGES_IN + _LINE_IN * count for count in lines)
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
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
        axis.axvline(chance, color=_SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    _finish(axis, metrics, mine, model)
    axis.set_xlabel(f"share of scores that {how.text}", loc="right")


def _draw_line(
    axis: Any, y: int, metric: str, mine: Mapping[tuple[str, str], Row], how: Comparison
) -> None:
    for dimension in DIMENSIONS:
        row = mine.get((metric, dimension))
        if row is None:
            continue
        height, colour = y + _OFFSETS[dimension], _COLOURS[dimension]
        if not math.isnan(row.ci_low):
            axis.plot([row.ci_low, row.ci_high], [height] * 2, color=colour, linewidth=1.2)
        axis.plot(row.value, height, "o", color=colour, ms=5, mec="white", mew=0.6)
    mean = mine.get((metric, MEAN))
    name = metric.removeprefix(f"{OVERALL}_")
    beside = ser_tests_share([name], threshold=how.threshold, tone_snr=how.tone_snr)
    for value, marker in ((mean.paper if mean else math.nan, "D"), (beside, "|")):
        if not math.isnan(value):
            axis.plot(value, y, marker, color=_INK, ms=6, mfc="none", mew=1.1, zorder=1)


def _finish(
    axis: Any, metrics: Sequence[str], mine: Mapping[tuple[str, str], Row], model: str
) -> None:
    names = [m.removeprefix(f"{OVERALL}_").replace("_", " ") for m in metrics]
    axis.set_yticks(range(len(metrics)), names)
    axis.set_ylim(len(metrics) - 0.5, -0.5)
    axis.set_xlim(-0.01, 1.02)
    axis.grid(axis="x")
    first = next(iter(mine.values()))
    short = model.rstrip("/").rpartition("/")[2]
    title = f"Robustness of {short}: {first.dataset} {first.split}, {first.n:,} clips"
    axis.set_title(title, loc="left", fontsize=11.0, pad=10, parse_math=False)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    marks: list[Any] = [
        Line2D([], [], marker="o", linestyle="", color=_COLOURS[d], label=d) for d in DIMENSIONS
    ]
    for marker, label in (("D", "paper, mean"), ("|", "ser-tests, mean")):
        marks.append(
            Line2D([], [], marker=marker, linestyle="", color=_INK, mfc="none", label=label)
        )
    marks.append(Line2D([], [], color=_SOFT, lw=0.8, linestyle=(0, (2, 3)), label="random"))
    figure.legend(
        handles=marks,
        loc="outside lower left",
        ncols=len(marks),
        frameon=False,
        columnspacing=1.2,
        handlelength=1.2,
        handletextpad=0.5,
    )
