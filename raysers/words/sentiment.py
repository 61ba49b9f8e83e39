"""Spoken sentences of known sentiment: does the text move the scores? (section 5.3, Figure 10b).

The voice is neutral, so sentiments differ in the text alone. Sentences pair up by what they share
besides the word that carries the sentiment: template, slot and voice make a block. The bootstrap
resamples words and blocks, so an interval covers other words, templates and voices; what exists
once stays fixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap, interval
from raysers.evaluation.metrics import Floats
from raysers.evaluation.published import paper_model, paper_numbers
from raysers.evaluation.rows import NAN, Row, dimension_rows
from raysers.evaluation.scores import Subset
from raysers.seeding import generator
from raysers.types import DIMENSIONS, Status
from raysers.words.ratings import described, folded, tokens

SENTIMENTS = ("negative", "neutral", "positive")
_NEGATIVE, _NEUTRAL, _POSITIVE, _ALL = range(4)
_NAMES = (*SENTIMENTS, "all")
_SPELLINGS = {"-1": "negative", "0": "neutral", "1": "positive"} | {s: s for s in SENTIMENTS}
#: Differences of two groups of sentences: sentiments, and each against all of them.
_SHIFTS = (
    (_POSITIVE, _NEUTRAL),
    (_NEGATIVE, _NEUTRAL),
    (_POSITIVE, _NEGATIVE),
    (_POSITIVE, _ALL),
    (_NEUTRAL, _ALL),
    (_NEGATIVE, _ALL),
)
#: Bins of ser-tests; the outer ones are open, and the upper edge belongs to a bin.
_EDGES = (0.25, 0.5, 0.75)
_BINS = ("0.00_0.25", "0.25_0.50", "0.50_0.75", "0.75_1.00")
_BLOCK = ["language", "template", "slot", "voice", "rate_wpm", "pitch"]
_SCORES = list(DIMENSIONS)

#: Scores of spoken sentences, one sentence, voice and model a row.
SENTENCES = pa.schema(
    [
        described("text", pa.string(), "the sentence"),
        described("sentiment", pa.string(), "positive, neutral or negative"),
        described("template", pa.string(), "template of the sentence; null: written out"),
        described("word", pa.string(), "word that carries the sentiment; null: unknown"),
        described("slot", pa.string(), "what else fills the template; null: nothing"),
        described("voice", pa.string(), "voice; its rate and pitch too, where they vary"),
        described("language", pa.string(), "language of the sentence"),
        described("clip_id", pa.string(), "the spoken clip"),
        *(described(name, pa.float32(), f"predicted {name}, about 0..1") for name in DIMENSIONS),
        described("model", pa.string(), "model that scored it"),
        described("run_id", pa.string(), "run that wrote the row"),
    ]
)


@dataclass(frozen=True, slots=True)
class _Figures:
    """Of the three sentiments and of all sentences; leading axes are bootstrap draws.

    `mean` [..., 4, 3], `bins` [..., 4, 3, 4] (share of the scores in each bin), `n` [..., 4, 3];
    `units`: how many were drawn.
    """

    mean: Floats
    bins: Floats
    n: Floats
    units: int = 0

    def bin_shift(self, s: int) -> Floats:
        """Share of every bin among a sentiment minus that among all, [..., 3, 4]."""
        return np.asarray(self.bins[..., s, :, :] - self.bins[..., _ALL, :, :], np.float64)


def sentiment_rows(
    table: pa.Table, *, dataset: str, split: str = "all", bootstrap: Bootstrap | None = None
) -> list[Row]:
    """Figures of every model for sentences of known sentiment.

    By `group` "sentiment": `sentiment_mean` of positive, neutral and negative; `mean_shift` of
    "positive - neutral", "negative - neutral", "positive - negative" and of each against all
    sentences; `bin_proportion_shift_<bin>` of each against all (scores rounded to 2 decimals).

    By "language", with two or more: `mean_shift` of "de, positive - all" and so on, and ser-tests'
    `mean_shift_difference` and `bin_proportion_shift_difference_<bin>` of "de, positive" (the shift
    minus the mean shift of all languages; bins with fewer than 67 scores over all languages are
    left out), each with `..._passed`, 1 where it is within the limit (.025, .075), else 0.

    By "text": `sentence_score`, the mean over voices of the sentences the paper names.

    Args:
        table: like `SENTENCES`; only texts, sentiments and scores are needed.
        dataset: written into the rows.
        split: written into the rows.
        bootstrap: draws and seed of the intervals.

    Raises:
        ConfigError: a column is missing, or a sentiment is none of the three.
    """
    how = bootstrap or Bootstrap()
    rows: list[Row] = []
    for model, sentences in by_model(table):
        whole = Subset(dataset=dataset, split=split, group="sentiment", rows=np.arange(0))
        rows += _overall_rows(whole, model, *_figures(sentences, how, (dataset, split, "")))
        rows += _language_rows(replace(whole, group="language"), model, sentences, how)
        rows += _text_rows(replace(whole, group="text"), model, sentences)
    return rows


def by_model(table: pa.Table) -> Iterator[tuple[str, pd.DataFrame]]:
    """Scored sentences of every model, models in alphabetical order.

    Returns:
        Model and frame: the columns of `table`, empty texts for nulls; `sentiment` is the index
        into `SENTIMENTS`, `said` and `block` are numbers of the word and of the block. Its order
        does not depend on the table's.

    Raises:
        ConfigError: a column is missing, or a sentiment is none of the three.
    """
    if lacking := [n for n in ("text", "sentiment", *_SCORES) if n not in table.column_names]:
        raise ConfigError(f"sentences need the columns text, sentiment, scores; lacking: {lacking}")
    texts = {
        name: ["" if v is None else str(v) for v in table[name].to_pylist()]
        if name in table.column_names
        else ""
        for name in ("text", "sentiment", "word", "model", *_BLOCK)
    }
    frame = pd.DataFrame(texts).astype(object)
    frame[_SCORES] = table.select(_SCORES).to_pandas().astype(np.float64)
    if "status" in table.column_names:
        frame = frame[np.array(table["status"].to_pylist(), object) == str(Status.OK)]
    frame["sentiment"] = frame["sentiment"].map(_sentiment)
    frame["said"] = [folded(w or t) for w, t in zip(frame["word"], frame["text"], strict=True)]
    order = ["sentiment", "language", "said", *_BLOCK[1:], "text", *_SCORES]
    for model, own in frame.sort_values(order).groupby("model"):
        numbered = own.reset_index(drop=True)
        numbered["said"] = numbered.groupby(["sentiment", "language", "said"]).ngroup()
        numbered["block"] = numbered.groupby(_BLOCK).ngroup()
        yield str(model), numbered


def check_sentiments(values: Iterable[str | None]) -> None:
    """Raises ConfigError for the first that is not positive, neutral or negative."""
    for value in dict.fromkeys(values):
        _sentiment(value or "")


def _sentiment(value: str) -> int:
    name = _SPELLINGS.get(value.strip().lower())
    if name is None:
        raise ConfigError(f"--texts: sentiment {value!r}: it must be positive, neutral or negative")
    return SENTIMENTS.index(name)


def _figures(
    sentences: pd.DataFrame, how: Bootstrap, key: tuple[str, ...]
) -> tuple[_Figures, _Figures]:
    """Figures of the sentences, and of their bootstrap draws, which `key` names."""
    scores = sentences[_SCORES].to_numpy(np.float64)
    there = np.isfinite(scores)
    filled = np.where(there, scores, 0.0)
    place = np.searchsorted(_EDGES, np.round(filled, 2), side="left")
    bins = (place[..., None] == np.arange(len(_BINS))) & there[..., None]
    columns = np.concatenate([filled[..., None], there[..., None], bins], axis=-1)  # [n, 3, 6]
    member = sentences["sentiment"].to_numpy()[:, None] == np.arange(_ALL)
    parted = (member[:, :, None, None] * columns[:, None]).reshape(len(scores), -1)

    def of(weights: Floats) -> _Figures:
        sums = (weights @ parted).reshape(len(weights), _ALL, *columns.shape[1:])
        sums = np.concatenate([sums, sums.sum(axis=1, keepdims=True)], axis=1)
        count = sums[..., 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return _Figures(sums[..., 0] / count, sums[..., 2:] / count[..., None], count)

    one = of(np.ones((1, len(scores))))
    weights, units = _weights(sentences, how.draws, generator(how.seed, "sentiment", *key))
    return _Figures(one.mean[0], one.bins[0], one.n[0]), replace(of(weights), units=units)


def _weights(sentences: pd.DataFrame, draws: int, rng: np.random.Generator) -> tuple[Floats, int]:
    """How often every sentence is in each draw, [draws, n]; no draws when nothing varies.

    Also how many words of a sentiment are drawn, at least, or else how many voices.
    """
    sentiment, said = sentences["sentiment"].to_numpy(), sentences["said"].to_numpy()
    blocks = sentences["block"].nunique() > 1
    # whole sentences belong to their block, and are drawn with it
    words = not blocks or bool(sentences["word"].any())
    words_of = sentences.groupby("sentiment")["said"].nunique()
    words = words and bool((words_of > 1).all())
    weights: Floats = np.ones((draws if blocks or words else 0, len(sentences)))
    if blocks:
        weights *= _times_drawn(sentences["block"].to_numpy(), len(weights), rng)
    for s in range(_ALL) if words else ():
        mine = np.flatnonzero(sentiment == s)
        if len(mine):
            weights[:, mine] *= _times_drawn(said[mine], len(weights), rng)
    return weights, int(words_of.min()) if words else sentences["block"].nunique()


def _times_drawn(unit: NDArray[np.intp], draws: int, rng: np.random.Generator) -> Floats:
    """How often the unit of every sentence is drawn, [draws, n]; as many units as there are."""
    names, place = np.unique(unit, return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.asarray(counts[:, place], np.float64)


def _rows(
    cell: Subset,
    model: str,
    metric: str,
    value: Floats,
    n: Floats,
    bounds: tuple[Floats, Floats] | None = None,
) -> Iterator[Row]:
    """A row for every dimension with sentences and a defined figure, arrays [3]."""
    for row in dimension_rows(cell, model, metric, value, n.astype(np.int64), bounds):
        if np.isfinite(row.value):
            yield row


def _overall_rows(cell: Subset, model: str, found: _Figures, drawn: _Figures) -> Iterator[Row]:
    low, high = interval(drawn.mean, drawn.units)
    for s in (_POSITIVE, _NEUTRAL, _NEGATIVE):
        own = replace(cell, group_value=_NAMES[s])
        yield from _rows(own, model, "sentiment_mean", found.mean[s], found.n[s], (low[s], high[s]))
    yield from _shift_rows(cell, model, found, drawn)
    for s in (_POSITIVE, _NEUTRAL, _NEGATIVE):
        own = replace(cell, group_value=f"{_NAMES[s]} - all")
        low, high = interval(drawn.bin_shift(s), drawn.units)
        for b, name in enumerate(_BINS):
            value, metric = found.bin_shift(s)[:, b], f"bin_proportion_shift_{name}"
            yield from _rows(own, model, metric, value, found.n[s], (low[:, b], high[:, b]))


def _shift_rows(
    cell: Subset, model: str, found: _Figures, drawn: _Figures, prefix: str = ""
) -> Iterator[Row]:
    for one, other in _SHIFTS:
        own = replace(cell, group_value=f"{prefix}{_NAMES[one]} - {_NAMES[other]}")
        n = found.n[one] + (0 if other == _ALL else found.n[other])
        bounds = interval(drawn.mean[:, one] - drawn.mean[:, other], drawn.units)
        shift = found.mean[one] - found.mean[other]
        yield from _rows(own, model, "mean_shift", shift, n, bounds)


def _language_rows(
    cell: Subset, model: str, sentences: pd.DataFrame, how: Bootstrap
) -> Iterator[Row]:
    languages = sorted(set(sentences["language"]) - {""})
    if len(languages) < 2:
        return
    found = {
        name: _figures(
            sentences[sentences["language"] == name], how, (cell.dataset, cell.split, name)
        )
        for name in languages
    }
    shared = min(len(drawn.mean) for _, drawn in found.values())
    for number, name in enumerate(languages):
        figures, drawn = found[name]
        yield from _shift_rows(cell, model, figures, drawn, f"{name}, ")
        for s in (_POSITIVE, _NEUTRAL, _NEGATIVE):
            own = replace(cell, group_value=f"{name}, {_NAMES[s]}")
            shifts = np.stack([f.mean[s] - f.mean[_ALL] for f, _ in found.values()])
            of_draws = np.stack(
                [(d.mean[:, s] - d.mean[:, _ALL])[:shared] for _, d in found.values()]
            )
            units = min(d.units for _, d in found.values())
            bounds = interval(of_draws[number] - of_draws.mean(axis=0), units)
            off, metric = shifts[number] - shifts.mean(axis=0), "mean_shift_difference"
            yield from _rows(own, model, metric, off, figures.n[s], bounds)
            yield from _passed(own, model, metric, off, figures.n[s], threshold(metric))
            bins = np.stack([f.bin_shift(s) for f, _ in found.values()])
            total = sum(np.nan_to_num(f.bins[s] * f.n[s][:, None]) for f, _ in found.values())
            enough = np.round(total) >= threshold("fewest_in_bin")
            bin_off = np.where(enough, bins[number] - bins.mean(axis=0), np.nan)
            limit = threshold("bin_proportion_shift_difference")
            for b, bin_name in enumerate(_BINS):
                metric = f"bin_proportion_shift_difference_{bin_name}"
                yield from _rows(own, model, metric, bin_off[:, b], figures.n[s])
                yield from _passed(own, model, metric, bin_off[:, b], figures.n[s], limit)


def _passed(
    cell: Subset, model: str, metric: str, off: Floats, n: Floats, limit: float
) -> Iterator[Row]:
    within = np.where(np.isfinite(off), np.abs(np.round(off, 2)) < limit, np.nan)
    yield from _rows(cell, model, f"{metric}_passed", within.astype(np.float64), n)


def _text_rows(cell: Subset, model: str, sentences: pd.DataFrame) -> Iterator[Row]:
    named = sentences[[np.isfinite(paper_sentence(t, "valence")) for t in sentences["text"]]]
    same = named["text"].map(lambda text: folded(text.strip()))
    for _, found in named.groupby(same, sort=False):
        text = found["text"].iloc[0].strip()
        scores = found[_SCORES]
        mean, n = scores.mean().to_numpy(), scores.count().to_numpy(np.float64)
        own = replace(cell, group_value=text)
        for row in _rows(own, model, "sentence_score", mean, n):
            yield replace(row, paper=paper_sentence(text, row.dimension))


@cache
def _document() -> Mapping[str, Any]:
    text = resources.files("raysers").joinpath("assets/probe_numbers.json").read_text("utf-8")
    document: Mapping[str, Any] = json.loads(text)
    return document


def threshold(name: str) -> float:
    """ser-tests' limit of a difference between languages, or the fewest sentences of a bin."""
    return float(_document()["thresholds"][name])


