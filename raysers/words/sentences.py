"""Spoken sentences of known sentiment and what models make of them, as arrays.

Sentences pair up by what they share besides the word that carries the sentiment: template, slot
and voice (with its `rate_wpm` and `pitch`, where a table has them) make a block. Words and blocks
are drawn with replacement, so that an interval covers other words and other templates or voices;
what there is only one of is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.errors import ConfigError
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.metrics import Floats
from raysers.seeding import generator
from raysers.types import DIMENSIONS, Status
from raysers.words.tokens import folded

SENTIMENTS = ("negative", "neutral", "positive")
#: Index of all sentences beside those of the three sentiments.
ALL_OF_THEM = len(SENTIMENTS)
#: Bins of ser-tests; the outer ones are open, and the upper edge belongs to a bin.
BIN_EDGES = (0.25, 0.5, 0.75)
BINS = ("0.00_0.25", "0.25_0.50", "0.50_0.75", "0.75_1.00")
_SPELLINGS = {"-1": "negative", "0": "neutral", "1": "positive"} | {s: s for s in SENTIMENTS}
_BLOCK = ("language", "template", "slot", "voice", "rate_wpm", "pitch")
#: Weights held at a time.
_CHUNK = 2_000_000


def _column(name: str, meaning: str, kind: pa.DataType | None = None) -> pa.Field:
    return pa.field(name, kind or pa.string(), metadata={"meaning": meaning})


#: Scores of spoken sentences, one sentence, voice and model a row.
SENTENCES = pa.schema(
    [
        _column("text", "the sentence"),
        _column("sentiment", "positive, neutral or negative"),
        _column("template", "what it was made from; null: written out"),
        _column("word", "the word in the template that carries the sentiment; null: unknown"),
        _column("slot", "what else fills the template; null: nothing"),
        _column("voice", "voice; its rate and pitch too, where they vary"),
        _column("language", "language of the sentence"),
        _column("clip_id", "the spoken clip"),
        *(_column(name, f"predicted {name}, about 0..1", pa.float32()) for name in DIMENSIONS),
        _column("model", "model that scored it"),
        _column("run_id", "run that wrote the row"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentences:
    """Sentences one model scored, in an order that does not depend on the table's.

    Attributes:
        text: what is said, [n].
        language: of each, [n]; empty: unknown.
        sentiment: index into `SENTIMENTS`, [n].
        scores: [n, 3]; NaN: none.
        word: number of the word with its sentiment, [n].
        block: number of what is shared across sentiments, [n].
        named_words: whether the words are known, or whole sentences stand for them.
    """

    text: Sequence[str]
    language: NDArray[np.object_]
    sentiment: NDArray[np.intp]
    scores: Floats
    word: NDArray[np.intp]
    block: NDArray[np.intp]
    named_words: bool

    def of(self, language: str) -> Sentences:
        """Those of one language."""
        rows = np.flatnonzero(self.language == language)
        return Sentences(
            text=[self.text[row] for row in rows.tolist()],
            language=self.language[rows],
            sentiment=self.sentiment[rows],
            scores=self.scores[rows],
            word=np.unique(self.word[rows], return_inverse=True)[1],
            block=np.unique(self.block[rows], return_inverse=True)[1],
            named_words=self.named_words,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Figures of the three sentiments and of all sentences (axis of 4), with their draws.

    `mean` [4, 3], `bins` [4, 3, 4] (share of the scores in each bin), `n` [4, 3]; with a first axis
    of draws in `drawn_mean` and `drawn_bins`.
    """

    mean: Floats
    bins: Floats
    n: NDArray[np.int64]
    drawn_mean: Floats
    drawn_bins: Floats


def by_model(table: pa.Table) -> Iterator[tuple[str, Sentences]]:
    """Sentences of every model of a table like `SENTENCES`, models in alphabetical order.

    Raises:
        ConfigError: a column is missing, or a sentiment is none of the three.
    """
    lacking = [n for n in ("text", "sentiment", *DIMENSIONS) if n not in table.column_names]
    if lacking:
        raise ConfigError(f"sentences need the columns text, sentiment, scores; lacking: {lacking}")
    if "status" in table.column_names:
        ok = [status == Status.OK for status in table["status"].to_pylist()]
        table = table.filter(pa.array(ok, pa.bool_()))
    models = np.array(_texts(table, "model"), object)
    for model in sorted(set(models.tolist())):
        yield model, _sentences(table.filter(pa.array(models == model)))


def means(sentences: Sentences, bootstrap: Bootstrap, key: Sequence[str]) -> Means:
    """Means and shares of the bins, and their bootstrap draws; `key` names the draws."""
    columns = _columns(sentences.scores)
    member = [sentences.sentiment == s for s in range(ALL_OF_THEM)]
    whole = np.stack([columns[rows].sum(axis=0) for rows in member])
    mean, bins, n = _figures(_with_all(whole))
    draws = bootstrap.draws if _drawable(sentences) else 0
    drawn = np.empty((draws, ALL_OF_THEM, columns.shape[1]))
    first = 0
    for weights in _weights(sentences, draws, generator(bootstrap.seed, "sentiment", *key)):
        for s, rows in enumerate(member):
            drawn[first : first + len(weights), s] = weights[:, rows] @ columns[rows]
        first += len(weights)
    drawn_mean, drawn_bins, _ = _figures(_with_all(drawn))
    return Means(
        mean=mean, bins=bins, n=n.astype(np.int64), drawn_mean=drawn_mean, drawn_bins=drawn_bins
    )


