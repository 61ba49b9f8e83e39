"""Does text help? Fused scores against the acoustic model, sound alone and words alone (Figure 6).

All differences are paired: the same clips, and the same draws of speakers for both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysers.evaluation.comparison import comparison_rows
from raysers.evaluation.correctness import correctness_rows
from raysers.evaluation.draws import Bootstrap
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import ALL, Scores
from raysers.evaluation.tables import number
from raysers.text import table
from raysers.types import DIMENSIONS

#: Names of the contestants, the fused one first; `model` and `group_value` of the rows.
FUSED = "fused"
ACOUSTIC = "acoustic model"
AUDIO_HEAD = "audio head"
TEXT_HEAD = "text head"
#: Head by the name it has in a fusion's folder.
OF_HEAD = {"fused": FUSED, "audio": AUDIO_HEAD, "text": TEXT_HEAD}
OTHERS = (ACOUSTIC, AUDIO_HEAD, TEXT_HEAD)

DIFFERENCE = "ccc_difference"


def fusion_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """CCC, Pearson and MAE of all four, and the fused ones' differences to each other one.

    Args:
        scores: predictions by the names above, `fused` first.
        bootstrap: draws behind the intervals.

    Returns:
        Rows as of `correctness_rows` and `comparison_rows`. None is of several splits together:
        dev clips have chosen the epochs, test clips have not.
    """
    rows = correctness_rows(scores, draws=bootstrap.draws, seed=bootstrap.seed)
    rows += [row for row in comparison_rows(scores, bootstrap) if row.model == FUSED]
    return [row for row in rows if row.split != ALL or not any(scores.column("split"))]


def differences(rows: Sequence[Row]) -> list[Row]:
    """The rows of Figure 6: CCC fused minus CCC of another, by cell, other and dimension."""
    return [
        row
        for row in rows
        if row.metric == DIFFERENCE and row.model == FUSED and row.group == "model"
    ]


def main_split(rows: Sequence[Row]) -> str:
    """The split the figure is about: a test split where there is one, else dev."""
    splits = {row.split for row in rows}
    tests = sorted(split for split in splits if split.startswith("test"))
    return next(iter(tests), "dev" if "dev" in splits else next(iter(sorted(splits)), ""))


def differences_table(rows: Sequence[Row]) -> str:
    """Figure 6 as a Markdown table of every dataset and split; empty without differences."""
    found = differences(rows)
    if not found:
        return ""
    return table(["", *DIMENSIONS], _lines(found))


def _lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    values = {(r.dataset, r.split, r.group_value, r.dimension): r for r in rows}
    for dataset, split, other in dict.fromkeys(key[:3] for key in values):
        cells = [values.get((dataset, split, other, name)) for name in DIMENSIONS]
        yield [
            f"{dataset} {split}: fused - {other}",
            *(difference_text(cell) if cell else "" for cell in cells),
        ]


def difference_text(row: Row) -> str:
    """`+.123 [.012, .234]`."""
    sign = "+" if row.value > 0 else ""
    text = f"{sign}{number(row.value)}"
    if row.ci_low != row.ci_low:
        return text
    return f"{text} [{number(row.ci_low)}, {number(row.ci_high)}]"
