"""Pictures of the figures: they say what their numbers say, and nothing covers anything else."""

from __future__ import annotations

import html
import re
from itertools import combinations

import numpy as np
import pytest

from raysers.report.charts import dots_chart, points_chart, selected
from raysers.report.dots import DotStyle, dot_chart, dot_figure
from raysers.report.evidence import ReportData
from raysers.report.lines import LineStyle, line_chart
from raysers.report.map_figure import Embedded, map_chart, places
from raysers.report.numbers import Dot, Point
from raysers.report.sweep_section import sweep_exhibits
from raysers.types import DIMENSIONS

HOW = DotStyle(axis="CCC with its 95 % interval")


def words(svg: bytes) -> list[str]:
    """The texts of a picture: matplotlib names every drawn text in a comment."""
    return [html.unescape(found) for found in re.findall(r"<!-- (.*?) -->", svg.decode())]


def dots(rows=("one", "two"), series=("",), blocks=("a test",)):
    return [
        Dot(
            block=b, column=c, row=r, series=s, n=7,
            value=0.1 + 0.05 * i + 0.2 * k, low=0.05 + 0.05 * i, high=0.3 + 0.05 * i + 0.2 * k,
        )
        for b in blocks
        for i, r in enumerate(rows)
        for k, s in enumerate(series)
        for c in DIMENSIONS
    ]  # fmt: skip


@pytest.mark.parametrize("narrow", [False, True])
def test_a_dot_chart_names_its_rows_and_writes_every_value(narrow):
    said = words(dot_chart(dots(), HOW, narrow=narrow)["svg"])
    assert {"one", "two", *DIMENSIONS} <= set(said)
    assert said.count("0.10") == 3
    assert said.count("0.15") == 3


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    "shown",
    [
        dots(rows=[f"a model with a rather long name {i}" for i in range(9)]),
        dots(rows=list("abcdefgh"), series=("one", "two", "three"), blocks=("x", "y")),
        [*dots(rows=["one"]), Dot(block="b", column="valence", row="one", value=0.2)],
    ],
    ids=["long names", "series and blocks", "a block of one dimension"],
)
def test_no_text_of_a_dot_chart_covers_another(shown, narrow):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = dot_figure(shown, HOW, narrow=narrow)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [
        (one.get_text(), one.get_window_extent(canvas.get_renderer()).shrunk(0.9, 0.8))
        for one in drawn_texts(figure)
        if one.get_text().strip()
    ]
    overlaps = [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]
    assert not overlaps
    width, height = canvas.get_width_height()
    for name, box in boxes:
        assert -2 < box.x0 < box.x1 < width + 2, name
        assert -2 < box.y0 < box.y1 < height + 2, name


def drawn_texts(figure):
    """Every text that ends up in the picture, and no others."""
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in (a for a in figure.axes if a.axison):
        yield from (*axes.texts, axes._left_title, axes.xaxis.label)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            yield from (t.label1 for t in ticks if t.label1.get_visible())


def test_a_picture_of_many_rows_shows_both_ends_and_its_table_all_of_them():
    many = dots(rows=[f"speaker {i:03d}" for i in range(40)])
    kept, said = selected(many)
    rows = list(dict.fromkeys(d.row for d in kept))
    assert (len(rows), rows[0], rows[-1]) == (24, "speaker 000", "speaker 039")
    chart = dots_chart("k", "", many, HOW, row="speaker")
    assert chart is not None
    assert len(chart.grid.rows) == 40
    assert said in chart.grid.caption


def test_the_table_of_a_chart_holds_values_bounds_counts_and_the_paper():
    one = Dot(
        block="d", column="valence", row="m", value=0.635, low=0.6, high=0.66, paper=0.64, n=9
    )
    chart = dots_chart("k", "", [one], HOW, row="model")
    assert chart is not None
    assert chart.grid.columns == ["model", "data", "valence [95 %]", "the paper", "n"]
    assert chart.grid.rows == [["m", "d", "0.635 [0.600, 0.660]", "0.640", 9]]
    assert "highest m with 0.64" in chart.alt


def test_lines_are_named_at_their_ends_and_places_are_told():
    points = [
        Point(column=c, series=s, x=x, value=0.3 + x / 4 + k / 10, low=0.2, high=0.7)
        for c in DIMENSIONS
        for k, s in enumerate(("emodb", "iemocap"))
        for x in (0.05, 0.25, 1.0)
    ]
    how = LineStyle(axis="share", tick=lambda x: f"{100 * x:g} %", log=True)
    said = words(line_chart(points, how)["svg"])
    assert (said.count("emodb"), said.count("iemocap"), said.count("100 %")) == (1, 1, 3)
    assert words(line_chart(points, how, narrow=True)["svg"]).count("emodb") == 3
    chart = points_chart("k", "", points, how, bounds="95 %")
    assert chart is not None
    assert chart.grid.rows[0][:3] == ["emodb", "5 %", "0.312 [0.200, 0.700]"]


def clusters(n: int = 60) -> Embedded:
    rng = np.random.default_rng(0)
    group = np.arange(n) % 3
    return Embedded(
        clip_id=[str(i) for i in range(n)],
        embedding=rng.normal(0, 0.2, (n, 12)) + 4 * np.eye(12)[group],
        known={"corpus": [f"corpus {g}" for g in group], "sex": [""] * n},
        valence=rng.random(n),
        labelled=True,
    )


def test_a_map_keeps_clusters_apart_and_is_the_same_every_time():
    clips = clusters()
    plane = places(clips.embedding)
    assert np.array_equal(plane, places(clips.embedding))
    assert np.abs(plane).max() <= 1
    group = np.arange(60) % 3
    middles = np.array([plane[group == g].mean(axis=0) for g in range(3)])
    nearest = np.linalg.norm(plane[:, None] - middles, axis=2).argmin(axis=1)
    assert np.array_equal(nearest, group)
    said = words(map_chart(clips, plane)["svg"])
    assert {"corpus", "corpus 0", "corpus 2", "valence, labels"} <= set(said)
    assert "sex" not in said


def sweep(folder: str, score: float, **other):
    row = {"trial": "t0", "number": 0, "status": "done", "error": "", "dev_ccc_mean": score}
    curve = {"study": "sweep", "cell": "t0", "dimension": "mean", "epoch": 1, "ccc": score}
    return {folder: [row | {"param_lr": 0.1} | other]}, {folder: [curve]}


def test_sweeps_in_folders_of_the_same_name_are_told_apart():
    one, other = sweep("/runs/lr/sweep", 0.1), sweep("/runs/layers/sweep", 0.9)
    found = ReportData(trials=one[0] | other[0], trial_curves=one[1] | other[1])
    exhibits = sweep_exhibits(found)
    assert len({exhibit.title for exhibit in exhibits}) == 2
    # alone, each has the same curve
    for exhibit, (rows, curves) in zip(exhibits, (one, other), strict=True):
        (alone,) = sweep_exhibits(ReportData(trials=rows, trial_curves=curves))
        assert exhibit.charts[-1].picture == alone.charts[-1].picture