def _texts(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return [""] * len(table)
    return ["" if value is None else str(value) for value in table[name].to_pylist()]


def _sentences(table: pa.Table) -> Sentences:
    texts, words = _texts(table, "text"), _texts(table, "word")
    sentiments = [_sentiment(value) for value in _texts(table, "sentiment")]
    named = any(words)
    blocks = list(zip(*(_texts(table, name) for name in _BLOCK), strict=True))
    said = [
        (s, block[0], folded(word or text))
        for s, block, word, text in zip(sentiments, blocks, words, texts, strict=True)
    ]
    scores: Floats = np.stack(
        [table[n].to_numpy(zero_copy_only=False).astype(np.float64) for n in DIMENSIONS], axis=1
    )
    keys = list(zip(said, blocks, texts, scores.tolist(), strict=True))
    order = sorted(range(len(table)), key=lambda row: keys[row])
    return Sentences(
        text=[texts[row] for row in order],
        language=np.array([blocks[row][0] for row in order], object),
        sentiment=np.array([sentiments[row] for row in order], np.intp),
        scores=scores[order],
        word=_numbers([said[row] for row in order]),
        block=_numbers([blocks[row] for row in order]),
        named_words=named,
    )


def check_sentiments(values: Iterable[str | None]) -> None:
    """Raises ConfigError for the first that is not positive, neutral or negative."""
    for value in dict.fromkeys(values):
        _sentiment(value or "")


def _sentiment(value: str) -> int:
    name = _SPELLINGS.get(value.strip().lower())
    if name is None:
        raise ConfigError(f"--texts: sentiment {value!r}: it must be positive, neutral or negative")
    return SENTIMENTS.index(name)


def _numbers(names: Sequence[tuple[object, ...]]) -> NDArray[np.intp]:
    number = {name: i for i, name in enumerate(sorted(set(names), key=repr))}
    return np.array([number[name] for name in names], np.intp)


def _columns(scores: Floats) -> Floats:
    """What is summed: score, presence and one column for every bin, [n, 3 * 6]."""
    there = np.isfinite(scores)
    filled = np.where(there, scores, 0.0)
    place = np.searchsorted(BIN_EDGES, np.round(filled, 2), side="left")
    bins = (place[..., None] == np.arange(len(BINS))) & there[..., None]
    parts = [filled[..., None], there[..., None], bins]
    return np.concatenate(parts, axis=-1).astype(np.float64).reshape(len(scores), -1)


def _with_all(sums: Floats) -> Floats:
    return np.concatenate([sums, sums.sum(axis=-2, keepdims=True)], axis=-2)


def _figures(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Means [..., 4, 3], shares of bins [..., 4, 3, 4] and counts [..., 4, 3] from sums."""
    parts = sums.reshape(*sums.shape[:-1], len(DIMENSIONS), 2 + len(BINS))
    count = parts[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return parts[..., 0] / count, parts[..., 2:] / count[..., None], count


def _drawable(sentences: Sentences) -> bool:
    return _draws_words(sentences) or _draws_blocks(sentences)


def _draws_blocks(sentences: Sentences) -> bool:
    return len(set(sentences.block.tolist())) > 1


def _draws_words(sentences: Sentences) -> bool:
    """Every sentiment has several; whole sentences belong to their block, and are drawn with it."""
    if not sentences.named_words and _draws_blocks(sentences):
        return False
    pairs = set(zip(sentences.sentiment.tolist(), sentences.word.tolist(), strict=True))
    counts = np.bincount([s for s, _ in pairs], minlength=ALL_OF_THEM)
    return bool((counts[counts > 0] > 1).all())


def _weights(sentences: Sentences, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often every sentence is in each draw, [some draws, n]."""
    at_once = max(1, _CHUNK // max(len(sentences.text), 1))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        weights: Floats = np.ones((rows, len(sentences.text)))
        if _draws_blocks(sentences):
            weights *= _counts(sentences.block, rows, rng)
        if _draws_words(sentences):
            for s in range(ALL_OF_THEM):
                mine = np.flatnonzero(sentences.sentiment == s)
                if len(mine):
                    weights[:, mine] *= _counts(sentences.word[mine], rows, rng)
        yield weights


def _counts(unit: NDArray[np.intp], rows: int, rng: np.random.Generator) -> Floats:
    """How often the unit of every sentence is drawn, [rows, n]; as many units as there are."""
    names, place = np.unique(unit, return_inverse=True)
    size = len(names)
    counts = rng.multinomial(size, np.full(size, 1 / size), size=rows)
    return np.asarray(counts[:, place], np.float64)
