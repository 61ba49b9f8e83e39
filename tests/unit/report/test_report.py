"""How runs are read, and the numbers of figures and archives against tables worked by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raysers import display
from raysers.errors import ConfigError
from raysers.evaluation.scores import RANDOM
from raysers.report import figures
from raysers.report.archive import archive_exhibits, chosen, covered_s, ratings_csv
from raysers.report.charts import Dots, chart
from raysers.report.embeddings import _scale, neighbours, places, read_map
from raysers.report.evidence import (
    Archive,
    Evidence,
    folders,
    main_splits,
    metrics_frame,
    read_archives,
    read_evidence,
)
from raysers.report.figures import paper_figures, study_exhibits
from raysers.types import DIMENSIONS
from tests.made_runs import EVIL, MODELS, annotated, evaluated, metric, studied, trained


def value(number: float = 0.5, model: str = "m", **other: Any) -> dict[str, Any]:
    return metric(model, number) | {"ci_low": None, "ci_high": None, "n": 9} | other


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    columns = {name for row in rows for name in row}
    return metrics_frame(pa.table({n: [row.get(n) for row in rows] for n in columns}))


def brief(dots: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(dots[["row", "series", "value"]].itertuples(index=False, name=None))


def varied(study: str, *cells: tuple[str, str, float]) -> list[dict[str, Any]]:
    return [value(v, m, study=study, factor="f", factor_value=f) for m, f, v in cells]


CHANGES = [
    value(0.9, metric="robustness"),
    value(0.8, metric="robustness_white_noise"),
    value(0.7, metric="robustness_white_noise", dimension="mean"),
    value(0.6, metric="robustness_gain", group="sex", group_value="male"),
    value(0.2, RANDOM, metric="robustness"),
    value(0.2, RANDOM, metric="robustness_white_noise"),
]
#: Rows of metrics, and (row, series, value) of the marks that a figure makes of them.
FIGURES = {
    "2 has whole splits of the backbones, the random model last": (
        figures.correctness,
        [
            value(0.1, RANDOM), value(0.6), value(0.9, group="sex", group_value="female"),
            value(0.8, metric="pearson"), value(0.2, study="frozen", factor_value="frozen"),
            value(0.4, "w2v2-b", study="backbones"), value(0.3, dataset="all", split=""),
            value(0.35, "fused"),
        ],
        [("m", "", 0.6), ("w2v2-b", "", 0.4), (RANDOM, "", 0.1)],
    ),
    "2 has the random model of several seeds once": (
        figures.correctness,
        [value(0.0, RANDOM, seed=n, study="backbones") for n in (1, 2)],
        [(RANDOM, "", 0.0)],
    ),
    "3 has the mean by model": (
        figures.robustness_by_model, CHANGES, [("m", "", 0.9), (RANDOM, "", 0.2)],
    ),
    "3 has each perturbation": (
        figures.robustness_by_change, CHANGES, [("white noise", "m", 0.8)],
    ),
    "5 begins with the hardest speaker over models and dimensions": (
        figures.speakers,
        [
            value(v, m, metric="speaker_ccc", group="speaker", group_value=s)
            for s, m, v in (("a", "m", 0.9), ("a", "n", 0.1), ("b", "m", 0.3), ("b", "n", 0.5))
        ],
        [("b", "m", 0.3), ("b", "n", 0.5), ("a", "m", 0.9), ("a", "n", 0.1)],
    ),
    "7 and 9 compare only models with two variants": (
        lambda rows: figures.by_factor(rows, "frozen"),
        varied("frozen", ("m", "frozen", 0.1), ("m", "tuned", 0.3), ("n", "tuned", 0.4)),
        [("m", "frozen", 0.1), ("m", "tuned", 0.3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("figure", "rows", "expected"), FIGURES.values(), ids=FIGURES)
def test_figures_by_hand(figure, rows, expected):
    assert brief(figure(frame(*rows))) == expected


def test_several_seeds_of_a_study_are_one_mark():
    seeds = [
        value(0.1 * n, seed=n, ci_low=0.1 * n - 0.05, ci_high=0.1 * n + 0.2, study="backbones")
        for n in (1, 2, 3, 3)
    ]
    (dot,) = figures.correctness(frame(*seeds)).itertuples()
    assert dot.row == "m, 3 seeds"
    assert (dot.value, dot.low, dot.high) == pytest.approx((0.2, 0.05, 0.5))


def test_a_dataset_is_shown_by_one_split_of_a_model():
    known = (("m", "a", "dev test1 test"), ("m", "b", "train dev"), ("n", "a", "all x"))
    rows = [value(model=m, dataset=d, split=s) for m, d, splits in known for s in splits.split()]
    kept = main_splits(frame(*rows))
    assert list(zip(kept.model, kept.dataset, kept.split, strict=True)) == [
        ("m", "a", "test1"), ("m", "b", "dev"), ("n", "a", "all"),
    ]  # fmt: skip


def test_figure_12_is_the_mean_over_seeds_with_a_sample_standard_deviation():
    one = {"study": "seeds", "model": "m", "dimension": "valence", "epoch": 1, "step": math.nan}
    rows = [one | {"ccc": ccc, "seed": s} for s, ccc in enumerate((0.2, 0.4, 0.9))]
    rows.append(rows[0] | {"epoch": 2, "ccc": 0.7})
    rows += [rows[0] | {"study": "other"}, rows[0] | {"dimension": "mean"}, rows[0] | {"ccc": None}]
    rows.append(dict(rows[0]))  # a seed that is there twice is one seed
    first, second = figures.learning(pd.DataFrame(rows)).itertuples()
    # deviations of -.3, -.1, .4 from .5: sqrt(.26 / 2)
    assert (first.value, first.n) == (pytest.approx(0.5), 3)
    assert (first.low, first.high) == pytest.approx((0.5 - 0.13**0.5, 0.5 + 0.13**0.5))
    assert (second.x, second.value) == (2, 0.7)
    assert math.isnan(second.low)


def test_figure_14_orders_shares_as_numbers_and_pools_seeds():
    cells = (("100 %", 0, 0.6), ("12.5 %", 0, 0.2), ("12.5 %", 1, 0.4), ("all", 0, 0.9))
    rows = [
        value(v, study="fraction", factor_value=f, seed=s, ci_low=v - 0.1, ci_high=v + 0.2)
        for f, s, v in cells
    ]
    first, second = figures.over_numbers(frame(*rows), "fraction").itertuples()
    assert (first.series, first.x, first.value, first.n) == ("emodb", 0.125, pytest.approx(0.3), 2)
    assert (first.low, first.high) == pytest.approx((0.1, 0.6))
    assert (second.x, second.value) == (1.0, 0.6)


def test_a_table_has_all_rows_of_a_chart_with_bounds_counts_speakers_and_the_paper():
    many = [value(0.1 + i / 100, f"model {i:02d}") for i in range(40)]
    few = value(0.635, "a", ci_low=0.6, ci_high=0.66, paper=0.64, speakers=6)
    made = chart(Dots(key="k", rows=figures.correctness, axis="CCC"), frame(*many, few))
    assert made is not None
    head = ["model", "data", "arousal [95 %]", "the paper", "clips", "speakers"]
    assert made.numbers.columns == head
    assert made.numbers.rows[-1] == ["a", "emodb test", "0.635 [0.600, 0.660]", "0.640", 9, 6]
    assert len(made.numbers.rows) == 41
    assert "first and last 12 rows" in made.numbers.caption
    assert "fewer than 10 speakers are rough" in made.numbers.caption
    said = made.pictures["k"]["svg"].decode()
    assert "<!-- model 11 -->" in said
    assert "<!-- model 12 -->" not in said


def cell(model: str, number: float, factor: str = "", factor_value: str = "", **other: Any):
    bounds = {"ci_low": number - 0.1, "ci_high": number + 0.1, "study": "mine"}
    return value(number, model, factor=factor, factor_value=factor_value, **(bounds | other))


STUDIES = {
    "models": (
        [cell("a", 0.5, "backbone", "a"), cell("b", 0.6, "backbone", "b")],
        [["a", "emodb test", "0.500 [0.400, 0.600]"], ["b", "emodb test", "0.600 [0.500, 0.700]"]],
    ),
    "numbers": (
        [cell("a", v, "share", s) for s, v in (("50 %", 0.5), ("100 %", 0.7))],
        [["emodb", "50 %", "0.500 [0.400, 0.600]"], ["emodb", "100 %", "0.700 [0.600, 0.800]"]],
    ),
    "seeds": (
        [cell("a", v, "seed", str(i), seed=i) for i, v in enumerate((0.2, 0.4, 0.6))],
        [["a, 3 seeds", "emodb test", "0.400 [0.100, 0.700]"]],
    ),
}


@pytest.mark.parametrize(("rows", "expected"), STUDIES.values(), ids=STUDIES)
def test_own_studies_are_shown_by_themselves(rows, expected):
    (exhibit,), _ = study_exhibits(Evidence(metrics=frame(*rows)))
    assert [list(row[:3]) for row in exhibit.charts[0].numbers.rows] == expected


def test_own_studies_are_never_in_the_paper_s_figures():
    rows = [cell("a", 0.5), cell("a", 0.9, metric="robustness"), cell("b", 0.1, study="yours")]
    cells = pd.DataFrame({"study": ["mine", "gone"], "kind": "train"})
    found = Evidence(metrics=frame(*rows), cells=cells)
    exhibits, missing = study_exhibits(found)
    assert [one.charts[0].pictures.keys() for one in exhibits] == [
        {"study-1-ccc"}, {"study-2-ccc"},
    ]  # fmt: skip
    assert any("study-1-figure-3-models" in c.pictures for c in exhibits[0].charts)
    assert [one.name for one in missing] == ["Study gone"]
    assert paper_figures(found)[0] == []


def test_runs_and_studies_are_read_with_the_names_readers_know(tmp_path):
    run, study = trained(tmp_path / "tiny"), studied(tmp_path / "study")
    scored = evaluated(tmp_path / "scored", models=[str(run), "other"])
    place = scored / "metrics" / "part-00000.parquet"
    metrics = pd.read_parquet(place)
    metrics.assign(trained_on=(metrics.model == "other") * 5).to_parquet(place)
    found = read_evidence([str(run), str(scored), str(study)])
    names = {"tiny", *MODELS[:2], "other (trained on these clips)"}
    assert names <= set(found.metrics.model)
    assert not [name for name in found.metrics.model if "/" in name]
    rows = figures.by_factor(found.metrics, "frozen")
    assert {*zip(rows.row, rows.series, strict=True)} == {
        (m, s) for m in MODELS[:2] for s in ("fine-tuned", "frozen")
    }
    assert set(figures.learning(found.curves).n) == {3}
    assert any("failed" in note and EVIL[1] in note for note in found.notes)


def test_unfinished_runs_and_studies_are_marked_and_compare_nothing_one_sided(tmp_path):
    folder, run = studied(tmp_path / "study"), evaluated(tmp_path / "run")
    tables = {name: folder / name / "part-00000.parquet" for name in ("cells", "metrics")}
    cells, metrics = map(pd.read_parquet, tables.values())
    gone = [(t.study == "pretraining") & (t.factor_value == "random") for t in (cells, metrics)]
    cells.assign(status=cells.status.mask(gone[0], "waiting")).to_parquet(tables["cells"])
    metrics[~gone[1]].to_parquet(tables["metrics"])
    document = json.loads((run / "run.json").read_text()) | {"status": "running"}
    (run / "run.json").write_text(json.dumps(document))
    found = read_evidence([str(folder), str(run)])
    assert "The study pretraining is unfinished: 2 of 4 runs are done" in found.notes
    assert any("incomplete" in note for note in found.notes)
    assert figures.by_factor(found.metrics, "pretraining").empty
    assert len(figures.by_factor(found.metrics, "frozen")) == 12
    with pytest.raises(ConfigError, match=r"has no run\.json: give the --output"):
        read_evidence([str(tmp_path)])


def test_embeddings_are_a_sample_that_no_cut_into_parts_changes(tmp_path):
    found = [read_evidence([str(annotated(tmp_path / str(n), part=n))]) for n in (7, 1000)]
    one, other = (read_map(e.runs[0], [e.runs[0].folder], most=25) for e in found)
    assert len(one) == 25
    assert one.drop(columns="embedding").equals(other.drop(columns="embedding"))
    assert set(one.sex) == {"female", "male"}
    assert one.valence_is_label.all()


def test_a_map_keeps_clusters_apart_and_their_neighbourhoods_are_their_own():
    rng = np.random.default_rng(0)
    group = np.arange(60) % 3
    embedding = rng.normal(0, 0.2, (60, 12)) + 4 * np.eye(12)[group]
    clips = pd.DataFrame({"corpus": [f"c{g}" for g in group], "embedding": list(embedding)})
    plane = places(clips)
    assert np.array_equal(plane, places(clips))
    middles = np.array([plane[group == g].mean(axis=0) for g in range(3)])
    nearest = np.linalg.norm(plane[:, None] - middles, axis=2).argmin(axis=1)
    assert np.array_equal(nearest, group)
    assert [row[2:] for row in neighbours(clips, ["corpus"])] == [[20, "1.00", "0.33"]] * 3


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    folder = annotated(tmp_path_factory.mktemp("archive") / "calls", embeddings=False)
    (found,) = read_archives(read_evidence([str(folder)]))
    return found


def test_overlapping_clips_count_once_in_hours():
    rng = np.random.default_rng(3)
    start, file = rng.integers(0, 500, 300), rng.integers(0, 4, 300)
    end = start + rng.integers(1, 40, 300)
    times = {"start_ns": start * 10**9, "end_ns": end * 10**9}
    seconds = {(f, s) for f, a, b in zip(file, start, end, strict=True) for s in range(a, b)}
    clips = pd.DataFrame({"file": file.astype(str), **times})
    assert covered_s(clips) == pytest.approx(len(seconds))


def test_the_parts_of_an_archive_are_its_first_folders_and_tars():
    files = ["/d/x/a/1.wav", "/d/x/b/c/2.wav", "/d/x/3.wav", "/d/x/s.tar#k/4.wav", "/d/x/a#b.wav"]
    assert folders(pa.chunked_array([files])).tolist() == ["a", "b", "", "s.tar", ""]
    assert folders(pa.chunked_array([["/d/xa/1.wav", "/d/xb/2.wav"]])).tolist() == ["xa", "xb"]


def test_an_archive_s_tables_say_what_its_rows_say(archive):
    # 45 windows of 4 s every 2 s are 92 s; 45 files of 4 s
    assert covered_s(archive.clips) == pytest.approx(92 + 45 * 4)
    tables = {t.columns[0]: t for e in archive_exhibits(archive, "a") for t in e.tables}
    ok, failed = tables["status"].rows
    assert (ok[:3], failed[:3]) == (["ok", 80, "88.9%"], ["unreadable", 10, "11.1%"])
    assert str(failed[4]).count("broken: ") == 3
    women = next(row for row in tables["sex"].rows if row[0] == "female")
    own = archive.clips[archive.clips.sex == "female"]
    assert women[1:3] == [45, int((own.status != "ok").sum())]
    assert women[4:] == [f"{own[d].mean():.2f}" for d in DIMENSIONS]
    assert [row[1] for row in tables["folder"].rows] == [45, 45]
    assert len(tables["most probable"].rows) == 2


def test_clips_to_listen_to_are_the_ends_the_failed_and_a_sample_of_all(archive):
    clips = chosen(archive)
    assert clips.clip_id.is_unique
    by_reason = clips.explode("why").groupby("why").clip_id.apply(set)
    ok, failed = (archive.clips[(archive.clips.status == "ok") == good] for good in (True, False))
    assert ok.clip_id[ok.valence.idxmax()] in by_reason["highest valence"]
    assert ok.clip_id[ok.arousal.idxmin()] in by_reason["lowest arousal"]
    assert by_reason["failed: unreadable"] <= set(failed.clip_id)
    assert len(by_reason["random sample"]) == 12
    assert (clips.ood[clips.clip_id.isin(by_reason["out of domain"])] > 0.5).all()
    table = list(csv.DictReader(io.StringIO(ratings_csv(clips).decode())))
    assert [row["file"] for row in table] == clips.file.tolist()
    assert {*table[0]} == {"file", "start", "end", *DIMENSIONS, "why"}
    telephone = clips.assign(channel=np.arange(len(clips)) % 2 + 1.0, audio_stream=np.nan)
    sides = csv.DictReader(io.StringIO(ratings_csv(telephone).decode()))
    sides = list(sides)
    assert [row["channel"] for row in sides][:3] == ["1", "2", "1"]
    assert "audio_stream" not in sides[0]
    shuffled = archive.clips.sample(frac=1, random_state=0).reset_index(drop=True)
    again = chosen(Archive(run=archive.run, clips=shuffled, numbers=archive.numbers))
    sampled = again.why.map(lambda why: "random sample" in why)
    assert set(again.clip_id[sampled]) == by_reason["random sample"]


def test_both_ends_of_a_scale_are_named_where_many_values_are_equal():
    axis = display.new_figure(2.0).subplots()
    _scale(axis, np.zeros((8, 2)), np.array([0.2, 0.2, 0.2, 0.2, 0.5, 0.9, 0.9, np.nan]))
    names = axis.get_legend_handles_labels()[1]
    assert names == ["low, about 0.20", "high, about 0.90"]
