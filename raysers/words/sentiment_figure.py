"""Scores of spoken sentences by sentiment as a picture, in the manner of the paper's Figure 10b.

Every model has a row of panels, one a dimension; what is written beside a mean is its distance
from the neutral sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysers.evaluation.rows import Row
from raysers.plotting import Picture, model_names, picture
from raysers.types import DIMENSIONS
from raysers.words.panels import (
    SENTIMENTS,
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
from raysers.words.sentences import SENTIMENTS as ORDER
from raysers.words.sentences import Sentences, by_model

_PANEL_IN, _EDGES_IN = 1.95, 0.7
_HEIGHT = 0.6
#: How far below its line the text of a mean is.
_TEXT = 0.22

Found = Mapping[tuple[str, str, str, str], Row]


def sentiment_figure(table: pa.Table, rows: Sequence[Row]) -> Picture:
    """Distribution and mean of the scores of every sentiment, model and dimension.

    Args:
        table: like `probe_sentences.SENTENCES`.
        rows: of `probe_sentiment.sentiment_rows` for the same table.

    Returns:
        The picture as `png` and `svg`; nothing without sentences.
    """
    models = list(by_model(table))
    if not models:
        return {}
    found = {
        (row.model, row.metric, row.group_value, row.dimension): row
        for row in rows
        if row.group == "sentiment"
    }
    return picture(lambda: _draw(models, found))


def _draw(models: Sequence[tuple[str, Sentences]], found: Found) -> Any:
    figure, panels = grid(_PANEL_IN * len(models) + _EDGES_IN, len(models))
    names = model_names([model for model, _ in models])
    scale = limits(np.concatenate([sentences.scores for _, sentences in models]))
    for line, (model, sentences) in zip(panels, models, strict=True):
        for d, axis in enumerate(line):
            axis.set_xlim(*scale)
            _panel(axis, sentences, d, model, found)
        over(line[0], f"{names[model]}, {len(sentences.text):,} sentences", "left")
    caption(figure, "score; at each mean: difference from neutral, with its 95 % interval")
    return figure


def _panel(axis: Any, sentences: Sentences, d: int, model: str, found: Found) -> None:
    axis.set_ylim(len(ORDER) - 0.55, -0.7)
    score_axis(axis)
    name_lines(axis, ORDER, [SENTIMENTS[sentiment] for sentiment in ORDER])
    for s, sentiment in enumerate(ORDER):
        colour = SENTIMENTS[sentiment]
        draw_spread(axis, sentences.scores[sentences.sentiment == s, d], s, _HEIGHT, colour)
        mean = found.get((model, "sentiment_mean", sentiment, DIMENSIONS[d]))
        if mean is None:
            continue
        draw_mean(axis, mean.value, mean.ci_low, mean.ci_high, s, colour)
        shift = found.get((model, "mean_shift", f"{sentiment} - neutral", DIMENSIONS[d]))
        text = _shift_text(shift) if shift else shorter(mean.value)
        at_mean(axis, text, mean.value, s + _TEXT, colour)


def _shift_text(shift: Row) -> str:
    text = signed(shift.value)
    if shift.ci_low != shift.ci_low:
        return text
    return f"{text} [{signed(shift.ci_low)}, {signed(shift.ci_high)}]"


def signed(value: float) -> str:
    """With its sign, which a difference needs.

    >>> signed(0.341), signed(-0.001)
    ('+.34', '.00')
    """
    return ("+" if value >= 0.005 else "") + shorter(value)
