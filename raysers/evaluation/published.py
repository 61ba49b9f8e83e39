"""What has been published, beside ours: the paper's numbers, and the tests of ser-tests.

A number of the paper stands beside the same data (to 1 % of the clips), split, model, metric and
dimension, and nowhere else; what cannot be compared has none, and a note says why.

ser-tests is the paper authors' test suite. Predictions are rounded to two decimals and a score
passes strictly beyond its threshold; both, and the thresholds (`assets/ser_tests.json`), are
ser-tests'. Its fairness thresholds come from simulations with 1,000 clips a group, so with fewer
clips a fair model fails some of them by chance. Linguistic sentiment needs spoken sentences
(`raysers probe`), and pitch the column `pitch_hz` of the table of speakers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.spatial.distance import jensenshannon
from scipy.special import ndtr

from raysers.display import model_names
from raysers.evaluation.correctness import OVER_ALL
from raysers.evaluation.rows import NAN, WIDTH, Row, print_table
from raysers.evaluation.scores import RANDOM, Scores, base_subsets, ccc, mae, pearson
from raysers.schemas import TESTS
from raysers.types import DIMENSIONS

#: Share of the paper's clips that may be missing (unreadable files) or more.
_TOLERANCE = 0.01
#: Where the paper's cross-corpus drops start from (4.2).
_PAPER_HOME = "msp-podcast test1"
#: Table of an output with the tests.
TESTS_PART = "tests/part-00000.parquet"
#: Expected ranges of the scores of an emotion, and the bins of fairness.
_RANGES = {"low": (-math.inf, 0.45), "neutral": (0.3, 0.6), "high": (0.55, math.inf)}
_EDGES = (-math.inf, 0.25, 0.5, 0.75, math.inf)
_BINS = ("(-inf, 0.25]", "(0.25, 0.5]", "(0.5, 0.75]", "(0.75, inf]")
#: Clips that a speaker needs, and for pitch; clips of each group that are compared at most.
_SPEAKER_CLIPS, _PITCH_CLIPS, _GROUP_CLIPS = 10, 26, 1000
#: Speakers by their mean fundamental frequency; beyond 50 and 350 Hz it is taken for an error.
_PITCHES_HZ = {"low pitch": (50, 145), "medium pitch": (145, 190), "high pitch": (190, 350)}
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
def asset(name: str) -> dict[str, Any]:
    """A document of published facts that comes with the package."""
    text = resources.files("raysers").joinpath(f"assets/{name}.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperNumbers:
    """The paper's `models`, its `datasets` (split, clips, name) and values by what they are of."""

    models: Mapping[str, str]
    datasets: Mapping[str, Mapping[str, Any]]
    values: Mapping[tuple[str, str, str, str, str], float]


@cache
def paper_numbers() -> PaperNumbers:
    """The numbers of the paper (facts: section and value)."""
    document = asset("paper_numbers")
    keys = ("metric", "model", "dataset", "split", "dimension")
    return PaperNumbers(
        models={name.lower(): name for name in document["models"]},
        datasets=document["datasets"],
        values={tuple(row[k] for k in keys): row["value"] for row in document["numbers"]},
    )


def paper_model(model: str) -> str:
    """The paper's name of a model (alias, or folder of that name), or an empty string.

    Random weights are none of the paper's models, and neither is one with fewer layers.

    >>> paper_model("models/w2v2-l-robust@1a2b3c")
    'w2v2-L-robust'
    """
    if model.startswith("random:"):
        return ""
    name = re.sub(r"@[\w.-]*$", "", model).rstrip("/").rpartition("/")[2]
    return paper_numbers().models.get(name.lower(), "")


def same_clips(dataset: str, clips: int) -> bool:
    """Whether a dataset of that many clips is the paper's, to 1 %."""
    theirs: int = paper_numbers().datasets.get(dataset, {"clips": 0})["clips"]
    return abs(clips - theirs) <= _TOLERANCE * theirs


def with_paper(
    rows: Sequence[Row], names: Mapping[str, str] | None = None
) -> tuple[list[Row], list[str]]:
    """The rows with `paper` filled in, and notes on what is not comparable.

    The paper's name of a model is also looked for in `names`: by model, its backbone if known.
    """
    models = dict.fromkeys(row.model for row in rows)
    known = {m: paper_model(m) or paper_model((names or {}).get(m, "")) for m in models}
    clips: dict[tuple[str, str, str], int] = {}
    for row in sorted(rows, key=lambda row: row.metric == "ccc" and not row.group):
        clips[row.model, row.dataset, row.split] = row.n
    filled = [replace(row, paper=_paper(row, known[row.model], clips)) for row in rows]
    overall = [row for row in rows if row.metric == "ccc" and not row.group]
    notes = [
        note
        for dataset in dict.fromkeys(row.dataset for row in overall)
        if (note := _paper_note(dataset, [row for row in overall if row.dataset == dataset]))
    ]
    notes += [
        f"{model} is not one of the paper's models: no number of the paper beside it"
        for model in dict.fromkeys(row.model for row in overall)
        if not known[model] and model != RANDOM
    ]
    return filled, notes


