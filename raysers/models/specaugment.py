"""SpecAugment on hidden states (Park et al. 2019, as wav2vec 2.0 applies it in fine-tuning).

The stock function draws from numpy's global generator and fails on clips shorter than one masked
span. Here every draw comes from torch's CPU generator, so seeding it fixes the masks as well as
the dropout, and a clip too short for a span stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def augment_hidden(hidden: Tensor, frames: Sequence[int], backbone: Any) -> Tensor:
    """Mask spans of frames with the learned vector, and spans of channels with zeros.

    Args:
        hidden: float [clips, frames, size].
        frames: valid frames of each clip; padding is never drawn.
        backbone: the stock module, for its configuration and `masked_spec_embed`, if it has one.
    """
    config = backbone.config
    if not getattr(config, "apply_spec_augment", True):
        return hidden
    clips, longest, size = hidden.shape
    if config.mask_time_prob > 0:
        spans = draw_spans(
            frames,
            longest,
            share=config.mask_time_prob,
            span=config.mask_time_length,
            least=config.mask_time_min_masks,
        )
        vector = getattr(backbone, "masked_spec_embed", None)  # Whisper masks with zeros
        vector = hidden.new_zeros(()) if vector is None else vector.to(hidden.dtype)
        hidden = torch.where(spans.to(hidden.device)[..., None], vector, hidden)
    if config.mask_feature_prob > 0:
        spans = draw_spans(
            [size] * clips,
            size,
            share=config.mask_feature_prob,
            span=config.mask_feature_length,
            least=getattr(config, "mask_feature_min_masks", 0),  # WavLM's has none
        )
        hidden = hidden.masked_fill(spans.to(hidden.device)[:, None], 0.0)
    return hidden


def draw_spans(
    lengths: Sequence[int], longest: int, *, share: float, span: int, least: int
) -> Tensor:
    """Bool [rows, longest]: True within randomly placed spans, which may overlap.

    Row i gets `share * lengths[i] / span` spans, rounded up or down at random, at least `least`
    and at most what fits side by side: none where `lengths[i] < span`.
    """
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        rounding, places = torch.rand(()).item(), max(0, length - span + 1)
        wanted = max(int(share * length / span + rounding), least)
        starts = torch.randperm(places)[: min(wanted, length // span)]
        for start in starts.tolist():
            mask[row, start : start + span] = True
    return mask
