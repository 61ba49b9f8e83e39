"""The probe's pictures: all words are there, odd scripts, valid SVG without fonts."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET

import pyarrow as pa
import pytest

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.words.figures import require_wordcloud, word_cloud
from raysers.words.ratings import word_ratings

ODD = ["שלום", "مرحبا", "日本語", "नमस्ते", "naïve", "straße", "rock'n'roll", "привет"]


def words_of(names: list[str]) -> pa.Table:
    middle = (len(names) - 1) / 2 or 1
    rows = [(w, 0.5 + 0.4 * (i / middle - 1) + n / 50) for i, w in enumerate(names) for n in (0, 1)]
    texts, valence = zip(*rows, strict=True)
    ids = [str(i) for i in range(len(rows))]
    table = pa.table({"clip_id": ids, "transcript": texts, "valence": valence})
    return word_ratings(table, least=2, bootstrap=Bootstrap(draws=30))


@pytest.mark.parametrize(
    "names", [["hello"], ["yes", "no", "w" * 60], ODD, [f"word{'abc'[i % 3]}" * (1 + i % 3) + str(i)
    for i in range(24)]],
)  # fmt: skip
def test_clouds_of_few_odd_endless_and_many_words(names):
    words = words_of(names)
    cloud = word_cloud(words)
    assert cloud["png"].startswith(b"\x89PNG")
    assert len(cloud["svg"]) < 400_000
    svg = ET.fromstring(cloud["svg"])
    assert not svg.findall(".//{http://www.w3.org/2000/svg}text")  # outlines need no font
    assert word_cloud(words) == cloud


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordcloud", None)
    with pytest.raises(ConfigError, match=re.escape("raysers[report]")):
        require_wordcloud()
