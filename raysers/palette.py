"""The palette of every picture, fit for readers with any colour vision, light and dark.

A colour is named by its value on a light page; `dark` says what it becomes on a dark one.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

from raysers.types import DIMENSIONS

INK, SOFT, FAINT, PAPER = "#222222", "#6B6B6B", "#E4E4E4", "#FFFFFF"
#: Okabe & Ito's colours, told apart by readers with any colour vision; the last is for the rest.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BETWEEN = "#CC79A7", "#56B4E9", "#6B6B6B"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BETWEEN)
#: The colour of each dimension, in every picture.
COLOURS: Mapping[str, str] = dict(zip(DIMENSIONS, (VERMILION, BLUE, GREEN), strict=True))
#: The two ends of a scale that has a middle.
LOW, HIGH = VERMILION, BLUE
#: Darker, for words: the palette's own contrast to white (3 to 5) is enough for marks only.
_FOR_WORDS: Mapping[str, str] = {
    BLUE: "#00639B",
    VERMILION: "#B34E00",
    GREEN: "#00775A",
    PURPLE: "#A34D80",
    ORANGE: "#8F6200",
    SKY: "#1C74A8",
}
#: On a dark page, where simply lighter colours would grow alike for some readers; colours not
#: named here are turned by `dark`.
_DARK: Mapping[str, str] = {
    INK: "#ECEEF1",
    SOFT: "#B0A8A8",
    FAINT: "#343A44",
    PAPER: "#15181D",
    BLUE: "#4695CB",
    VERMILION: "#F68740",
    GREEN: "#60E0A9",
    PURPLE: "#EAA0CE",
    ORANGE: "#F4B515",
    SKY: "#90CFF8",
    "#00639B": "#6DB9F0",
    "#B34E00": "#FF9C5C",
    "#00775A": "#45D1A6",
    "#A34D80": "#EBABD0",
    "#8F6200": "#F5C152",
    "#1C74A8": "#9AD4F8",
}


def word_colour(colour: str) -> str:
    """`colour` for words: contrast to white of at least 4.5."""
    return _FOR_WORDS.get(colour, colour)


def series_colour(index: int) -> str:
    """Colour of the `index`-th of several things; beyond the palette all are grey."""
    return SERIES[min(index, len(SERIES) - 1)]


def dark(colour: str) -> str:
    """The `#rrggbb` to use on a dark page: the palette's, else the same hue with lightness turned.

    >>> dark("#FFFFFF"), dark("#000000")
    ('#15181D', '#E9E9E9')
    """
    upper = colour.upper()
    if upper in _DARK:
        return _DARK[upper]
    red, green, blue = (int(upper[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    turned = 0.915 - 0.8 * lightness  # black to the words' grey, white to the page's
    lifted = colorsys.hls_to_rgb(hue, turned, saturation * 0.9)
    return "#" + "".join(f"{round(255 * part):02X}" for part in lifted)


def blend(colour: str, share: float) -> tuple[float, ...]:
    """`colour` with so much of it left (0..1) towards a light grey; red, green, blue in 0..1."""
    from matplotlib.colors import to_rgb

    pairs = zip(to_rgb(colour), to_rgb("#B8B8B8"), strict=True)
    return tuple(share * strong + (1 - share) * weak for strong, weak in pairs)
