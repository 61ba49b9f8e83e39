"""What a robustness run says at its end: metrics table, picture, tables in the terminal, audio.

All of it follows from the rows, so the same command on a finished output makes it again, with
another threshold if asked for. What is printed and drawn is a selection of the metrics table; the
picture is in the manner of the paper's Figure 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raysers import display
from raysers.data.splits import identities
from raysers.display import COLOURS, INK, SOFT
from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.engine.plan import Plan
from raysers.evaluation.bootstrap import interval_notes
from raysers.evaluation.published import TESTS_PART, print_tests, robustness_tests, to_tests
from raysers.evaluation.rows import (
    METRICS_PART,
    Row,
    bounded,
    number,
    print_notes,
    print_table,
    to_frame,
    to_table,
)
from raysers.evaluation.scores import (
    RANDOM,
    Floats,
    Scores,
    base_subsets,
    dimensions_of,
    with_dataset_names,
)
from raysers.io import storage
from raysers.robustness.measures import (
    CLEAN,
    MEAN,
    OVERALL,
    TONE,
    Change,
    Comparison,
    of_ser_tests,
    robustness_rows,
    ser_tests,
    ser_tests_share,
)
from raysers.robustness.task import HARD, Perturbed, RobustnessTask
from raysers.types import DIMENSIONS

_COLUMNS = ("speaker", "sex", "language", "emotion", "corpus", "split")
_MOST_GROUPS, _MOST_WITH_BOUNDS = 8, 3
#: Datasets and splits in one picture.
_MOST_PANELS = 6
_SHARE, _SIZE, _P95, _CCC = f"{OVERALL}_", "mean_change_", "p95_change_", "ccc_change_"
_ALL_SMALL = "all small changes"
_LINE_IN, _EDGES_IN = 0.36, 1.5
_OFFSETS = (-0.22, 0.0, 0.22)
_ByMetric = dict[str, dict[str, Any]]


def report(job: ClipJob, task: RobustnessTask, how: Comparison) -> list[Row]:
    """Compare the rows of the output, write metrics and picture, print the tables."""
    output, model = job.run.output, task.scoring.model
    scores = read_scores(output, job.plan, task.variant_names)
    rows = robustness_rows(model, scores, changes_of(task.perturbed), how)
    parts.write_part(storage.join(output, METRICS_PART), to_table(rows, job.run.run_id))
    tests = robustness_tests(rows)
    parts.write_part(storage.join(output, TESTS_PART), to_tests(tests, job.run.run_id))
    frame = to_frame(rows)
    for suffix, data in robustness_figure(frame, model, how).items():
        storage.write_atomic(storage.join(output, f"robustness.{suffix}"), data)
    print_robustness(frame, model, how)
    print_tests(tests)
    names = [row.name for row in task.perturbed.rows]
    notes = [*reading_notes(frame, names, how, amr=task.needs_codec)]
    print_notes([*notes, *interval_notes(scores, base_subsets(scores.against(CLEAN)))])
    print(f"metrics: {storage.join(output, 'metrics')}")
    return rows


def print_robustness(rows: pd.DataFrame, model: str, how: Comparison) -> None:
    """The share of unchanged scores per dataset, then the change of CCC, then groups."""
    for (dataset, split), mine in rows.groupby(["dataset", "split"], sort=False):
        whole, groups = (mine[(mine["group"] == "") == is_whole] for is_whole in (True, False))
        title = f"{dataset} {split}: share of scores that {how.text}"
        heads = ["", *DIMENSIONS, "mean [95 %]", "ser-tests", "random"]
        shares = list(_shares(whole, model, how))
        print_table(title, heads, shares, ["bold" * (s[0] == _ALL_SMALL) for s in shares])
        by = _by_metric(whole)
        sizes = []
        for name in (m.removeprefix(_SIZE) for m in by if m.startswith(_SIZE)):
            pairs = [(by[_SIZE + name][d].value, by[_P95 + name][d].value) for d in DIMENSIONS]
            sizes.append([name, *(f"{number(mean)} / {number(p95)}" for mean, p95 in pairs)])
        print_table("absolute change: mean / 95th percentile", ["", *DIMENSIONS], sizes)
        heads = ["", *DIMENSIONS, "ser-tests, mean"]
        print_table("change of CCC", heads, list(_cccs(by, model, how)))
        for group, part in groups.groupby("group", sort=False):
            values, lines = _group(part)
            print_table(f"share unchanged (mean) by {group}", ["", *values], lines)


def _shares(rows: pd.DataFrame, model: str, how: Comparison) -> Iterator[list[str]]:
    own, random = (_by_metric(rows[rows["model"].eq(RANDOM) == chance]) for chance in (False, True))
    own = {_name(metric): of for metric, of in own.items() if metric.startswith(OVERALL)}
    for name, of in own.items():
        small = [n for n in own if n in of_ser_tests()] if name == OVERALL else [name]
        chance = random.get(of[MEAN].metric, {MEAN: None})[MEAN]
        published = ser_tests_share(small, model, how), chance.value if chance else np.nan
        cells = (*(number(of[d].value) for d in DIMENSIONS), bounded(of[MEAN]))
        yield [_ALL_SMALL if name == OVERALL else name, *cells, *map(number, published)]


def _cccs(by: _ByMetric, model: str, how: Comparison) -> Iterator[list[str]]:
    for metric, of in by.items():
        name = metric.removeprefix(_CCC)
        if name != metric:
            other_tone = name == TONE and how.tone_snr != "rms"
            beside = np.nan if other_tone else ser_tests("ccc_change", name, model)
            cells = (bounded(of[d]) if d in of else "-" for d in DIMENSIONS)
            yield [name, *cells, number(beside)]


def _group(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Values of a group, and a line per perturbation."""
    shares = rows[rows["metric"].str.startswith(OVERALL) & (rows["model"] != RANDOM)]
    shares = shares[shares["dimension"] == MEAN]
    values = list(shares["group_value"].unique()[:_MOST_GROUPS])
    text = bounded if len(values) <= _MOST_WITH_BOUNDS else lambda row: number(row.value)
    lines = []
    for metric, of in shares.groupby("metric", sort=False) if len(values) > 1 else ():
        by = {row.group_value: row for row in of.itertuples()}
        cells = (text(by[value]) if value in by else "-" for value in values)
        lines.append([_ALL_SMALL if metric == OVERALL else _name(metric), *cells])
    return values, lines