def _paper(row: Row, name: str, clips: Mapping[tuple[str, str, str], int]) -> float:
    """The number of the paper's model `name`; NaN: none.

    `clips` are, by model, dataset and split, how many ours is measured on.
    """
    theirs = paper_numbers().datasets
    of_sexes = row.group == "sex" and row.metric.startswith("sex_fairness")
    # another home is another question
    of_home = row.metric == "ccc_drop" and row.group_value == _PAPER_HOME
    if row.group and not (of_sexes or of_home):
        return NAN
    needed = {row.dataset, *(["msp-podcast"] * of_home)}
    if row.dataset == OVER_ALL:  # means over datasets are of the paper's three
        needed = {dataset for model, dataset, _ in clips if model == row.model} - {OVER_ALL}
        if needed != set(theirs):
            return NAN
    for dataset in needed:
        here = clips.get((row.model, dataset, theirs.get(dataset, {"split": ""})["split"]))
        if here is not None and not same_clips(dataset, here):
            return NAN
    key = (row.metric, name, row.dataset, row.split, row.dimension)
    return paper_numbers().values.get(key, NAN)


def _paper_note(dataset: str, rows: Sequence[Row]) -> str:
    theirs = paper_numbers().datasets.get(dataset)
    if theirs is None:
        return f"{dataset} is not in the paper: no number of the paper beside it"
    same = [row.n for row in rows if row.split == theirs["split"]]
    if not same:
        splits = ", ".join(dict.fromkeys(row.split for row in rows))
        return f"{dataset} {splits}: the paper has {theirs['name']}, which is not comparable"
    if same_clips(dataset, max(same)):
        return ""
    return (
        f"{dataset} {theirs['split']}: {max(same):,} clips here, {theirs['clips']:,} in the "
        f"paper ({theirs['name']}): other clips, so none of its numbers stands beside ours"
    )


def correctness_and_fairness(scores: Scores, rows: Sequence[Row]) -> pd.DataFrame:
    """Tests of every model, dataset, split and dimension, a frame of `TESTS` without run.

    `rows` are of the metrics table, for the recall of emotion categories.
    """
    found = []
    columns = {name: scores.column(name) for name in ("speaker", "sex", "language")}
    known = pd.DataFrame({**columns, "emotion": scores.emotions(), "id": scores.identities})
    known["pitch_hz"] = pd.to_numeric(pd.Series(scores.column("pitch_hz")), errors="coerce")
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


def robustness_tests(rows: Sequence[Row]) -> pd.DataFrame:
    """Tests of the rows of a robustness run, but for those of the random model."""
    found = []
    own = [r for r in rows if not r.group and r.model != RANDOM and r.dimension in DIMENSIONS]
    for row in own:
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
    for expected, emotions in asset("ser_tests")["expected"][dimension].items():
        for emotion in emotions:
            mine = clips["prediction"][clips["emotion"] == emotion]
            if len(mine):
                share, subject = mine.between(*_RANGES[expected]).mean(), f"{emotion}: {expected}"
                what = "share_in_expected_range"
                yield "correctness_consistency", what, subject, float(share), len(mine)


def _fairness(clips: pd.DataFrame) -> Iterator[_Found]:
    spoken = clips[clips["language"] != ""]
    tags = spoken["language"].str.replace("_", "-")
    spoken = spoken.assign(tag=tags, language=tags.str.split("-").str[0])
    yield from _shifts("fairness_language", spoken, "language")
    for _, of_language in spoken[spoken["tag"] != spoken["language"]].groupby("language"):
        yield from _shifts("fairness_accent", of_language, "tag")
    labelled = clips.dropna(subset="truth")
    yield from _gaps("fairness_sex", labelled[labelled["sex"].isin(("female", "male"))], "sex")
    by_speaker = labelled[labelled["speaker"] != ""].groupby("speaker")
    pitch_hz = by_speaker["pitch_hz"].transform("mean")
    many = by_speaker["truth"].transform("size") >= _PITCH_CLIPS
    group = pd.Series("", labelled.index)
    for name, (low_hz, high_hz) in _PITCHES_HZ.items():
        group[pitch_hz[many & pitch_hz.between(low_hz, high_hz, "right")].index] = name
    grouped = labelled.assign(pitch=group)
    yield from _gaps("fairness_pitch", grouped[group != ""], "pitch")


