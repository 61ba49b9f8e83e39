"""Pictures of the figures: they say what their numbers say, and nothing covers anything else."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysers.report.charts import dots_chart, points_chart, selected
from raysers.report.dots import DotStyle, dot_chart, dot_figure
from raysers.report.evidence import Evidence
from raysers.report.lines import LineStyle, line_chart
from raysers.report.map_figure import Embedded, map_chart, places
from raysers.report.map_section import neighbour_grid
from raysers.report.numbers import Dot, Point
from raysers.report.probe_section import by_source, pairs_of
from raysers.report.svg import Styles, inline
from raysers.report.sweep_section import axes_of, sweep_exhibits, tried_of
from raysers.types import DIMENSIONS
from raysers.words.sentence_pairs import Pairs
from tests.made_runs import pairs_table, probed

NAN = float("nan")
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


def test_several_series_are_named_once_in_their_colours_over_the_panels():
    said = words(dot_chart(dots(series=("tuned", "frozen")), HOW)["svg"])
    assert (said.count("tuned"), said.count("frozen")) == (1, 1)
    assert "0.10" not in said


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


def test_nothing_is_drawn_without_a_value():
    empty = [Dot(block="", column="arousal", row="a", value=NAN)]
    assert dot_chart(empty, HOW) == {}
    assert dots_chart("k", "", empty, HOW, row="model") is None
    assert line_chart([], LineStyle(axis="layers")) == {}


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


def test_long_names_leave_a_map_its_room(recwarn):
    clips = clusters()
    names = [f"a-speaker-of-a-long-name-{i % 9}" for i in range(60)]
    clips = replace(clips, known=dict.fromkeys(("corpus", "sex", "speaker"), names))
    assert set(map_chart(clips, places(clips.embedding), narrow=True)) == {"svg"}
    assert not [w for w in recwarn if "collapsed" in str(w.message)]


def test_names_with_control_characters_make_pictures_that_any_page_can_hold():
    clips = replace(clusters(), known={"speaker": ["s\x1b[1\uffff"] * 60})
    drawn = map_chart(clips, places(clips.embedding))["svg"]
    assert "<svg" in inline(drawn, "a", Styles())


def test_the_table_behind_a_map_counts_neighbours_of_the_same_group():
    rows = neighbour_grid(clusters()).rows
    assert [row[:3] for row in rows] == [["corpus", f"corpus {g}", 20] for g in range(3)]
    assert {row[3] for row in rows} == {"1.00"}
    assert {row[4] for row in rows} == {"0.33"}


def test_words_are_shown_by_who_rates_them(tmp_path):
    words = pq.read_table(probed(tmp_path / "probe") / "words")
    rated = words.set_column(words.column_names.index("source"), "source", [["/m/tiny"] * 40])
    both = pa.concat_tables([words, rated])
    found = [pc.unique(table["source"]).to_pylist() for table in by_source([both])]
    assert found == [["labels"], ["/m/tiny"]]
    assert [len(table) for table in by_source([both])] == [40, 40]


def test_re_spoken_clips_read_back_as_the_pairs_they_were():
    rng = np.random.default_rng(1)
    truth, one, other = rng.random((3, 4, 3)).astype(np.float32).astype(float)
    one[2] = np.nan
    pairs = Pairs(clip_id=list("abcd"), truth=truth, original={"m": one}, respoken={"m": other})
    again = pairs_of(pairs_table(pairs))
    assert list(again.clip_id) == list("abcd")
    assert np.array_equal(again.truth, truth)
    assert np.array_equal(again.original["m"], one, equal_nan=True)
    assert np.array_equal(again.respoken["m"], other)


def sweep(folder: str, score: float, **other):
    row = {"trial": "t0", "number": 0, "status": "done", "error": "", "dev_ccc_mean": score}
    curve = {"study": "sweep", "cell": "t0", "dimension": "mean", "epoch": 1, "ccc": score}
    return {folder: [row | {"param_lr": 0.1} | other]}, {folder: [curve]}


def test_sweeps_in_folders_of_the_same_name_are_told_apart():
    one, other = sweep("/runs/lr/sweep", 0.1), sweep("/runs/layers/sweep", 0.9)
    found = Evidence(trials=one[0] | other[0], trial_curves=one[1] | other[1])
    exhibits = sweep_exhibits(found)
    assert len({exhibit.title for exhibit in exhibits}) == 2
    # alone, each has the same curve
    for exhibit, (rows, curves) in zip(exhibits, (one, other), strict=True):
        (alone,) = sweep_exhibits(Evidence(trials=rows, trial_curves=curves))
        assert exhibit.charts[-1].picture == alone.charts[-1].picture


def test_a_flag_that_a_trial_does_not_have_is_a_dash_in_its_table():
    rows, curves = sweep("/runs/sweep", 0.1, param_momentum=None)
    (exhibit,) = sweep_exhibits(Evidence(trials=rows, trial_curves=curves))
    assert exhibit.charts[0].grid.rows[0][3:5] == ["0.1", "–"]


def test_trials_of_a_sweep_are_read_with_the_flags_that_vary():
    rows = [
        {"trial": f"t{i}", "number": i, "status": "done", "dev_ccc_mean": 0.1 * i, "param_lr": lr,
         "param_pooling": "mean", "param_seed": None if i else 3, "param_freeze": f}
        for i, (lr, f) in enumerate(((1e-4, "none"), (1e-2, "auto")))
    ]  # fmt: skip
    axes = axes_of(rows)
    assert [(a.name, a.numeric, a.log) for a in axes] == [
        ("freeze", False, False),
        ("lr", True, True),
    ]
    curves = [{"cell": "t1", "dimension": "mean", "epoch": e, "ccc": e / 10} for e in (2, 1)]
    tried = tried_of(rows, curves)
    assert tried[1].values["lr"] == 1e-2
    assert list(tried[1].curve) == [(1, 0.1), (2, 0.2)]
