"""Figures of the probe, in the manner of the paper's Figures 10 and 11: words, sentences, clips."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysers.errors import ConfigError
from raysers.evaluation.metrics import Floats
from raysers.evaluation.rows import NAN, Row
from raysers.evaluation.scores import ALL
from raysers.plotting import (
    BETWEEN,
    HIGH,
    INK,
    LOW,
    SMALL_PT,
    SOFT,
    TITLE_PT,
    Picture,
    blend,
    guide,
    interval,
    model_names,
    new_figure,
    panel_title,
    picture,
    short,
    value_grid,
    word_colour,
)
from raysers.types import DIMENSIONS
from raysers.words.respoken import AGREEMENT, GROUP, LABELS, ORIGINAL, RESPOKEN_CLIP
from raysers.words.sentiment import SENTIMENTS, by_model

_SIDES = {"low": LOW, "high": HIGH}
_OF_SENTIMENT = dict(zip(SENTIMENTS, (LOW, BETWEEN, HIGH), strict=True))
_OF_SPEECH = {LABELS: SOFT, ORIGINAL: HIGH, RESPOKEN_CLIP: LOW}
#: Canvas of a word cloud in pixels.
_CLOUD_PX = (420, 384)
_CLOUD_IN = 3.1
_LINE_IN, _PANEL_IN, _EDGES_IN = 0.21, 1.95, 0.8
#: Words of each side in the chart.
_MOST = 20

Found = Mapping[tuple[str, str, str, str], Row]


def require_wordcloud() -> None:
    """Call before the work starts.

    Raises:
        ConfigError: the package that places the words is not installed.
    """
    if importlib.util.find_spec("wordcloud") is None:
        raise ConfigError(
            "word clouds need the package wordcloud: pip install 'raysers[report]', or leave the "
            "word ratings out"
        )


def word_cloud(words: pa.Table) -> Picture:
    """Clouds of the words of both sides of a `ratings.WORDS` table; empty without words.

    The size shows the distance from the corpus mean. Words are outlines, so the SVG needs no
    font; words with letters that DejaVu Sans lacks are counted below.

    Raises:
        ConfigError: wordcloud is not installed.
    """
    require_wordcloud()
    sides = _sides(words)
    return picture(lambda: _draw_clouds(sides)) if sides else {}


def word_chart(words: pa.Table) -> Picture:
    """Mean valence of the first words of both sides with 95 % intervals; empty without words."""
    sides = {side: rows[:_MOST] for side, rows in _sides(words).items()}
    return picture(lambda: _draw_words(sides)) if sides else {}


def sentiment_figure(table: pa.Table, rows: Sequence[Row]) -> Picture:
    """Distribution and mean of the scores by sentiment, model and dimension (10b).

    Args:
        table: like `sentiment.SENTENCES`.
        rows: of `sentiment_rows` for the same table.
    """
    found = _by_key(row for row in rows if row.group == "sentiment")
    lines = []
    for model, frame in by_model(table):
        panels = [
            _Panel(
                [
                    _Spread(
                        name,
                        _OF_SENTIMENT[name],
                        frame.loc[frame["sentiment"] == s, dimension].to_numpy(np.float64),
                        mean := found.get((model, name, "sentiment_mean", dimension)),
                        _shift_text(
                            found.get((model, f"{name} - neutral", "mean_shift", dimension)), mean
                        ),
                    )
                    for s, name in enumerate(SENTIMENTS)
                ]
            )
            for dimension in DIMENSIONS
        ]
        lines.append((model, f"{len(frame):,} sentences", panels))
    caption = "score; at each mean: difference from neutral, with its 95 % interval"
    return picture(lambda: _draw_spreads(lines, caption)) if lines else {}


def distribution_figure(table: pa.Table, rows: Sequence[Row]) -> Picture:
    """Distributions of labels, original and re-spoken scores by model and dimension (10c).

    Args:
        table: of `respoken.RESPOKEN`; all clips are shown, whatever their dataset or split.
        rows: of `respoken_rows`; means and distances are written where they are of all clips.
    """
    frame, found = table.to_pandas(), _by_key(_of_all_clips(rows))
    lines = []
    for model, own in frame.groupby("model", sort=False):
        panels = []
        for dimension in DIMENSIONS:
            scored = own[own[f"{dimension}_{RESPOKEN_CLIP}"].notna()]
            spreads = [
                _Spread(
                    name,
                    colour,
                    scored[f"{dimension}{suffix}"].to_numpy(np.float64),
                    mean := found.get((model, name, "mean", dimension)),
                    _mean_text(mean, found.get((model, name, "sd", dimension))),
                )
                for (name, colour), suffix in zip(
                    _OF_SPEECH.items(), ("", f"_{ORIGINAL}", f"_{RESPOKEN_CLIP}"), strict=True
                )
            ]
            distance = found.get((model, AGREEMENT, "js_distance", dimension))
            panels.append(_Panel(spreads, f"JS {shorter(distance.value)}" if distance else ""))
        lines.append((str(model), f"{len(own):,} clips", panels))
    caption = "score; dots: means with 95 % intervals, ± standard deviation"
    caption += "; JS: Jensen-Shannon distance of the two scores"
    return picture(lambda: _draw_spreads(lines, caption if found else "")) if lines else {}


def ccc_figure(rows: Sequence[Row]) -> Picture:
    """CCC with the labels before and after re-speaking, and of one with the other (11).

    Args:
        rows: of `respoken_rows`; each dataset and split has its panels.
    """
    shown = [row for row in rows if row.group == GROUP and row.metric == "ccc"]
    return picture(lambda: _draw_ccc(shown)) if shown else {}


def shorter(value: float, sign: str = "") -> str:
    """Two decimals without the zero before the point; `sign` precedes positive values.

    >>> shorter(-0.341), shorter(1), shorter(-0.001), shorter(0.5, "+")
    ('−.34', '1.00', '.00', '+.50')
    """
    text = f"{abs(value):.2f}".removeprefix("0")
    return ("−" if value <= -0.005 else sign if value >= 0.005 else "") + text


class _Spread(NamedTuple):
    """Scores in one line of a panel: name, colour, values, their mean, text at the mean."""

    name: str
    colour: str
    values: Floats
    mean: Row | None
    text: str


class _Panel(NamedTuple):
    spreads: Sequence[_Spread]
    note: str = ""


def _sides(words: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The words of each side that has any, by rank."""
    ranked = sorted((w for w in words.to_pylist() if w["side"]), key=lambda w: w["rank"])
    sides = {side: [w for w in ranked if w["side"] == side] for side in _SIDES}
    return {side: found for side, found in sides.items() if found}