def _bins(values: pd.Series) -> pd.Series:
    return pd.cut(values, list(_EDGES), labels=list(_BINS))


def _shifts(test: str, clips: pd.DataFrame, group: str) -> Iterator[_Found]:
    """Mean and bins of every group against the average of the groups."""
    bins = pd.get_dummies(_bins(clips["prediction"]), dtype=float).set_axis([*_BINS], axis=1)
    groups = bins.assign(mean=clips["prediction"]).groupby(clips[group])
    means, sizes = groups.mean(), groups.size()
    for name, off in (means - means.mean()).iterrows() if len(means) > 1 else ():
        yield test, "mean_difference", str(name), float(off["mean"]), int(sizes[name])
        for of_bin in _BINS:
            if means[of_bin].mean() >= _LEAST_IN_BIN:
                found = float(off[of_bin])
                yield test, "bin_difference", f"{name}, {of_bin}", found, int(sizes[name])


def _gaps(test: str, clips: pd.DataFrame, group: str) -> Iterator[_Found]:
    """CCC, and precision and recall of every bin, of a group less those of all together."""
    if clips[group].nunique() < 2:
        return
    clips = _balanced(clips, group)
    whole = ccc(clips["truth"], clips["prediction"])
    for name, mine in clips.groupby(group):
        found = ccc(mine["truth"], mine["prediction"]) - whole
        yield test, "ccc_difference", str(name), found, len(mine)
        for of_bin in _BINS:
            for metric, given in (("precision", "prediction"), ("recall", "truth")):
                off = _hits(mine, given, of_bin) - _hits(clips, given, of_bin)
                if not math.isnan(off):
                    yield test, f"{metric}_difference", f"{name}, {of_bin}", off, len(mine)


def _hits(clips: pd.DataFrame, given: str, of_bin: str) -> float:
    """Of the clips whose label (or prediction) is in a bin, the share with both; NaN: too few."""
    base = _bins(clips[given]) == of_bin
    if base.sum() < max(_LEAST_IN_BIN * len(clips), 1):
        return NAN
    return float((_bins(clips["truth"]) == _bins(clips["prediction"]))[base].mean())


def _balanced(clips: pd.DataFrame, group: str) -> pd.DataFrame:
    """As many clips of every group, at most 1,000, with about the same labels.

    Of the smallest group a choice by the clips' identities; of the others the clips whose labels
    are closest to these, each once.
    """
    fewest, *others = sorted((of.sort_values("id") for _, of in clips.groupby(group)), key=len)
    chosen = fewest.sample(min(len(fewest), _GROUP_CLIPS), random_state=0)
    wanted, parts = np.sort(chosen["truth"].to_numpy()), [chosen]
    for other in others:
        free = other.sort_values("truth", kind="stable")
        parts.append(free.iloc[_closest(free["truth"].to_numpy(), wanted)])
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
    frame = frame.merge(pd.DataFrame(asset("ser_tests")["tests"]), on=["test", "metric"])
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
        return NAN
    key = (f"{row.dataset} {row.split}", row.test, row.metric, row.subject, row.dimension)
    return _published_values().get((*key, model), NAN)


@cache
def _published_values() -> dict[tuple[str, ...], float]:
    fields = ("data", "test", "metric", "subject", "dimension")
    return {
        (*(one[name] for name in fields), model): float(value)
        for one in asset("ser_tests")["published"]
        for model, value in one["models"].items()
    }


def to_tests(frame: pd.DataFrame, run_id: str) -> pa.Table:
    """The frame as a table of `schemas.TESTS`; NaN becomes null."""
    return pa.Table.from_pandas(frame.assign(run_id=run_id)[TESTS.names], TESTS, False)


def print_tests(frame: pd.DataFrame) -> None:
    """How many tests each model passed, by test and dimension."""
    names = model_names(list(frame["model"].unique()), WIDTH)
    for (dataset, split), mine in frame.groupby(["dataset", "split"], sort=False):
        dimensions = [d for d in (*DIMENSIONS, "emotion") if (mine["dimension"] == d).any()]
        lines, styles = [], list[str]()
        for model, of in mine.groupby("model", sort=False):
            lines.append([names[str(model)]])
            for test, parts in of.groupby("test", sort=False):
                by = parts.groupby("dimension")["passed"].agg(["sum", "size"])
                passed = by.astype(str).agg(" of ".join, axis=1).reindex(dimensions, fill_value="")
                lines.append([f"  {str(test).replace('_', ' ')}", *passed])
            styles += ["bold"] + [""] * (len(lines) - len(styles) - 1)
        title = f"tests of ser-tests passed, {dataset} {split} (scores: table tests)"
        print_table(title, ["", *dimensions], lines, styles)
