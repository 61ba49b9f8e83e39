"""Words of transcripts, rated by the mean scores of the clips that contain them (section 5.3).

The paper keeps words with 10 or more occurrences, so a clip with a word twice counts twice, in the
number and in the mean. Intervals resample speakers; a word from one speaker alone has none.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap, interval, resample, resampling_units
from raysers.evaluation.rows import NAN, Row, row_of
from raysers.evaluation.scores import Subset
from raysers.types import DIMENSIONS, Status, generator

#: Section 5.3: how many words of each end are shown.
MOST = 50
#: Clips of the paper's test-1 with a transcript.
_PAPER_TRANSCRIBED = ("msp-podcast", "test1", 0.55)
#: Interval columns of a dimension; those of valence, by which words are ranked, have plain names.
_BOUNDS = {
    name: ("ci_low", "ci_high") if name == "valence" else (f"{name}_ci_low", f"{name}_ci_high")
    for name in DIMENSIONS
}


def described(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """A field with its meaning as metadata."""
    return pa.field(name, kind, metadata={"meaning": meaning})


#: Rated words, one a row.
WORDS = pa.schema(
    [
        described("word", pa.string(), "word in lower case, in its most frequent spelling"),
        described("occurrences", pa.int64(), "occurrences in clips with a valence"),
        described("clips", pa.int64(), "clips among these that contain it"),
        *(
            described(column, pa.float64(), meaning)
            for name in ("valence", "arousal", "dominance")
            for column, meaning in (
                (name, f"mean {name} over the occurrences"),
                (_BOUNDS[name][0], f"lower end of its 95 % interval ({name}); null: none"),
                (_BOUNDS[name][1], f"upper end of its 95 % interval ({name}); null: none"),
            )
        ),
        described("corpus_valence", pa.float64(), "mean valence over all clips with words"),
        described("side", pa.string(), "low or high: among the lowest or highest; else empty"),
        described("rank", pa.int64(), "1 is the lowest or highest of its side; 0: on no side"),
        described("source", pa.string(), "labels, or the model whose predictions were averaged"),
        described("run_id", pa.string(), "run that wrote the row"),
    ]
)

_APOSTROPHES = "'\u2018\u2019\u02bc\u02b9\uff07\u00b4`"
_HYPHENS = "-\u2010\u2011\uff0d"
_WORD = re.compile(r"[^\s'-]+(?:['-][^\s'-]+)*")
_MARKUP = re.compile(r"<[^<>\s]{0,64}>|\[[^\[\]\s]{0,64}\]")


def tokens(text: str) -> list[str]:
    """The words of a text in order, lower case, in Unicode's composed form (NFC).

    A word is a run of letters, marks and digits with at least one letter; single apostrophes and
    hyphens inside belong to it. Emoji, numerals, `[noise]` and `<tag>` are not words. In scripts
    without spaces the text between two punctuation marks is one word.

    >>> tokens("“Don’t!”, he said — it’s a well-known Straße.")
    ["don't", 'he', 'said', "it's", 'a', 'well-known', 'straße']
    """
    plain = "".join(map(plain_character, unicodedata.normalize("NFC", _MARKUP.sub(" ", text))))
    return [word for word in _WORD.findall(plain.lower()) if any(map(str.isalpha, word))]


def plain_character(character: str) -> str:
    """A letter, mark or digit as it is, `'` and `-` for all their kinds, blanks for the rest."""
    if character in _APOSTROPHES:
        return "'"
    if character in _HYPHENS:
        return "-"
    kind = unicodedata.category(character)
    if kind == "Cf":  # soft hyphens, joiners, marks of direction: invisible
        return ""
    return character if kind.startswith(("L", "M", "Nd")) else " "


def folded(word: str) -> str:
    """A key that spellings share when they differ in case or composition only.

    >>> folded("STRASSE") == folded("Straße")
    True
    """
    # folding may take a composed letter apart, and NFC may bring forth what can be folded
    once = unicodedata.normalize("NFC", word).casefold()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", once).casefold())


def word_ratings(
    table: pa.Table,
    *,
    source: str = "labels",
    least: int,
    most: int = MOST,
    bootstrap: Bootstrap,
    run_id: str = "",
) -> pa.Table:
    """Words with enough occurrences and their mean scores, by valence from low to high.

    `table` has clips with `clip_id`, `transcript`, `valence` and, where known, `arousal`,
    `dominance` (0..1, labels or predictions), `speaker`, `status`. The `most` words at each end get
    a `side` and a `rank`; no word is on both sides. Returns a table of `WORDS`, whatever the order
    of the rows. Raises ConfigError: no transcripts, or none in a clip with a valence.
    """
    clips = _rated_clips(table)
    said = clips.explode("words")
    said["word"] = said["words"].map(folded)
    middle = float(clips["valence"].mean())
    rows = []
    for word, found in said.groupby("word"):
        if len(found) >= least:
            values = found[list(DIMENSIONS)].mean().to_dict()
            rows.append(values | _bounds(found, str(word), bootstrap) | _counts(found))
    rows.sort(key=lambda row: (row["valence"], folded(row["word"])))
    sides = _sides([row["valence"] for row in rows], middle, most)
    for row, (side, rank) in zip(rows, sides, strict=True):
        row |= {"corpus_valence": middle, "side": side, "rank": rank}
        row |= {"source": source, "run_id": run_id}
    columns = {name: [row[name] for row in rows] for name in WORDS.names}
    arrays = [pa.array(columns[f.name], f.type, from_pandas=True) for f in WORDS]
    return pa.table(arrays, schema=WORDS)


def word_rows(words: pa.Table, *, dataset: str, split: str = "all") -> list[Row]:
    """Rows of the metrics table for the words of both sides: `word_mean` by `group` "word".

    `model` is the `source`, `n` the number of occurrences.
    """
    return [
        row_of(where, word["source"], "word_mean", word[name], word["occurrences"],
               (word[_BOUNDS[name][0]], word[_BOUNDS[name][1]]), dimension=name)
        for word in words.to_pylist()
        if word["side"]
        for where in [Subset(dataset=dataset, split=split, group="word", group_value=word["word"])]
        for name in DIMENSIONS
        if word[name] is not None
    ]  # fmt: skip


def transcribed_row(table: pa.Table, *, dataset: str, split: str = "all") -> Row:
    """`transcribed_share`: the share of clips with words; .55 of the paper's test-1."""
    corpus, paper_split, share = _PAPER_TRANSCRIBED
    spoken = sum(bool(tokens(text or "")) for text in table["transcript"].to_pylist())
    return Row(
        model="transcripts",
        dataset=dataset,
        split=split,
        dimension="mean",
        metric="transcribed_share",
        value=spoken / len(table) if len(table) else NAN,
        n=len(table),
        paper=share if (dataset, split) == (corpus, paper_split) else NAN,
    )


