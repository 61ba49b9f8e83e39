"""Parts the probe's pictures share: panels by model and dimension over the scale of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysers.plotting import (
    BETWEEN,
    HIGH,
    LOW,
    SMALL_PT,
    SOFT,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    word_colour,
)
from raysers.types import DIMENSIONS

#: Colours of the sentiments.
SENTIMENTS = {"negative": LOW, "neutral": BETWEEN, "positive": HIGH}


def grid(height_in: float, lines: int, *, title_pt: float = 22) -> tuple[Any, Any]:
    """A figure with so many lines of panels, one a dimension, and the panels [lines, 3].

    The names of the dimensions are `title_pt` above the first line.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.2)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=layout)
    panels = figure.subplots(lines, len(DIMENSIONS), squeeze=False, sharey=True, sharex=True)
    for axis, dimension in zip(panels[0], DIMENSIONS, strict=True):
        axis.set_title(dimension, fontsize=TITLE_PT, pad=title_pt)
    return figure, panels


def name_lines(axis: Any, names: Sequence[str], colours: Sequence[str]) -> None:
    """Names of the lines 0, 1, ... of a chart in their colours, left of its first column."""
    axis.set_yticks([])
    if axis.get_subplotspec().is_first_col():
        for y, (name, colour) in enumerate(zip(names, colours, strict=True)):
            axis.annotate(
                name, (0, y), xytext=(-7, 0), xycoords=("axes fraction", "data"), ha="right",
                textcoords="offset points", va="center", color=word_colour(colour),
                annotation_clip=False,
            )  # fmt: skip


def over(axis: Any, text: str, side: str, *, lift_pt: float = 5) -> None:
    """Soft text over the left or right end of a panel."""
    left = side == "left"
    note = axis.annotate(
        text, (0 if left else 1, 1), xytext=(0, lift_pt), xycoords="axes fraction", color=SOFT,
        textcoords="offset points", ha=side, fontsize=TEXT_PT if left else SMALL_PT,
        annotation_clip=False,
    )  # fmt: skip
    note.set_in_layout(False)  # it may reach over the next panel, which is not to make room


def at_mean(axis: Any, text: str, value: float, y: float, colour: str) -> None:
    """Small text under a mean, turned inwards where the mean is near an edge of the panel."""
    low, high = axis.get_xlim()
    place = (value - low) / (high - low)
    axis.annotate(
        text, (min(max(value, low), high), y),
        ha="left" if place < 0.34 else "right" if place > 0.66 else "center", va="center",
        color=word_colour(colour), fontsize=SMALL_PT, annotation_clip=False, zorder=6,
    )  # fmt: skip


def caption(figure: Any, text: str) -> None:
    """Small soft text below all panels."""
    figure.supxlabel(text, color=SOFT, fontsize=SMALL_PT + 0.5)


def score_axis(axis: Any) -> None:
    """Ticks of the scale 0..1, named at its ends and middle."""
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])
    axis.grid(axis="x")
    if not axis.get_subplotspec().is_last_row():
        axis.tick_params(labelbottom=False, length=0)


def shorter(value: float) -> str:
    """Two decimals without the zero before the point, as the paper writes scores.

    >>> shorter(-0.341), shorter(1), shorter(-0.001)
    ('−.34', '1.00', '.00')
    """
    text = f"{abs(value):.2f}"
    sign = "−" if value <= -0.005 else ""
    return sign + (text[1:] if text.startswith("0") else text)
