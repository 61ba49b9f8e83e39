"""Word and character error rates against worked cases and jiwer over whole lists."""

from __future__ import annotations

import math

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.rows import to_table
from raysers.words.transcribe import (
    count_errors,
    overall,
    plain_words,
    word_error_rows,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He said: “Don’t!”", ["he", "said", "don't"]),
        (
            "rock ‘n’ roll o'clock 'quoted' dogs'",
            ["rock", "n", "roll", "o'clock", "quoted", "dogs"],
        ),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("cold-hearted – ill‑disposed", ["cold", "hearted", "ill", "disposed"]),
        ("In 1813, 3.5 %", ["in", "1813", "3", "5"]),
        ("ﬁne ｆｕｌｌ cafe\u0301", ["fine", "full", "café"]),
        ("a\u202eb\u200d c\u00adut \x1b[31mred", ["ab", "cut", "31mred"]),
        ("שלום, עולם! مَرحبا", ["שלום", "עולם", "مَرحبا"]),
        ("😀 <b>bold</b>\nline\t&amp;", ["b", "bold", "b", "line", "amp"]),
        ("", []),
        ("...!?", []),
        ("'", []),
    ],
)
def test_texts_are_compared_as_plain_words(text, words):
    assert plain_words(text) == words


@pytest.mark.parametrize(
    ("said", "recognised", "expected"),
    [
        # words said, substituted, deleted, inserted; characters said, character errors
        ("the cat sat", "The cat sat.", (3, 0, 0, 0, 11, 0)),
        ("the cat sat", "the bat sat", (3, 1, 0, 0, 11, 1)),
        ("the cat sat", "the sat", (3, 0, 1, 0, 11, 4)),
        ("the cat", "the fat cat", (2, 0, 0, 1, 7, 4)),
        ("the cat", "", (2, 0, 2, 0, 7, 7)),
        ("", "you", (0, 0, 0, 1, 0, 3)),
        ("", "", (0, 0, 0, 0, 0, 0)),
        ("?", "!", (0, 0, 0, 0, 0, 0)),
        ("zero", "...", (1, 0, 1, 0, 4, 4)),
    ],
)
def test_errors_of_worked_cases(said, recognised, expected):
    assert count_errors(said, recognised) == expected


_TEXTS = st.lists(st.sampled_from(["a", "b", "dd", "ee", "don't", "é", "3"]), min_size=1)


@given(st.lists(st.tuples(_TEXTS, _TEXTS), min_size=1, max_size=8))
def test_rates_are_those_of_jiwer_over_the_whole_list(pairs):
    said, recognised = ([" ".join(p[i]) for p in pairs] for i in (0, 1))
    ids = [str(i) for i in range(len(pairs))]
    rows = word_error_rows("m", ids, said, recognised, {}, Bootstrap(draws=0))
    values = {r.metric: r.value for r in rows}
    assert values["wer"] == pytest.approx(jiwer.wer(said, recognised))
    assert values["cer"] == pytest.approx(jiwer.cer(said, recognised))
    parts = values["substitutions"] + values["deletions"] + values["insertions"]
    assert parts == pytest.approx(values["wer"])


def test_every_dataset_language_and_all_together_have_their_rates():
    said = ["one two", "three four", "eins zwei", "", "five six"]
    recognised = ["one two", "three for", "ein zwei drei", "you", None]
    columns = {
        "corpus": ["x", "x", "y", "y", "y"],
        "language": ["en", "en", "de", "en", "en"],
        "speaker": ["s", "t", "u", "u", "t"],
    }
    rows = word_error_rows("asr", list("abcde"), said, recognised, columns, Bootstrap(draws=200))
    wer = {(r.dataset, r.group_value): (r.value, r.n) for r in rows if r.metric == "wer"}
    assert wer == {
        ("x", ""): (0.25, 2),  # "for"
        ("y", ""): (1.5, 2),  # ein, drei, you; two words said
        ("all", ""): (4 / 6, 4),
        ("y", "de"): (1.0, 1),
        ("y", "en"): (pytest.approx(math.nan, nan_ok=True), 1),  # nothing was said
        ("all", "de"): (1.0, 1),
        ("all", "en"): (0.5, 3),
    }
    assert {r.dimension for r in rows} == {""}
    table = to_table(rows, "run").to_pylist()
    undefined = [r["metric"] for r in table if r["value"] is None]
    assert undefined == ["wer", "cer", "substitutions", "deletions", "insertions"]
    assert overall(rows)["wer"] == pytest.approx(4 / 6, abs=1e-6)
    assert overall(rows)["clips"] == 4
