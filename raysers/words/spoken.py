"""Scores of synthetic speech: sentences of known sentiment, and test clips spoken again (5.3).

Does the text move the scores (Figure 10b)? The voice is neutral, so sentiments differ in the text
alone. Sentences pair up by what they share besides the word that carries the sentiment: template,
slot and voice make a block. The bootstrap resamples words and blocks, so an interval covers other
words, templates and voices; what exists once stays fixed.

What remains of the scores when a neutral voice speaks a clip again (Figures 10c, 11)? A model that
uses the delivery alone gives all re-spoken clips about the same score, so its CCC with the labels
is 0; what stays above 0 comes from the text. Only clips that a model scored in both versions are
compared. A clip spoken by several voices has the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap, draw_metrics, drawn_counts, interval
from raysers.evaluation.correctness import comparison_rows
from raysers.evaluation.join import COLUMNS
from raysers.evaluation.rows import NAN, Row, dimension_rows, drawn_rows
from raysers.evaluation.scores import METRICS, Floats, Scores, Subset, base_subsets
from raysers.types import DIMENSIONS, Status, generator
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
#: The paper's valence of spoken sentences (its 24-layer w2v2-L-robust) by their words.
_PAPER = {("this", "is", "wonderful"): 0.816, ("this", "is", "stupid"): 0.137}
#: Bins of ser-tests; the outer ones are open, and the upper edge belongs to a bin.
_BIN_EDGES = (0.25, 0.5, 0.75)
_BINS = ("0.00_0.25", "0.25_0.50", "0.50_0.75", "0.75_1.00")
_BLOCK = ["language", "template", "slot", "voice"]
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


def sentiment_rows(table: pa.Table, *, dataset: str, bootstrap: Bootstrap) -> list[Row]:
    """Figures of every model for sentences of known sentiment, a table of `SENTENCES`.

    By `group` "sentiment": `sentiment_mean` of positive, neutral and negative; `mean_shift` of
    "positive - neutral", "negative - neutral", "positive - negative" and of each against all
    sentences; `bin_proportion_shift_<bin>` of each against all (scores rounded to 2 decimals). By
    "language", with two or more: `mean_shift` of "de, positive - all" and so on. By "text":
    `sentence_score`, the mean over voices of the sentences the paper names. Raises ConfigError: a
    sentiment is none of the three.
    """
    rows: list[Row] = []
    for model, sentences in by_model(table):
        cell = Subset(dataset=dataset, split="all", group="sentiment")
        rows += _shifts(cell, model, sentences, bootstrap)
        languages = sorted(set(sentences["language"]) - {""})
        for name in languages if len(languages) > 1 else ():
            own = sentences[sentences["language"] == name]
            rows += _shifts(replace(cell, group="language"), model, own, bootstrap, name)
        rows += _text_rows(replace(cell, group="text"), model, sentences)
    return rows


def by_model(table: pa.Table) -> Iterator[tuple[str, pd.DataFrame]]:
    """Models in alphabetical order with their sentences, in an order that does not vary.

    Nulls are empty texts, `sentiment` is the index into `SENTIMENTS`, `said` and `block` are
    numbers of the word and of the block. ConfigError: a sentiment is none of the three.
    """
    names = ["text", "sentiment", "word", "model", *_BLOCK]
    frame = table.select([*names, *_SCORES]).to_pandas()
    frame[names] = frame[names].astype(object).fillna("")
    frame[_SCORES] = frame[_SCORES].astype(np.float64)
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


def _shifts(
    cell: Subset, model: str, sentences: pd.DataFrame, how: Bootstrap, language: str = ""
) -> Iterator[Row]:
    """Means, their differences and those of bins; of one language the differences of means."""
    scores = sentences[_SCORES].to_numpy(np.float64)
    there = np.isfinite(scores)
    filled = np.where(there, scores, 0.0)
    place = np.searchsorted(_BIN_EDGES, np.round(filled, 2), side="left")
    bins = (place[..., None] == np.arange(len(_BINS))) & there[..., None]
    columns = np.concatenate([there[..., None], filled[..., None], bins], axis=-1)  # [n, 3, 6]
    member = sentences["sentiment"].to_numpy()[:, None] == np.arange(_ALL)
    each = (member[:, :, None, None] * columns[:, None]).reshape(len(scores), -1)

    def figures(weights: Floats) -> tuple[Floats, Floats]:
        """Scores [draws, 4, 3], and means and shares of the bins [draws, 4, 3, 5]."""
        sums = (weights @ each).reshape(len(weights), _ALL, *columns.shape[1:])
        sums = np.concatenate([sums, sums.sum(axis=1, keepdims=True)], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[..., 0], sums[..., 1:] / sums[..., :1]

    key = (how.seed, "sentiment", cell.dataset, cell.split, language)
    weights, units = _weights(sentences, how.draws, generator(*key))
    (n,), (found,) = figures(np.ones((1, len(scores))))
    _, drawn = figures(weights)
    sides = (_POSITIVE, _NEUTRAL, _NEGATIVE)
    wanted: list[tuple[str, int, int | None, int]] = []
    if not language:
        wanted += [("sentiment_mean", s, None, 0) for s in sides]
    wanted += [("mean_shift", one, other, 0) for one, other in _SHIFTS]
    if not language:
        wanted += [
            (f"bin_proportion_shift_{name}", s, _ALL, b)
            for s in sides
            for b, name in enumerate(_BINS, 1)
        ]
    for metric, one, other, column in wanted:
        value, of_draws, count = found[one, :, column], drawn[:, one, :, column], n[one]
        name = _NAMES[one]
        if other is not None:
            value, of_draws = value - found[other, :, column], of_draws - drawn[:, other, :, column]
            count = count + (0 if other == _ALL else n[other])
            name += f" - {_NAMES[other]}"
        own = replace(cell, group_value=f"{language}, {name}" if language else name)
        yield from _rows(own, model, metric, value, count, interval(of_draws, units))


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


def _text_rows(cell: Subset, model: str, sentences: pd.DataFrame) -> Iterator[Row]:
    said = sentences["text"].map(_said)
    for words, found in sentences[said.isin(_PAPER)].groupby(said, sort=False):
        own = replace(cell, group_value=found["text"].iloc[0].strip())
        mean, n = (found[_SCORES].agg(how).to_numpy(np.float64) for how in ("mean", "count"))
        for row in _rows(own, model, "sentence_score", mean, n):
            valence = row.dimension == "valence"
            yield replace(row, paper=_PAPER[words] if valence else NAN)


def _said(text: str) -> tuple[str, ...]:
    return tuple(folded(word) for word in tokens(text))


# clips spoken again

GROUP = "speech"
ORIGINAL, RESPOKEN_CLIP, LABELS = "original", "respoken", "labels"
DIFFERENCE, AGREEMENT = "respoken - original", "respoken, original"
#: Edges of the ten bins of the distributions; the outer bins are open.
_EDGES = np.arange(0.1, 0.95, 0.1)
#: Columns of the table: labels, then the scores of each version.
_OF = {"": "label of the original, 0..1"} | {
    f"_{version}": f"predicted for the {version} clip" for version in (ORIGINAL, RESPOKEN_CLIP)
}

#: Labels and both scores, one clip and model a row.
RESPOKEN = pa.schema(
    [
        described("clip_id", pa.string(), "the original clip"),
        described("model", pa.string(), "model that scored both"),
        *(
            described(f"{name}{suffix}", pa.float32(), f"{name} {meaning}")
            for suffix, meaning in _OF.items()
            for name in DIMENSIONS
        ),
        described("run_id", pa.string(), "run that wrote the row"),
    ]
)


def respoken_table(
    labels: pa.Table,
    originals: Mapping[str, pa.Table],
    respoken: Mapping[str, pa.Table],
    link: Mapping[str, str],
    run_id: str = "",
) -> pa.Table:
    """Labels and the scores of both versions by model, a table of `RESPOKEN`.

    `link` leads from re-spoken clips to originals. Rows that have a `status` and are not ok do not
    count. Raises ConfigError: no model scored a clip in both versions.
    """
    known = _frame(labels)
    tables = []
    for model, spoken in respoken.items():
        again = _scored(spoken).dropna()
        again = again.groupby(again.index.map(lambda clip: link.get(clip, ""))).mean()
        both = _scored(originals[model]).join(again, how="inner", rsuffix="_respoken")
        both = known.join(both, how="inner", rsuffix="_original").sort_index()
        for name in DIMENSIONS:
            scores = [f"{name}_{version}" for version in (ORIGINAL, RESPOKEN_CLIP)]
            both.loc[both[scores].isna().any(axis=1), scores] = np.nan
        both = both.dropna(how="all", subset=[f"{name}_respoken" for name in DIMENSIONS])
        tables.append(both.rename_axis("clip_id").reset_index().assign(model=model, run_id=run_id))
    if not sum(map(len, tables)):
        raise ConfigError("no clip has scores of both its original and its re-spoken speech")
    return pa.Table.from_pandas(pd.concat(tables), RESPOKEN, preserve_index=False)


def respoken_rows(table: pa.Table, clips: pa.Table, how: Bootstrap) -> list[Row]:
    """Figures of every model, subset and dimension with 95 % intervals, by `group` "speech".

    `group_value` says of what: "original" and "respoken" have `ccc`, `pearson`, `mae` with the
    labels, `mean` and `sd` ("labels" has the last two as well); "respoken - original" has
    `ccc_difference` and `mean_shift`; "respoken, original" compares the two scores of a clip by
    `ccc` and their distributions by `js_distance` (Jensen-Shannon, base 2, 0..1, ten bins). Two
    models' re-spoken scores are compared by `group` "model": `respoken_ccc_difference` and so on.
    `clips` has `clip_id` and `join.COLUMNS` of the originals, whose speakers are resampled.
    """
    frame = table.to_pandas()
    ids = pd.Index(sorted(set(frame["clip_id"])))
    about = clips.select(["clip_id", *(n for n in COLUMNS if n in clips.column_names)]).to_pylist()
    by_id = {row["clip_id"]: row for row in about}
    columns = {name: [by_id[i].get(name) for i in ids] for name in COLUMNS}

    def values(rows: pd.DataFrame, suffix: str) -> Floats:
        own = rows.set_index("clip_id")[[f"{name}{suffix}" for name in DIMENSIONS]]
        return np.asarray(own.reindex(ids).to_numpy(), np.float64)

    def scores(predictions: Mapping[str, Floats], truth: Floats) -> Scores:
        return Scores(clip_id=list(ids), truth=truth, predictions=predictions, columns=columns)

    truth = values(frame.drop_duplicates("clip_id"), "")
    models = list(frame.groupby("model", sort=False))
    second = {str(model): values(rows, "_respoken") for model, rows in models}
    found: list[Row] = []
    # a clip needs no label to be compared
    for cell in base_subsets(scores(second, np.zeros(truth.shape))):
        for model, rows in models:
            first, again = values(rows, "_original"), second[model]
            labelled = scores({ORIGINAL: first, RESPOKEN_CLIP: again}, truth)
            found += _against_labels(labelled, cell, model, how)
            found += _against_original(scores({model: again}, first), cell, model, how)
            found += _distributions(labelled, cell, model, how)
    compared = comparison_rows(scores(second, truth), how) if len(second) > 1 else []
    return found + [replace(row, metric=f"respoken_{row.metric}") for row in compared]


def _frame(table: pa.Table) -> pd.DataFrame:
    """The dimensions by clip id; NaN where there is none."""
    known = [name for name in ("clip_id", *DIMENSIONS) if name in table.column_names]
    frame = table.select(known).to_pandas().set_index("clip_id")
    return frame.reindex(columns=_SCORES).astype(np.float64)


def _scored(table: pa.Table) -> pd.DataFrame:
    """Scores by clip id; NaN where the clip failed. In order, so that sums do not vary."""
    frame = _frame(table)
    if "status" in table.column_names:
        frame[np.array(table["status"].to_pylist(), object) != str(Status.OK)] = np.nan
    return frame.sort_index()


def _part(cell: Subset, value: str) -> Subset:
    return replace(cell, group=GROUP, group_value=value)


def _against_labels(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    drawn = draw_metrics(scores, cell, list(scores.predictions.values()), how)
    n = scores.scored(RESPOKEN_CLIP, cell.rows).sum(axis=0)
    for metric in METRICS:
        before, after = drawn[metric][0], drawn[metric][1]
        found = [(ORIGINAL, metric, before), (RESPOKEN_CLIP, metric, after)]
        found += [(DIFFERENCE, "ccc_difference", after - before)] * (metric == "ccc")
        for of, name, figure in found:
            yield from drawn_rows(_part(cell, of), model, name, figure, n)


def _against_original(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    """The first score of a clip takes the place of its label."""
    drawn = draw_metrics(scores, cell, [scores.predictions[model]], how)
    n = scores.scored(model, cell.rows).sum(axis=0)
    for value, metric, of in ((AGREEMENT, "ccc", "ccc"), (DIFFERENCE, "mean_shift", "mean_error")):
        yield from drawn_rows(_part(cell, value), model, metric, drawn[of][0], n)


def _distributions(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    scored = np.isfinite(scores.predictions[ORIGINAL])
    sides = {LABELS: np.where(scored, scores.truth, np.nan), **scores.predictions}
    columns = np.stack([_binned(values[cell.rows]) for values in sides.values()], axis=1)
    sums, units = drawn_counts(scores, cell, columns.reshape(len(columns), -1), how)
    whole, drawn = columns.sum(axis=0), sums.reshape(-1, *columns.shape[1:])  # [3, 3, 13]
    n = whole[..., 0].astype(np.int64)
    of_whole, of_draws = (_mean_sd_distance(one) for one in (whole, drawn))
    for metric in ("mean", "sd"):
        low, high = interval(of_draws[metric], units)
        for s, side in enumerate(sides):
            value, bounds = of_whole[metric][s], (low[s], high[s])
            yield from dimension_rows(_part(cell, side), model, metric, value, n[s], bounds)
    name, bounds = "js_distance", interval(of_draws["js_distance"], units)
    yield from dimension_rows(_part(cell, AGREEMENT), model, name, of_whole[name], n[2], bounds)


def _binned(values: Floats) -> Floats:
    """Presence, value, square and ten bins, [n, 3] -> [n, 3, 13]; values about .5."""
    there = np.isfinite(values)
    near = np.where(there, values - 0.5, 0.0)
    place = np.searchsorted(_EDGES, values, side="right")[..., None]
    bins = (place == np.arange(len(_EDGES) + 1)) & there[..., None]
    return np.concatenate([np.stack([there, near, near**2], axis=-1), bins], axis=-1)


def _mean_sd_distance(sums: Floats) -> dict[str, Floats]:
    """Of sums of `_binned` [..., 3 sides, 3, 13]; `sd` is the population's."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums[..., 1] / sums[..., 0]
        variance = np.maximum(sums[..., 2] / sums[..., 0] - mean**2, 0)
        distance = jensenshannon(sums[..., 1, :, 3:], sums[..., 2, :, 3:], base=2, axis=-1)
    return {"mean": mean + 0.5, "sd": np.sqrt(variance), "js_distance": np.asarray(distance)}
