"""The probe's pictures and tables: words that do not overlap, odd scripts, the same bytes."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from raysers.errors import ConfigError
from raysers.evaluation.draws import Bootstrap
from raysers.words.cloud import (
    default_font,
    outline,
    places,
    require_wordcloud,
    word_cloud,
)
from raysers.words.panels import density
from raysers.words.ratings import word_ratings
from raysers.words.word_chart import word_chart

FEW = Bootstrap(draws=30)
ODD = ["שלום", "مرحبا", "日本語", "नमस्ते", "naïve", "straße", "rock'n'roll", "привет"]


def words_of(names: list[str]) -> pa.Table:
    middle = (len(names) - 1) / 2 or 1
    rows = [(w, 0.5 + 0.4 * (i / middle - 1) + n / 50) for i, w in enumerate(names) for n in (0, 1)]
    texts, valence = zip(*rows, strict=True)
    return word_ratings(pa.table({"transcript": texts, "valence": valence}), least=2, bootstrap=FEW)


def is_picture(picture: dict[str, bytes]) -> str:
    assert picture["png"].startswith(b"\x89PNG")
    assert len(picture["svg"]) < 400_000
    ET.fromstring(picture["svg"])
    return picture["svg"].decode()


def test_placed_words_do_not_overlap_and_all_are_there():
    weights = {f"word{'abcde'[i % 5] * (1 + i % 6)}{i:02d}": 1 / (1 + i) for i in range(50)}
    font = default_font()
    placed = places(weights, seed=0, font=font)
    assert {one.word for one in placed} == set(weights)
    boxes = [outline(one, font).get_extents() for one in placed]
    for one, other in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        # letters may reach between letters of another word, but not into its line
        assert across <= 0 or down <= 0.5 * min(one.height, other.height)
    assert placed == places(weights, seed=0, font=font)


@pytest.mark.parametrize("names", [["hello"], ["yes", "no", "w" * 60], ODD])
def test_clouds_of_few_odd_and_endless_words(names):
    words = words_of(names)
    svg = is_picture(word_cloud(words))
    assert "<text" not in svg  # outlines, no text that needs a font
    is_picture(word_chart(words))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordcloud", None)
    with pytest.raises(ConfigError, match=re.escape("raysers[report]")):
        require_wordcloud()


def test_density_has_its_peak_where_the_values_are():
    values = np.random.default_rng(0).normal(0.7, 0.05, 4000)
    where, dense = density(values, 0, 1)
    assert where[dense.argmax()] == pytest.approx(0.7, abs=0.03)
    assert dense.max() == pytest.approx(1)
    half = where[dense > 0.5]
    assert half[-1] - half[0] == pytest.approx(2.355 * np.hypot(0.05, 0.018), abs=0.02)
