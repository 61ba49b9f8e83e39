"""The learning curve of a training run as a picture: CCC and UAR on the dev set, training loss.

The same history gives the same bytes, see `raysers.plotting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raysers import plotting
from raysers.plotting import COLOURS, INK, spread
from raysers.types import DIMENSIONS

__all__ = ["learning_curve", "spread"]

_SCORES_IN, _LOSS_IN = 2.9, 1.5
_UAR = "UAR"

#: One line of a panel: (epoch, value) where there is a value.
Points = list[tuple[int, float]]


def learning_curve(
    history: Sequence[Mapping[str, Any]], *, width_in: float = plotting.WIDTH_IN
) -> plotting.Picture:
    """Draw CCC by dimension and UAR on the dev set over the training loss, by epoch.

    Args:
        history: one record per epoch with `epoch` (from 1), `train_loss`, `dev_ccc` (dimension to
            CCC, or None), `dev_uar` (or none) and `kept` (whether this epoch's weights were stored
            as the best so far). Missing and NaN values leave gaps; without any CCC or UAR there is
            no panel for it.
        width_in: of the picture.

    Returns:
        The picture as `png` and `svg`, identical bytes for identical histories.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("a learning curve needs at least one epoch")
    return plotting.picture(lambda: _draw(history, width_in))


def _draw(history: Sequence[Mapping[str, Any]], width_in: float) -> Any:
    kept = next((r["epoch"] for r in reversed(history) if r.get("kept")), None)
    curves = {name: found for name in DIMENSIONS if (found := _ccc_points(history, name))}
    measures = ["CCC"] if curves else []
    if uar := _points(history, "dev_uar"):
        curves[_UAR] = uar
        measures.append(_UAR)
    heights = [_SCORES_IN, _LOSS_IN] if curves else [_SCORES_IN]
    figure = plotting.new_figure(sum(heights) + 0.9 * len(heights), width_in)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if curves:
        _draw_scores(axes[0], f"{' and '.join(measures)} on the dev set", curves, kept)
    _draw_loss(axes[-1], _points(history, "train_loss"))
    for axis in axes:
        _finish(axis, history, kept)
    if kept is not None:
        _name_kept(axes[0], kept)
    return figure


def _draw_scores(axis: Any, title: str, curves: Mapping[str, Points], kept: int | None) -> None:
    plotting.panel_title(axis, title, pad_pt=16)
    lowest = min(value for points in curves.values() for _, value in points)
    axis.set_ylim(min(0.0, math.floor(lowest * 10) / 10), 1.0)
    labels = {}
    for name, points in curves.items():
        colour = COLOURS.get(name, INK)
        _line(axis, points, colour)
        shown = next((y for x, y in points if x == kept), None)
        if shown is not None and kept is not None:
            plotting.dot(axis, shown, kept, colour, along="y", ms=6.5, mew=1.2)
        last = points[-1][1]
        labels[f"{name} {last if shown is None else shown:.2f}"] = (last, colour)
    plotting.end_labels(axis, labels)
    if kept is not None and kept != max(points[-1][0] for points in curves.values()):
        plotting.above(axis, (1.0, 1.0), "axes fraction", 6, f"epoch {kept}")


def _draw_loss(axis: Any, points: Points) -> None:
    plotting.panel_title(axis, "Training loss")
    if points:
        _line(axis, points, INK)
        values = [value for _, value in points]
        low, high = min(0.0, *values), max(0.0, *values)
        room = (high - low) * 0.1 or 0.1
        axis.set_ylim(low - room if low < 0 else low, high + room)
        plotting.end_label(axis, values[-1], f"{values[-1]:.3f}", INK)


def _finish(axis: Any, history: Sequence[Mapping[str, Any]], kept: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = history[0]["epoch"], history[-1]["epoch"]
    room = max(0.5, (last - first) * 0.02)
    axis.set_xlim(first - room, last + room)
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    wanted = [tick for tick in ticks.tick_values(first, last) if first <= tick <= last]
    axis.set_xticks(
        sorted({first, *(tick for tick in wanted if tick - first > (last - first) / 25)})
    )
    axis.yaxis.set_major_locator(
        MaxNLocator(nbins=6 if axis.get_subplotspec().is_first_row() else 4, steps=[1, 2, 5, 10])
    )
    axis.grid(axis="y")
    if kept is not None:
        plotting.guide(axis, kept)
    if axis.get_subplotspec().is_last_row():
        axis.set_xlabel("epoch", loc="right")
    else:
        axis.tick_params(labelbottom=False, length=0)


def _name_kept(axis: Any, kept: int) -> None:
    """Write above its line which epoch was kept, on the side where there is room."""
    first, last = axis.get_xlim()
    side = "left" if kept < (first + last) / 2 else "right"
    across = ("data", "axes fraction")
    plotting.above(axis, (kept, 1.0), across, 0, f"kept: epoch {kept}", ha=side)


def _line(axis: Any, points: Points, colour: str) -> None:
    """A line broken where epochs have no value; an epoch on its own is a dot."""
    epochs, values = zip(*points, strict=True)
    marker = "o" if len(points) == 1 else None
    whole = range(epochs[0], epochs[-1] + 1)
    known = dict(zip(epochs, values, strict=True))
    heights = [known.get(epoch, math.nan) for epoch in whole]
    plotting.line(axis, list(whole), heights, colour, marker=marker)


def _points(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(r["epoch"], float(r[key])) for r in history if _is_value(r.get(key))]


def _ccc_points(history: Sequence[Mapping[str, Any]], name: str) -> Points:
    found: Any = ((r["epoch"], (r.get("dev_ccc") or {}).get(name)) for r in history)
    return [(epoch, float(value)) for epoch, value in found if _is_value(value)]


def _is_value(value: Any) -> bool:
    return value is not None and math.isfinite(value)
