"""Figures of the probe, in the manner of the paper's Figures 10 and 11: words, sentences, clips."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysers import display
from raysers.errors import ConfigError
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import ALL, Floats
from raysers.types import DIMENSIONS
from raysers.words import spoken

_SIDES = {"low": display.LOW, "high": display.HIGH}
_OF_SENTIMENT = dict(
    zip(spoken.SENTIMENTS, (display.LOW, display.BETWEEN, display.HIGH), strict=True)
)
_OF_SPEECH = {
    spoken.LABELS: ("", display.SOFT),
    spoken.ORIGINAL: ("_original", display.HIGH),
    spoken.RESPOKEN_CLIP: ("_respoken", display.LOW),
}
#: Group value of a CCC: colour and name.
_MARKS = {
    spoken.ORIGINAL: (display.HIGH, "original with labels"),
    spoken.RESPOKEN_CLIP: (display.LOW, "re-spoken with labels"),
    spoken.AGREEMENT: (display.INK, "re-spoken with original scores"),
}
_CLOUD_PX = (840, 768)
_PANEL_IN, _EDGES_IN, _CLOUD_IN = 1.95, 0.8, 4.0


def require_wordcloud() -> None:
    """Raises ConfigError without the package that places the words; call before the work starts."""
    if importlib.util.find_spec("wordcloud") is None:
        raise ConfigError(
            "word clouds need the package wordcloud: pip install 'raysers[report]', or leave the "
            "word ratings out"
        )


def word_cloud(words: pa.Table) -> display.Picture:
    """Clouds of the words of both sides of a `ratings.WORDS` table; empty without words.

    The size shows the distance from the corpus mean.
    """
    sides = _sides(words)
    return display.picture(lambda: _draw_clouds(sides)) if sides else {}


def sentiment_figure(table: pa.Table, rows: Sequence[Row]) -> display.Picture:
    """Distribution and mean of the scores by sentiment, model and dimension (10b).

    `table` is like `spoken.SENTENCES`, `rows` are its `sentiment_rows`.
    """
    found = _by_key(row for row in rows if row.group == "sentiment")
    lines = []
    for model, frame in spoken.by_model(table):
        spreads = {
            d: [
                _Spread(
                    name,
                    _OF_SENTIMENT[name],
                    frame.loc[frame["sentiment"] == s, d].to_numpy(np.float64),
                    found.get((model, name, "sentiment_mean", d)),
                )
                for s, name in enumerate(spoken.SENTIMENTS)
            ]
            for d in DIMENSIONS
        }
        lines.append((model, f"{len(frame):,} sentences", spreads))
    return display.picture(lambda: _draw_spreads(lines)) if lines else {}


def distribution_figure(table: pa.Table, rows: Sequence[Row]) -> display.Picture:
    """Distributions of labels, original and re-spoken scores by model and dimension (10c).

    `table` is of `spoken.RESPOKEN`; all clips are shown, whatever their dataset or split. Means
    are shown where `rows` (of `respoken_rows`) have those of all clips.
    """
    mine = [row for row in rows if row.group == spoken.GROUP]
    alone = len({row.split for row in mine}) == 1
    whole = [row for row in mine if alone or row.split == ALL]
    found = _by_key(whole if len({row.dataset for row in mine}) == 1 else ())
    lines = []
    for model, own in table.to_pandas().groupby("model", sort=False):
        spreads = {}
        for d in DIMENSIONS:
            scored = own[own[f"{d}_respoken"].notna()]
            spreads[d] = [
                _Spread(
                    name,
                    colour,
                    scored[f"{d}{suffix}"].to_numpy(np.float64),
                    found.get((str(model), name, "mean", d)),
                )
                for name, (suffix, colour) in _OF_SPEECH.items()
            ]
        lines.append((str(model), f"{len(own):,} clips", spreads))
    return display.picture(lambda: _draw_spreads(lines)) if lines else {}


def ccc_figure(rows: Sequence[Row]) -> display.Picture:
    """CCC with the labels before and after re-speaking, and of one with the other (11).

    `rows` are those of `respoken_rows`; each dataset and split has its panels.
    """
    shown = [row for row in rows if row.group == spoken.GROUP and row.metric == "ccc"]
    return display.picture(lambda: _draw_ccc(shown)) if shown else {}


class _Spread(NamedTuple):
    """Scores in one line of a panel."""

    name: str
    colour: str
    values: Floats
    mean: Row | None


def _sides(words: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The words of each side that has any, by rank."""
    ranked = sorted((w for w in words.to_pylist() if w["side"]), key=lambda w: w["rank"])
    sides = {side: [w for w in ranked if w["side"] == side] for side in _SIDES}
    return {side: found for side, found in sides.items() if found}


def _by_key(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], Row]:
    return {(row.model, row.group_value, row.metric, row.dimension): row for row in rows}


