"""From the frames of a clip to one embedding.

Only the frames of the clip itself count. The exception is `whole_rows`, a setting for training
alone: the scripts behind the published models averaged over the padding as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysers.models.masking import masked_mean

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
