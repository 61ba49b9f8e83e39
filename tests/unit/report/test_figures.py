"""The numbers of each figure against small tables worked by hand, and how runs are read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysers.errors import ConfigError
from raysers.report import figures
from raysers.report.charts import Dots, dots_chart
from raysers.report.embeddings import map_charts, neighbours, places, read_map
from raysers.report.evidence import (
    PAPER_STUDIES,
    Evidence,
    main_splits,
    metrics_frame,
    read_evidence,
)
from raysers.report.figures import paper_figures, study_exhibits
from raysers.studies.study import study_names
from tests.made_runs import EVIL, MODELS, annotated, evaluated, metric, studied, trained

RANDOM = "random-gaussian"


def value(number: float = 0.5, model: str = "m", **other: Any) -> dict[str, Any]:
    return metric(model, number) | {"ci_low": None, "ci_high": None, "n": 9} | other


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    import pyarrow as pa

    columns = {name for row in rows for name in row}
    return metrics_frame(pa.table({n: [row.get(n) for row in rows] for n in columns}))


def brief(dots: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(
        dots[["block", "column", "row", "series", "value"]].itertuples(index=False, name=None)
    )


def test_several_seeds_of_a_study_are_one_mark():
    study = {"study": "backbones"}
    seeds = [
        value(0.1 * n, seed=n, ci_low=0.1 * n - 0.05, ci_high=0.1 * n + 0.2, **study)
        for n in (1, 2, 3)
    ]
    again = value(0.3, seed=3, ci_low=0.25, ci_high=0.5, **study)
    (dot,) = figures.correctness(frame(*seeds, again)).itertuples()
    assert dot.row == "m, 3 seeds"
    assert (dot.value, dot.low, dot.high) == pytest.approx((0.2, 0.05, 0.5))
    random = [value(0.0, RANDOM, seed=n, study="backbones") for n in (1, 2)]
    assert list(figures.correctness(frame(*random)).row) == [RANDOM]


def test_a_dataset_is_shown_by_one_split_of_a_model():
    rows = [
        value(model=m, dataset=d, split=s)
        for m, d, splits in (
            ("m", "a", "dev test1 test"),
            ("m", "b", "train dev"),
            ("n", "a", "all x"),
        )
        for s in splits.split()
    ]
    kept = main_splits(frame(*rows))
    assert list(zip(kept.model, kept.dataset, kept.split, strict=True)) == [
        ("m", "a", "test1"), ("m", "b", "dev"), ("n", "a", "all"),
    ]  # fmt: skip


def test_figure_2_is_ccc_of_whole_splits_of_the_backbones_with_the_random_model_last():
    found = figures.correctness(
        frame(
            value(0.1, RANDOM),
            value(0.6, paper=0.7, ci_low=0.5, ci_high=0.65),
            value(0.9, group="sex", group_value="female"),
            value(0.8, metric="pearson"),
            value(0.2, study="frozen", factor_value="frozen"),
            value(0.4, "w2v2-b", study="backbones"),
            value(0.3, dataset="all", split=""),
            value(0.35, "fused"),
        )
    )
    assert brief(found) == [
        ("emodb test", "arousal", "m", "", 0.6),
        ("emodb test", "arousal", "w2v2-b", "", 0.4),
        ("emodb test", "arousal", RANDOM, "", 0.1),
    ]
    first = found.iloc[0]
    assert (first.paper, first.low, first.high, first.n) == (0.7, 0.5, 0.65, 9)


def test_figure_3_tells_the_mean_from_each_perturbation():
    rows = frame(
        value(0.9, metric="robustness"),
        value(0.8, metric="robustness_white_noise"),
        value(0.7, metric="robustness_white_noise", dimension="mean"),
        value(0.6, metric="robustness_gain", group="sex", group_value="male"),
        value(0.2, RANDOM, metric="robustness"),
        value(0.2, RANDOM, metric="robustness_white_noise"),
    )
    by_model = figures.robustness_by_model(rows)
    assert list(zip(by_model.row, by_model.value, strict=True)) == [("m", 0.9), (RANDOM, 0.2)]
    assert brief(figures.robustness_by_change(rows)) == [
        ("emodb test", "arousal", "white noise", "m", 0.8)
    ]


def test_means_of_section_4_5_stand_beside_the_papers_only_over_its_three_corpora():
    rows = [
        value(v, m, dataset=d, dimension=dimension, metric=f"robustness{change}")
        for m, d, dimension, v in (
            ("w2v2-L-robust", "msp-podcast", "arousal", 0.9),
            ("w2v2-L-robust", "iemocap", "arousal", 0.8),
            ("w2v2-L-robust", "cmu-mosi", "valence", 0.4),
            ("mine", "iemocap", "valence", 0.3),
        )
        for change in ("", "_gain")
    ]
    for of, wanted in (
        ("model", {"w2v2-L-robust": (0.7, 0.98), "mine": (0.3, None)}),
        ("perturbation", {"gain": (0.6, 0.995)}),
    ):
        found = figures.robustness_means(frame(*rows), of).set_index("row")
        assert found.value.to_dict() == pytest.approx({k: v for k, (v, _) in wanted.items()})
        assert found.paper.dropna().to_dict() == {k: p for k, (_, p) in wanted.items() if p}
        assert figures.robustness_means(frame(*rows[:4]), of).paper.isna().all()


def test_figure_5_begins_with_the_hardest_speaker_by_the_mean_over_models_and_dimensions():
    rows = [
        value(v, m, metric="speaker_ccc", group="speaker", group_value=s)
        for s, m, v in (("a", "m", 0.9), ("a", "n", 0.1), ("b", "m", 0.3), ("b", "n", 0.5))
    ]
    found = figures.speakers(frame(*rows))
    assert [d[2:4] for d in brief(found)] == [("b", "m"), ("b", "n"), ("a", "m"), ("a", "n")]


def test_figures_7_and_9_compare_only_models_with_two_variants():
    rows = [
        value(v, m, study="frozen", factor="frozen", factor_value=f)
        for m, f, v in (("m", "frozen", 0.1), ("m", "tuned", 0.3), ("n", "tuned", 0.4))
    ]
    found = figures.by_factor(frame(*rows), "frozen")
    assert [d[2:] for d in brief(found)] == [("m", "frozen", 0.1), ("m", "tuned", 0.3)]


def test_figure_12_is_the_mean_over_seeds_with_a_sample_standard_deviation():
    one = {"study": "seeds", "model": "m", "dimension": "valence", "epoch": 1, "step": None}
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
    rows = [
        value(v, study="fraction", factor_value=f, seed=s, ci_low=v - 0.1, ci_high=v + 0.2)
        for f, s, v in (("100 %", 0, 0.6), ("12.5 %", 0, 0.2), ("12.5 %", 1, 0.4), ("all", 0, 0.9))
    ]
    first, second = figures.over_numbers(frame(*rows), "fraction").itertuples()
    assert (first.series, first.x, first.value, first.n) == ("emodb", 0.125, pytest.approx(0.3), 2)
    assert (first.low, first.high) == pytest.approx((0.1, 0.6))
    assert (second.x, second.value) == (1.0, 0.6)


def test_a_table_has_all_rows_of_a_chart_with_bounds_counts_and_the_paper():
    many = [value(0.1 + i / 100, f"model {i:02d}") for i in range(40)]
    rows = frame(*many, value(0.635, "a", ci_low=0.6, ci_high=0.66, paper=0.64))
    chart = dots_chart(Dots(key="k", rows=figures.correctness, axis="CCC"), rows)
    assert chart is not None
    assert chart.numbers.columns == ["model", "data", "arousal [95 %]", "the paper", "n"]
    assert chart.numbers.rows[-1] == ["a", "emodb test", "0.635 [0.600, 0.660]", "0.640", 9]
    assert len(chart.numbers.rows) == 41
    assert "first and last 12 rows" in chart.numbers.caption
    said = chart.pictures["k"]["svg"].decode()
    assert "<!-- model 11 -->" in said
    assert "<!-- model 12 -->" not in said


def cell(model: str, number: float, factor: str = "", factor_value: str = "", **other: Any):
    bounds = {"ci_low": number - 0.1, "ci_high": number + 0.1, "study": "mine"}
    return value(number, model, factor=factor, factor_value=factor_value, **(bounds | other))


def ccc(*rows: dict[str, Any]) -> list[list[Any]]:
    """The table under the first chart of the only study."""
    (exhibit,), _ = study_exhibits(Evidence(metrics=frame(*rows)))
    return [list(row[:3]) for row in exhibit.charts[0].numbers.rows]


def test_own_studies_are_shown_by_themselves_and_never_in_the_paper_s_figures():
    assert set(study_names()) == set(PAPER_STUDIES)
    rows = [cell("a", 0.5, "backbone", "a"), cell("b", 0.6, "backbone", "b")]
    assert ccc(*rows) == [
        ["a", "emodb test", "0.500 [0.400, 0.600]"],
        ["b", "emodb test", "0.600 [0.500, 0.700]"],
    ]
    steps = [cell("a", v, "share", s) for s, v in (("50 %", 0.5), ("100 %", 0.7))]
    assert [row[1] for row in ccc(*steps)] == ["50 %", "100 %"]
    seeds = [cell("a", v, "seed", str(i), seed=i) for i, v in enumerate((0.2, 0.4, 0.6))]
    assert ccc(*seeds) == [["a, 3 seeds", "emodb test", "0.400 [0.100, 0.700]"]]
    more = [cell("a", 0.9, metric="robustness"), cell("b", 0.1, study="yours")]
    cells = pd.DataFrame({"study": ["mine", "gone"], "kind": "train"})
    found = Evidence(metrics=frame(cell("a", 0.5), *more), cells=cells)
    exhibits, missing = study_exhibits(found)
    assert [len(one.charts) for one in exhibits] == [3, 1]
    assert [one.name for one in missing] == ["Study gone"]
    assert paper_figures(found)[0] == []


def test_runs_and_studies_are_read_with_the_names_readers_know(tmp_path):
    run = trained(tmp_path / "tiny")
    scored = evaluated(tmp_path / "scored", models=[str(run)])
    found = read_evidence([str(run), str(scored), str(studied(tmp_path / "study"))])
    assert {"tiny", *MODELS[:2]} <= set(found.metrics.model)
    assert not [name for name in found.metrics.model if "/" in name]
    rows = figures.by_factor(found.metrics, "frozen")
    assert {*zip(rows.row, rows.series, strict=True)} == {
        (m, s) for m in MODELS[:2] for s in ("fine-tuned", "frozen")
    }
    assert set(figures.learning(found.curves).n) == {3}
    assert any("failed" in note and EVIL[1] in note for note in found.notes)


def test_a_number_of_clips_that_a_model_was_trained_on_says_so(tmp_path):
    folder = evaluated(tmp_path / "run", models=MODELS[:2])
    place = folder / "metrics" / "part-00000.parquet"
    metrics = pd.read_parquet(place)
    metrics.assign(trained_on=(metrics.model == MODELS[0]) * 5).to_parquet(place)
    found = figures.correctness(read_evidence([str(folder)]).metrics)
    assert f"{MODELS[0]} (trained on these clips)" in set(found.row)
    assert MODELS[1] in set(found.row)
    assert MODELS[0] not in set(found.row)


def test_an_unfinished_study_is_marked_and_compares_nothing_one_sided(tmp_path):
    folder = studied(tmp_path / "study")
    tables = {name: folder / name / "part-00000.parquet" for name in ("cells", "metrics")}
    cells, metrics = map(pd.read_parquet, tables.values())
    gone = [(t.study == "pretraining") & (t.factor_value == "random") for t in (cells, metrics)]
    cells.assign(status=cells.status.mask(gone[0], "waiting")).to_parquet(tables["cells"])
    metrics[~gone[1]].to_parquet(tables["metrics"])
    found = read_evidence([str(folder)])
    assert "The study pretraining is unfinished: 2 of 4 runs are done" in found.notes
    assert figures.by_factor(found.metrics, "pretraining").empty
    assert len(figures.by_factor(found.metrics, "frozen")) == 12


def test_a_folder_without_a_run_is_refused_and_an_unfinished_run_is_noted(tmp_path):
    with pytest.raises(ConfigError, match=r"has no run\.json: give the --output"):
        read_evidence([str(tmp_path)])
    folder = evaluated(tmp_path / "run")
    document = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(document))
    assert any("incomplete" in note for note in read_evidence([str(folder)]).notes)


def test_embeddings_are_a_sample_that_no_cut_into_parts_changes(tmp_path):
    found = [read_evidence([str(annotated(tmp_path / str(n), part=n))]) for n in (7, 1000)]
    one, other = (read_map(e.runs[0], [e.runs[0].folder], most=25) for e in found)
    assert len(one) == 25
    assert one.drop(columns="embedding").equals(other.drop(columns="embedding"))
    assert set(one.sex) == {"female", "male"}
    assert (one.valence_is_label.all(), one.arousal_is_label.all()) == (True, True)


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


def test_figure_8_shows_the_models_of_a_study_side_by_side_by_what_is_known_and_each_dimension(
    tmp_path,
):
    runs = [
        replace(read_evidence([str(annotated(tmp_path / name))]).runs[0], model=name)
        for name in ("cnn14", "random", "robust")
    ]
    (chart,) = map_charts(Evidence(cell_runs=runs))
    assert set(chart.pictures["figure-8"]) == {"png", "svg"}
    assert {row[0] for row in chart.numbers.rows} == {"cnn14", "random", "robust"}
    assert "coloured by corpus, sex, speaker, arousal, dominance, valence" in chart.alt