def _by_metric(rows: pd.DataFrame) -> _ByMetric:
    """By metric, then by dimension, the row."""
    found: _ByMetric = {}
    for row in rows.itertuples():
        found.setdefault(row.metric, {})[row.dimension] = row
    return found


def _name(metric: str) -> str:
    return metric.removeprefix(_SHARE)


def reading_notes(
    rows: pd.DataFrame, names: Sequence[str], how: Comparison, *, amr: bool
) -> Iterator[str]:
    """What a reader should know of the figures of the perturbations `names`."""
    compared = set(rows["metric"])
    if lost := [name for name in names if _SHARE + name not in compared]:
        yield f"no clip could be compared: {', '.join(lost)}"
    if (panels := len(_panels(rows))) > _MOST_PANELS:
        yield f"the picture shows the first {_MOST_PANELS} of {panels} datasets and splits"
    yield f"unchanged: {how.text}; published shares stand beside a threshold of .05 only"
    if TONE in names and how.tone_snr == "peak":
        yield f"{TONE}: SNR of the clip's peak, as in the paper; ser-tests' is of its RMS"
    yield "ser-tests: mean over its corpora for this model, or for the paper's eight models"
    if "phone" in names and not amr:
        yield "phone: without the AMR codec, which needs the package av"
    if any(name.startswith("tilt") for name in names):
        yield "tilt: filters of our own, 3 dB per octave, not ser-tests' recordings"


