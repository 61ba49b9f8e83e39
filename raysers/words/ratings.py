"""How the words of a corpus are rated: mean scores of the clips they are said in (section 5.3).

The paper asks for words with "10 occurrences" or more, so a word counts as often as it is said: a
clip that says it twice counts twice, in the number and in the mean. `once_per_clip` counts clips
instead. Speakers are drawn for the intervals, so a word only one person says has none.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.errors import ConfigError
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.intervals import interval, resample, resampling_units
from raysers.evaluation.metrics import Floats
from raysers.evaluation.rows import Row
from raysers.seeding import generator
from raysers.types import DIMENSIONS, Status
from raysers.words.probe_numbers import paper_transcribed
from raysers.words.tokens import folded, tokens

#: Section 5.3: how often a word must be said, and how many of each end are shown.
LEAST, MOST = 10, 50
_VALENCE = DIMENSIONS.index("valence")
#: The column that has the interval of a dimension; valence, which ranks, has the plain names.
_BOUNDS = {
    name: ("ci_low", "ci_high") if name == "valence" else (f"{name}_ci_low", f"{name}_ci_high")
    for name in DIMENSIONS
}


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning})


def _rating_columns(name: str) -> list[pa.Field]:
    low, high = _BOUNDS[name]
    return [
        _column(name, pa.float64(), f"mean {name} over the occurrences"),
        _column(low, pa.float64(), f"lower end of its 95 % interval ({name}); null: none"),
        _column(high, pa.float64(), f"upper end of its 95 % interval ({name}); null: none"),
    ]


#: Words by rating, one a row.
WORDS = pa.schema(
    [
        _column("word", pa.string(), "word in lower case, as it is mostly written"),
        _column("occurrences", pa.int64(), "how often it is said in clips with a valence"),
        _column("clips", pa.int64(), "in how many of them"),
        *_rating_columns("valence"),
        *_rating_columns("arousal"),
        *_rating_columns("dominance"),
        _column("corpus_valence", pa.float64(), "mean valence over all clips with words"),
        _column("side", pa.string(), "low or high: among the lowest or highest; else empty"),
        _column("rank", pa.int64(), "1 is the lowest or highest of its side; 0: on no side"),
        _column("source", pa.string(), "labels, or the model whose predictions were averaged"),
        _column("run_id", pa.string(), "run that wrote the row"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corpus:
    """Clips with words and a score: values [n, 3], unit of each clip [n], words of each."""

    values: Floats
    unit: NDArray[np.intp]
    words: Sequence[Sequence[str]]


def word_ratings(
    table: pa.Table,
    *,
    source: str = "labels",
    least: int = LEAST,
    most: int = MOST,
    once_per_clip: bool = False,
    bootstrap: Bootstrap | None = None,
    run_id: str = "",
) -> pa.Table:
    """Words that are said often enough, with their mean scores, by valence from low to high.

    Args:
        table: one clip a row: `transcript`, `valence` and, where there are, `arousal`,
            `dominance` (0..1, labels or predictions), `speaker`, `clip_id`, `status`.
        source: named in the table: `labels`, or the model.
        least: occurrences a word needs.
        most: words at each end that get a `side` and a `rank`; none is on both sides.
        once_per_clip: count a word once in every clip that says it.
        bootstrap: draws and seed of the intervals.
        run_id: named in the table.

    Returns:
        A table of `WORDS`; the order of the rows given does not matter.

    Raises:
        ConfigError: no transcripts, or none in a clip with a valence.
    """
    corpus = _corpus(table)
    said = _occurrences(corpus.words, once_per_clip=once_per_clip)
    frequent = {word: rows for word, rows in said.items() if len(rows) >= least}
    names = _shown(corpus.words)
    how = bootstrap or Bootstrap()
    rated = {
        word: (_means(corpus.values[rows]), *_bounds(corpus, rows, word, how))
        for word, rows in frequent.items()
    }
    order = sorted(rated, key=lambda word: (rated[word][0][_VALENCE], word))
    middle = float(corpus.values[:, _VALENCE].mean())
    sides = _sides([float(rated[word][0][_VALENCE]) for word in order], middle, most)
    return _table(
        {
            "word": [names[word] for word in order],
            "occurrences": [len(frequent[word]) for word in order],
            "clips": [len(set(frequent[word].tolist())) for word in order],
            **_rating_values([rated[word] for word in order]),
            "corpus_valence": [middle] * len(order),
            "side": [side for side, _ in sides],
            "rank": [rank for _, rank in sides],
            "source": [source] * len(order),
            "run_id": [run_id] * len(order),
        }
    )


def word_rows(words: pa.Table, *, dataset: str, split: str = "all") -> list[Row]:
    """Rows of the metrics table for the words of both sides: `word_mean` by `group` "word".

    `model` is the table's `source`, `n` the number of occurrences. For figures of all words there
    is the table itself.
    """
    return [
        Row(
            model=word["source"],
            dataset=dataset,
            split=split,
            group="word",
            group_value=word["word"],
            dimension=name,
            metric="word_mean",
            value=_number(word[name]),
            ci_low=_number(word[_BOUNDS[name][0]]),
            ci_high=_number(word[_BOUNDS[name][1]]),
            n=word["occurrences"],
        )
        for word in words.to_pylist()
        if word["side"]
        for name in DIMENSIONS
        if word[name] is not None
    ]


def transcribed_row(table: pa.Table, *, dataset: str, split: str = "all") -> Row:
    """`transcribed_share`: how many of the clips have words; .55 of the paper's test-1."""
    texts = table["transcript"].to_pylist() if "transcript" in table.column_names else []
    spoken = sum(1 for text in texts if text and tokens(text))
    return Row(
        model="transcripts",
        dataset=dataset,
        split=split,
        dimension="mean",
        metric="transcribed_share",
        value=spoken / len(table) if len(table) else math.nan,
        n=len(table),
        paper=paper_transcribed(dataset, split),
    )


