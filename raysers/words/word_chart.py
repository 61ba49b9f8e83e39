"""Words of the lowest and highest mean valence with their intervals, which clouds cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysers.plotting import (
    HIGH,
    LOW,
    SMALL_PT,
    SOFT,
    WIDTH_IN,
    Picture,
    guide,
    interval,
    panel_title,
    picture,
    short,
    value_grid,
    word_colour,
)
from raysers.words.panels import shorter

_LINE_IN, _EDGES_IN = 0.21, 1.15
_COLOURS = {"low": LOW, "high": HIGH}
_TITLES = {"low": "lowest", "high": "highest"}


def word_chart(words: pa.Table, *, most: int = 20) -> Picture:
    """Mean valence of the first words of both sides with 95 % intervals.

    Args:
        words: rated words, a table of `probe_words.WORDS`.
        most: words of each side.

    Returns:
        The picture as `png` and `svg`; nothing without words.
    """
    rows = [word for word in words.to_pylist() if 0 < word["rank"] <= most]
    sides = {
        side: sorted((row for row in rows if row["side"] == side), key=lambda row: row["rank"])
        for side in _COLOURS
    }
    shown = {side: found for side, found in sides.items() if found}
    return picture(lambda: _draw(shown)) if shown else {}


def _draw(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = max(len(found) for found in sides.values())
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.1, wspace=0.04)
    figure = Figure(figsize=(WIDTH_IN, _LINE_IN * lines + _EDGES_IN), layout=layout)
    panels = figure.subplots(1, len(sides), squeeze=False, sharex=True)[0]
    everything = [row for found in sides.values() for row in found]
    middle = everything[0]["corpus_valence"]
    low = min([middle, *(_bounds(row)[0] for row in everything)])
    high = max([middle, *(_bounds(row)[1] for row in everything)])
    room = (high - low) * 0.05 or 0.05
    for axis, (side, found) in zip(panels, sides.items(), strict=True):
        axis.set_xlim(low - room, high + 6 * room)  # the number of occurrences stands on the right
        axis.set_ylim(lines - 0.4, -0.6)
        value_grid(axis, "x", most=5)
        guide(axis, middle)
        panel_title(axis, f"{_TITLES[side]} valence", colour=word_colour(_COLOURS[side]), pad_pt=20)
        _above(axis, middle, f"all clips {shorter(middle)}")
        _words(axis, found, _COLOURS[side])
    figure.supxlabel(
        "mean valence with 95 % interval; right: occurrences", color=SOFT, fontsize=SMALL_PT + 0.5
    )
    return figure


def _bounds(row: Mapping[str, Any]) -> tuple[float, float]:
    value = row["valence"]
    low, high = row["ci_low"], row["ci_high"]
    return (value if low is None else low), (value if high is None else high)


def _words(axis: Any, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    axis.set_yticks([])
    for y, row in enumerate(rows):
        interval(axis, row["valence"], _bounds(row), y, colour)
        for text, x, right_pt, side, ink in (
            (short(row["word"], 22), 0.0, -6, "right", word_colour(colour)),
            (f"{row['occurrences']:,}", 1.0, -2, "right", SOFT),
        ):
            axis.annotate(
                text, (x, y), xytext=(right_pt, 0), xycoords=("axes fraction", "data"), ha=side,
                textcoords="offset points", va="center", color=ink, annotation_clip=False,
                fontsize=SMALL_PT + 0.5,
            )  # fmt: skip


def _above(axis: Any, at: float, text: str) -> None:
    low, high = axis.get_xlim()
    place = (at - low) / (high - low)
    axis.annotate(
        text, (at, 1.0), xytext=(0, 4), xycoords=("data", "axes fraction"), color=SOFT,
        textcoords="offset points", fontsize=SMALL_PT, annotation_clip=False,
        ha="left" if place < 0.2 else "right" if place > 0.8 else "center",
    )  # fmt: skip
