"""Do models hear what is said: scores of sentences by sentiment (section 5.3, Figure 10b).

The voice is neutral, so what differs between the sentiments is the words. ser-tests asks another
question of such scores, whether the shift is the same in every language, with separate limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.intervals import interval
from raysers.evaluation.metrics import Floats
from raysers.evaluation.rows import NAN, Row
from raysers.types import DIMENSIONS
from raysers.words.probe_numbers import paper_sentence, threshold
from raysers.words.sentences import ALL_OF_THEM, BINS, SENTIMENTS, Means, Sentences, by_model, means
from raysers.words.tokens import folded

_NEGATIVE, _NEUTRAL, _POSITIVE = range(ALL_OF_THEM)
#: Differences of two groups of sentences: sentiments, and each against all of them.
_SHIFTS = (
    (_POSITIVE, _NEUTRAL),
    (_NEGATIVE, _NEUTRAL),
    (_POSITIVE, _NEGATIVE),
    *((s, ALL_OF_THEM) for s in (_POSITIVE, _NEUTRAL, _NEGATIVE)),
)
_NAMES = (*SENTIMENTS, "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What rows are about, and the group of sentences they belong to."""

    model: str
    dataset: str
    split: str
    group: str
    prefix: str = ""

    def rows(
        self,
        metric: str,
        value: str,
        found: Floats,
        n: NDArray[np.int64],
        bounds: tuple[Floats, Floats] | None = None,
    ) -> Iterator[Row]:
        """A row for every dimension, arrays [3], where there are sentences and a figure."""
        low, high = bounds or (np.full(3, NAN), np.full(3, NAN))
        for d, dimension in enumerate(DIMENSIONS):
            if n[d] and np.isfinite(found[d]):
                yield Row(
                    model=self.model,
                    dataset=self.dataset,
                    split=self.split,
                    group=self.group,
                    group_value=self.prefix + value,
                    dimension=dimension,
                    metric=metric,
                    value=float(found[d]),
                    ci_low=float(low[d]),
                    ci_high=float(high[d]),
                    n=int(n[d]),
                    paper=paper_sentence(value, dimension) if self.group == "text" else NAN,
                )


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
        table: like `probe_sentences.SENTENCES`; only the texts, sentiments and scores are needed.
        dataset: named in the rows.
        split: named in the rows.
        bootstrap: draws and seed of the intervals.

    Raises:
        ConfigError: a column is missing, or a sentiment is none of the three.
    """
    how = bootstrap or Bootstrap()
    rows: list[Row] = []
    for model, sentences in by_model(table):
        place = _Place(model=model, dataset=dataset, split=split, group="sentiment")
        rows += _overall_rows(place, means(sentences, how, (dataset, split, "")))
        rows += _language_rows(place, sentences, how)
        rows += _text_rows(place, sentences)
    return rows


def _overall_rows(place: _Place, found: Means) -> Iterator[Row]:
    low, high = interval(found.drawn_mean)
    for s in (_POSITIVE, _NEUTRAL, _NEGATIVE):
        bounds = low[s], high[s]
        yield from place.rows("sentiment_mean", _NAMES[s], found.mean[s], found.n[s], bounds)
    yield from _shift_rows(place, found, _SHIFTS)
    for s in (_POSITIVE, _NEUTRAL, _NEGATIVE):
        shift, drawn = (_against_all(of, s) for of in (found.bins, found.drawn_bins))
        low, high = interval(drawn)
        for b, name in enumerate(BINS):
            metric, bounds = f"bin_proportion_shift_{name}", (low[:, b], high[:, b])
            yield from place.rows(metric, _shift_name(s), shift[:, b], found.n[s], bounds)


def _shift_rows(place: _Place, found: Means, shifts: Sequence[tuple[int, int]]) -> Iterator[Row]:
    for one, other in shifts:
        n = found.n[one] + np.where(other == ALL_OF_THEM, 0, found.n[other])
        bounds = interval(found.drawn_mean[:, one] - found.drawn_mean[:, other])
        shift = found.mean[one] - found.mean[other]
        yield from place.rows("mean_shift", _shift_name(one, other), shift, n, bounds)


def _shift_name(one: int, other: int = ALL_OF_THEM) -> str:
    return f"{_NAMES[one]} - {_NAMES[other]}"


def _against_all(bins: Floats, sentiment: int) -> Floats:
    """Share of every bin among a sentiment minus that among all, [..., 4, 3, 4] -> [..., 3, 4]."""
    return np.asarray(bins[..., sentiment, :, :] - bins[..., ALL_OF_THEM, :, :], np.float64)


def _language_rows(place: _Place, sentences: Sentences, how: Bootstrap) -> Iterator[Row]:
    languages = sorted(set(sentences.language.tolist()) - {""})
    if len(languages) < 2:
        return
    found = {
        name: means(sentences.of(name), how, (place.dataset, place.split, name))
        for name in languages
    }
    for name in languages:
        of = _Place(
            model=place.model,
            dataset=place.dataset,
            split=place.split,
            group="language",
            prefix=f"{name}, ",
        )
        yield from _shift_rows(of, found[name], _SHIFTS)
        for s in (_POSITIVE, _NEUTRAL, _NEGATIVE):
            yield from _difference_rows(of, found, name, s)


def _difference_rows(
    place: _Place, found: Mapping[str, Means], language: str, s: int
) -> Iterator[Row]:
    mine = found[language]
    shifts, drawn = (
        np.stack([of[..., s, :] - of[..., ALL_OF_THEM, :] for of in parts])
        for parts in (
            [f.mean for f in found.values()],
            _equal_draws([f.drawn_mean for f in found.values()]),
        )
    )
    own = list(found).index(language)
    bounds = interval(drawn[own] - drawn.mean(axis=0))
    difference = shifts[own] - shifts.mean(axis=0)
    metric = "mean_shift_difference"
    yield from place.rows(metric, _NAMES[s], difference, mine.n[s], bounds)
    yield from _passed(place, metric, s, difference, mine.n[s], threshold(metric))
    bins = np.stack([_against_all(f.bins, s) for f in found.values()])
    total = np.sum([np.nan_to_num(f.bins[s] * f.n[s][:, None]) for f in found.values()], axis=0)
    enough = np.round(total) >= threshold("fewest_in_bin")
    shift = np.where(enough, bins[own] - bins.mean(axis=0), np.nan)
    metric = "bin_proportion_shift_difference"
    for b, name in enumerate(BINS):
        yield from place.rows(f"{metric}_{name}", _NAMES[s], shift[:, b], mine.n[s])
        limit = threshold(metric)
        yield from _passed(place, f"{metric}_{name}", s, shift[:, b], mine.n[s], limit)


def _equal_draws(drawn: Sequence[Floats]) -> list[Floats]:
    """As many draws of every language; none when one of them cannot be drawn."""
    fewest = min(len(of) for of in drawn)
    return [of[:fewest] for of in drawn]


def _passed(
    place: _Place, metric: str, s: int, difference: Floats, n: NDArray[np.int64], limit: float
) -> Iterator[Row]:
    within = np.abs(np.round(difference, 2)) < limit
    value = np.where(np.isfinite(difference), within.astype(np.float64), np.nan)
    yield from place.rows(f"{metric}_passed", _NAMES[s], value, n)


def _text_rows(place: _Place, sentences: Sentences) -> Iterator[Row]:
    named = [np.isfinite(paper_sentence(text, "valence")) for text in sentences.text]
    by_text: dict[str, list[int]] = {}
    for row in np.flatnonzero(named).tolist():
        by_text.setdefault(folded(sentences.text[row].strip()), []).append(row)
    of = _Place(model=place.model, dataset=place.dataset, split=place.split, group="text")
    for rows in by_text.values():
        scores = sentences.scores[rows]
        there = np.isfinite(scores)
        total = np.where(there, scores, 0.0).sum(axis=0)
        n = there.sum(axis=0)
        mean = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        yield from of.rows("sentence_score", sentences.text[rows[0]].strip(), mean, n)
