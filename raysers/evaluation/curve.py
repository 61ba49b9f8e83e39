"""The learning curve of a training run as a picture: CCC on the dev set, training loss.

The same history gives the same bytes: no dates, no random ids, and the font that comes with
matplotlib, whatever the reader's settings are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from raysers.types import DIMENSIONS

#: Okabe & Ito's vermilion, blue and green: told apart by readers with any colour vision.
_COLOURS = dict(zip(DIMENSIONS, ("#D55E00", "#0072B2", "#009E73"), strict=True))
_INK, _SOFT, _FAINT = "#222222", "#6B6B6B", "#E4E4E4"
_TITLE_PT, _TEXT_PT = 11.0, 9.0
_DPI = 160
_WIDTH_IN, _CCC_IN, _LOSS_IN = 7.2, 2.9, 1.5

_STYLE = {
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": "DejaVu Sans",
    "font.size": _TEXT_PT,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "raysers",
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "ytick.major.size": 0,
}

#: One line of a panel: (epoch, value) where there is a value.
Points = list[tuple[int, float]]


def learning_curve(history: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Draw CCC on the dev set by dimension over the training loss, by epoch.

    Args:
        history: one record per epoch with `epoch` (from 1), `train_loss`, `dev_ccc` (dimension to
            CCC, or None) and `kept` (whether this epoch's weights were stored as the best so
            far). Missing and NaN values leave gaps; without any CCC there is no panel for it.

    Returns:
        The picture as `png` and `svg`, identical bytes for identical histories.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError("a learning curve needs at least one epoch")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        figure = _draw(history)
        FigureCanvasAgg(figure)
        return {
            "png": _bytes_of(figure, format="png", dpi=_DPI, metadata={"Software": None}),
            "svg": _bytes_of(figure, format="svg", metadata={"Date": None, "Creator": None}),
        }


def _bytes_of(figure: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, facecolor="white", **how)
    return file.getvalue()


def _draw(history: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    kept = next((r["epoch"] for r in reversed(history) if r.get("kept")), None)
    ccc = {name: found for name in DIMENSIONS if (found := _ccc_points(history, name))}
    heights = [_CCC_IN, _LOSS_IN] if ccc else [_CCC_IN]
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12, hspace=0.02)
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 0.9 * len(heights)), layout=layout)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if ccc:
        _draw_ccc(axes[0], ccc, kept)
    _draw_loss(axes[-1], _points(history, "train_loss"))
    for axis in axes:
        _finish(axis, history, kept)
    if kept is not None:
        _name_kept(axes[0], kept)
    return figure


def _draw_ccc(axis: Any, curves: Mapping[str, Points], kept: int | None) -> None:
    axis.set_title("CCC on the dev set", loc="left", fontsize=_TITLE_PT, pad=16)
    lowest = min(value for points in curves.values() for _, value in points)
    axis.set_ylim(min(0.0, math.floor(lowest * 10) / 10), 1.0)
    for name, points in curves.items():
        _line(axis, points, _COLOURS[name])
        for epoch, value in points:
            if epoch == kept:
                axis.plot(
                    epoch,
                    value,
                    "o",
                    color=_COLOURS[name],
                    ms=6.5,
                    mec="white",
                    mew=1.2,
                    clip_on=False,
                    zorder=4,
                )
    ends = {name: points[-1][1] for name, points in curves.items()}
    low, high = axis.get_ylim()
    gap = (high - low) * 0.065
    heights = spread(ends, gap=gap, low=low, high=high - gap / 2)
    for name, height in heights.items():
        shown = next((y for x, y in curves[name] if x == kept), curves[name][-1][1])
        _label(axis, height, f"{name} {shown:.2f}", _COLOURS[name])
    if kept is not None and kept != max(points[-1][0] for points in curves.values()):
        _above(axis, (1.0, 1.0), "axes fraction", 6, f"epoch {kept}")


def _draw_loss(axis: Any, points: Points) -> None:
    axis.set_title("Training loss", loc="left", fontsize=_TITLE_PT, pad=10)
    if points:
        _line(axis, points, _INK)
        values = [value for _, value in points]
        low, high = min(0.0, *values), max(0.0, *values)
        room = (high - low) * 0.1 or 0.1
        axis.set_ylim(low - room if low < 0 else low, high + room)
        _label(axis, values[-1], f"{values[-1]:.3f}", _INK)


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
        axis.axvline(kept, color=_SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    if axis.get_subplotspec().is_last_row():
        axis.set_xlabel("epoch", loc="right")
    else:
        axis.tick_params(labelbottom=False, length=0)


def _name_kept(axis: Any, kept: int) -> None:
    """Write above its line which epoch was kept, on the side where there is room."""
    first, last = axis.get_xlim()
    side = "left" if kept < (first + last) / 2 else "right"
    across = ("data", "axes fraction")
    _above(axis, (kept, 1.0), across, 0, f"kept: epoch {kept}", ha=side)


def _above(
    axis: Any, where: tuple[float, float], coords: Any, right_pt: float, text: str, **how: Any
) -> None:
    """Soft text over the upper edge of a panel."""
    axis.annotate(
        text, where, xytext=(right_pt, 5), xycoords=coords, textcoords="offset points",
        color=_SOFT, annotation_clip=False, **how,
    )  # fmt: skip


def _line(axis: Any, points: Points, colour: str) -> None:
    """A line broken where epochs have no value; an epoch on its own is a dot."""
    epochs, values = zip(*points, strict=True)
    marker = "o" if len(points) == 1 else None
    whole = range(epochs[0], epochs[-1] + 1)
    known = dict(zip(epochs, values, strict=True))
    axis.plot(
        list(whole),
        [known.get(epoch, math.nan) for epoch in whole],
        color=colour,
        linewidth=1.8,
        marker=marker,
        solid_capstyle="round",
        clip_on=False,  # a line along the panel's edge is not cut in half
        zorder=3,
    )


def _label(axis: Any, height: float, text: str, colour: str) -> None:
    axis.annotate(
        text,
        (1.0, height),
        xytext=(6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        color=colour,
        annotation_clip=False,
    )


def spread(
    heights: Mapping[str, float], *, gap: float, low: float, high: float
) -> dict[str, float]:
    """Heights at least `gap` apart, in the same order, close to where they were.

    Labels at the ends of lines would cover each other otherwise. Those that touch move apart
    around their common middle, and all stay within `low..high`.
    """
    names = sorted(heights, key=lambda name: heights[name])
    groups: list[list[str]] = [[name] for name in names]

    def placed(group: list[str]) -> list[float]:
        half = gap * (len(group) - 1) / 2
        middle = sum(heights[name] for name in group) / len(group)
        middle = min(max(middle, low + half), high - half)
        return [middle - half + gap * i for i in range(len(group))]

    i = 0
    while i + 1 < len(groups):
        if placed(groups[i + 1])[0] - placed(groups[i])[-1] < gap:
            groups[i : i + 2] = [groups[i] + groups[i + 1]]
            i = max(0, i - 1)
        else:
            i += 1
    return {n: y for group in groups for n, y in zip(group, placed(group), strict=True)}


def _points(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(r["epoch"], float(r[key])) for r in history if _is_value(r.get(key))]


def _ccc_points(history: Sequence[Mapping[str, Any]], name: str) -> Points:
    found: Any = ((r["epoch"], (r.get("dev_ccc") or {}).get(name)) for r in history)
    return [(epoch, float(value)) for epoch, value in found if _is_value(value)]


def _is_value(value: Any) -> bool:
    return value is not None and math.isfinite(value)
