"""Heads on frozen vectors: a dense layer as wide as its input, tanh, and the three dimensions.

Sound and words are put side by side before the first layer, each number standardised by what it
was in training; the means and scales are part of the head, so a user hands over raw vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysers.models.heads import EmotionHead

Floats = npt.NDArray[np.float32]

#: Inputs of a head: which vectors are side by side, in this order.
SOUND, WORDS = "sound", "words"
SOURCES: dict[str, tuple[str, ...]] = {
    "fused": (SOUND, WORDS),
    "audio": (SOUND,),
    "text": (WORDS,),
}

#: Name, within a head, of the weights that are as large as the vectors are long, squared.
HIDDEN_WEIGHT = "layers.dense.weight"

#: Clips scored at a time: beyond, memory grows and speed does not.
_BLOCK = 8_192

#: Standard deviation of initial weights, as in the backbones' own heads.
_INITIAL_SD = 0.02

#: Of the scale of scores.
_MIDDLE = 0.5

#: Numbers that hardly ever change would be blown up by their own scale.
_LEAST_SD = 1e-5


class FusionHead(nn.Module):
    """Two layers on standardised vectors (Wagner et al. 2022, section 4.8).

    Args:
        size: numbers of a vector; the hidden layer is as wide.
        dropout: of the input and of the hidden layer, 0 to below 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.size = size
        self.layers = EmotionHead(size, size, dropout, _INITIAL_SD)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores [clips, 3] of raw vectors [clips, size]."""
        return cast(Tensor, self.layers((vectors - self.mean) / self.scale))

    def standardise(self, vectors: Tensor) -> None:
        """Take mean and scale from the training vectors, [clips, size]."""
        values = vectors.double()
        spread = values.std(0, unbiased=False)
        self.mean.copy_(values.mean(0))
        self.scale.copy_(torch.where(spread > _LEAST_SD, spread, 1.0))

    def silence(self, dimensions: Sequence[int]) -> None:
        """Let dimensions nothing is known of score the middle of the scale, not noise."""
        with torch.no_grad():
            for place in dimensions:
                self.layers.out_proj.weight[place] = 0.0
                self.layers.out_proj.bias[place] = _MIDDLE

    @torch.inference_mode()
    def score(self, vectors: Floats) -> Floats:
        """Scores float32 [clips, 3] of vectors [clips, size]; nothing is drawn."""
        given = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        scores = self.eval()(given.to(self.mean.device))
        return np.asarray(scores.cpu().numpy(), np.float32)


def side_by_side(head: str, vectors: dict[str, Floats]) -> Floats:
    """Input of the head of that name, [clips, sum of sizes], from vectors by source."""
    return np.concatenate([vectors[source] for source in SOURCES[head]], axis=1)


def score_in_blocks(
    name: str, head: FusionHead, vectors: dict[str, Floats], *, block: int = _BLOCK
) -> Floats:
    """Scores [clips, 3] from vectors [clips, size] by source, in little memory for many clips."""
    count = len(next(iter(vectors.values())))
    blocks = [
        head.score(side_by_side(name, {k: v[at : at + block] for k, v in vectors.items()}))
        for at in range(0, max(count, 1), block)
    ]
    return np.concatenate(blocks)


def sizes_of(head: str, sizes: dict[str, int]) -> int:
    """Input size of the head of that name, from sizes by source."""
    return sum(sizes[source] for source in SOURCES[head])


def known_rows(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Clips with a label in some dimension, from labels [clips, 3] with NaN."""
    return np.flatnonzero(np.isfinite(labels).any(axis=1))


def parts_of(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """The order cut into batches of nearly equal size: a rest of two clips has no correlation."""
    count = max(1, round(len(order) / batch_size))
    return [part.tolist() for part in np.array_split(np.asarray(order), count)]