def _draw_clouds(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    import matplotlib
    from wordcloud import WordCloud

    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    figure = display.new_figure(_CLOUD_IN)
    panels = figure.subplots(1, len(sides), squeeze=False)[0]
    for axis, (side, rows) in zip(panels, sides.items(), strict=True):
        distances = {row["word"]: abs(row["valence"] - row["corpus_valence"]) for row in rows}
        least = 0.08 * max(distances.values()) or 1.0  # legible beside the heaviest word
        colour = display.word_colour(_SIDES[side])
        cloud = WordCloud(
            font_path=str(font), width=_CLOUD_PX[0], height=_CLOUD_PX[1], margin=8,
            prefer_horizontal=1.0, relative_scaling=0.6, min_font_size=2, max_font_size=132,
            max_words=len(rows), random_state=0, background_color="white",
            color_func=lambda *_, colour=colour, **__: colour,
        ).generate_from_frequencies({w: max(d, least) for w, d in distances.items()})  # fmt: skip
        axis.imshow(cloud.to_array(), interpolation="bilinear")
        axis.set_axis_off()
        display.panel_title(axis, f"{side}est valence: {len(rows)} words", colour=colour)
    caption = "size: distance from the mean valence of all clips"
    figure.supxlabel(caption, color=display.SOFT, fontsize=display.SMALL_PT)
    return figure


def _panels(height_in: float, lines: int) -> tuple[Any, Any]:
    """A figure and its panels [lines, 3], a column for each dimension."""
    figure = display.new_figure(height_in)
    panels = figure.subplots(lines, len(DIMENSIONS), squeeze=False, sharey=True, sharex=True)
    for axis, dimension in zip(panels[0], DIMENSIONS, strict=True):
        axis.set_title(dimension, fontsize=display.TITLE_PT, pad=22)
    return figure, panels


def _note(axis: Any, text: str) -> None:
    """Soft text over the left end of a panel; it may extend over the next one."""
    axis.annotate(
        text, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points",
        color=display.SOFT, fontsize=display.SMALL_PT, annotation_clip=False,
    ).set_in_layout(False)  # fmt: skip


def _draw_spreads(lines: Sequence[tuple[str, str, Mapping[str, Sequence[_Spread]]]]) -> Any:
    figure, panels = _panels(_PANEL_IN * len(lines) + _EDGES_IN, len(lines))
    names = display.model_names([model for model, _, _ in lines])
    for row, (model, count, spreads) in zip(panels, lines, strict=True):
        for axis, found in zip(row, spreads.values(), strict=True):
            for y, spread in enumerate(found):
                values = spread.values[np.isfinite(spread.values)]
                if values.size:
                    body = axis.violinplot(
                        values, [y], orientation="horizontal", side="low", widths=1.2,
                        showextrema=False,
                    )["bodies"][0]  # fmt: skip
                    body.set(facecolor=spread.colour, edgecolor=spread.colour, alpha=0.35)
                if mean := spread.mean:
                    _draw_value(axis, mean, y, spread.colour)
            axis.set_ylim(len(found) - 0.55, -0.7)
            labels = axis.set_yticks(range(len(found)), [spread.name for spread in found])
            for label, spread in zip(labels, found, strict=True):
                label.label1.set_color(display.word_colour(spread.colour))
            display.value_grid(axis, "x", most=5)
        _note(row[0], f"{names[model]}, {count}")
    figure.supxlabel(
        "score; dots: means with 95 % intervals", color=display.SOFT, fontsize=display.SMALL_PT
    )
    return figure


def _draw_ccc(rows: Sequence[Row]) -> Any:
    from matplotlib.lines import Line2D

    cells = list(dict.fromkeys((row.dataset, row.split) for row in rows))
    names = display.model_names(list(dict.fromkeys(row.model for row in rows)), 24)
    each_in = max(1.0, 0.75 * len(names)) + 0.55
    figure, panels = _panels(each_in * len(cells) + _EDGES_IN, len(cells))
    for line, cell in zip(panels, cells, strict=True):
        mine = [row for row in rows if (row.dataset, row.split) == cell]
        for axis, dimension in zip(line, DIMENSIONS, strict=True):
            for row in mine:
                if row.dimension == dimension and row.group_value in _MARKS:
                    offset = 0.24 * (list(_MARKS).index(row.group_value) - 1)
                    at = list(names).index(row.model) + offset
                    _draw_value(axis, row, at, _MARKS[row.group_value][0])
            display.guide(axis, 0.0)
            axis.set_yticks(range(len(names)), list(names.values()), color=display.INK)
            axis.set_ylim(len(names) - 0.45, -0.55)
            axis.set_xlim(right=1.15)
            display.value_grid(axis, "x", most=4)
        _note(line[0], f"{cell[0]} {cell[1]}, {max(row.n for row in mine):,} clips")
    handles = [
        Line2D([], [], marker="o", color=colour, linewidth=1.6, ms=5, mec="white", label=text)
        for colour, text in _MARKS.values()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
        fontsize=display.SMALL_PT, labelcolor="linecolor", title="CCC with 95 % intervals",
        title_fontproperties={"size": display.SMALL_PT},
    )  # fmt: skip
    return figure


def _draw_value(axis: Any, row: Row, y: float, colour: str) -> None:
    """A value with its interval, and its number to the right."""
    display.interval(axis, row.value, (row.ci_low, row.ci_high), y, colour)
    if row.value == row.value:
        end = row.ci_high if row.ci_high == row.ci_high else row.value
        text = f"{row.value:.2f}".replace("0.", ".", 1).replace("-", "−")
        axis.annotate(
            text, (end, y), xytext=(5, 0), textcoords="offset points", va="center",
            color=display.word_colour(colour), fontsize=display.SMALL_PT, annotation_clip=False,
        )  # fmt: skip
