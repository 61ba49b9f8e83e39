"""Labels beside the predictions of models, how well they agree, and how clips fall into subsets.

Agreement is CCC, Pearson correlation and mean absolute error. Variances are the population's
(divided by n, not n - 1), and an undefined value is NaN, never 0: two points at least, and
something to agree about. Each metric also follows from sums over clips, which add up over speakers:
that makes a bootstrap draw cheap.

A subset is what one line of a report is about: the clips of a dataset and split, or of a group of
them. A dataset with several splits also has the subset "all". One more model may be the random
baseline, ser-tests' random-gaussian: every score from a normal distribution with mean 1/2 and
standard deviation 1/6, truncated to 0..1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from raysers.data.corpora import category_of, common_name
from raysers.types import DIMENSIONS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Metric = Callable[[ArrayLike, ArrayLike], float]

#: Sums behind the metrics: number of pairs, then sums over them; x is the prediction, y the label.
COLUMNS = ("n", "x", "y", "xx", "yy", "xy", "abs")
#: Variances below this are rounding: labels and scores are float32 in about 0..1.
NOTHING = 1e-14


def ccc(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Concordance correlation coefficient (Lin 1989; Wagner et al. 2022, section 3.4).

    2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2), -1..1. NaN with fewer than two values,
    where the denominator is 0 (both constant and equal), and when any value is NaN; 0 when only
    one side is constant. Raises ValueError: unequal lengths.

    >>> round(ccc([0, 1, 2], [0, 1, 1]), 4)
    0.6667
    """
    y, x = _pair(truth, prediction)
    if x.size < 2:
        return float("nan")
    dx, dy = x - x.mean(), y - y.mean()
    spread = dx @ dx + dy @ dy + x.size * (x.mean() - y.mean()) ** 2
    return float(2 * (dx @ dy) / spread) if spread != 0 else float("nan")


