"""The paper's numbers beside ours, where dataset, split, model, metric and dimension are the same.

The same name is not yet the same clips: another release of MSP-Podcast has another test set. What
cannot be compared has no number beside it, and a note says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from raysers.evaluation.baseline import NAME as BASELINE
from raysers.evaluation.fairness import OVER_ALL
from raysers.evaluation.rows import Row

#: Share of the paper's clips that may be missing (unreadable files) or more.
_TOLERANCE = 0.01
_METRIC = "ccc"
#: Where the paper's cross-corpus drops start from (4.2).
_PAPER_HOME = "msp-podcast test1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperNumbers:
    """The paper's `models`, its `datasets` (split, clips, name) and values by what they are of."""

    models: Mapping[str, str]
    datasets: Mapping[str, Mapping[str, Any]]
    values: Mapping[tuple[str, str, str, str, str], float]


@cache
def paper_numbers() -> PaperNumbers:
    """The numbers that come with the package (facts: section and value)."""
    text = resources.files("raysers").joinpath("assets/paper_numbers.json").read_text("utf-8")
    document = json.loads(text)
    return PaperNumbers(
        models={name.lower(): name for name in document["models"]},
        datasets=document["datasets"],
        values={
            tuple(r[k] for k in ("metric", "model", "dataset", "split", "dimension")): r["value"]
            for r in document["numbers"]
        },
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


def with_paper(
    rows: Sequence[Row], names: Mapping[str, str] | None = None
) -> tuple[list[Row], list[str]]:
    """The rows with `paper` filled in, and notes on what is not comparable.

    A number of the paper is of a model, a metric, a dataset, a split and, to 1 %, as many clips.

    Args:
        rows: rows of any metric.
        names: by model, the backbone it was trained from, where that is known; the paper's name of
            the model is looked for there as well.
    """
    known = {row.model: _name(row.model, names or {}) for row in rows}
    clips: dict[tuple[str, str, str], int] = {}
    for row in sorted(rows, key=lambda row: row.metric == _METRIC and not row.group):
        clips[row.model, row.dataset, row.split] = row.n
    filled = [replace(row, paper=_value(row, known[row.model], clips)) for row in rows]
    return filled, _notes(filled, known)


def _name(model: str, names: Mapping[str, str]) -> str:
    return paper_model(model) or paper_model(names.get(model, ""))


def _value(row: Row, name: str, clips: Mapping[tuple[str, str, str], int]) -> float:
    """The paper's number, or NaN.

    Args:
        row: ours.
        name: the paper's name of its model.
        clips: by model, dataset and split, how many it is measured on.
    """
    theirs = paper_numbers().datasets
    of_sexes = row.group == "sex" and row.metric.startswith("sex_fairness")
    # another home is another question
    of_home = row.metric == "ccc_drop" and row.group_value == _PAPER_HOME
    if row.group and not (of_sexes or of_home):
        return float("nan")
    # means over datasets are of the paper's three
    needed = theirs if row.dataset == OVER_ALL else {row.dataset, *(["msp-podcast"] * of_home)}
    if row.dataset == OVER_ALL and {d for m, d, _ in clips if m == row.model} - {OVER_ALL} != set(
        theirs
    ):
        return float("nan")
    for dataset in needed:
        split = theirs[dataset]["split"] if dataset in theirs else ""
        here = clips.get((row.model, dataset, split))
        if here is not None and not same_clips(dataset, here):
            return float("nan")
    key = (row.metric, name, row.dataset, row.split, row.dimension)
    return paper_numbers().values.get(key, float("nan"))


def same_clips(dataset: str, clips: int) -> bool:
    """Whether a dataset of that many clips is the paper's, to 1 %."""
    theirs: int = paper_numbers().datasets.get(dataset, {"clips": 0})["clips"]
    return abs(clips - theirs) <= _TOLERANCE * theirs


def _notes(rows: Sequence[Row], known: Mapping[str, str]) -> list[str]:
    notes: dict[str, None] = {}
    overall = [row for row in rows if row.metric == _METRIC and not row.group]
    for dataset in dict.fromkeys(row.dataset for row in overall):
        own = [row for row in overall if row.dataset == dataset]
        notes.update(dict.fromkeys(_dataset_notes(dataset, own)))
    for model in dict.fromkeys(row.model for row in overall):
        if not known[model] and model != BASELINE:
            notes[f"{model} is not one of the paper's models: no number of the paper beside it"] = (
                None
            )
    return list(notes)


def _dataset_notes(dataset: str, rows: Sequence[Row]) -> list[str]:
    theirs = paper_numbers().datasets.get(dataset)
    if theirs is None:
        return [f"{dataset} is not in the paper: no number of the paper beside it"]
    same = [row.n for row in rows if row.split == theirs["split"]]
    if not same:
        splits = ", ".join(dict.fromkeys(row.split for row in rows))
        return [f"{dataset} {splits}: the paper has {theirs['name']}, which is not comparable"]
    if not same_clips(dataset, max(same)):
        return [
            f"{dataset} {theirs['split']}: {max(same):,} clips here, {theirs['clips']:,} in the "
            f"paper ({theirs['name']}): other clips, so none of its numbers stands beside ours"
        ]
    return []