def _panels(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Shares of all clips by dataset and split."""
    shares = rows[rows["metric"].str.startswith(_SHARE) & (rows["group"] == "")]
    return [panel for _, panel in shares.groupby(["dataset", "split"], sort=False)]


def robustness_figure(rows: pd.DataFrame, model: str, how: Comparison) -> dict[str, bytes]:
    """Share of unchanged scores by perturbation and dimension, with the published ones.

    Datasets and splits have a panel each. Nothing without a perturbation to show.
    """
    panels = _panels(rows)[:_MOST_PANELS]
    return display.picture(lambda: _draw(panels, model, how)) if panels else {}


def _draw(panels: Sequence[pd.DataFrame], model: str, how: Comparison) -> Any:
    from matplotlib.lines import Line2D

    lines = [panel["metric"].nunique() for panel in panels]
    figure = display.new_figure(sum(_EDGES_IN + _LINE_IN * count for count in lines))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=lines)[:, 0]
    for axis, rows in zip(axes, panels, strict=True):
        own, random = rows[rows["model"] != RANDOM], rows[rows["model"] == RANDOM]
        by = _by_metric(own)
        for y, (metric, of) in enumerate(by.items()):
            for d, offset in zip(DIMENSIONS, _OFFSETS, strict=True):
                bounds = of[d].ci_low, of[d].ci_high
                display.interval(axis, of[d].value, bounds, y + offset, COLOURS[d])
            display.published(axis, ser_tests_share([_name(metric)], "", how), y, marker="|")
        display.name_rows(axis, [_name(metric).replace("_", " ") for metric in by])
        axis.set_xlim(-0.01, 1.02)
        axis.grid(axis="x")
        if len(random):
            display.guide(axis, float(random["value"].mean()))
        first, short = own.iloc[0], model.rstrip("/").rpartition("/")[2]
        title = f"Robustness of {short}: {first.dataset} {first.split}, {first.n:,} clips"
        title += f", {first.speakers:,} speakers" if first.speakers else ""
        display.panel_title(axis, title)
        axis.set_xlabel(f"share of scores that {how.text}", loc="right")
    marks = [
        *(Line2D([], [], marker="o", linestyle="", color=COLOURS[d], label=d) for d in DIMENSIONS),
        Line2D([], [], marker="|", linestyle="", color=INK, mfc="none", label="ser-tests, mean"),
        Line2D([], [], color=SOFT, lw=0.8, linestyle=(0, (2, 3)), label="random"),
    ]
    figure.legend(
        handles=marks, loc="outside lower left", ncols=len(marks), frameon=False,
        columnspacing=1.2, handlelength=1.2, handletextpad=0.5,
    )  # fmt: skip
    return figure


def changes_of(perturbed: Perturbed) -> list[Change]:
    """Every perturbation with its repeats, as the evaluation knows them."""
    return [
        Change(
            name=row.name,
            versions=tuple(perturbed.variants_of(row)),
            against=row.against,
            small=row.name not in HARD,
        )
        for row in perturbed.rows
    ]


def read_scores(output: str, plan: Plan, names: Sequence[str]) -> Scores:
    """Labels of the manifest and predictions by version, in the manifest's order."""
    columns = ["clip_id", parts.VARIANT, *DIMENSIONS]
    table = parts.read_all(output, "robustness", len(plan.shards), columns)
    manifest = with_dataset_names(plan.manifest)
    ids = manifest["clip_id"].combine_chunks()
    place = pc.index_in(table["clip_id"], value_set=ids).to_numpy()
    values = dimensions_of(table)
    version = pc.index_in(table[parts.VARIANT], value_set=pa.array(names)).to_numpy()
    predictions: dict[str, Floats] = {}
    for nth, name in enumerate(names):
        mine = version == nth
        predictions[name] = np.full((len(ids), 3), np.nan)
        predictions[name][place[mine]] = values[mine]
    return Scores(
        clip_id=ids.to_pylist(),
        truth=dimensions_of(manifest),
        predictions=predictions,
        columns={c: manifest[c].to_pylist() for c in _COLUMNS if c in manifest.column_names}
        | {"identity": identities(manifest)},
    )
