"""The probe's pictures and tables: words that do not overlap, odd scripts, the same bytes."""

from __future__ import annotations

import html
import io
import re
import sys
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from raysers.errors import ConfigError
from raysers.evaluation.draws import Bootstrap
from raysers.words.cloud import (
    default_font,
    outline,
    places,
    require_wordcloud,
    word_cloud,
)
from raysers.words.density import density
from raysers.words.probe_summary import print_probe, reading_notes
from raysers.words.ratings import WORDS, word_ratings, word_rows
from raysers.words.respoken import respoken_rows
from raysers.words.respoken_figure import ccc_figure, distribution_figure
from raysers.words.sentiment import sentiment_rows
from raysers.words.sentiment_figure import sentiment_figure
from raysers.words.word_chart import word_chart
from tests.unit.words.test_probe_respoken import world
from tests.unit.words.test_probe_sentiment import made

FEW = Bootstrap(draws=30)
ODD = ["שלום", "مرحبا", "日本語", "नमस्ते", "naïve", "straße", "rock'n'roll", "привет"]
NAMES = ["short", "m" * 90, "/a/very/long/path/to/model", "[bold]$x_1$ <b>&\n\u202eتم"]


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


def test_heavier_words_are_larger():
    weights = {"much": 1.0, "some": 0.5, "few": 0.1}
    placed = places(weights, seed=0, font=default_font())
    assert [one.word for one in placed] == ["much", "some", "few"]
    sizes = [one.size_px for one in placed]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]


@pytest.mark.parametrize("names", [["hello"], ["yes", "no", "w" * 60], ODD])
def test_clouds_of_few_odd_and_endless_words(names):
    words = words_of(names)
    svg = is_picture(word_cloud(words))
    assert "<text" not in svg  # outlines, no text that needs a font
    is_picture(word_chart(words))


def test_the_same_words_give_the_same_bytes():
    words = words_of(ODD[4:])
    assert word_cloud(words) == word_cloud(words)
    assert word_cloud(words) != word_cloud(words, seed=1)
    assert word_cloud(words, size="occurrences") != word_cloud(words)
    assert word_chart(words) == word_chart(words)


def test_words_without_letters_in_the_font_are_counted_not_drawn():
    for names in (["日本語", "नमस्ते", "good"], ["日本語", "नमस्ते"]):
        svg = is_picture(word_cloud(words_of(names)))
        said = [html.unescape(found) for found in re.findall(r"<!-- (.*?) -->", svg)]
        assert set(said) & {*names} == {*names} & {"good"}
        assert said[-1].endswith("the font lacks their letters: 2")


def test_nothing_to_show_is_no_picture():
    empty = WORDS.empty_table()
    assert word_cloud(empty) == word_chart(empty) == ccc_figure([]) == {}


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordcloud", None)
    with pytest.raises(ConfigError, match=re.escape("raysers[report]")):
        require_wordcloud()


@pytest.mark.parametrize("models", [NAMES[:1], NAMES])
def test_sentiment_figures_of_one_and_four_models(models):
    sentences = [s for m in models for s in made(words=4, voices=4, model=m)]
    table = pa.Table.from_pylist(sentences)
    rows = sentiment_rows(table, dataset="made", bootstrap=FEW)
    first = sentiment_figure(table, rows)
    is_picture(first)
    assert first == sentiment_figure(table.take(list(range(len(table)))[::-1]), rows)


def test_a_sentence_of_each_kind_is_enough_for_a_figure():
    table = pa.Table.from_pylist(made(words=1, voices=1))
    is_picture(sentiment_figure(table, sentiment_rows(table, dataset="made", bootstrap=FEW)))


@pytest.mark.parametrize("clips", [2, 90])
def test_respoken_figures(clips):
    found = world(clips=clips)
    rows = respoken_rows(found, FEW)
    is_picture(distribution_figure(found, rows))
    is_picture(ccc_figure(rows))


def test_density_has_its_peak_where_the_values_are():
    values = np.random.default_rng(0).normal(0.7, 0.05, 4000)
    where, dense = density(values, 0, 1)
    assert where[dense.argmax()] == pytest.approx(0.7, abs=0.03)
    assert dense.max() == pytest.approx(1)
    half = where[dense > 0.5]
    assert half[-1] - half[0] == pytest.approx(2.355 * np.hypot(0.05, 0.018), abs=0.02)


def test_tables_say_the_figures_and_survive_odd_names():
    words = words_of([*ODD, "good", "bad"])
    sentences = made(words=3, voices=2, model=NAMES[3])
    sentences[0]["text"] = "This is wonderful"
    rows = sentiment_rows(pa.Table.from_pylist(sentences), dataset="made", bootstrap=FEW)
    rows += respoken_rows(world(), FEW) + word_rows(words, dataset="made")
    out = io.StringIO()
    print_probe(rows, words, Console(file=out, width=120, markup=False))
    text = out.getvalue()
    for wanted in (
        "bad (2)",
        "שלום (2)",
        "positive - neutral",
        "re-spoken, original",
        "[bold]$x_1$",
    ):
        assert wanted in text
    assert re.search(r"This is wonderful +\.\d{3} +\.816", text)
    assert len(list(reading_notes(rows))) == 5
    out = io.StringIO()
    print_probe([], None, Console(file=out))
    assert out.getvalue() == ""