def _by_key(rows: Iterator[Row]) -> Found:
    return {(row.model, row.group_value, row.metric, row.dimension): row for row in rows}


def _of_all_clips(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows of the subset of all clips: the only one, or the whole of the only dataset."""
    mine = [row for row in rows if row.group == GROUP]
    if len({row.dataset for row in mine}) == 1:
        whole = len({row.split for row in mine}) == 1
        yield from (row for row in mine if whole or row.split == ALL)


def _shift_text(shift: Row | None, mean: Row | None) -> str:
    if shift is None:
        return shorter(mean.value) if mean else ""
    low, high = (shorter(bound, "+") for bound in (shift.ci_low, shift.ci_high))
    return shorter(shift.value, "+") + (f" [{low}, {high}]" if shift.ci_low == shift.ci_low else "")


def _mean_text(mean: Row | None, sd: Row | None) -> str:
    return f"{shorter(mean.value)} ± {shorter(sd.value)}" if mean and sd else ""


def _draw_clouds(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    letters = set(FT2Font(font).get_charmap())
    figure = new_figure(_CLOUD_IN + 0.9)
    figure.set_layout_engine("none")  # the size of a letter depends on that of the panel
    height, lost = _CLOUD_IN / (_CLOUD_IN + 0.9), 0
    for number, (side, rows) in enumerate(sides.items()):
        axis = figure.add_axes((number / len(sides), 0.1, 1 / len(sides), height))
        drawable = [row for row in rows if all(ord(letter) in letters for letter in row["word"])]
        lost += len(rows) - len(drawable)
        values = [row["valence"] for row in rows]
        axis.set_title(
            f"{side}est valence: {len(rows)} word{'s' * (len(rows) != 1)}, "
            f"{shorter(min(values))} to {shorter(max(values))}",
            color=word_colour(_SIDES[side]), fontsize=TITLE_PT, weight="bold",
        )  # fmt: skip
        axis.set_axis_off()
        axis.set_aspect("equal")
        axis.set(xlim=(0, _CLOUD_PX[0]), ylim=(-_CLOUD_PX[1], 0))
        if drawable:
            _draw_cloud(axis, drawable, _SIDES[side], font)
    missing = f"; not drawn, as the font lacks their letters: {lost}" if lost else ""
    figure.supxlabel(
        f"size: distance from the mean valence of all clips{missing}", color=SOFT, fontsize=SMALL_PT
    )
    return figure


def _draw_cloud(axis: Any, rows: Sequence[Mapping[str, Any]], colour: str, font: str) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from wordcloud import WordCloud

    distances = {row["word"]: abs(row["valence"] - row["corpus_valence"]) for row in rows}
    least = 0.08 * max(distances.values()) or 1.0  # legible beside the heaviest word
    weights = {word: max(distance, least) for word, distance in distances.items()}
    cloud = WordCloud(
        font_path=font, width=_CLOUD_PX[0], height=_CLOUD_PX[1], margin=4, prefer_horizontal=1.0,
        relative_scaling=0.6, min_font_size=1, max_font_size=66, max_words=len(weights),
        random_state=0, color_func=lambda *_, **__: "black",
    ).generate_from_frequencies(weights)  # fmt: skip
    pt = 72 * _CLOUD_IN / _CLOUD_PX[1]  # of a pixel
    for (word, share), size_px, (top, left), _, _ in cloud.layout_:
        # placed by the outline of its letters, as in the layout
        box = TextPath((0, 0), word, size_px, prop=FontProperties(fname=font)).get_extents()
        axis.text(
            left - box.x0, -top - box.y1, word, color=blend(colour, 0.45 + 0.55 * share),
            fontproperties=FontProperties(fname=font, size=size_px * pt),
        )  # fmt: skip


def _draw_words(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    lines = max(map(len, sides.values()))
    figure = new_figure(_LINE_IN * lines + 1.15)
    panels = figure.subplots(1, len(sides), squeeze=False, sharex=True)[0]
    for axis, (side, rows) in zip(panels, sides.items(), strict=True):
        panel_title(axis, f"{side}est valence", colour=word_colour(_SIDES[side]))
        names = [f"{short(row['word'], 22)} ({row['occurrences']:,})" for row in rows]
        axis.set_yticks(range(len(rows)), names, color=word_colour(_SIDES[side]))
        axis.set_ylim(lines - 0.4, -0.6)
        value_grid(axis, "x", most=5)
        guide(axis, rows[0]["corpus_valence"])
        for y, row in enumerate(rows):
            bounds = [NAN if row[end] is None else row[end] for end in ("ci_low", "ci_high")]
            interval(axis, row["valence"], (bounds[0], bounds[1]), y, _SIDES[side])
    caption = "mean valence with 95 % interval, all clips dotted; in brackets: occurrences"
    figure.supxlabel(caption, color=SOFT, fontsize=SMALL_PT)
    return figure


def _panels(height_in: float, lines: int) -> tuple[Any, Any]:
    """A figure and its panels [lines, 3], a column for each dimension."""
    figure = new_figure(height_in)
    panels = figure.subplots(lines, len(DIMENSIONS), squeeze=False, sharey=True, sharex=True)
    for axis, dimension in zip(panels[0], DIMENSIONS, strict=True):
        axis.set_title(dimension, fontsize=TITLE_PT, pad=22)
    return figure, panels


def _note(axis: Any, text: str, side: str) -> None:
    """Soft text over the left or right end of a panel; it may extend over the next one."""
    axis.annotate(
        text, (0 if side == "left" else 1, 1), xytext=(0, 5), xycoords="axes fraction", ha=side,
        textcoords="offset points", color=SOFT, fontsize=SMALL_PT, annotation_clip=False,
    ).set_in_layout(False)  # fmt: skip


def _draw_spreads(lines: Sequence[tuple[str, str, Sequence[_Panel]]], caption: str) -> Any:
    figure, panels = _panels(_PANEL_IN * len(lines) + _EDGES_IN, len(lines))
    names = model_names([model for model, _, _ in lines])
    for row, (model, count, of_dimension) in zip(panels, lines, strict=True):
        for axis, panel in zip(row, of_dimension, strict=True):
            for y, spread in enumerate(panel.spreads):
                _draw_spread(axis, spread, y)
            axis.set_ylim(len(panel.spreads) - 0.55, -0.7)
            labels = axis.set_yticks(range(len(panel.spreads)), [s.name for s in panel.spreads])
            for label, spread in zip(labels, panel.spreads, strict=True):
                label.label1.set_color(word_colour(spread.colour))
            value_grid(axis, "x", most=5)
            _note(axis, panel.note, "right")
        _note(row[0], f"{names[model]}, {count}", "left")
    figure.supxlabel(caption, color=SOFT, fontsize=SMALL_PT)
    return figure


def _draw_spread(axis: Any, spread: _Spread, y: int) -> None:
    values = spread.values[np.isfinite(spread.values)]
    if values.size:
        body = axis.violinplot(
            values, [y], orientation="horizontal", side="low", widths=1.2, showextrema=False
        )["bodies"][0]
        body.set(facecolor=spread.colour, edgecolor=spread.colour, alpha=0.35)
    if spread.mean is not None:
        mean = spread.mean
        interval(axis, mean.value, (mean.ci_low, mean.ci_high), y, spread.colour)
        axis.annotate(
            spread.text, (mean.value, y), xytext=(0, -9), textcoords="offset points", ha="center",
            va="center", color=word_colour(spread.colour), fontsize=SMALL_PT,
        )  # fmt: skip


#: Group value of a CCC: colour and name.
_MARKS = {
    ORIGINAL: (HIGH, "original with labels"),
    RESPOKEN_CLIP: (LOW, "re-spoken with labels"),
    AGREEMENT: (INK, "re-spoken with original scores"),
}


def _draw_ccc(rows: Sequence[Row]) -> Any:
    from matplotlib.lines import Line2D

    cells = list(dict.fromkeys((row.dataset, row.split) for row in rows))
    names = model_names(list(dict.fromkeys(row.model for row in rows)), 24)
    each_in = max(1.0, 0.75 * len(names)) + 0.55
    figure, panels = _panels(each_in * len(cells) + _EDGES_IN, len(cells))
    for line, cell in zip(panels, cells, strict=True):
        mine = [row for row in rows if (row.dataset, row.split) == cell]
        for axis, dimension in zip(line, DIMENSIONS, strict=True):
            for row in mine:
                if row.dimension == dimension and row.group_value in _MARKS:
                    offset = 0.24 * (list(_MARKS).index(row.group_value) - 1)
                    _draw_value(axis, row, list(names).index(row.model) + offset)
            guide(axis, 0.0)
            axis.set_yticks(range(len(names)), list(names.values()), color=INK)
            axis.set_ylim(len(names) - 0.45, -0.55)
            axis.set_xlim(right=1.15)
            value_grid(axis, "x", most=4)
        most = max(row.n for row in mine)
        _note(line[0], f"{cell[0]} {cell[1]}, {most:,} clips", "left")
    handles = [
        Line2D([], [], marker="o", color=colour, linewidth=1.6, ms=5, mec="white", label=text)
        for colour, text in _MARKS.values()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
        fontsize=SMALL_PT, labelcolor="linecolor", title="CCC with 95 % intervals",
        title_fontproperties={"size": SMALL_PT},
    )  # fmt: skip
    return figure


def _draw_value(axis: Any, row: Row, y: float) -> None:
    """A CCC with its interval and its value to the right."""
    colour = _MARKS[row.group_value][0]
    interval(axis, row.value, (row.ci_low, row.ci_high), y, colour)
    if row.value == row.value:
        end = row.ci_high if row.ci_high == row.ci_high else row.value
        axis.annotate(
            shorter(row.value), (end, y), xytext=(5, 0), textcoords="offset points", va="center",
            color=word_colour(colour), fontsize=SMALL_PT, annotation_clip=False,
        )  # fmt: skip
