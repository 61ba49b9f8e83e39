"""Studies the paper has no figure for, copies of the built-in ones among them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysers.report.evidence import ReportData
from raysers.report.figures import paper_figures
from raysers.report.studies_section import study_exhibits, study_gaps
from raysers.report.values import PAPER_STUDIES, Value
from raysers.studies.study import study_names
from tests.unit.report.test_numbers import value


def cell(model: str, number: float, factor: str = "", factor_value: str = "", **other) -> Value:
    bounds = {"ci_low": number - 0.1, "ci_high": number + 0.1}
    known = {"study": "mine", "model": model, "factor": factor, "factor_value": factor_value}
    return value(number, **(known | bounds | other))


def ccc(*values: Value) -> list[list[object]]:
    """The table under the first chart of the only exhibit."""
    (exhibit,) = study_exhibits(ReportData(values=values))
    return [list(row[:3]) for row in exhibit.charts[0].grid.rows]


def test_the_studies_of_the_paper_are_those_that_come_with_the_package():
    assert set(study_names()) == set(PAPER_STUDIES)


def test_a_copy_of_the_backbones_shows_its_models_with_intervals_and_the_random_one():
    values = [cell("a", 0.5, "backbone", "a"), cell("b", 0.6, "backbone", "b")]
    values.append(cell("random-gaussian", 0.0, "backbone", "a"))
    assert ccc(*values) == [
        ["a", "emodb test", "0.500 [0.400, 0.600]"],
        ["b", "emodb test", "0.600 [0.500, 0.700]"],
        ["random-gaussian", "emodb test", "0.000 [\N{MINUS SIGN}0.100, 0.100]"],
    ]


def test_a_number_that_is_varied_makes_lines_and_seeds_do_not():
    steps = [cell("a", v, "share", s) for s, v in (("50 %", 0.5), ("100 %", 0.7))]
    assert [row[1] for row in ccc(*steps)] == ["50 %", "100 %"]
    seeds = [cell("a", v, "seed", str(i), seed=i) for i, v in enumerate((0.2, 0.4, 0.6))]
    assert ccc(*seeds) == [["a, 3 seeds", "emodb test", "0.400 [0.100, 0.700]"]]


def test_what_else_was_measured_is_shown_and_nothing_goes_into_the_paper_s_figures():
    robust = cell("a", 0.9, metric="robustness")
    fair = cell("a", 0.01, metric="sex_fairness_score", group="sex")
    found = ReportData(values=[cell("a", 0.5), robust, fair])
    (exhibit,) = study_exhibits(found)
    assert exhibit.title == "Study mine"
    keys = [chart.key for chart in exhibit.charts]
    assert keys == ["study-1-ccc", "study-1-figure-3-models", "study-1-figure-4-score"]
    figures, missing = paper_figures(found)
    assert figures == []
    why = {one.name: one.why for one in missing}
    assert why["Figure 2"] == "What the runs measured of it is of other studies: mine."
    assert why["Figure 5"].startswith("No evaluated speaker")
    assert paper_figures(ReportData())[1][0].why == "No evaluation is among the runs."


def test_a_study_without_a_measured_cell_is_named_among_what_is_missing():
    cells = [{"study": s, "kind": k} for s, k in (("mine", "train"), ("maps", "annotate"))]
    cells.append({"study": "backbones", "kind": "train"})
    assert [one.name for one in study_gaps(ReportData(cells=cells))] == ["Study mine"]
    assert study_gaps(ReportData(cells=cells, values=[cell("a", 0.5)])) == []


@pytest.mark.parametrize("second", ["mine", "yours"])
def test_studies_are_never_mixed(second):
    values = [cell("a", 0.5), replace(cell("b", 0.7), study=second)]
    exhibits = study_exhibits(ReportData(values=values))
    assert [len(one.charts[0].grid.rows) for one in exhibits] == (
        [2] if second == "mine" else [1, 1]
    )
