"""The pass-or-fail tests of ser-tests (the paper authors' test suite) on the user's own data.

Predictions are rounded to two decimals and a score passes strictly beyond its threshold; both, and
the thresholds (`assets/ser_tests.json`), are ser-tests'. Its fairness thresholds come from
simulations with 1,000 clips a group, so with fewer clips a fair model fails some of them by chance.
Published results stand beside ours only for the same data, to 1 % of the clips.

Not here: linguistic sentiment, which needs spoken sentences (`raysers probe`), and pitch, which
predictions and labels do not tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import jensenshannon
from scipy.special import ndtr

from raysers.evaluation.metrics import ccc, mae, pearson
from raysers.evaluation.paper import paper_model, same_clips
from raysers.evaluation.rows import Row
from raysers.evaluation.scores import Scores, base_subsets
from raysers.evaluation.tables import report_console, short_names
from raysers.schemas import TESTS
from raysers.types import DIMENSIONS

#: Table of an output with the tests.
TESTS_PART = "tests/part-00000.parquet"
#: Expected ranges of the scores of an emotion, and the bins of fairness.
_RANGES = {"low": (-math.inf, 0.45), "neutral": (0.3, 0.6), "high": (0.55, math.inf)}
_BINS = {"(-inf, 0.25]": (-9, 0.25), "(0.25, 0.5]": (0.25, 0.5), "(0.5, 0.75]": (0.5, 0.75), "(0.75, inf]": (0.75, 9)}  # fmt: skip  # noqa: E501
#: Clips that a speaker needs, and clips of each group that are compared at most.
_SPEAKER_CLIPS, _GROUP_CLIPS = 10, 1000
#: Share of the clips a bin needs: what a random model, normal around .5, has below .25.
_LEAST_IN_BIN = float(ndtr((0.25 - 0.5) * 6))
#: Robustness tests by the beginning of a perturbation's name; the rest are small changes.
_ROBUSTNESS = {
    "background": "robustness_background_noise",
    "phone": "robustness_low_quality_phone",
    "position": "robustness_simulated_recording_condition",
    "room": "robustness_simulated_recording_condition",
    "tilt": "robustness_spectral_tilt",
}

#: What a test found: its name, metric, subject (group, bin, emotion), score and clips.
_Found = tuple[str, str, str, float, int]


@cache
def _document() -> Mapping[str, Any]:
    text = resources.files("raysers").joinpath("assets/ser_tests.json").read_text("utf-8")
    document: Mapping[str, Any] = json.loads(text)
    return document


def correctness_and_fairness(scores: Scores, rows: Sequence[Row]) -> pd.DataFrame:
    """Tests of every model, dataset, split and dimension, a frame of `TESTS` without run.

    Args:
        scores: labels and predictions.
        rows: of the metrics table, for the recall of emotion categories.
    """
    found = []
    columns = {name: scores.column(name) for name in ("speaker", "sex", "language")}
    known = pd.DataFrame({**columns, "emotion": scores.emotions(), "id": scores.identities})
    for cell in base_subsets(scores):
        for model, predictions in scores.predictions.items():
            for d, dimension in enumerate(DIMENSIONS):
                clips = known.iloc[cell.rows].assign(
                    truth=scores.truth[cell.rows, d],
                    prediction=np.round(predictions[cell.rows, d], 2),
                )
                clips = clips.dropna(subset="prediction")
                for one in (*_correctness(clips, dimension), *_fairness(clips)):
                    found.append((model, cell.dataset, cell.split, dimension, *one))
    for row in rows:
        if row.metric == "uar" and not row.group:
            place = (row.model, row.dataset, row.split, row.dimension)
            found.append((*place, "correctness_classification", "uar", "", row.value, row.n))
    return _judged(found)


def robustness_tests(rows: Sequence[Row], random: str) -> pd.DataFrame:
    """Tests of the rows of a robustness run, but for those of the model called `random`."""
    found = []
    for row in rows:
        if row.group or row.model == random or row.dimension not in DIMENSIONS:
            continue
        for prefix, metric in (("robustness_", "share_unchanged"), ("ccc_change_", "ccc_change")):
            name = row.metric.removeprefix(prefix)
            if name != row.metric and not name.endswith("_reference"):
                test = _ROBUSTNESS.get(name.partition("_")[0], "robustness_small_changes")
                place = (row.model, row.dataset, row.split, row.dimension)
                found.append((*place, test, metric, name, row.value, row.n))
    return _judged(found)


def _correctness(clips: pd.DataFrame, dimension: str) -> Iterator[_Found]:
    labelled = clips.dropna(subset="truth")
    truth, prediction, n = labelled["truth"], labelled["prediction"], len(labelled)
    if n > 1:
        for name, metric in (("ccc", ccc), ("pearson", pearson), ("mae", mae)):
            yield "correctness_regression", name, "", metric(truth, prediction), n
        edges = np.arange(0, 1, 0.1)  # nine bins up to .9, as ser-tests counts
        counts = [np.histogram(values, edges)[0] for values in (truth, prediction)]
        if all(of.any() for of in counts):
            distance = float(jensenshannon(*counts, base=2))
            yield "correctness_distribution", "js_distance", "", distance, n
    by_speaker = labelled[labelled["speaker"] != ""].groupby("speaker")
    means = by_speaker[["truth", "prediction"]].mean()[by_speaker.size() >= _SPEAKER_CLIPS]
    if len(means) > 1:
        found = mae(means["truth"], means["prediction"])
        yield "correctness_speaker_average", "mae", "", found, len(means)
        ranks = means.rank()
        found = pearson(ranks["truth"], ranks["prediction"])
        yield "correctness_speaker_ranking", "spearman", "", found, len(means)
    for expected, emotions in _document()["expected"][dimension].items():
        low, high = _RANGES[expected]
        for emotion in emotions:
            mine = clips["prediction"][clips["emotion"] == emotion]
            if len(mine):
                share = float(mine.between(low, high).mean())
                subject = f"{emotion}: {expected}"
                what = "share_in_expected_range"
                yield "correctness_consistency", what, subject, share, len(mine)


def _fairness(clips: pd.DataFrame) -> Iterator[_Found]:
    spoken = clips[clips["language"] != ""]
    tags = spoken["language"].str.replace("_", "-")
    spoken = spoken.assign(tag=tags, language=tags.str.split("-").str[0])
    yield from _shifts("fairness_language", spoken, "language")
    for _, of_language in spoken[spoken["tag"] != spoken["language"]].groupby("language"):
        yield from _shifts("fairness_accent", of_language, "tag")
    labelled = clips[clips["sex"].isin(("female", "male"))].dropna(subset="truth")
    if labelled["sex"].nunique() == 2:
        yield from _sexes(_balanced(labelled, "sex"))


def _shifts(test: str, clips: pd.DataFrame, group: str) -> Iterator[_Found]:
    """Mean and bins of every group against the average of the groups."""
    bins = {name: clips["prediction"].between(*b, "right") for name, b in _BINS.items()}
    frame = pd.DataFrame({"mean": clips["prediction"], **bins}).groupby(clips[group])
    means, sizes = frame.mean(), frame.size()
    for name, off in (means - means.mean()).iterrows() if len(means) > 1 else ():
        yield test, "mean_difference", str(name), float(off["mean"]), int(sizes[name])
        for of_bin in bins:
            if means[of_bin].mean() >= _LEAST_IN_BIN:
                found = float(off[of_bin])
                yield test, "bin_difference", f"{name}, {of_bin}", found, int(sizes[name])


def _sexes(clips: pd.DataFrame) -> Iterator[_Found]:
    """CCC, and precision and recall of every bin, of a sex less those of both together."""
    test = "fairness_sex"
    whole = ccc(clips["truth"], clips["prediction"])
    for sex, mine in clips.groupby("sex"):
        found = ccc(mine["truth"], mine["prediction"]) - whole
        yield test, "ccc_difference", str(sex), found, len(mine)
        for name, bounds in _BINS.items():
            for metric, given in (("precision", "prediction"), ("recall", "truth")):
                off = _hits(mine, given, bounds) - _hits(clips, given, bounds)
                if not math.isnan(off):
                    yield test, f"{metric}_difference", f"{sex}, {name}", off, len(mine)


def _hits(clips: pd.DataFrame, given: str, bounds: tuple[float, float]) -> float:
    """Of the clips whose label (or prediction) is in a bin, the share with both; NaN: too few."""
    truth, prediction = (clips[c].between(*bounds, "right") for c in ("truth", "prediction"))
    base = truth if given == "truth" else prediction
    if base.sum() < max(_LEAST_IN_BIN * len(clips), 1):
        return math.nan
    return float((truth & prediction).sum() / base.sum())


def _balanced(clips: pd.DataFrame, group: str) -> pd.DataFrame:
    """As many clips of every group, at most 1,000, with about the same labels.

    Of the smallest group a choice by the clips' identities; of the others the clips whose labels
    are closest to these, each once.
    """
    groups = [of.sort_values("id") for _, of in clips.groupby(group)]
    groups.sort(key=len)
    chosen = groups[0].sample(min(len(groups[0]), _GROUP_CLIPS), random_state=0)
    parts = [chosen]
    wanted = np.sort(chosen["truth"].to_numpy())
    for other in groups[1:]:
        free = other.sort_values("truth", kind="stable")
        taken = _closest(free["truth"].to_numpy(), wanted)
        parts.append(free.iloc[taken])
    return pd.concat(parts)


def _closest(values: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Places of the values closest to the wanted ones, each once, both ascending; greedy."""
    taken, first = [], 0
    for i, one in enumerate(wanted):
        last = len(values) - (len(wanted) - i)  # leaves enough for the rest
        place = int(np.clip(np.searchsorted(values, one), first, last))
        if place > first and abs(values[place - 1] - one) <= abs(values[place] - one):
            place -= 1
        taken.append(place)
        first = place + 1
    return taken


