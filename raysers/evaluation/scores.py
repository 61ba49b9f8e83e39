"""Labelled clips beside the predictions of one or several models, and how they fall into cells.

A cell is what one line of a report is about: the clips of a dataset and split, or of a group of
them. A dataset with several splits also has the cell "all".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysers.data.corpora.emotions import category_of
from raysers.evaluation.metrics import Floats

#: Split of the cell over a whole dataset, and of clips that no split was given for.
ALL = "all"
UNSPLIT = "none"
#: Dataset of clips without a corpus.
UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Categories:
    """A model's emotion categories by their common names, [k].

    `probabilities` are [n, k], and NaN in all of a row: not predicted.
    """

    names: Sequence[str]
    probabilities: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Labels and predictions of the same clips.

    Attributes:
        clip_id: identity of every clip, [n].
        truth: labels 0..1 in the order of `types.DIMENSIONS`, [n, 3]; NaN: no label.
        predictions: by model, [n, 3]; NaN: not predicted.
        columns: what else is known of the clips (`speaker`, `sex`, `corpus`, `split`, ...), each
            [n]; None or an empty string: unknown. Unknown columns may be left out.
        deviations: by model that states them, standard deviations of its scores, [n, 3]; NaN: not
            stated.
        categories: by model that has them, the emotion categories it predicted.
        trained: by model that was trained on some of the clips, which, [n].
    """

    clip_id: Sequence[str]
    truth: Floats
    predictions: Mapping[str, Floats]
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    deviations: Mapping[str, Floats] = field(default_factory=dict)
    categories: Mapping[str, Categories] = field(default_factory=dict)
    trained: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    _codes: dict[str, tuple[Any, tuple[NDArray[np.int64], list[str]]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        rows = len(self.clip_id)
        for name, values in [("truth", self.truth), *self.predictions.items()]:
            if np.shape(values) != (rows, 3):
                raise ValueError(f"{name} has shape {np.shape(values)}, not ({rows}, 3)")
        for name, column in self.columns.items():
            if len(column) != rows:
                raise ValueError(f"column {name} has {len(column)} values, not {rows}")

    def coded(self, name: str) -> tuple[NDArray[np.int64], list[str]]:
        """A column as places among its sorted values, [n], -1 where unknown, and the values."""
        column = self.clip_id if name == "clip_id" else self.columns.get(name, ())
        # known by the column itself, as `replace` hands the cache on
        if name not in self._codes or self._codes[name][0] is not column:
            whole = column if len(column) else [""] * len(self.clip_id)
            self._codes[name] = (column, ordinals(whole))
        return self._codes[name][1]

    @property
    def identities(self) -> Sequence[str]:
        """Column `identity` (see `splits.identities`), free of paths; else the clips' ids."""
        known = self.columns.get("identity")
        return self.clip_id if known is None else [name or "" for name in known]

    def against(self, model: str) -> Scores:
        """A model's predictions in the place of the labels, so that unlabelled clips count too."""
        truth = np.asarray(self.predictions[model], np.float64)
        return replace(self, truth=truth)

    def column(self, name: str) -> list[str]:
        """Values of a column, [n]; empty strings where they are unknown."""
        values = self.columns.get(name)
        return [""] * len(self.clip_id) if values is None else [value or "" for value in values]

    def emotions(self) -> NDArray[np.object_]:
        """Labelled emotion categories by their common names, [n]; empty strings where unknown."""
        return np.array([category_of(word) or "" for word in self.column("emotion")], object)

    def predicted(self) -> NDArray[np.bool_]:
        """Clips with a label that some model predicted: a dimension or the category, [n]."""
        labelled = np.isfinite(self.truth)
        found = [(labelled & np.isfinite(p)).any(axis=1) for p in self.predictions.values()]
        if self.categories:
            named = self.emotions() != ""
            found += [named & np.isfinite(c.probabilities).all(1) for c in self.categories.values()]
        return np.any(found, axis=0) if found else np.zeros(len(self.clip_id), bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Rows (numbers of clips) of a dataset and split, or of one group of them."""

    dataset: str
    split: str
    group: str = ""
    group_value: str = ""
    rows: NDArray[np.intp]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the cell."""
        return self.dataset, self.split, self.group, self.group_value


def ordinals(names: Sequence[str | None]) -> tuple[NDArray[np.int64], list[str]]:
    """Place of every name among the sorted distinct ones, [n], -1: None or ""; and these names."""
    known = np.array([name or None for name in names], object)
    places, values = pd.factorize(known, sort=True)
    return np.asarray(places, np.int64), list(values)


def base_subsets(scores: Scores) -> list[Subset]:
    """The cells of every dataset: its splits, and all of it; only predicted clips."""
    used = np.flatnonzero(scores.predicted())
    (corpus, corpora), (split, splits) = scores.coded("corpus"), scores.coded("split")
    cells = []
    # unnamed ones come where their name would
    for name, number in sorted([*zip(corpora, range(len(corpora)), strict=True), (UNNAMED, -1)]):
        rows = used[corpus[used] == number]
        found = np.unique(split[rows]).tolist()
        if found not in ([], [-1]):
            cells += [
                Subset(
                    dataset=name,
                    split=splits[one] if one >= 0 else UNSPLIT,
                    rows=rows[split[rows] == one],
                )
                for one in found
            ]
        if len(found) > 1 or found == [-1]:
            cells.append(Subset(dataset=name, split=ALL, rows=rows))
    return cells


def subsets(scores: Scores, by: Sequence[str] = ()) -> list[Subset]:
    """The cells of every dataset, then their parts by each of the columns `by`."""
    cells = base_subsets(scores)
    parts = [part for cell in cells for name in by for part in group_subsets(scores, cell, name)]
    return [*cells, *parts]


def group_subsets(scores: Scores, cell: Subset, group: str) -> Iterator[Subset]:
    """The parts of a cell with the same value of the column `group`, where it is known."""
    places, values = scores.coded(group)
    mine = places[cell.rows]
    for number in np.unique(mine[mine >= 0]).tolist():
        yield Subset(
            dataset=cell.dataset,
            split=cell.split,
            group=group,
            group_value=values[number],
            rows=cell.rows[mine == number],
        )
