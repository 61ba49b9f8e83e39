"""The palette under simulated colour blindness, and pictures that repeat."""

from __future__ import annotations

import io
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image

from raysers import display

#: Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as people without one cone see it.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    t = np.array(to_xyz) @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""
    light, dark = sorted(
        (float(np.array([0.2126, 0.7152, 0.0722]) @ linear(c)) for c in (one, other)), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("blindness", [None, *BLINDNESS])
def test_colours_of_dimensions_and_series_are_told_apart_with_any_colour_vision(blindness):
    matrix = np.eye(3) if blindness is None else np.array(BLINDNESS[blindness])
    for colours, least in ((list(display.COLOURS.values()), 16), (display.SERIES, 10)):
        places = [lab(matrix @ linear(c)) for c in colours]
        nearest = min(np.linalg.norm(a - b) for a, b in combinations(places, 2))
        assert nearest > least


def test_marks_and_words_stand_out_from_the_page():
    for colour in (*display.SERIES, display.INK):
        assert contrast(display.word_colour(colour), display.PAPER) >= 4.5
    for colour in display.COLOURS.values():
        assert contrast(colour, display.PAPER) >= 3


def draw():
    figure = display.new_figure(2.0, 3.0)
    axis = figure.subplots()
    axis.set_ylim(0, 1)
    display.panel_title(axis, "costs $5 and $6")
    display.line(axis, [0, 1], [0.2, 0.8], display.BLUE)
    display.interval(axis, 0.5, (0.4, 0.6), 0.5, display.GREEN)
    display.axis_name(axis, "a name that is much longer than the panel it belongs to")
    display.end_labels(axis, {"a": (0.8, display.BLUE), "b": (0.8, display.GREEN)})
    return figure


def test_the_same_figure_gives_the_same_bytes_and_dollars_are_dollars():
    one, other = display.picture(draw), display.picture(draw)
    assert one == other
    assert b"costs $5 and $6" in one["svg"]
    ElementTree.fromstring(one["svg"])
    pixels = image.imread(io.BytesIO(one["png"]), format="png")
    assert pixels.shape[:2] == (320, 480)


def test_characters_that_are_no_text_are_marked_wherever_a_picture_has_words():
    said = {}

    def hostile():
        figure = draw()
        axis = figure.axes[0]
        texts = {
            w: f"{w}\x1b\ud800\uffff" for w in ("title", "tick", "key", "lower", "note", "line")
        }
        display.panel_title(axis, texts["title"])
        display.name_rows(axis, [texts["tick"], "plain"])
        axis.plot([0, 1], [0, 1], label=texts["key"])
        figure.legend()
        display.axis_name(axis, texts["lower"])
        display.above(axis, (0, 1), "axes fraction", 0, texts["note"])
        display.end_labels(axis, {texts["line"]: (0.5, display.BLUE)})
        said.update(texts)
        return figure

    svg = display.picture(hostile)["svg"]
    ElementTree.fromstring(svg)
    for word in said:
        assert f"<!-- {word}\ufffd\ufffd\ufffd -->" in svg.decode(), word


def test_a_long_name_of_an_axis_makes_no_panel_wider_or_taller_than_its_lines():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = display.new_figure(2.0)
    axes = figure.subplots(1, 3)
    display.axis_name(axes[2], "a name that is much longer than the panel it belongs to, by far")
    FigureCanvasAgg(figure).draw()
    widths = [axis.get_position().width for axis in axes]
    assert max(widths) - min(widths) < 0.01


def test_names_of_models_are_short_and_differ():
    names = display.model_names(["/a/b/one", "/a/c/one", "two", "x" * 60])
    assert names["two"] == "two"
    assert names["/a/b/one"] != names["/a/c/one"]
    assert max(map(len, names.values())) <= 28
