"""Word and character error rates against worked cases and jiwer over whole lists."""

from __future__ import annotations

import math

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.rows import to_table
from raysers.words.transcribe import (
    count_errors,
    overall,
    plain_words,
    print_word_errors,
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


def test_intervals_draw_speakers_and_do_not_depend_on_the_order_of_clips():
    rng = np.random.default_rng(0)
    wrong = rng.random(300) < 0.3
    order = rng.permutation(300)

    def wer(chosen):
        ids = [f"{i:03}" for i in chosen]
        recognised = ["a b x" if wrong[i] else "a b c" for i in chosen]
        speakers = {"speaker": [f"s{i % 30}" for i in chosen]}
        how = Bootstrap(draws=500)
        rows = word_error_rows("m", ids, ["a b c"] * 300, recognised, speakers, how)
        return next(row for row in rows if row.metric == "wer")

    row, same = wer(range(300)), wer(order.tolist())
    assert row == same
    # binomial: a third of the share of wrong clips, about 0.1 +- 1.96 x 0.009
    assert row.value == pytest.approx(wrong.mean() / 3)
    assert row.ci_low < row.value < row.ci_high
    assert row.ci_high - row.ci_low == pytest.approx(2 * 1.96 * math.sqrt(0.21 / 300) / 3, rel=0.4)


def test_printed_rates_are_percentages_and_names_cannot_steer_the_terminal(capsys):
    evil = "a\x1b[31m\x07\u202ered\nnew [bold]line\x9b2J"
    said, recognised = ["one two three four"] * 2, ["one two three", "one two three four five"]
    columns = {"corpus": [evil, evil], "split": ["dev", "dev"]}
    print_word_errors(word_error_rows("m", ["a", "b"], said, recognised, columns, Bootstrap()))
    text = capsys.readouterr().out
    assert "[bold]line" in text.replace("\n", "").replace(" ", "")
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b", "\r"}
    figures = text.split()
    assert "25.0%" in figures  # WER: one of eight deleted, one inserted
    assert figures.count("12.5%") == 2
