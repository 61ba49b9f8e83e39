"""What a robustness run says: metrics table, picture, tables in the terminal.

All of it follows from the scores, so the same command on a finished output makes it again, with
another threshold if asked for. What is printed and drawn is a selection of the metrics table; the
picture is in the manner of the paper's Figure 3.

The robustness score is the share of clips whose score changed by less than the threshold (Wagner et
al. 2022, section 3.4; strictly less). It says nothing about being right: a model that ignores its
input is perfectly robust, so it is read beside the CCC. Published figures, the paper's and
ser-tests', are of their models on their corpora: they orient, they do not judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from raysers.evaluation.bootstrap import (
    Draws,
    draw,
    draw_metrics,
    interval_notes,
    stretch,
    support,
    units_of,
)
from raysers.evaluation.published import TESTS_PART, print_tests, robustness_tests, to_tests
from raysers.evaluation.rows import (
    METRICS_PART,
    NAN,
    Row,
    bounded,
    dimension_rows,
    drawn_rows,
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
    Subset,
    base_subsets,
    dimensions_of,
    mean_of_defined,
    random_scores,
    ratio,
    subsets,
    sum_by_unit,
    with_dataset_names,
)
from raysers.io import storage
from raysers.robustness.comparison import (
    OVERALL,
    TONE,
    Change,
    Comparison,
    of_ser_tests,
    ser_tests,
    ser_tests_share,
)
from raysers.robustness.perturbations import CLEAN
from raysers.robustness.task import HARD, Perturbed, RobustnessFlags, RobustnessTask
from raysers.schemas import METRICS, TESTS
from raysers.types import DIMENSIONS

#: Dimension of a row that is the mean of the three.
MEAN = "mean"
_WITH_MEAN = (*DIMENSIONS, MEAN)
_COLUMNS = ("speaker", "sex", "language", "emotion", "corpus", "split")
_MOST_GROUPS, _MOST_WITH_BOUNDS = 8, 3
#: Datasets and splits in one picture.
_MOST_PANELS = 6
_SHARE, _SIZE, _P95, _CCC = f"{OVERALL}_", "mean_change_", "p95_change_", "ccc_change_"
_ALL_SMALL = "all small changes"
_LINE_IN, _EDGES_IN = 0.36, 1.5
_OFFSETS = (-0.22, 0.0, 0.22)
_ByMetric = dict[str, dict[str, Any]]


def report(job: ClipJob, task: RobustnessTask, flags: RobustnessFlags) -> list[Row]:
    """Compare the rows of the output, write metrics and picture, print the tables."""
    output, model = job.run.output, task.scoring.model
    how = Comparison(
        threshold=flags.threshold,
        rounded=flags.round_scores,
        seed=flags.seed,
        tone_snr=flags.tone_snr,
    )
    scores = read_scores(output, job.plan, task.variant_names)
    rows = robustness_rows(model, scores, changes_of(task.perturbed), how)
    parts.write_part(storage.join(output, METRICS_PART), to_table(rows, job.run.run_id))
    tests = robustness_tests(rows)
    parts.write_part(storage.join(output, TESTS_PART), to_tests(tests, job.run.run_id))
    job.write_header(metrics=METRICS, tests=TESTS)
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


def robustness_rows(
    model: str, scores: Scores, changes: Sequence[Change], how: Comparison
) -> list[Row]:
    """Rows of the metrics table, for the model and for a random one.

    Metrics: `robustness_<perturbation>`, and `robustness` for the mean over small perturbations;
    `mean_change_...`, `p95_change_...` of the absolute change; `ccc_change_...` where there are
    labels. The dimension `mean` is over the three. `scores` have labels (NaN: none) and, by
    version, predictions of all clips.
    """

    def random(version: str, predicted: Floats) -> Floats:
        names = [f"{clip}\0{version}" for clip in scores.identities]
        return np.where(np.isfinite(predicted), random_scores(names, how.seed), NAN)

    chance = {version: random(version, found) for version, found in scores.predictions.items()}
    rows: list[Row] = []
    for name, predictions in ((model, scores.predictions), (RANDOM, chance)):
        # clean predictions take the place of labels, so that unlabelled clips count as well
        compared = replace(scores, predictions=predictions).against(CLEAN)
        for cell in subsets(compared, how.by):
            rows += _change_rows(name, compared, cell, changes, how)
    labelled = replace(scores, predictions={CLEAN: scores.predictions[CLEAN]})
    for cell in subsets(labelled, how.by):
        for change in changes:
            rows += _ccc_rows(model, scores, cell, change, how)
    return rows


def _change_rows(
    model: str, scores: Scores, cell: Subset, changes: Sequence[Change], how: Comparison
) -> Iterator[Row]:
    """Shares and sizes of the changes; repeats of a perturbation count like further clips."""
    unit, units = units_of(scores, cell)
    # values compared, unchanged, and their size
    sums = np.zeros((units, len(changes), 3, len(_WITH_MEAN)))
    compared = np.zeros((len(cell.rows), len(changes)), bool)
    p95 = np.full((len(changes), len(_WITH_MEAN)), NAN)
    for i, change in enumerate(changes):
        before = scores.predictions[change.against][cell.rows]
        after = np.stack([scores.predictions[name][cell.rows] for name in change.versions])
        size, unchanged = how.compare(before, after)
        there = np.isfinite(size)
        for j, values in enumerate((there, there & unchanged, np.where(there, size, 0.0))):
            sums[:, i, j, :-1] = sum_by_unit(values.sum(axis=0), unit, units)
        compared[:, i] = there.any(axis=(0, 2))
        for d in range(len(_WITH_MEAN)) if model != RANDOM else ():
            kept = size[there] if d == len(DIMENSIONS) else size[..., d][there[..., d]]
            p95[i, d] = np.percentile(kept, 95) if kept.size else NAN
    sums[..., -1] = sums[..., :-1].sum(axis=-1)
    small = np.array([change.small and change.against == CLEAN for change in changes])

    def figures(sums: Floats) -> Floats:
        """Share unchanged and mean size, then the mean share over the small, [..., k + 1, 2, 4]."""
        both = ratio(sums[..., 1:, :], sums[..., :1, :], sums[..., :1, :] > 0)
        overall = mean_of_defined(both[..., small, :, :], -3)
        return np.concatenate([both, overall[..., None, :, :]], axis=-3)

    there = sums[:, :, 0, :] > 0
    there = np.concatenate([there, there[:, small].any(axis=1, keepdims=True)], axis=1)
    there = np.repeat(there[:, :, None], 2, axis=2)
    drawn = draw(figures, sums, there, how.bootstrap, *cell.key)
    clips, speakers = support(scores, cell, compared)
    names, counts = [f"{OVERALL}_{change.name}" for change in changes], clips.tolist()
    if small.any():
        names, counts = [*names, OVERALL], [*counts, int(clips[small].max())]
        speakers = np.append(speakers, speakers[small].max())
    for i, name in enumerate(names):
        n, known, share = np.full(4, counts[i]), np.full(4, speakers[i]), drawn[i, 0]
        ends = share.share_interval(n)
        yield from dimension_rows(
            cell, model, name, share.value, n, ends, speakers=known, dimensions=_WITH_MEAN
        )
    for i, change in enumerate(changes if model != RANDOM else ()):
        n, known, sizes = np.full(4, counts[i]), np.full(4, speakers[i]), drawn[i, 1]
        for metric, value, bounds in (
            (f"mean_change_{change.name}", sizes.value, sizes.interval()),
            (f"p95_change_{change.name}", p95[i], None),
        ):
            yield from dimension_rows(
                cell, model, metric, value, n, bounds, speakers=known, dimensions=_WITH_MEAN
            )


def _ccc_rows(
    model: str, scores: Scores, cell: Subset, change: Change, how: Comparison
) -> Iterator[Row]:
    """CCC of the perturbed clips less that of the same clips as they are."""
    before = scores.predictions[change.against]
    after = [scores.predictions[version] for version in change.versions]
    there = [np.isfinite(before) & np.isfinite(p) for p in after]
    both = [np.where(t, before, NAN) for t in there]
    both += [np.where(t, p, NAN) for t, p in zip(there, after, strict=True)]
    drawn = draw_metrics(scores, cell, both, how.bootstrap)["ccc"]
    each = drawn[len(after) :] - drawn[: len(after)]
    units = each.units.max(axis=0)
    value, values = mean_of_defined(each.value, 0), mean_of_defined(each.values, 1)
    mean = Draws(value, values, units, stretch(units))
    of = support(scores, cell, (np.isfinite(scores.truth) & there[0])[cell.rows])
    yield from drawn_rows(cell, model, f"ccc_change_{change.name}", mean, *of)
