"""Sums from which every metric follows, so that a bootstrap draw is a weighted sum of rows.

The sums of a sample drawn with replacement are the counts of the draw times the sums of what is
drawn (speakers, clips). 1000 draws of a whole test set are therefore one matrix product, however
many models, dimensions and metrics are asked for. Values are taken relative to an offset near
their mean: the raw second moments would lose the variance to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from raysers.evaluation.metrics import Floats, ratio

#: Number of pairs, then sums over them; x is the prediction, y the label.
COLUMNS = ("n", "x", "y", "xx", "yy", "xy", "abs")
#: Variances below this are rounding: labels and scores are float32 in about 0..1.
_NOTHING = 1e-14

Moments = Callable[[Floats], Floats]


def unit_sums(
    truth: Floats, prediction: Floats, unit: NDArray[np.intp], units: int, offset: Floats
) -> Floats:
    """Sums over the clips of every unit, [n, d] and [n, d] -> [units, d, len(COLUMNS)].

    Args:
        truth: labels; a NaN leaves the clip out of that dimension.
        prediction: predictions; as `truth`.
        unit: number of the unit each clip belongs to, [n].
        units: how many units there are.
        offset: what to subtract from labels and predictions alike, [d].
    """
    there = np.isfinite(truth) & np.isfinite(prediction)
    x = np.where(there, prediction - offset, 0.0)
    y = np.where(there, truth - offset, 0.0)
    parts = [there.astype(np.float64), x, y, x * x, y * y, x * y, np.abs(x - y)]
    stacked = np.stack(parts, axis=-1).reshape(len(truth), truth.shape[1] * len(COLUMNS))
    sums: Floats = np.stack(
        [np.bincount(unit, column, units).astype(np.float64) for column in stacked.T], axis=-1
    )
    return sums.reshape(units, truth.shape[1], len(COLUMNS))


def _ccc(sums: Floats) -> Floats:
    n, mean_x, mean_y, var_x, var_y, cov = _central(sums)
    spread = var_x + var_y + (mean_x - mean_y) ** 2
    return ratio(2 * cov, spread, (n >= 2) & (spread > _NOTHING))


def _pearson(sums: Floats) -> Floats:
    n, _, _, var_x, var_y, cov = _central(sums)
    varies = (n >= 2) & (var_x > _NOTHING) & (var_y > _NOTHING)
    return np.clip(ratio(cov, np.sqrt(np.maximum(var_x * var_y, 0)), varies), -1, 1)


def _mae(sums: Floats) -> Floats:
    return ratio(sums[..., 6], sums[..., 0], sums[..., 0] > 0)


def _mean_error(sums: Floats) -> Floats:
    return ratio(sums[..., 1] - sums[..., 2], sums[..., 0], sums[..., 0] > 0)


#: Metrics as functions of the sums, [..., len(COLUMNS)] -> [...]. `mean_error` is the signed one.
OF_SUMS: Mapping[str, Moments] = {
    "ccc": _ccc,
    "pearson": _pearson,
    "mae": _mae,
    "mean_error": _mean_error,
}


def _central(sums: Floats) -> tuple[Floats, ...]:
    n = sums[..., 0]
    mean_x, mean_y, xx, yy, xy = (
        ratio(sums[..., column], n, n > 0) for column in range(1, len(COLUMNS) - 1)
    )
    return n, mean_x, mean_y, xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