def _rated_clips(table: pa.Table) -> pd.DataFrame:
    """Clips with words and a valence: `words`, `unit` of the bootstrap, scores; sorted by id."""
    if "transcript" not in table.column_names:
        raise ConfigError("--data: word ratings need a column transcript, which no clip has")
    columns = ["clip_id", "speaker", "status", *DIMENSIONS]
    frame = table.select([name for name in columns if name in table.column_names]).to_pandas()
    frame = frame.reindex(columns=columns)
    frame[list(DIMENSIONS)] = frame[list(DIMENSIONS)].astype(np.float64)
    if "status" in table.column_names:
        frame.loc[frame["status"] != str(Status.OK), list(DIMENSIONS)] = np.nan
    frame["words"] = [tokens(text or "") for text in table["transcript"].to_pylist()]
    spoken = frame["words"].map(bool)
    rated = frame[spoken & np.isfinite(frame["valence"])].sort_values("clip_id", ignore_index=True)
    if rated.empty:
        raise ConfigError(
            f"--data: {spoken.sum():,} of {len(frame):,} clips have words and none of these a "
            "valence: word ratings need both in the same clip"
        )
    speakers = [None if pd.isna(speaker) else speaker for speaker in rated["speaker"]]
    rated["unit"] = resampling_units(speakers, rated["clip_id"].tolist())[0]
    return rated


def _counts(found: pd.DataFrame) -> dict[str, Any]:
    """Most frequent spelling (the first in the alphabet of several), occurrences, clips."""
    spellings = Counter(found["words"])
    return {
        "word": min(spellings, key=lambda word: (-spellings[word], word)),
        "occurrences": len(found),
        "clips": found["clip_id"].nunique(),
    }


def _bounds(found: pd.DataFrame, word: str, how: Bootstrap) -> dict[str, float]:
    """95 % interval of the word's mean scores by column."""
    unit = found.groupby("unit")[list(DIMENSIONS)]
    columns = [name for dimension in DIMENSIONS for name in _BOUNDS[dimension]]
    if len(unit) < 2:
        return dict.fromkeys(columns, NAN)
    sums = np.concatenate([unit.sum().to_numpy(), unit.count().to_numpy()], axis=1)
    drawn = resample(sums, how.draws, generator(how.seed, "word", word))
    with np.errstate(invalid="ignore"):  # no value in a draw: undefined
        bounds = np.stack(interval(drawn[:, :3] / drawn[:, 3:], len(unit)), axis=1)
    return dict(zip(columns, bounds.ravel().tolist(), strict=True))


def _sides(values: Sequence[float], middle: float, most: int) -> list[tuple[str, int]]:
    """Side and rank of words in ascending order; few words are split at their middle."""
    count = len(values)
    lows = highs = min(most, count // 2)
    if count % 2 and lows < most:  # the middle word joins the side of the corpus mean it lies on
        lows, highs = (lows + 1, highs) if values[lows] < middle else (lows, highs + 1)
    return [
        ("low", i + 1) if i < lows else ("high", count - i) if i >= count - highs else ("", 0)
        for i in range(count)
    ]