def _judged(found: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Scores with threshold, verdict and published result; undefined scores are left out."""
    names = ["model", "dataset", "split", "dimension", "test", "metric", "subject", "value", "n"]
    frame = pd.DataFrame(found, columns=names).dropna(subset="value")
    rules = pd.DataFrame(_document()["tests"])
    frame = frame.merge(rules, on=["test", "metric"], how="inner")
    decimals = frame.pop("decimals")
    frame["value"] = [round(v, d) for v, d in zip(frame["value"], decimals, strict=True)]
    size = frame["value"].where(frame["rule"] != "abs <", frame["value"].abs())
    above = frame["rule"] == ">"
    frame["passed"] = np.where(above, size > frame["threshold"], size < frame["threshold"])
    frame["published"] = [_published(row) for row in frame.itertuples()]
    return frame


def _published(row: Any) -> float:
    """ser-tests' result of the same model, test and data; NaN: none."""
    model = paper_model(row.model)
    if not model or (row.test == "correctness_regression" and not same_clips(row.dataset, row.n)):
        return math.nan
    key = (f"{row.dataset} {row.split}", row.test, row.metric, row.subject, row.dimension)
    return _published_values().get((*key, model), math.nan)


@cache
def _published_values() -> dict[tuple[str, ...], float]:
    fields = ("data", "test", "metric", "subject", "dimension")
    return {
        (*(one[name] for name in fields), model): float(value)
        for one in _document()["published"]
        for model, value in one["models"].items()
    }


def to_tests(frame: pd.DataFrame, run_id: str) -> pa.Table:
    """The frame as a table of `schemas.TESTS`; NaN becomes null."""
    return pa.Table.from_pandas(frame.assign(run_id=run_id)[TESTS.names], TESTS, False)


def print_tests(frame: pd.DataFrame, console: Console | None = None) -> None:
    """How many tests each model passed, by test and dimension."""
    if frame.empty:
        return
    console = console or report_console()
    names = short_names(list(frame["model"]))
    for (dataset, split), mine in frame.groupby(["dataset", "split"], sort=False):
        title = f"tests of ser-tests passed, {dataset} {split} (scores: table tests)"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        dimensions = [d for d in (*DIMENSIONS, "emotion") if (mine["dimension"] == d).any()]
        for head in dimensions:
            table.add_column(head, justify="right")
        for model, of in mine.groupby("model", sort=False):
            table.add_row(names[str(model)], style="bold")
            for test, parts in of.groupby("test", sort=False):
                by = parts.groupby("dimension")["passed"].agg(["sum", "size"])
                cells = (f"{by['sum'].get(d, 0)} of {by['size'].get(d, 0)}" for d in dimensions)
                table.add_row(f"  {test.replace('_', ' ')}", *cells)
        console.print(table)
        console.print()
