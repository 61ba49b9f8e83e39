"""Sentences made from templates and lists of words of known sentiment.

What a sentence is labelled with is the sentiment it states, not that of its word: a template with
`negates` turns positive into negative and back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pyarrow as pa

from raysers.data.files import parse_yaml
from raysers.errors import ConfigError, ObjectForbidden, ObjectMissing
from raysers.io import storage
from raysers.io.uris import suffix_of
from raysers.words.texts import without_repeats

SENTIMENTS = ("negative", "neutral", "positive")

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("sentiment", pa.string()),
        ("template", pa.string()),
        ("word", pa.string()),
        ("slot", pa.string()),
        ("language", pa.string()),
    ]
)

_NEGATED = {"positive": "negative", "negative": "positive"}
_SUFFIXES = (".yaml", ".yml")
_KEYS = {"language", "about", "templates", "words", "slots", "sentences"}
_TEMPLATE_KEYS = {"text", "words", "negates"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One pattern.

    Attributes:
        text: the sentence with `{word}` and at most one more `{slot}` in it.
        kind: which list of words fits it.
        negates: it says the opposite of its word; neutral words are left out.
    """

    text: str
    kind: str
    negates: bool


def template_names() -> list[str]:
    """What is built in, sorted."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in _folder().iterdir()
        if path.name.endswith(".yaml")
    )


def template_texts(name: str) -> pa.Table:
    """The sentences of a built-in name or a YAML file, with the schema `SCHEMA`.

    The file holds `language`, and `templates` with `words` (by kind, then by sentiment) and
    `slots`, or written-out `sentences` by sentiment, or both.

    Raises:
        ConfigError: unknown name, or a file that does not say what is needed.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    document = _load(name)
    if unknown := sorted(set(document) - _KEYS):
        raise ConfigError(f"--templates {name}: unknown key {unknown[0]!r}; known: {_some(_KEYS)}")
    rows = _in_turns([*_filled(name, document), *_written_out(name, document)])
    if not rows:
        raise ConfigError(f"--templates {name}: it makes no sentence: give templates or sentences")
    language = document.get("language")
    columns = {key: [row.get(key) for row in rows] for key in SCHEMA.names}
    columns["language"] = [None if language is None else str(language)] * len(rows)
    return without_repeats(pa.table(columns, schema=SCHEMA))


def _in_turns(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the sentiments alternating, so that the first few are of all of them."""
    by_sentiment = ([row for row in rows if row["sentiment"] == s] for s in SENTIMENTS)
    rounds = itertools.zip_longest(*by_sentiment)
    return [row for turn in rounds for row in turn if row is not None]


def _folder() -> Any:
    return resources.files("raysers").joinpath("assets", "templates")


def _load(name: str) -> Mapping[str, Any]:
    if suffix_of(name) in _SUFFIXES:
        try:
            text = storage.read_bytes(storage.absolute(name)).decode()
        except (ObjectMissing, ObjectForbidden, UnicodeDecodeError) as error:
            raise ConfigError(f"--templates {name}: {error}") from error
    elif name in template_names():
        text = _folder().joinpath(f"{name}.yaml").read_text("utf-8")
    else:
        raise ConfigError(
            f"--templates {name}: choose {', '.join(template_names())}, or name a .yaml file"
        )
    try:
        document = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"--templates {name} is no YAML: {error}") from error
    return _mapping(name, "the file", document)


def _filled(name: str, document: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    words = _mapping(name, "words", document.get("words") or {})
    slots = _mapping(name, "slots", document.get("slots") or {})
    for template in _templates(name, document):
        by_sentiment = _mapping(name, f"words of {template.kind!r}", words.get(template.kind))
        for sentiment, said in _by_sentiment(name, by_sentiment):
            stated = _NEGATED.get(sentiment) if template.negates else sentiment
            if stated is None:  # what a denied neutral word states is anybody's guess
                continue
            for word, (slot, filling) in itertools.product(said, _fillings(name, template, slots)):
                text = template.text.format_map({"word": word, slot: filling})
                yield {
                    "text": text[:1].upper() + text[1:] if " " in text else text,
                    "sentiment": stated,
                    "template": template.text,
                    "word": word,
                } | ({"slot": filling} if slot else {})


def _templates(name: str, document: Mapping[str, Any]) -> Iterator[Template]:
    for entry in _list(name, "templates", document.get("templates") or []):
        fields = {"text": entry} if isinstance(entry, str) else _mapping(name, "a template", entry)
        if unknown := sorted(set(fields) - _TEMPLATE_KEYS):
            raise ConfigError(f"--templates {name}: a template has the unknown key {unknown[0]!r}")
        text = fields.get("text")
        if not isinstance(text, str) or "{word}" not in text:
            raise ConfigError(f"--templates {name}: {text!r} has no {{word}} to fill in")
        yield Template(
            text=text, kind=str(fields.get("words", "any")), negates=bool(fields.get("negates"))
        )


def _fillings(name: str, template: Template, slots: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """(slot, what fills it) of every way to complete the template; one empty pair without slot."""
    if odd := [slot for slot in slots if not str(slot).isidentifier()]:
        raise ConfigError(f"--templates {name}: slot {odd[0]!r}: give it a plain name, like place")
    found = [slot for slot in slots if f"{{{slot}}}" in template.text]
    left = template.text.replace("{word}", "")
    for slot in found:
        left = left.replace(f"{{{slot}}}", "")
    if "{" in left or "}" in left or len(found) > 1:
        raise ConfigError(
            f"--templates {name}: {template.text!r} may have {{word}} and one of the slots"
        )
    return [(slot, filling) for slot in found for filling in _words(name, slot, slots[slot])] or [
        ("", "")
    ]


def _written_out(name: str, document: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    sentences = _mapping(name, "sentences", document.get("sentences") or {})
    for sentiment, said in _by_sentiment(name, sentences):
        yield from ({"text": text, "sentiment": sentiment} for text in said)


def _by_sentiment(name: str, lists: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    if unknown := sorted(set(lists) - set(SENTIMENTS)):
        raise ConfigError(
            f"--templates {name}: {unknown[0]!r} is no sentiment: {', '.join(SENTIMENTS)}"
        )
    for sentiment in SENTIMENTS:
        yield sentiment, _words(name, sentiment, lists.get(sentiment) or [])


def _words(name: str, where: str, values: Any) -> list[str]:
    words = _list(name, where, values)
    # YAML reads an unquoted no, off or 1 as something else than a word
    if odd := [word for word in words if not isinstance(word, str) or not word.strip()]:
        raise ConfigError(f"--templates {name}: {odd[0]!r} in {where} is no text: quote it")
    return words


def _mapping(name: str, what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"--templates {name}: {what} must be names with values, not {value!r}")
    return value


def _list(name: str, what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"--templates {name}: {what} must be a list, not {value!r}")
    return value


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names))