def paper_sentence(text: str, dimension: str) -> float:
    """The paper's valence of a spoken sentence (its 24-layer w2v2-L-robust); NaN if none.

    >>> paper_sentence("this is wonderful", "valence")
    0.816
    """

    def words(text: str) -> list[str]:
        return [folded(word) for word in tokens(text)]

    known = _document()["paper"]["sentences"].items() if dimension == "valence" else ()
    return next((float(value) for name, value in known if words(name) == words(text)), NAN)


def ser_tests_shift(
    sentiment: str, dimension: str, *, language: str = "en", model: str = "", what: str = "shift"
) -> float:
    """Published mean of a sentiment minus mean of all sentences of the language.

    Args:
        sentiment: positive, neutral or negative.
        dimension: one of the three.
        language: de, en, es, fr, it, ja, pt or zh.
        model: as in a result; empty, or one unknown to ser-tests: mean of the paper's eight.
        what: `shift`, or `difference` from the mean shift of the eight languages.

    Returns:
        The figure, to 2 decimals for a single model; NaN where ser-tests has none.
    """
    wanted = (language, sentiment, dimension)
    rows = _document()["ser_tests"]
    of = next((r for r in rows if (r["language"], r["sentiment"], r["dimension"]) == wanted), None)
    if of is None:
        return NAN
    mine = paper_model(model) if model else ""
    names = [mine] if mine in of[what] else list(paper_numbers().models.values())
    values = [of[what][name] for name in names if name in of[what]]
    return fmean(values) if values else NAN
