"""Word and character error rates of recognised text against what was really said.

Counted over all clips of a cell together (errors / words said), never as a mean of clips' rates.
Both texts are brought to plain words first (`plain_words`); what stays as it is: numbers in digits,
abbreviations and spelling, so "Mr." for "mister" and "3" for "three" are errors.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jiwer
import numpy as np

from raysers.evaluation.bootstrap import Bootstrap, interval, resample, resampling_units
from raysers.evaluation.metrics import Floats
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import Scores, Subset, base_subsets, group_subsets
from raysers.seeding import generator
from raysers.types import DIMENSIONS

#: What a rate over all datasets is filed under.
EVERYTHING = "all"

#: Columns whose values get rows of their own where there are several.
GROUPS = ("language", "sex")

_APOSTROPHES = "'\u2018\u2019\u02bc\uff07\u00b4`"

#: Columns of the counts of a clip.
_WORDS, _SUBSTITUTED, _DELETED, _INSERTED, _CHARACTERS, _CHARACTER_ERRORS = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcribed:
    """Clips whose words are known.

    Attributes:
        clip_id: identity of every clip, [n].
        said: what was said, [n].
        recognised: words, [n]; None where recognition failed, so the clip does not count.
        columns: what else is known (`corpus`, `split`, `speaker`, `language`, `sex`), each [n].
    """

    clip_id: Sequence[str]
    said: Sequence[str]
    recognised: Sequence[str | None]
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


def plain_words(text: str) -> list[str]:
    """The words of a text as they are compared.

    Unicode compatibility forms become one (NFKC), case goes (case folding: `ß` is `ss`), every
    kind of apostrophe is `'` and stays inside words only, invisible marks of direction and joining
    vanish, and whatever is no letter, mark or number separates words, hyphens too. A script
    without spaces is one word between two punctuation marks: look at its character error rate.

    >>> plain_words("“Don’t” – cold-hearted, Mr. 3!")
    ["don't", 'cold', 'hearted', 'mr', '3']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = "".join(map(_plain, folded)).split()
    return [word for word in (w.strip("'") for w in words) if word]


def _plain(character: str) -> str:
    if character in _APOSTROPHES:
        return "'"
    kind = unicodedata.category(character)
    if kind == "Cf":
        return ""
    return character if kind[0] in "LMN" else " "


def count_errors(said: str, recognised: str) -> tuple[int, int, int, int, int, int]:
    """Words said, substituted, deleted, inserted; characters said, character errors (Levenshtein).

    Characters are those of the plain words with single blanks between them. Where nothing was
    said, every recognised word is inserted.
    """
    truth, found = plain_words(said), plain_words(recognised)
    if not truth or not found:
        letters = len(" ".join(truth)), len(" ".join(truth or found))
        return len(truth), 0, len(truth), len(found) if not truth else 0, *letters
    words = jiwer.process_words(" ".join(truth), " ".join(found))
    letters = jiwer.process_characters(" ".join(truth), " ".join(found))
    wrong = letters.substitutions + letters.deletions + letters.insertions
    return (
        len(truth),
        words.substitutions,
        words.deletions,
        words.insertions,
        letters.hits + letters.substitutions + letters.deletions,
        wrong,
    )


def _rates(sums: Floats) -> dict[str, Floats]:
    """By metric, its values of sums [..., 6]; NaN where nothing was said."""
    with np.errstate(divide="ignore", invalid="ignore"):
        words, characters = sums[..., _WORDS], sums[..., _CHARACTERS]
        wrong = sums[..., _SUBSTITUTED : _INSERTED + 1].sum(-1)
        rates = {
            "wer": wrong / words,
            "cer": sums[..., _CHARACTER_ERRORS] / characters,
            "substitutions": sums[..., _SUBSTITUTED] / words,
            "deletions": sums[..., _DELETED] / words,
            "insertions": sums[..., _INSERTED] / words,
        }
    return {name: np.where(words > 0, rate, np.nan) for name, rate in rates.items()} | {
        "words": words
    }


def word_error_rows(model: str, found: Transcribed, bootstrap: Bootstrap) -> list[Row]:
    """Rows of the metrics table: `wer`, `cer`, what the word errors are made of, and `words` said.

    `substitutions`, `deletions` and `insertions` are shares of the words said and add up to `wer`.
    Intervals draw speakers with replacement, or clips where speakers are unknown. Dimension is
    empty. Cells: every dataset and split, their languages and sexes, and all datasets together.
    """
    scores = _as_scores(model, found)
    counts = np.array(
        [count_errors(s, h or "") for s, h in zip(found.said, found.recognised, strict=True)],
        np.float64,
    ).reshape(-1, 6)
    cells = base_subsets(scores)
    if len({cell.dataset for cell in cells}) > 1:
        cells.append(
            Subset(dataset=EVERYTHING, split="all", rows=np.flatnonzero(scores.predicted()))
        )
    groups = [
        part
        for cell in cells
        for name in GROUPS
        if len(parts := list(group_subsets(scores, cell, name))) > 1
        for part in parts
    ]
    made = (_cell_rows(model, scores, counts, cell, bootstrap) for cell in [*cells, *groups])
    return [row for rows in made for row in rows]


def overall(rows: Sequence[Row]) -> dict[str, float | None]:
    """By metric, the value over all clips, and `clips`, their number; None where undefined."""
    most = max((row.n for row in rows), default=0)
    whole = {row.metric: row.value for row in rows if row.n == most and not row.group}
    values = {name: None if math.isnan(value) else round(value, 6) for name, value in whole.items()}
    return {"clips": most, **values}


def _as_scores(model: str, found: Transcribed) -> Scores:
    """The clips as the other evaluations see them: a clip counts where its text was recognised."""
    there = np.array([text is not None for text in found.recognised], bool)
    zeros = np.zeros((len(found.clip_id), len(DIMENSIONS)))
    recognised = np.where(there[:, None], zeros, np.nan)
    return Scores(
        clip_id=found.clip_id, truth=zeros, predictions={model: recognised}, columns=found.columns
    )


def _cell_rows(
    model: str, scores: Scores, counts: Floats, cell: Subset, bootstrap: Bootstrap
) -> list[Row]:
    rows = cell.rows.tolist()
    speakers = scores.column("speaker")
    unit, units = resampling_units([speakers[i] for i in rows], [scores.clip_id[i] for i in rows])
    sums = np.zeros((units, counts.shape[1]))
    np.add.at(sums, unit, counts[cell.rows])
    drawn = _rates(resample(sums, bootstrap.draws, generator(bootstrap.seed, *cell.key)))
    values = _rates(sums.sum(0))
    made = []
    for metric, value in values.items():
        low, high = (np.nan, np.nan) if metric == "words" else interval(drawn[metric], units)
        made.append(
            Row(
                model=model,
                dataset=cell.dataset,
                split=cell.split,
                group=cell.group,
                group_value=cell.group_value,
                dimension="",
                metric=metric,
                value=float(value),
                ci_low=float(low),
                ci_high=float(high),
                n=len(rows),
            )
        )
    return made
