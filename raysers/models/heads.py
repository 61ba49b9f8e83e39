"""From frames to one embedding, from an embedding to what a row says, and what training minimises.

Only the frames of the clip itself count. The exception is `whole_rows`, a setting for training
alone: the scripts behind the published models averaged over the padding as well. A loss is one
number for a whole global batch: its concordance is not the mean of those of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.models.frontend import masked_mean
from raysers.types import DIMENSIONS

#: Least variance under the root, whose slope has no bound at zero (a clip of one frame).
_LEAST_VARIANCE = 1e-6


class Pooling(nn.Module):
    """Mean over the frames of a clip, beside it their standard deviation but for `mean`.

    `attentive` weighs the frames by a softmax over `v' tanh(W h + b)` (Okabe et al. 2018, equations
    3 to 6). With `whole_rows`, in training alone, `mean` is over all frames of the padded batch.
    """

    def __init__(self, mode: str, size: int) -> None:
        super().__init__()
        self.mode, self.whole_rows = mode, False
        self.embedding_size = size if mode == "mean" else 2 * size
        if mode == "attentive":
            self.dense = nn.Linear(size, 128)
            self.score = nn.Linear(128, 1, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [clips, embedding_size] of [clips, frames, size]; `mask`: valid frames."""
        if self.mode == "mean":
            return masked_mean(hidden, None if self.whole_rows and self.training else mask)
        hidden = hidden.float()
        if self.mode == "statistics":
            mean = masked_mean(hidden, mask)
            variance = masked_mean((hidden - mean[:, None]).square(), mask)
        else:
            scores = self.score(torch.tanh(self.dense(hidden)))
            if mask is not None:
                scores = scores.masked_fill(~mask[..., None], -torch.inf)
            weights = scores.softmax(1)
            mean = (weights * hidden).sum(1)
            variance = (weights * (hidden - mean[:, None]).square()).sum(1)
        return torch.cat((mean, variance.clamp_min(_LEAST_VARIANCE).sqrt()), 1)


