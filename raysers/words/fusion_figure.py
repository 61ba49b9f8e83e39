"""Figure 6 as a picture: by how much fused scores are better, dimension by dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysers.evaluation.rows import Row
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
from raysers.types import DIMENSIONS
from raysers.words.fusion_scores import OTHERS, differences, main_split


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
