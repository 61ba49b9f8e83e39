"""Original and re-spoken scores as pictures, in the manner of the paper's Figures 10c and 11."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raysers.evaluation.metrics import Floats
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import ALL
from raysers.plotting import (
    HIGH,
    INK,
    LOW,
    SMALL_PT,
    SOFT,
    Picture,
    model_names,
    picture,
    word_colour,
)
from raysers.types import DIMENSIONS
from raysers.words.panels import (
    at_mean,
    caption,
    draw_mean,
    draw_spread,
    grid,
    limits,
    name_lines,
    over,
    score_axis,
    shorter,
)
from raysers.words.respoken import AGREEMENT, GROUP, LABELS, ORIGINAL, RESPOKEN
from raysers.words.sentence_pairs import Pairs

_COLOURS = {LABELS: SOFT, ORIGINAL: HIGH, RESPOKEN: LOW}
_PANEL_IN, _LINE_IN, _EDGES_IN = 1.95, 0.25, 0.85
_HEIGHT = 0.6

#: Rows of one cell by model, group value, metric and dimension.
Found = Mapping[tuple[str, str, str, str], Row]


def distribution_figure(pairs: Pairs, rows: Sequence[Row]) -> Picture:
    """Distributions of labels, original and re-spoken scores by model and dimension (10c).

    Args:
        pairs: all clips; the picture is of all of them, whatever their dataset or split.
        rows: of `probe_respoken.respoken_rows`; means with intervals and Jensen-Shannon distances
            are written where a cell is of all clips.

    Returns:
        The picture as `png` and `svg`; nothing without clips.
    """
    if not pairs.clip_id:
        return {}
    found = _by_key(_of_all_clips(rows))
    return picture(lambda: _draw_distributions(pairs, found))


def ccc_figure(rows: Sequence[Row]) -> Picture:
    """CCC with the labels before and after re-speaking, and of one with the other (Figure 11).

    Args:
        rows: of `probe_respoken.respoken_rows`; each dataset and split has its panels.

    Returns:
        The picture as `png` and `svg`; nothing without a CCC.
    """
    shown = [row for row in rows if row.group == GROUP and row.metric == "ccc"]
    if not shown:
        return {}
    return picture(lambda: _draw_ccc(shown))


def _of_all_clips(rows: Sequence[Row]) -> list[Row]:
    """Rows of the cell that is of all clips: the only one, or the whole of the only dataset."""
    mine = [row for row in rows if row.group == GROUP]
    if len({row.dataset for row in mine}) != 1:
        return []
    splits = {row.split for row in mine}
    return [row for row in mine if len(splits) == 1 or row.split == ALL]


def _by_key(rows: Sequence[Row]) -> Found:
    return {
        (row.model, row.group_value, row.metric, row.dimension): row
        for row in rows
        if row.group == GROUP
    }


def _draw_distributions(pairs: Pairs, found: Found) -> Any:
    models = list(pairs.original)
    figure, panels = grid(_PANEL_IN * len(models) + _EDGES_IN, len(models), title_pt=32)
    names = model_names(models)
    everything = [*pairs.original.values(), *pairs.respoken.values()]
    scale = limits(np.concatenate(everything))
    for line, model in zip(panels, models, strict=True):
        scored = int(np.isfinite(pairs.respoken[model]).any(axis=1).sum())
        for d, (axis, dimension) in enumerate(zip(line, DIMENSIONS, strict=True)):
            axis.set_xlim(*scale)
            _spread_panel(axis, list(_sides(pairs, model, d)), model, dimension, found)
        over(line[0], f"{names[model]}, {scored:,} clips", "left", lift_pt=15)
    if found:
        caption(
            figure,
            "score; dots: means with 95 % intervals, ± standard deviation; "
            "JS: Jensen-Shannon distance of the two scores",
        )
    return figure


def _sides(pairs: Pairs, model: str, d: int) -> Iterator[tuple[str, Floats]]:
    there = np.isfinite(pairs.respoken[model][:, d])
    yield LABELS, pairs.truth[there, d]
    yield ORIGINAL, pairs.original[model][there, d]
    yield RESPOKEN, pairs.respoken[model][there, d]


def _spread_panel(
    axis: Any, sides: Sequence[tuple[str, Floats]], model: str, dimension: str, found: Found
) -> None:
    axis.set_ylim(len(sides) - 0.55, -0.7)
    score_axis(axis)
    name_lines(axis, [name for name, _ in sides], [_COLOURS[name] for name, _ in sides])
    for y, (name, values) in enumerate(sides):
        draw_spread(axis, values, y, _HEIGHT, _COLOURS[name])
        mean = found.get((model, name, "mean", dimension))
        sd = found.get((model, name, "sd", dimension))
        if mean is None or sd is None:
            continue
        draw_mean(axis, mean.value, mean.ci_low, mean.ci_high, y, _COLOURS[name])
        text = f"{shorter(mean.value)} ± {shorter(sd.value)}"
        at_mean(axis, text, mean.value, y + 0.22, _COLOURS[name])
    distance = found.get((model, AGREEMENT, "js_distance", dimension))
    if distance is not None:
        over(axis, f"JS {shorter(distance.value)}", "right")


#: What a CCC is of: mark, colour, and what it is called.
_MARKS = {
    ORIGINAL: ("o", HIGH, "original with labels"),
    RESPOKEN: ("o", LOW, "re-spoken with labels"),
    AGREEMENT: ("D", INK, "re-spoken with original scores"),
}
_OFFSETS = dict(zip(_MARKS, (-0.24, 0.0, 0.24), strict=True))


def _draw_ccc(rows: Sequence[Row]) -> Any:
    cells = list(dict.fromkeys((row.dataset, row.split) for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    each_in = max(1.0, 3 * _LINE_IN * len(models)) + 0.55
    figure, panels = grid(each_in * len(cells) + _EDGES_IN, len(cells))
    names = model_names(models, 24)
    lowest = min([0.0, *(row.ci_low for row in rows if row.ci_low == row.ci_low)])
    for line, cell in zip(panels, cells, strict=True):
        mine = [row for row in rows if (row.dataset, row.split) == cell]
        for axis, dimension in zip(line, DIMENSIONS, strict=True):
            axis.set_xlim(min(-0.05, lowest - 0.05), 1.0)
            _ccc_panel(axis, [r for r in mine if r.dimension == dimension], models, names)
        most = max(row.n for row in mine)
        over(line[0], f"{cell[0]} {cell[1]}, {most:,} clips", "left")
    _legend(figure)
    return figure


def _ccc_panel(
    axis: Any, rows: Sequence[Row], models: Sequence[str], names: Mapping[str, str]
) -> None:
    axis.set_ylim(len(models) - 0.45, -0.55)
    score_axis(axis)
    name_lines(axis, [names[model] for model in models], [INK] * len(models))
    axis.axvline(0, color=SOFT, linewidth=0.8, zorder=1)
    for row in rows:
        if row.group_value not in _MARKS or row.value != row.value:
            continue
        mark, colour, _ = _MARKS[row.group_value]
        y = models.index(row.model) + _OFFSETS[row.group_value]
        if row.ci_low == row.ci_low:
            axis.plot([row.ci_low, row.ci_high], [y, y], color=colour, linewidth=1.6, zorder=3)
        axis.plot(
            row.value, y, mark, color=colour, ms=5 if mark == "o" else 4.2, mec="white", mew=0.7,
            zorder=4, clip_on=False,
        )  # fmt: skip
        _value_label(axis, row, y, colour)


def _value_label(axis: Any, row: Row, y: float, colour: str) -> None:
    """Right of the interval; left of it where there is no room."""
    low, high = axis.get_xlim()
    ends = [v if v == v else row.value for v in (row.ci_low, row.ci_high)]
    room = (high - ends[1]) / (high - low) > 0.17
    axis.annotate(
        shorter(row.value), (ends[1] if room else ends[0], y), xytext=(5 if room else -5, 0),
        textcoords="offset points", ha="left" if room else "right", va="center",
        color=word_colour(colour), fontsize=SMALL_PT, annotation_clip=False,
    )  # fmt: skip


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=mark, color=colour, linewidth=1.6, ms=5, mec="white", label=text)
        for mark, colour, text in _MARKS.values()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
        fontsize=SMALL_PT + 0.5, labelcolor="linecolor", title="CCC with 95 % intervals",
        title_fontproperties={"size": SMALL_PT + 0.5},
    )  # fmt: skip
