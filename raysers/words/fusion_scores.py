"""Does text help? Fused scores against the acoustic model, sound alone and words alone (Figure 6).

All differences are paired: the same clips, and the same draws of speakers for both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import comparison_rows, correctness_rows
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import ALL, Scores
from raysers.evaluation.tables import number
from raysers.plotting import (
    COLOURS,
    Picture,
    guide,
    interval,
    name_rows,
    new_figure,
    panel_title,
    picture,
    value_grid,
)
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


def differences_figure(rows: Sequence[Row]) -> Picture:
    """CCC of fused scores minus CCC of the others, a panel for each dimension with labels.

    Args:
        rows: of `fusion_rows`; other metrics are passed over.

    Returns:
        Empty when there is no difference to show.
    """
    found = differences(rows)
    split = main_split(found)
    shown = [row for row in found if row.split == split]
    if not shown:
        return {}
    return picture(lambda: _draw(shown, split))


def _draw(rows: Sequence[Row], split: str) -> Any:
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines = [(dataset, other) for dataset in datasets for other in OTHERS]
    figure = new_figure(0.95 + 0.3 * len(lines))
    there = [name for name in DIMENSIONS if name in {row.dimension for row in rows}]
    panels = figure.subplots(1, len(there), sharex=True, sharey=True, squeeze=False)[0]
    for axis, dimension in zip(panels, there, strict=True):
        mine = {(r.dataset, r.group_value): r for r in rows if r.dimension == dimension}
        panel_title(axis, dimension)
        guide(axis, 0.0)
        for at, line in enumerate(lines):
            if line in mine:
                row = mine[line]
                bounds = (row.ci_low, row.ci_high)
                interval(axis, row.value, bounds, at, COLOURS[dimension])
        value_grid(axis, "x", most=4)
    several = len(datasets) > 1
    name_rows(panels[0], [f"{d}: {o}" if several else o for d, o in lines])
    figure.supxlabel(f"CCC fused - CCC of the other, {split} clips; lines are 95 % intervals")
    return figure
