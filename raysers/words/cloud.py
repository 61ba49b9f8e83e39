"""The words of the lowest and the highest mean valence as two clouds, as in the paper's Figure 10a.

The package wordcloud finds the places; the words are drawn as outlines, so that the SVG looks the
same everywhere. Words the font has no letters for are left out and counted below the picture.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysers.errors import ConfigError
from raysers.plotting import (
    HIGH,
    LOW,
    SOFT,
    TITLE_PT,
    WIDTH_IN,
    Picture,
    blend,
    picture,
    word_colour,
)

#: What the size of a word tells: how far its mean is from the corpus', or how often it is said.
Weight = Callable[[Mapping[str, Any]], float]
SIZES: Mapping[str, Weight] = {
    "distance": lambda word: abs(word["valence"] - word["corpus_valence"]),
    "occurrences": lambda word: float(word["occurrences"]),
}
_CAPTIONS = {
    "distance": "size: distance from the mean valence of all clips",
    "occurrences": "size: occurrences",
}
_COLOURS = {"low": LOW, "high": HIGH}
#: Canvas of a cloud, and the sizes a word may have on it.
_WIDTH_PX, _HEIGHT_PX = 420, 384
_LARGEST_PX, _SMALLEST_PX, _MARGIN_PX = 66, 8, 6
#: Outlines are a little wider than the hinted letters that were placed.
_TIGHT = 0.96
#: Tried in this order until all words fit: parts of the canvas, for few words, then smaller words.
_CANVASES, _SHRINK = (0.4, 0.55, 0.75), 0.85
_FEW = 20
#: The least of a word's weight against the heaviest, so that none is too small to read.
_LEAST_WEIGHT = 0.08
_CLOUD_IN = 3.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A word on the canvas: size of the font, left and upper edge of its outline, in pixels."""

    word: str
    size_px: int
    left_px: float
    top_px: float


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


def word_cloud(
    words: pa.Table, *, size: str = "distance", seed: int = 0, font: str | None = None
) -> Picture:
    """Clouds of the words of both sides of `probe_words.WORDS`.

    Args:
        words: rated words.
        size: what the size of a word tells, a key of `SIZES`.
        seed: of the places.
        font: file of a font for scripts that DejaVu Sans, the default, does not have.

    Returns:
        The picture as `png` and `svg`, the same bytes for the same words; nothing without words.

    Raises:
        ConfigError: wordcloud is not installed.
    """
    require_wordcloud()
    rows = [word for word in words.to_pylist() if word["side"]]
    if not rows:
        return {}
    path = font or default_font()
    return picture(lambda: _draw(rows, size, seed, path))


def places(weights: Mapping[str, float], *, seed: int, font: str) -> list[Placed]:
    """Where each word stands; the heaviest first. All of them fit."""
    small = _CANVASES if len(weights) <= _FEW else ()
    attempts = [(share, float(_LARGEST_PX)) for share in (*small, 1.0)]
    while attempts[-1][1] > 2:
        attempts.append((1.0, attempts[-1][1] * _SHRINK))
    for share, largest_px in attempts:
        layout = _layout(weights, share, largest_px, seed, font)
        if len(layout) == len(weights):
            break
    return [
        Placed(word=word, size_px=size, left_px=float(left), top_px=float(top))
        for (word, _), size, (top, left), _, _ in layout
    ]


def _layout(
    weights: Mapping[str, float], share: float, largest_px: float, seed: int, font: str
) -> list[Any]:
    from wordcloud import WordCloud

    cloud = WordCloud(
        font_path=font,
        width=int(_WIDTH_PX * share),
        height=int(_HEIGHT_PX * share),
        margin=_MARGIN_PX if largest_px > _SMALLEST_PX else 1,
        prefer_horizontal=1.0,
        relative_scaling=0.6,
        min_font_size=_SMALLEST_PX if largest_px > _SMALLEST_PX else 1,
        max_font_size=int(largest_px),
        max_words=len(weights),
        random_state=seed,
        color_func=lambda *_, **__: "black",
    )
    return list(cloud.generate_from_frequencies(dict(weights)).layout_)