class EmotionHead(nn.Module):
    """Dense, tanh, projection to the three dimensions (the paper's section 3.2) or to categories.

    Without `tanh` it is the head of a stock `ForSequenceClassification`, which commutes with the
    mean.
    """

    def __init__(
        self,
        embedding_size: int,
        size: int,
        dropout: float,
        std: float,
        outputs: int = len(DIMENSIONS),
        *,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(embedding_size, size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(size, outputs)
        self.activation = torch.tanh if tanh else nn.Identity()
        for projection in (self.dense, self.out_proj):
            nn.init.normal_(projection.weight, std=std)
            nn.init.zeros_(projection.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[clips, outputs] of embeddings [clips, embedding_size]."""
        hidden = self.dropout(embeddings.to(self.dense.weight.dtype))
        hidden = self.dropout(self.activation(self.dense(hidden)))
        return cast(Tensor, self.out_proj(hidden))


class CategoryHead(nn.Linear):
    """Logits of emotion categories; with `points` [categories, 3] also scores, their mean."""

    def __init__(self, embedding_size: int, points: Tensor, categories: int) -> None:
        super().__init__(embedding_size, categories)
        self.points = nn.Buffer(points, persistent=False)

    def scores(self, embeddings: Tensor) -> Tensor:
        """float32 [clips, 3] of embeddings [clips, embedding_size]."""
        return cast(Tensor, self(embeddings).softmax(1) @ self.points)


class Uncertainty(nn.Module):
    """Standard deviations of the scores, from heads trained on different speakers.

    sd = sqrt(floor^2 + scale^2 * variance). The variance is that of the heads' scores; where these
    are means of `points`, that of the points under all heads' probabilities (Lakshminarayanan et
    al. 2017, section 2.4). `floor` and `scale` are fitted on unseen speakers, so that 90 % of the
    labels lie within 1.645 sd.
    """

    def __init__(self, embedding_size: int, heads: int, points: Tensor) -> None:
        super().__init__()
        self.size = len(points) or len(DIMENSIONS)
        self.heads = nn.Linear(embedding_size, heads * self.size)
        self.points = nn.Buffer(points, persistent=False)
        self.floor = nn.Buffer(torch.zeros(len(DIMENSIONS)))
        self.scale = nn.Buffer(torch.ones(len(DIMENSIONS)))

    def forward(self, embeddings: Tensor) -> Tensor:
        """float32 [clips, 3] of embeddings [clips, embedding_size]."""
        outputs = self.heads(embeddings).unflatten(1, (-1, self.size))
        if len(self.points):
            weights = outputs.softmax(2).mean(1)
            variance = weights @ self.points.square() - (weights @ self.points).square()
        else:
            variance = outputs.var(1, correction=0)
        return torch.sqrt(self.floor.square() + self.scale.square() * variance.clamp_min(0))


class OutOfDistribution(nn.Module):
    """How far an embedding lies from those of the training speech, 0..1.

    The distance is Mahalanobis' (Lee et al. 2018), the root mean square of the whitened
    coordinates; `middle` and `width` place its logarithm on a sigmoid. `middle` is the 99th
    percentile of unseen speakers' speech, so ordinary speech is below .5.
    """

    def __init__(self, embedding_size: int, rank: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(embedding_size))
        self.whiten = nn.Buffer(torch.zeros(rank, embedding_size))
        self.middle = nn.Buffer(torch.zeros(1))
        self.width = nn.Buffer(torch.ones(1))

    def distance(self, embeddings: Tensor) -> Tensor:
        """float32 [clips] of embeddings [clips, embedding_size]."""
        coordinates = (embeddings - self.mean) @ self.whiten.T
        return coordinates.square().mean(1).sqrt()

    def forward(self, embeddings: Tensor) -> Tensor:
        """float32 [clips, 1], 0..1."""
        far = (self.distance(embeddings).clamp_min(1e-6).log() - self.middle) / self.width
        return torch.sigmoid(far)[:, None]


def fit_distance(
    embeddings: npt.NDArray[Any], folds: npt.NDArray[np.int64], rank: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Tensors of an `OutOfDistribution` head for speech like `embeddings` [clips, embedding_size].

    What is ordinary is measured on each of `folds`, int [clips], by a fit on the others.
    """
    places = []
    for fold in np.unique(folds):
        mean, whiten = _whitening(embeddings[folds != fold], rank)
        coordinates = (embeddings[folds == fold] - mean) @ whiten.T
        far = np.log(np.sqrt((coordinates**2).mean(1)) + 1e-12)
        places.append((np.quantile(far, 0.99), np.median(far)))
    middle, median = np.mean(places, 0)
    mean, whiten = _whitening(embeddings, rank)
    # the median clip is at 1 / (1 + e^3), 5 %
    width = np.array([max(middle - median, 1e-6) / 3])
    return {"mean": mean, "whiten": whiten, "middle": np.array([middle]), "width": width}


def _whitening(
    embeddings: npt.NDArray[Any], rank: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean [size], and the directions of largest variance, scaled to one [rank, size]."""
    mean = embeddings.mean(0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(embeddings - mean, full_matrices=False)
    spread = sizes[:rank] / np.sqrt(len(embeddings)) + 1e-9
    return mean, directions[:rank] / spread[:, None]


#: Added to the denominator of the CCC: constant predictions of constant labels give 0, not NaN.
_CCC_EPS = 1e-8
#: Category of a clip without one.
NO_CATEGORY = -1
Loss = Callable[[Tensor, Tensor, Sequence[float]], Tensor]


def ccc_loss(
    predictions: Tensor, labels: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Weighted mean over the targets of `1 - CCC` (Wagner et al. 2022, section 3.1), a scalar.

    `CCC = 2 cov / (var + var + (mean - mean)^2)` with population moments (Lin 1989), over the clips
    that have the label (not NaN), [clips, targets]; targets with fewer than two are left out.
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
    return _over_targets(1 - ccc, count >= 2, weights)


def mse_loss(
    predictions: Tensor, labels: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Weighted mean over the targets of the mean squared error; else as `ccc_loss`."""
    known = ~labels.isnan()
    count = known.sum(0)
    error = predictions - labels.to(predictions.dtype).masked_fill(~known, 0.0)
    squares = error.masked_fill(~known, 0.0).square()
    return _over_targets(squares.sum(0) / count.clamp_min(1), count >= 1, weights)


def category_loss(logits: Tensor, categories: Tensor) -> Tensor:
    """Mean cross-entropy of logits [clips, K] over the clips that have a category, else 0."""
    known = categories != NO_CATEGORY
    total = functional.cross_entropy(logits, categories, ignore_index=NO_CATEGORY, reduction="sum")
    return total / known.sum().clamp_min(1)


#: What `--loss` names.
LOSSES: dict[str, Loss] = {"ccc": ccc_loss, "mse": mse_loss}


def _over_targets(values: Tensor, usable: Tensor, weights: Sequence[float]) -> Tensor:
    shares = torch.as_tensor(weights, dtype=values.dtype, device=values.device) * usable
    total = (values.masked_fill(~usable, 0.0) * shares).sum()
    return total / torch.where(shares.sum() > 0, shares.sum(), 1.0)
