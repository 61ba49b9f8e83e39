"""The printed table of word errors: figures, and nothing a terminal would obey."""

from __future__ import annotations

import io

from rich.console import Console

from raysers.evaluation.bootstrap import Bootstrap
from raysers.words.transcript_scores import print_word_errors
from raysers.words.word_errors import Transcribed, word_error_rows


def printed(found: Transcribed) -> str:
    out = io.StringIO()
    rows = word_error_rows("m", found, Bootstrap(draws=50))
    print_word_errors(rows, Console(file=out, width=120, markup=False, highlight=False))
    return out.getvalue()


def test_rates_are_percentages_with_their_intervals():
    text = printed(
        Transcribed(
            clip_id=list("abcdef"),
            said=["one two three four"] * 6,
            recognised=["one two three", "one two three four five"] * 3,
            columns={"corpus": ["talks"] * 6},
        )
    )
    line = next(line for line in text.splitlines() if line.startswith("talks"))
    assert line.split()[:4] == ["talks", "6", "24", "25.0%"]
    assert line.split()[-3:] == ["0.0%", "12.5%", "12.5%"]
    assert "[" in line


def test_names_from_manifests_cannot_steer_the_terminal():
    evil = "a\x1b[31m\x07\u202ered\nnew [bold]line\x9b2J"
    text = printed(
        Transcribed(
            clip_id=["a"], said=["one"], recognised=["\x1b]0;x\x07"], columns={"corpus": [evil]}
        )
    )
    assert "[bold]line" in text.replace("\n", "")
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b", "\r"}
