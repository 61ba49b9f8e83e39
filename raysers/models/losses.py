"""What training minimises: one number for a whole global batch, missing labels left out.

The concordance correlation coefficient of a batch is not the mean of its parts' coefficients, so
these functions have to see the predictions of all clips of the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: Added to the denominator of the CCC: constant predictions of constant labels give 0, not NaN.
_CCC_EPS = 1e-8

#: A coefficient of fewer clips is not defined.
_LEAST_LABELS_CCC = 2

#: Category of a clip without one.
NO_CATEGORY = -1

Loss = Callable[[Tensor, Tensor, Sequence[float]], Tensor]


def ccc_loss(
    predictions: Tensor, labels: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Weighted mean over the targets of `1 - CCC` (Wagner et al. 2022, section 3.1).

    `CCC = 2 cov / (var + var + (mean - mean)^2)` with population moments (Lin 1989), over the
    clips that have the label; targets with fewer than two labels are left out.

    Args:
        predictions: float [clips, targets].
        labels: float [clips, targets], NaN where missing.
        weights: how much each target counts, at least 0.

    Returns:
        A scalar of the predictions' type, 0 (with gradient 0) where no target is left.
    """
    known = ~labels.isnan()
    count = known.sum(0)
    divisor = count.clamp_min(1)
    truth = labels.to(predictions.dtype).masked_fill(~known, 0.0)
    guess = predictions.masked_fill(~known, 0.0)
    truth_mean, guess_mean = truth.sum(0) / divisor, guess.sum(0) / divisor
    truth = (truth - truth_mean) * known
    guess = (guess - guess_mean) * known
    covariance = (truth * guess).sum(0) / divisor
    spread = (truth.square() + guess.square()).sum(0) / divisor
    ccc = 2 * covariance / (spread + (truth_mean - guess_mean).square() + _CCC_EPS)
    return _over_targets(1 - ccc, count >= _LEAST_LABELS_CCC, weights)


def mse_loss(
    predictions: Tensor, labels: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Weighted mean over the targets of the mean squared error over the clips with that label.

    Arguments and result as of `ccc_loss`; one label is enough for a target to count.
    """
    known = ~labels.isnan()
    count = known.sum(0)
    error = predictions - labels.to(predictions.dtype).masked_fill(~known, 0.0)
    squares = error.masked_fill(~known, 0.0).square()
    return _over_targets(squares.sum(0) / count.clamp_min(1), count >= 1, weights)


def category_loss(logits: Tensor, categories: Tensor) -> Tensor:
    """Mean cross-entropy over the clips that have a category.

    Args:
        logits: float [clips, K].
        categories: int64 [clips], 0..K-1, or `NO_CATEGORY`.

    Returns:
        A scalar, 0 (with gradient 0) where no clip has a category.
    """
    known = categories != NO_CATEGORY
    total = functional.cross_entropy(logits, categories, ignore_index=NO_CATEGORY, reduction="sum")
    return total / known.sum().clamp_min(1)


#: What `--loss` names.
LOSSES: dict[str, Loss] = {"ccc": ccc_loss, "mse": mse_loss}


def _over_targets(values: Tensor, usable: Tensor, weights: Sequence[float]) -> Tensor:
    shares = torch.as_tensor(weights, dtype=values.dtype, device=values.device) * usable
    total = (values.masked_fill(~usable, 0.0) * shares).sum()
    return total / torch.where(shares.sum() > 0, shares.sum(), 1.0)
