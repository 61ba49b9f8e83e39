"""From the frames of a clip to one embedding, and from an embedding to what a row says.

Only the frames of the clip itself count. The exception is `whole_rows`, a setting for training
alone: the scripts behind the published models averaged over the padding as well.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from raysers.models.masking import masked_mean
from raysers.types import DIMENSIONS

#: Width of the attention's hidden layer.
_ATTENTION_SIZE = 128

#: Least variance under the root, whose slope has no bound at zero (a clip of one frame).
_LEAST_VARIANCE = 1e-6


class MeanPooling(nn.Module):
    """Mean over the frames of a clip.

    `whole_rows` lets training (not scoring) average over all frames of the padded batch.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding_size = size
        self.whole_rows = False

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [clips, size] of [clips, frames, size]; `mask` is True on valid frames."""
        return masked_mean(hidden, None if self.whole_rows and self.training else mask)


class Statistics(nn.Module):
    """Mean and standard deviation over the frames of a clip."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding_size = 2 * size

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [clips, 2 * size] of [clips, frames, size]; `mask` is True on valid frames."""
        mean = masked_mean(hidden, mask)
        variance = masked_mean((hidden.float() - mean[:, None]).square(), mask)
        return torch.cat((mean, variance.clamp_min(_LEAST_VARIANCE).sqrt()), 1)


class AttentiveStatistics(nn.Module):
    """Weighted mean and standard deviation over the frames (Okabe et al. 2018, equations 3 to 6).

    Weights are a softmax over the frames of a clip of `v' tanh(W h + b)`; the scalar offset of
    the paper's equation 3 is left out, because the softmax does not see it.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding_size = 2 * size
        self.dense = nn.Linear(size, _ATTENTION_SIZE)
        self.score = nn.Linear(_ATTENTION_SIZE, 1, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """float32 [clips, 2 * size] of [clips, frames, size]; `mask` is True on valid frames."""
        hidden = hidden.float()
        scores = self.score(torch.tanh(self.dense(hidden)))
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], -torch.inf)
        weights = scores.softmax(1)
        mean = (weights * hidden).sum(1)
        variance = (weights * (hidden - mean[:, None]).square()).sum(1)
        return torch.cat((mean, variance.clamp_min(_LEAST_VARIANCE).sqrt()), 1)


#: What `pooling_mode` of a `config.json` names.
POOLINGS: dict[str, type[MeanPooling | Statistics | AttentiveStatistics]] = {
    "mean": MeanPooling,
    "statistics": Statistics,
    "attentive": AttentiveStatistics,
}


class EmotionHead(nn.Module):
    """Dense, tanh, projection to the three dimensions (the paper's section 3.2).

    `embedding_size` numbers come in; `size` is the width in between.
    """

    def __init__(self, embedding_size: int, size: int, dropout: float, std: float) -> None:
        super().__init__()
        self.dense = nn.Linear(embedding_size, size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(size, len(DIMENSIONS))
        for projection in (self.dense, self.out_proj):
            nn.init.normal_(projection.weight, std=std)
            nn.init.zeros_(projection.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores [clips, 3] of embeddings [clips, embedding_size]."""
        hidden = self.dropout(embeddings.to(self.dense.weight.dtype))
        hidden = self.dropout(torch.tanh(self.dense(hidden)))
        return cast(Tensor, self.out_proj(hidden))


class Uncertainty(nn.Module):
    """Standard deviations of the scores, from linear heads trained on different speakers.

    sd = sqrt(floor^2 + (scale * spread)^2), with the spread of the heads' scores for the clip.
    `floor` and `scale` are fitted on speakers that the heads have not heard, so that 90 % of the
    labels lie within 1.645 sd (Lakshminarayanan et al. 2017 for the ensemble, Kuleshov et al. 2018
    for the calibration).
    """

    floor: Tensor
    scale: Tensor

    def __init__(self, embedding_size: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.Linear(embedding_size, heads * len(DIMENSIONS))
        self.register_buffer("floor", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("scale", torch.ones(len(DIMENSIONS)))

    def forward(self, embeddings: Tensor) -> Tensor:
        """float32 [clips, 3] of embeddings [clips, embedding_size]."""
        scores = self.heads(embeddings).unflatten(1, (-1, len(DIMENSIONS)))
        spread = scores.std(1, correction=0)
        return torch.sqrt(self.floor.square() + (self.scale * spread).square())


class OutOfDistribution(nn.Module):
    """How far an embedding lies from those of the training speech, 0..1.

    The distance is Mahalanobis' (Lee et al. 2018), the root mean square of the whitened
    coordinates; `middle` and `width` place its logarithm on a sigmoid. `middle` is the 99th
    percentile of unseen speakers' speech, so ordinary speech is below .5.
    """

    mean: Tensor
    whiten: Tensor
    middle: Tensor
    width: Tensor

    def __init__(self, embedding_size: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embedding_size))
        self.register_buffer("whiten", torch.zeros(rank, embedding_size))
        self.register_buffer("middle", torch.zeros(1))
        self.register_buffer("width", torch.ones(1))

    def distance(self, embeddings: Tensor) -> Tensor:
        """float32 [clips] of embeddings [clips, embedding_size]."""
        coordinates = (embeddings - self.mean) @ self.whiten.T
        return coordinates.square().mean(1).sqrt()

    def forward(self, embeddings: Tensor) -> Tensor:
        """float32 [clips, 1], 0..1."""
        far = (self.distance(embeddings).clamp_min(1e-6).log() - self.middle) / self.width
        return torch.sigmoid(far)[:, None]
