"""Sweeps in the report: their own pictures, with the table of trials behind them.

The best of many trials is flattered by its score, and
the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from raysers.plotting import model_names
from raysers.report.evidence import ReportData
from raysers.report.parts import Cell, Chart, Exhibit, Grid, shown
from raysers.tuning.figures import PARAMETER, pictures

_MOST_ROWS = 200


def sweep_exhibits(found: ReportData) -> list[Exhibit]:
    """The trials of every sweep, the best first."""
    outcomes = {run.folder: run.outcome for run in found.runs}
    names = model_names(list(found.trials))
    return [
        _sweep(
            f"sweep-{number}",
            names[folder],
            rows,
            found.trial_curves.get(folder, ()),
            outcomes.get(folder, {}),
        )
        for number, (folder, rows) in enumerate(found.trials.items(), 1)
        if rows
    ]


def _sweep(
    key: str,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    outcome: Mapping[str, Any],
) -> Exhibit:
    found = outcome.get("importance")
    found = found if isinstance(found, Mapping) else {}
    charts = _charts(key, rows, curves, found)
    return Exhibit(
        key=key,
        name="",
        title=f"Search of {name}: {len(rows)} trials",
        lead="The dev CCC of the best of many trials is too good by as much as luck gave it: "
        "measure it on clips no trial has seen.",
        charts=list(charts),
    )


def _charts(
    key: str,
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
) -> Iterator[Chart]:
    scores = [row["dev_ccc_mean"] for row in rows if row["dev_ccc_mean"] is not None]
    best = f"{len(rows)} trials; the best dev CCC is {shown(max(scores), 2)}." if scores else ""
    columns = ["cell", "epoch", "dimension", "ccc"]
    drawn = pictures(pd.DataFrame(rows), pd.DataFrame(curves, columns=columns), found)
    for name, title, grid in (
        ("parallel_coordinates", "trials through their values", _grid(rows)),
        ("importance", "what mattered", _importance_grid(found)),
        ("learning_curves", "CCC on dev by epoch", _grid(rows)),
    ):
        if name in drawn:
            alt = f"{title.capitalize()}. {best}"
            yield Chart(key=f"{key}-{name}", title=title, alt=alt, picture=drawn[name], grid=grid)


def _searched(column: str) -> bool:
    return column.startswith(PARAMETER)


def _grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    searched = [name for name in rows[0] if _searched(name)]
    cells: list[list[Cell]] = [
        [
            row["trial"],
            row["status"],
            shown(row["dev_ccc_mean"]),
            *(_parameter(row[name]) for name in searched),
            row["error"] or "–",
        ]
        for row in sorted(rows, key=_rank)
    ]
    names = [name.removeprefix(PARAMETER) for name in searched]
    return Grid(
        caption="Trials, the best first",
        columns=["trial", "status", "dev CCC, mean", *names, "error"],
        rows=cells[:_MOST_ROWS],
        left_out=max(0, len(cells) - _MOST_ROWS),
    )


def _rank(row: Mapping[str, Any]) -> float:
    return math.inf if row["dev_ccc_mean"] is None else -float(row["dev_ccc_mean"])


def _parameter(value: Any) -> str:
    if value is None:  # its condition did not hold
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _importance_grid(found: Mapping[str, Any]) -> Grid:
    rows = [(str(s["name"]), shown(float(s["value"]), 2)) for s in found.get("shares", ())]
    caption = (
        f"Share of the difference between trials, by {found.get('method')}: {found.get('note')}"
    )
    return Grid(caption=caption, columns=["flag", "importance"], rows=rows)
