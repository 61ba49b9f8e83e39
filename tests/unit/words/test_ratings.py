"""Word ratings: what a word is, how often it counts, its interval, and which side it is on."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.words.ratings import WORDS, folded, tokens, word_ratings
from tests.unit.evaluation.worlds import stretched

FEW = Bootstrap(draws=50)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic, it’s 5 o'clock!", ["don't", "panic", "it's", "o'clock"]),
        ("‘Well’ -- she said, 'no'.", ["well", "she", "said", "no"]),
        (
            "cold-hearted, cold‐hearted, half–done",
            [*2 * ["cold-hearted"], "half", "done"],
        ),
        ("Wie geht’s? Schöne E-Mail!", ["wie", "geht's", "schöne", "e-mail"]),
        ("STRASSE Straße", ["strasse", "straße"]),
        ("l’amour à la française", ["l'amour", "à", "la", "française"]),
        ("שלום, עולם! مرحبا", ["שלום", "עולם", "مرحبا"]),
        ("\u202bשָׁלוֹם\u202c", ["שָׁלוֹם"]),
        ("na\u00efve nai\u0308ve", ["naïve", "naïve"]),
        ("soft\u00adware", ["software"]),
        ("нет ΟΔΟΣ", ["нет", "οδος"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("<b>great</b> [laughter] 😀👍🏽 50 $x$", ["great", "x"]),
        ("a_b c\nd\te", ["a", "b", "c", "d", "e"]),
        ("", []),
        (" '-' ", []),
    ],
)
def test_words_of_a_text(text, words):
    found = tokens(text)
    assert [folded(word) for word in found] == [folded(word) for word in words]
    assert all(unicodedata.is_normalized("NFC", word) for word in found)


@given(st.text(max_size=60))
def test_any_text_has_words_that_are_words_again(text):
    found = tokens(text)
    for word in found:
        assert word
        assert not set(word) & set(' \n\t"!?.,<>[]')
        assert any(character.isalpha() for character in word)
    assert [folded(w) for w in tokens(" ".join(found))] == [folded(w) for w in found]


def corpus(rows: list[tuple[str, float]], **columns: list[object]) -> pa.Table:
    texts, valence = zip(*rows, strict=True)
    known = {"clip_id": [f"c{i}" for i in range(len(rows))], "transcript": texts}
    return pa.table({**known, "valence": pa.array(valence, pa.float64()), **columns})


def rated(table: pa.Table, **how) -> dict[str, dict]:
    found = word_ratings(table, **{"least": 1, "bootstrap": FEW, **how})
    assert found.schema.equals(WORDS)
    return {row["word"]: row for row in found.to_pylist()}


def test_a_word_counts_as_often_as_it_is_said():
    table = corpus([("no no no", 0.1), ("NO", 0.5), ("yes", 0.9)])
    no = rated(table)["no"]
    assert (no["occurrences"], no["clips"]) == (4, 2)
    assert no["valence"] == pytest.approx((3 * 0.1 + 0.5) / 4)
    assert set(rated(table, least=2)) == {"no"}


def test_sides_do_not_overlap_and_the_middle_word_goes_where_it_lies():
    values = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.8, "e": 0.9}
    words = rated(corpus(list(values.items())), most=50)
    assert [words[w]["side"] for w in "abcde"] == ["low", "low", "low", "high", "high"]
    assert [words[w]["rank"] for w in "abcde"] == [1, 2, 3, 2, 1]
    words = rated(corpus(list(values.items())), most=1)
    assert [words[w]["side"] for w in "abcde"] == ["low", "", "", "", "high"]
    assert [words[w]["rank"] for w in "abcde"] == [1, 0, 0, 0, 1]
    assert words["a"]["corpus_valence"] == pytest.approx(np.mean(list(values.values())))


def test_clips_without_words_valence_or_ok_do_not_count():
    table = corpus(
        [("go", 0.2), ("go", math.nan), ("", 0.9), ("go", 0.8)],
        status=["ok", "ok", "ok", "too_short"],
    )
    go = rated(table)["go"]
    assert (go["occurrences"], go["valence"], go["corpus_valence"]) == (1, 0.2, 0.2)


def test_intervals_draw_speakers_with_all_their_clips():
    """Six speakers of constant valence; intervals of 30 clips would be a third as wide."""
    table = corpus(
        [("go", 0.2)] * 15 + [("go", 0.8)] * 15 + [("alone", 0.5)] * 3,
        speaker=[f"s{i // 5}" for i in range(30)] + ["s0"] * 3,
    )
    words = rated(table, bootstrap=Bootstrap(draws=400))
    drawn = np.random.default_rng(1).choice([0.2] * 3 + [0.8] * 3, (4000, 6)).mean(axis=1)
    found = words["go"]["ci_low"], words["go"]["ci_high"]
    assert found == pytest.approx(stretched(drawn, 6), abs=0.15)  # tenths apart
    assert words["alone"]["ci_low"] is None  # one speaker says nothing about others


def test_missing_transcripts_or_labels_are_refused():
    with pytest.raises(ConfigError, match="column transcript"):
        word_ratings(pa.table({"valence": [0.5]}), least=1, bootstrap=FEW)
    with pytest.raises(ConfigError, match="1 of 2 clips have words"):
        word_ratings(corpus([("hello", math.nan), ("😀", 0.4)]), least=1, bootstrap=FEW)
