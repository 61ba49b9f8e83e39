"""Built-in sentences and those of one's own files."""

from __future__ import annotations

from collections import defaultdict

import pytest

from raysers.errors import ConfigError
from raysers.models.tts import espeak_voices
from raysers.words.templates import SCHEMA, SENTIMENTS, template_names, template_texts


@pytest.mark.parametrize("name", template_names())
def test_every_built_in_set_is_balanced_and_without_contradictions(name):
    rows = template_texts(name).to_pylist()
    by_sentiment = defaultdict(set)
    for row in rows:
        by_sentiment[row["sentiment"]].add(row["text"])
        assert row["text"] == row["text"].strip()
        assert "{" not in row["text"]
        assert row["word"] is None or row["word"].lower() in row["text"].lower()
    assert set(by_sentiment) <= set(SENTIMENTS)
    assert len(by_sentiment["positive"]) == len(by_sentiment["negative"]) >= 10
    assert sum(map(len, by_sentiment.values())) == len({row["text"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", template_names())
def test_every_built_in_language_can_be_spoken(name):
    pytest.importorskip("espeakng_loader")
    assert set(template_texts(name)["language"].to_pylist()) <= set(espeak_voices())


def test_negation_turns_the_sentiment_round():
    plain = {r["word"]: r["sentiment"] for r in template_texts("context").to_pylist()}
    for row in template_texts("negation").to_pylist():
        assert {plain[row["word"]], row["sentiment"]} == {"positive", "negative"}


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "language: de\n"
        "templates:\n"
        "  - '{word}'\n"
        "  - {text: 'der {ding} ist nicht {word}', words: other, negates: true}\n"
        "slots: {ding: [Hund, Tag]}\n"
        "words:\n"
        "  any: {positive: [gut]}\n"
        "  other: {negative: ['übel'], neutral: [rund]}\n"
        "sentences: {neutral: ['Es ist {3} Uhr.']}\n"
    )
    table = template_texts(str(path))
    assert table.schema == SCHEMA
    expected = [
        ("gut", "positive", "{word}", "gut", None),
        ("Der Hund ist nicht übel", "positive", "der {ding} ist nicht {word}", "übel", "Hund"),
        ("Der Tag ist nicht übel", "positive", "der {ding} ist nicht {word}", "übel", "Tag"),
        ("Es ist {3} Uhr.", "neutral", None, None, None),
    ]
    names = ("text", "sentiment", "template", "word", "slot")
    found = {tuple(row[n] for n in names) for row in table.to_pylist()}
    assert found == set(expected)
    assert len(table) == len(expected)
    assert set(table["language"].to_pylist()) == {"de"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: ['no place']", "no {word} to fill in"),
        ("templates: ['{word} {thing}']\nwords: {any: {positive: [a]}}", "one of the slots"),
        ("templates: ['{word!r}']\nwords: {any: {positive: [a]}}", "no {word}"),
        ("templates: ['{word}']\nwords: {any: {good: [a]}}", "'good' is no sentiment"),
        ("templates: ['{word}']\nwords: {any: {positive: [no]}}", "quote it"),
        ("templates: ['{word}']", "words of 'any'|makes no sentence"),
        (
            "templates: ['{word} {a.b}']\nslots: {a.b: [x]}\nwords: {any: {positive: [a]}}",
            "plain name",
        ),
        ('sentences: {positive: ["\\ud800"]}', "Unicode character escape"),
        ("sentence: {}", "unknown key 'sentence'"),
        ("[a, b]", "names with values"),
        ("a: [", "no YAML"),
        ("{}", "makes no sentence"),
    ],
)
def test_a_file_that_says_too_little_is_refused(tmp_path, content, message):
    path = tmp_path / "t.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        template_texts(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"this-is.*\.yaml"):
        template_texts("thisis")