def _corpus(table: pa.Table) -> _Corpus:
    if "transcript" not in table.column_names:
        raise ConfigError("--data: word ratings need a column transcript, which no clip has")
    texts = [text or "" for text in table["transcript"].to_pylist()]
    values = _scores(table)
    words = [tokens(text) for text in texts]
    there = np.isfinite(values[:, _VALENCE]) & np.array([bool(found) for found in words], bool)
    if not there.any():
        spoken = sum(map(bool, words))
        raise ConfigError(
            f"--data: {spoken:,} of {len(table):,} clips have words and none of these a valence: "
            "word ratings need both in the same clip"
        )
    ids = _ids(table, texts, values)
    # in the order of the ids, so that sums do not depend on the order of the rows
    rows = sorted(np.flatnonzero(there).tolist(), key=lambda row: ids[row])
    known = "speaker" in table.column_names
    speakers = table["speaker"].to_pylist() if known else [None] * len(table)
    unit, _ = resampling_units([speakers[row] for row in rows], [ids[row] for row in rows])
    return _Corpus(values=values[rows], unit=unit, words=[words[row] for row in rows])


def _scores(table: pa.Table) -> Floats:
    values: Floats = np.full((len(table), len(DIMENSIONS)), np.nan)
    for d, name in enumerate(DIMENSIONS):
        if name in table.column_names:
            values[:, d] = table[name].to_numpy(zero_copy_only=False)
    if "status" in table.column_names:
        ok = np.array([status == Status.OK for status in table["status"].to_pylist()], bool)
        values[~ok] = np.nan
    return values


def _ids(table: pa.Table, texts: Sequence[str], values: Floats) -> list[str]:
    """Identity of every row: its clip's, else what it says; the same again is another one."""
    if "clip_id" in table.column_names:
        names = [str(name) for name in table["clip_id"].to_pylist()]
    else:
        names = [f"{text}\0{row}" for text, row in zip(texts, values.tolist(), strict=True)]
    seen: Counter[str] = Counter()
    ids = []
    for name in names:
        ids.append(f"{name}\0{seen[name]}")
        seen[name] += 1
    return ids


def _occurrences(
    words: Sequence[Sequence[str]], *, once_per_clip: bool
) -> dict[str, NDArray[np.intp]]:
    """Rows each word is said in, as often as it is said there."""
    said: dict[str, list[int]] = defaultdict(list)
    for row, found in enumerate(words):
        keys = [folded(word) for word in found]
        for key in sorted(set(keys)) if once_per_clip else keys:
            said[key].append(row)
    return {word: np.array(rows, np.intp) for word, rows in said.items()}


def _shown(words: Sequence[Sequence[str]]) -> dict[str, str]:
    """The spelling most used of every word; of equals the first in the alphabet."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for word, times in Counter(word for found in words for word in found).items():
        spellings[folded(word)][word] += times
    return {key: min(of, key=lambda word: (-of[word], word)) for key, of in spellings.items()}


def _means(values: Floats) -> Floats:
    """Means over the values that are there, [n, 3] -> [3]."""
    there = np.isfinite(values)
    total: Floats = np.where(there, values, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / there.sum(axis=0), np.float64)


def _bounds(
    corpus: _Corpus, rows: NDArray[np.intp], word: str, how: Bootstrap
) -> tuple[Floats, Floats]:
    """95 % interval of the means of a word, [3] twice; its speakers are drawn."""
    units, unit = np.unique(corpus.unit[rows], return_inverse=True)
    if len(units) < 2:
        return np.full(3, np.nan), np.full(3, np.nan)
    values = corpus.values[rows]
    there = np.isfinite(values)
    columns = np.concatenate([np.where(there, values, 0.0), there], axis=1)
    sums: Floats = np.stack(
        [np.bincount(unit, column, len(units)).astype(np.float64) for column in columns.T], axis=1
    )
    drawn = resample(sums, how.draws, generator(how.seed, "word", word))
    with np.errstate(invalid="ignore"):  # no value in a draw: undefined
        return interval(drawn[:, :3] / drawn[:, 3:])


def _sides(values: Sequence[float], middle: float, most: int) -> list[tuple[str, int]]:
    """Side and rank of words in ascending order; few words are parted at their middle."""
    count = len(values)
    each = min(most, count // 2)
    lows = highs = each
    if count % 2 and each < most:  # the word in the middle goes where it lies
        below = values[each] < middle
        lows, highs = (each + 1, each) if below else (each, each + 1)
    return [
        ("low", i + 1) if i < lows else ("high", count - i) if i >= count - highs else ("", 0)
        for i in range(count)
    ]


def _rating_values(rated: Sequence[tuple[Floats, Floats, Floats]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for d, name in enumerate(DIMENSIONS):
        for column, part in zip((name, *_BOUNDS[name]), range(3), strict=True):
            columns[column] = [float(word[part][d]) for word in rated]
    return columns


def _table(columns: dict[str, list[Any]]) -> pa.Table:
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in WORDS]
    return pa.table(arrays, schema=WORDS)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