def pearson(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Pearson correlation coefficient of [n] and [n], -1..1; NaN when either is constant."""
    y, x = _pair(truth, prediction)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    dx, dy = x - x.mean(), y - y.mean()
    spread = np.sqrt(dx @ dx) * np.sqrt(dy @ dy)
    return float(np.clip((dx @ dy) / spread, -1, 1)) if spread != 0 else float("nan")


def mae(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Mean absolute error of [n] and [n], in units of the label; NaN when empty."""
    y, x = _pair(truth, prediction)
    return float(np.abs(x - y).mean()) if x.size else float("nan")


def _pair(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    y, x = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if y.shape != x.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and predictions {x.shape} do not pair up")
    return y, x


#: The metrics of correctness by the name their rows have.
METRICS: Mapping[str, Metric] = {"ccc": ccc, "pearson": pearson, "mae": mae}


def per_dimension(metric: Metric, truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """`metric` of every column, [n, d] and [n, d] -> [d].

    A clip without a label or prediction (NaN) in a dimension is left out of that dimension.
    """
    y, x = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    there = np.isfinite(y) & np.isfinite(x)
    columns = range(y.shape[1])
    return np.array([metric(y[there[:, d], d], x[there[:, d], d]) for d in columns])


def ratio(upper: Floats, lower: Floats, defined: NDArray[np.bool_] | None = None) -> Floats:
    """`upper / lower` where it is defined (`lower` above 0, if not given), else NaN."""
    out: Floats = np.full(np.shape(upper), np.nan)
    np.divide(upper, lower, out=out, where=lower > 0 if defined is None else defined)
    return out


def mean_of_defined(values: Floats, axis: int) -> Floats:
    """Mean of what is not NaN; NaN where nothing is."""
    there = np.isfinite(values)
    total = np.asarray(np.where(there, values, 0.0).sum(axis=axis))
    return ratio(total, np.asarray(there.sum(axis=axis), np.float64))


def unit_sums(
    truth: Floats, prediction: Floats, unit: NDArray[np.intp], units: int, offset: Floats
) -> Floats:
    """Sums over the clips of every unit, [n, d] and [n, d] -> [units, d, len(COLUMNS)].

    Values are taken relative to an `offset` near their mean, [d]: the raw second moments would lose
    the variance's digits. NaN is no value; `unit` is of every clip, [n].
    """
    there = np.isfinite(truth) & np.isfinite(prediction)
    x = np.where(there, prediction - offset, 0.0)
    y = np.where(there, truth - offset, 0.0)
    parts = [there.astype(np.float64), x, y, x * x, y * y, x * y, np.abs(x - y)]
    each = np.stack(parts, axis=-1).reshape(len(truth), truth.shape[1] * len(COLUMNS))
    return sum_by_unit(each, unit, units).reshape(units, truth.shape[1], len(COLUMNS))


def sum_by_unit(each: Floats, unit: NDArray[np.intp], units: int) -> Floats:
    """Sums of what each clip counts, [n, k] -> [units, k]."""
    columns = [np.bincount(unit, column, units) for column in each.T]
    return np.stack(columns, axis=-1).astype(np.float64)


def _central(sums: Floats) -> tuple[Floats, ...]:
    n = sums[..., 0]
    mean_x, mean_y, xx, yy, xy = (ratio(sums[..., column], n) for column in range(1, 6))
    return n, mean_x, mean_y, xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y


def _ccc(sums: Floats) -> Floats:
    n, mean_x, mean_y, var_x, var_y, cov = _central(sums)
    spread = var_x + var_y + (mean_x - mean_y) ** 2
    return ratio(2 * cov, spread, (n >= 2) & (spread > NOTHING))


def _pearson(sums: Floats) -> Floats:
    n, _, _, var_x, var_y, cov = _central(sums)
    varies = (n >= 2) & (var_x > NOTHING) & (var_y > NOTHING)
    return np.clip(ratio(cov, np.sqrt(np.maximum(var_x * var_y, 0)), varies), -1, 1)


#: Metrics as functions of the sums, [..., len(COLUMNS)] -> [...]. `mean_error` is signed: by how
#: much a model shifts the values.
OF_SUMS: Mapping[str, Callable[[Floats], Floats]] = {
    "ccc": _ccc,
    "pearson": _pearson,
    "mae": lambda sums: ratio(sums[..., 6], sums[..., 0]),
    "mean_error": lambda sums: ratio(sums[..., 1] - sums[..., 2], sums[..., 0]),
}


#: Split of the subset over a whole dataset, and of clips that no split was given for.
ALL, UNSPLIT = "all", "none"
#: Dataset of clips without a corpus.
UNNAMED = "unnamed"
#: Splits a dataset is known by in comparisons of datasets, the first that is there.
_MAIN_SPLITS = ("test1", "test", ALL)
#: Name of the random baseline.
RANDOM = "random-gaussian"
_MEAN, _SD = 1 / 2, 1 / 6
#: Prefix of the columns with the probabilities of emotion categories.
PROBABILITY = "p_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Categories:
    """Common names of emotion categories, [k], and their probabilities, [n, k]; NaN: none."""

    names: Sequence[str]
    probabilities: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Labels and predictions of the same n clips.

    `truth` are labels 0..1 in the order of `types.DIMENSIONS`, [n, 3]; NaN: none. By model there
    are `predictions`, [n, 3] (NaN: none), and of those that have them `deviations` (standard
    deviations of the scores, [n, 3]), emotion `categories`, and which clips it was `trained` on.
    `columns` is what else is known (`speaker`, `sex`, `corpus`, `split`, ...), None or "": unknown.
    """

    clip_id: Sequence[str]
    truth: Floats
    predictions: Mapping[str, Floats]
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    deviations: Mapping[str, Floats] = field(default_factory=dict)
    categories: Mapping[str, Categories] = field(default_factory=dict)
    trained: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    _codes: dict[str, tuple[Any, tuple[Integers, list[str]]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def coded(self, name: str) -> tuple[Integers, list[str]]:
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
        return replace(self, truth=np.asarray(self.predictions[model], np.float64))

    def column(self, name: str) -> list[str]:
        """Values of a column, [n]; empty strings where they are unknown."""
        values = self.columns.get(name)
        return [""] * len(self.clip_id) if values is None else [value or "" for value in values]

    def emotions(self) -> NDArray[np.object_]:
        """Labelled emotion categories by their common names, [n]; empty strings where unknown."""
        return np.array([category_of(word) or "" for word in self.column("emotion")], object)

    def scored(self, model: str, rows: Any = slice(None)) -> NDArray[np.bool_]:
        """Which of the clips `rows` have a label and a prediction, by dimension, [rows, 3]."""
        return np.asarray(
            np.isfinite(self.truth[rows]) & np.isfinite(self.predictions[model][rows])
        )

    def predicted(self) -> NDArray[np.bool_]:
        """Clips with a label that some model predicted: a dimension or the category, [n]."""
        found = [self.scored(model).any(axis=1) for model in self.predictions]
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
    rows: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names the subset."""
        return self.dataset, self.split, self.group, self.group_value

    def __str__(self) -> str:
        return f"{self.dataset} {self.split}" + (f", {self.group_value}" if self.group else "")


def ordinals(names: Sequence[str | None]) -> tuple[Integers, list[str]]:
    """Place of every name among the sorted distinct ones, [n], -1: None or ""; and these names."""
    known = np.array([name or None for name in names], object)
    places, values = pd.factorize(known, sort=True)
    return np.asarray(places, np.int64), list(values)


def base_subsets(scores: Scores) -> list[Subset]:
    """The subsets of every dataset: its splits, and all of it; only predicted clips."""
    used = np.flatnonzero(scores.predicted())
    (corpus, corpora), (split, splits) = scores.coded("corpus"), scores.coded("split")
    cells = []
    # unnamed ones come where their name would
    for name, number in sorted([*zip(corpora, range(len(corpora)), strict=True), (UNNAMED, -1)]):
        rows = used[corpus[used] == number]
        found = np.unique(split[rows]).tolist()
        for one in found if found not in ([], [-1]) else ():
            of_split = splits[one] if one >= 0 else UNSPLIT
            cells.append(Subset(dataset=name, split=of_split, rows=rows[split[rows] == one]))
        if len(found) > 1 or found == [-1]:
            cells.append(Subset(dataset=name, split=ALL, rows=rows))
    return cells


def subsets(scores: Scores, by: Sequence[str] = ()) -> list[Subset]:
    """The subsets of every dataset, then their parts by each of the columns `by`."""
    cells = base_subsets(scores)
    return [
        *cells,
        *(part for c in cells for name in by for part in group_subsets(scores, c, name)),
    ]


def group_subsets(scores: Scores, cell: Subset, group: str) -> Iterator[Subset]:
    """The parts of a subset with the same value of the column `group`, where it is known."""
    places, values = scores.coded(group)
    mine = places[cell.rows]
    for number in np.unique(mine[mine >= 0]).tolist():
        rows = cell.rows[mine == number]
        yield replace(cell, group=group, group_value=values[number], rows=rows)


def main_subset(cells: Sequence[Subset], dataset: str) -> Subset:
    """What a dataset is compared by: its (first) test split, else all of it, else the first."""
    own = {cell.split: cell for cell in cells if cell.dataset == dataset}
    return next((own[split] for split in _MAIN_SPLITS if split in own), next(iter(own.values())))


def random_scores(identities: Sequence[str], seed: int = 0) -> Floats:
    """Random scores in 0..1 of every clip, [n, 3]; they follow from its identity and the seed."""
    key = str(seed).encode()
    digests = [
        hashlib.blake2b(clip.encode("utf-8", "surrogateescape"), digest_size=24, key=key).digest()
        for clip in identities
    ]
    bits = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 3)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    low, high = ndtr((0 - _MEAN) / _SD), ndtr((1 - _MEAN) / _SD)
    return np.asarray(_MEAN + _SD * ndtri(low + uniform * (high - low)), np.float64)


def with_baseline(scores: Scores, seed: int = 0) -> Scores:
    """`scores` with one more model, the random one, on every clip some model predicted."""
    predicted = np.any([np.isfinite(p) for p in scores.predictions.values()], axis=0)
    drawn = np.where(predicted, random_scores(scores.identities, seed), np.nan)
    return replace(scores, predictions={**scores.predictions, RANDOM: drawn})


def labelled_only(labels: pa.Table, *, emotions: bool = False) -> pa.Table:
    """The clips with a label in at least one dimension, or with `emotions` an emotion category."""
    labelled = np.isfinite(dimensions_of(labels))
    if emotions and "emotion" in labels.column_names:
        named = [[category_of(word) is not None] for word in labels["emotion"].to_pylist()]
        labelled = np.hstack([labelled, np.reshape(named, (len(labels), 1))])
    return labels.filter(pa.array(labelled.any(axis=1)))


def with_dataset_names(table: pa.Table) -> pa.Table:
    """The table with `corpus` of clips that have none: the folder that all of these clips share."""
    if "corpus" not in table.column_names:
        table = table.append_column("corpus", pa.nulls(len(table), pa.string()))
    known = table["corpus"].to_pylist()
    files = [file for file, name in zip(table["file"].to_pylist(), known, strict=True) if not name]
    folder = common_folder(files).rstrip("/#").rpartition("/")[2] if files else ""
    named = pa.array([name or folder or None for name in known], pa.string())
    return table.drop_columns(["corpus"]).append_column("corpus", named)


def common_folder(files: list[str]) -> str:
    """The longest folder all files are in, with its slash; empty when they share none."""
    shared = os.path.commonprefix([min(files), max(files)])  # noqa: RUF071  cut at a slash
    return shared[: shared.rfind("/") + 1]


def dimensions_of(table: pa.Table) -> Floats:
    """Arousal, dominance and valence of every row, [n, 3]; a missing column or value is NaN."""
    return numbers_of(table, DIMENSIONS)


def numbers_of(table: pa.Table, names: Sequence[str]) -> Floats:
    """Columns of a table, [n, names]; a missing column or value is NaN."""
    out: Floats = np.full((len(table), len(names)), np.nan)
    for place, name in enumerate(names):
        if name in table.column_names:
            out[:, place] = table[name].to_numpy(zero_copy_only=False)
    return out


def categories_of(table: pa.Table) -> Categories:
    """The emotion categories a model predicted; without names where it predicted none.

    Categories of the same common name add up. Of models put together, one may lack a category of
    another: it gives that one no probability.
    """
    columns = [name for name in table.column_names if name.startswith(PROBABILITY)]
    common = [common_name(name.removeprefix(PROBABILITY)) for name in columns]
    names = list(dict.fromkeys(common))
    values = numbers_of(table, columns)
    unknown = np.isnan(values).all(axis=1, keepdims=True)
    is_name = np.array([[one == name for name in names] for one in common], float)
    summed = np.nan_to_num(values) @ is_name.reshape(len(columns), len(names))
    return Categories(names=names, probabilities=np.where(unknown, np.nan, summed))