def default_font() -> str:
    """The file of DejaVu Sans."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _characters(font: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(font).get_charmap())


def _draw(rows: Sequence[Mapping[str, Any]], size: str, seed: int, font: str) -> Any:
    from matplotlib.figure import Figure

    sides = {side: [row for row in rows if row["side"] == side] for side in _COLOURS}
    shown = {side: found for side, found in sides.items() if found}
    height_in = _CLOUD_IN + 0.95
    figure = Figure(figsize=(WIDTH_IN, height_in))
    lost = 0
    for number, (side, found) in enumerate(shown.items()):
        width = 1 / len(shown)
        axis = figure.add_axes((number * width, 0.35 / height_in, width, _CLOUD_IN / height_in))
        lost += _draw_side(axis, found, side, size, seed, font)
        figure.text(
            (number + 0.5) * width, 1 - 0.12 / height_in, _title(found, side), ha="center",
            va="top", color=word_colour(_COLOURS[side]), fontsize=TITLE_PT, weight="bold",
        )  # fmt: skip
        figure.text(
            (number + 0.5) * width, 1 - 0.34 / height_in, _range(found), ha="center", va="top",
            color=SOFT,
        )  # fmt: skip
    missing = f"; not drawn, as the font lacks their letters: {lost}" if lost else ""
    figure.text(0.5, 0.1 / height_in, _CAPTIONS[size] + missing, ha="center", color=SOFT)
    return figure


def _title(rows: Sequence[Mapping[str, Any]], side: str) -> str:
    what = "lowest" if side == "low" else "highest"
    return f"{what} valence: {len(rows)} word{'s' if len(rows) != 1 else ''}"


def _range(rows: Sequence[Mapping[str, Any]]) -> str:
    values = [row["valence"] for row in rows]
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    mean = f"all clips {rows[0]['corpus_valence']:.2f}"
    return f"mean {low}; {mean}" if low == high else f"means {low} to {high}; {mean}"


def _draw_side(
    axis: Any, rows: Sequence[Mapping[str, Any]], side: str, size: str, seed: int, font: str
) -> int:
    """Draw the words of a side; how many the font cannot draw."""
    axis.set_axis_off()
    weights = dict(_weights(rows, size, _characters(font)))
    if not weights:
        return len(rows)
    placed = places(weights, seed=seed, font=font)
    axis.set_xlim(0, _WIDTH_PX)
    axis.set_ylim(_HEIGHT_PX, 0)
    axis.set_aspect("equal")
    strongest = max(weights.values())
    pt = 72 * _CLOUD_IN / _frame(axis, placed, font)
    for one in placed:
        share = 0.45 + 0.55 * weights[one.word] / strongest
        _write(axis, one, font, pt, blend(_COLOURS[side], share))
    return len(rows) - len(weights)


def _weights(
    rows: Sequence[Mapping[str, Any]], size: str, characters: frozenset[int]
) -> Iterator[tuple[str, float]]:
    values = {row["word"]: SIZES[size](row) for row in rows}
    least = _LEAST_WEIGHT * max(values.values())
    for row in sorted(rows, key=lambda row: row["rank"]):
        if all(ord(character) in characters for character in row["word"]):
            yield row["word"], max(values[row["word"]], least) or 1.0


def outline(one: Placed, font: str) -> Any:
    """Outline of the word, its left upper corner where it was placed, y downwards."""
    from matplotlib.transforms import Affine2D

    path = _at_origin(one, font)
    box = path.get_extents()
    return path.transformed(
        Affine2D().scale(1, -1).translate(one.left_px - box.x0, one.top_px + box.y1)
    )


def _at_origin(one: Placed, font: str) -> Any:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), one.word, size=one.size_px * _TIGHT, prop=FontProperties(fname=font))


def _write(axis: Any, one: Placed, font: str, pt: float, colour: tuple[float, ...]) -> None:
    """The word as text, of which an SVG needs every letter once only; `pt` is a pixel's size."""
    from matplotlib.font_manager import FontProperties

    box = _at_origin(one, font).get_extents()
    axis.text(
        one.left_px - box.x0, one.top_px + box.y1, one.word, color=colour, ha="left",
        va="baseline", fontproperties=FontProperties(fname=font, size=one.size_px * _TIGHT * pt),
    )  # fmt: skip


def _frame(axis: Any, placed: Sequence[Placed], font: str) -> float:
    """Zoom to where the words are, as a few do not fill the canvas; the height that is shown."""
    boxes = [outline(one, font).get_extents() for one in placed]
    left, right = min(b.x0 for b in boxes), max(b.x1 for b in boxes)
    top, bottom = min(b.y0 for b in boxes), max(b.y1 for b in boxes)
    across, down = (left + right) / 2, (top + bottom) / 2
    scale = max((right - left) / _WIDTH_PX, (bottom - top) / _HEIGHT_PX, 0.5) * 1.04
    axis.set_xlim(across - scale * _WIDTH_PX / 2, across + scale * _WIDTH_PX / 2)
    axis.set_ylim(down + scale * _HEIGHT_PX / 2, down - scale * _HEIGHT_PX / 2)
    return float(scale * _HEIGHT_PX)
