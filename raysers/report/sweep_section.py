"""Sweeps in the report: their own pictures, with the table of trials behind them.

The pictures are those of `sweep_figure`. The best of many trials is flattered by its score, and
the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raysers.plotting import model_names
from raysers.report.evidence import ReportData
from raysers.report.parts import Cell, Chart, Exhibit, Grid, shown, with_bounds
from raysers.tuning.figure import importance_bars, learning_curves, parallel_coordinates
from raysers.tuning.importance import Axis, Importance, Share, Tried

_MOST_ROWS = 200
_PARAMETER = "param_"
#: A flag that spans at least this factor is shown on a logarithmic scale.
_LOG_SPAN = 30.0


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
    tried = tried_of(rows, curves)
    charts = _charts(key, tried, axes_of(rows), _grid(rows), importance_of(outcome))
    return Exhibit(
        key=key,
        name="",
        title=f"Search of {name}: {len(rows)} trials",
        lead="The dev CCC of the best of many trials is too good by as much as luck gave it: "
        "measure it on clips no trial has seen.",
        charts=[chart for chart in charts if chart is not None],
    )


def _charts(
    key: str, tried: Sequence[Tried], axes: Sequence[Axis], trials: Grid, found: Importance
) -> Iterator[Chart | None]:
    scores = [t.score for t in tried if t.score is not None]
    best = f"{len(tried)} trials; the best dev CCC is {shown(max(scores), 2)}." if scores else ""
    for name, title, picture, grid in (
        ("trials", "trials through their values", parallel_coordinates(tried, axes), trials),
        ("importance", "what mattered", importance_bars(found), _importance_grid(found)),
        ("curves", "CCC on dev by epoch", learning_curves(tried), trials),
    ):
        if picture:
            alt = f"{title.capitalize()}. {best}"
            yield Chart(key=f"{key}-{name}", title=title, alt=alt, picture=picture, grid=grid)


def tried_of(
    rows: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]] = ()
) -> list[Tried]:
    """Trials from a sweep's tables."""
    by_cell: dict[str, list[tuple[int, float | None]]] = {}
    for row in curves:
        if row["dimension"] == "mean":
            by_cell.setdefault(row["cell"], []).append((row["epoch"], row["ccc"]))
    return [
        Tried(
            number=row["number"],
            status=row["status"],
            score=row["dev_ccc_mean"],
            values={k.removeprefix(_PARAMETER): v for k, v in row.items() if _searched(k)},
            curve=sorted(by_cell.get(row["trial"], ())),
        )
        for row in rows
    ]


def axes_of(rows: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """The searched flags that vary, by name; those not searched in every trial are left out."""
    axes = []
    for column in sorted(filter(_searched, rows[0])):
        values = [row[column] for row in rows]
        if None in values or len(set(map(str, values))) < 2:
            continue
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        log = numeric and min(values) > 0 and max(values) / min(values) >= _LOG_SPAN
        axes.append(Axis(name=column.removeprefix(_PARAMETER), numeric=numeric, log=log))
    return axes


def importance_of(outcome: Mapping[str, Any]) -> Importance:
    """What the sweep itself found to matter; nothing when its record does not say."""
    found = outcome.get("importance")
    known = found if isinstance(found, Mapping) else {}
    shares = [
        Share(
            name=str(row["name"]),
            value=float(row["value"]),
            ci_low=float(row.get("ci_low", math.nan)),
            ci_high=float(row.get("ci_high", math.nan)),
        )
        for row in known.get("shares", ())
    ]
    method, note = str(known.get("method", "")), str(known.get("note", ""))
    return Importance(method=method, shares=shares, note=note)


def _searched(column: str) -> bool:
    return column.startswith(_PARAMETER)


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
    names = [name.removeprefix(_PARAMETER) for name in searched]
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


def _importance_grid(found: Importance) -> Grid:
    rows = [(s.name, with_bounds(s.value, s.ci_low, s.ci_high, 2)) for s in found.shares]
    caption = f"Share of the difference between trials, by {found.method}: {found.note}"
    return Grid(caption=caption, columns=["flag", "importance [95 %]"], rows=rows)
