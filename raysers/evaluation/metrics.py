"""Agreement of predictions with labels: CCC, Pearson correlation, mean absolute error.

Variances are the population's (divided by n, not n - 1), and an undefined value is NaN, never 0:
two points at least, and something to agree about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Metric = Callable[[ArrayLike, ArrayLike], float]


def ccc(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Concordance correlation coefficient (Lin 1989; Wagner et al. 2022, section 3.4).

    2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2), -1..1. NaN with fewer than two values,
    where the denominator is 0 (both constant and equal), and when any value is NaN; 0 when only
    one side is constant.

    Args:
        truth: labels, [n].
        prediction: predictions of the same clips, [n].

    Raises:
        ValueError: unequal lengths.

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
    """Pearson correlation coefficient of [n] and [n], -1..1; NaN when either is constant.

    Raises:
        ValueError: unequal lengths.
    """
    y, x = _pair(truth, prediction)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    dx, dy = x - x.mean(), y - y.mean()
    spread = np.sqrt(dx @ dx) * np.sqrt(dy @ dy)
    return float(np.clip((dx @ dy) / spread, -1, 1)) if spread != 0 else float("nan")


def mae(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Mean absolute error of [n] and [n], in units of the label; NaN when empty.

    Raises:
        ValueError: unequal lengths.
    """
    y, x = _pair(truth, prediction)
    return float(np.abs(x - y).mean()) if x.size else float("nan")


def mean_error(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Mean of prediction minus label: by how much a model shifts the values; NaN when empty.

    Raises:
        ValueError: unequal lengths.
    """
    y, x = _pair(truth, prediction)
    return float(x.mean() - y.mean()) if x.size else float("nan")


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


def ratio(upper: Floats, lower: Floats, defined: NDArray[np.bool_]) -> Floats:
    """`upper / lower` where it is defined, else NaN."""
    out: Floats = np.full(np.shape(upper), np.nan)
    np.divide(upper, lower, out=out, where=defined)
    return out


def _pair(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    y, x = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if y.shape != x.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and predictions {x.shape} do not pair up")
    return y, x
