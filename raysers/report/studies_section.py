"""Studies the paper has no figure for: each by itself, with the charts of the paper's figures.

A copy of a built-in study is such a study, too: its models may be trained in other ways, so they
are never mixed with those of the study it was copied from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from raysers.report import numbers
from raysers.report.charts import MOST_SERIES, dots_chart, points_chart
from raysers.report.evidence import ReportData
from raysers.report.figures import CCC, FIGURES, percent
from raysers.report.lines import LineStyle
from raysers.report.parts import Chart, Exhibit, Missing
from raysers.report.values import (
    PAPER_STUDIES,
    Value,
    by_themselves,
    factor_values,
    is_network,
    number_in,
    own_studies,
)
from raysers.text import printable

_CURVES = LineStyle(axis="epoch", values="CCC on dev")
#: Jobs whose cells leave values of their own; what the others leave is in figures of any study.
_MEASURING = ("train", "evaluate", "robustness")


def study_exhibits(found: ReportData) -> list[Exhibit]:
    """An exhibit for every such study with values."""
    exhibits = []
    for number, (study, values) in enumerate(own_studies(found.values).items(), 1):
        charts = list(_charts(f"study-{number}", study, values, found))
        if charts:
            exhibits.append(
                Exhibit(
                    key=f"study-{number}",
                    name="",
                    title=f"Study {study}",
                    lead=f"Concordance (CCC) with the labels by {_compared(values)}.",
                    charts=charts,
                )
            )
    return exhibits


def study_gaps(found: ReportData) -> list[Missing]:
    """Such studies of whose cells none has been measured."""
    there = own_studies(found.values)
    names = dict.fromkeys(row["study"] for row in found.cells if row["kind"] in _MEASURING)
    return [
        Missing(
            name=f"Study {printable(name)}",  # it is printed, too
            title="A study of your own",
            why="None of its cells has been measured.",
            command="raysers study --study FILE.yaml --data CORPUS --output STUDY",
        )
        for name in names
        if name not in there and name not in PAPER_STUDIES
    ]


def _compared(values: Sequence[Value]) -> str:
    """What the values are told apart by."""
    if not factor_values(values):
        return "model"
    return f"model and {_factor(values)}" if _models(values) > 1 else _factor(values)


def _charts(key: str, study: str, values: Sequence[Value], found: ReportData) -> Iterator[Chart]:
    alone = by_themselves(values)
    charts = [_correctness(f"{key}-ccc", study, values, alone)]
    if not factor_values(values):
        points = numbers.learning(found.curves, study)
        if any(point.n > 1 for point in points):
            title = "learning curves, mean of the seeds"
            charts.append(points_chart(f"{key}-curves", title, points, _CURVES, bounds="± 1 sd"))
    for figure in FIGURES:
        if figure.number != 2 and figure.measured(alone):
            for chart in figure.charts(ReportData(values=alone)):
                charts.append(chart and _of_study(chart, key, figure.title))
    yield from (chart for chart in charts if chart is not None)


def _of_study(chart: Chart, key: str, title: str) -> Chart:
    """A chart of the paper's figure as one of the study."""
    return replace(chart, key=f"{key}-{chart.key}", title=f"{title}: {chart.title}")


def _correctness(
    key: str, study: str, values: Sequence[Value], alone: Sequence[Value]
) -> Chart | None:
    """CCC over numbers as lines, else as dots: few variants of each of several models, or rows."""
    varied = factor_values(values)
    if len(varied) > 1 and not any(math.isnan(number_in(one)) for one in varied):
        tick = percent if any("%" in one for one in varied) else "{:g}".format
        how = LineStyle(axis=_factor(values), tick=tick)
        return points_chart(key, "", numbers.over_numbers(values, study), how, bounds="95 %")
    if 1 < len(varied) <= MOST_SERIES and _models(values) > 1:
        dots = numbers.by_factor(values, study)
        return dots_chart(key, "", dots, CCC, row="model", series=_factor(values))
    return dots_chart(key, "", numbers.correctness(alone), CCC, row=_compared(values))


def _factor(values: Sequence[Value]) -> str:
    return next(v.factor for v in values if v.factor_value)


def _models(values: Sequence[Value]) -> int:
    return len({v.model for v in values if is_network(v)})
