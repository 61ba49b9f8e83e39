"""Agreement of predictions with labels: CCC, Pearson correlation, mean absolute error.

Variances are the population's (divided by n, not n - 1), and an undefined value is NaN, never 0:
two points at least, and something to agree about. Each metric also follows from sums over clips,
which add up over speakers: that makes a bootstrap draw cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    one side is constant.

    Args:
        truth: labels, [n].
        prediction: predictions of the same clips, [n].

    Raises ValueError: unequal lengths.

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

    Values are taken relative to an offset near their mean: the raw second moments would lose the
    variance's digits.

    Args:
        truth: labels; NaN: none.
        prediction: predictions; NaN: none.
        unit: unit of every clip, [n].
        units: how many units there are.
        offset: per dimension, [d].
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
