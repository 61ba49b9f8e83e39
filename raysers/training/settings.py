"""What decides the parameters of a training, besides its start, its data and their order.

Nothing about workers or devices belongs here: those must not change the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raysers.errors import ConfigError
from raysers.models.losses import LOSSES
from raysers.training.optim import OPTIMISERS, SCHEDULES

#: What `--dtype` names in training; parameters, optimiser and head stay in fp32.
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What decides the parameters, besides start, data and order.

    Attributes:
        loss: a name of `LOSSES`.
        target_weights: weights of arousal, dominance and valence in the loss, at least 0.
        category_weight: weight of the categories' cross-entropy; 0 leaves it out.
        optimiser: a name of `OPTIMISERS`.
        lr: learning rate at its highest.
        weight_decay: as `make_optimiser` has it.
        schedule: a name of `SCHEDULES`.
        warmup_share: of all steps, 0..1.
        clip_norm: most that the gradient's norm may be; None does not clip.
        ema: decay of the averaged weights, 0..1; 0 keeps none.
        accumulate: in how many turns a process handles its pieces.
        dtype: fp32 or bf16 (autocast; parameters and optimiser stay fp32).
        gradient_checkpointing: compute activations twice in place of keeping them.
        seed: of dropout and of the head of the categories.
    """

    loss: str = "ccc"
    target_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    category_weight: float = 0.0
    optimiser: str = "adam"
    lr: float = 1e-4
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_share: float = 0.0
    clip_norm: float | None = None
    ema: float = 0.0
    accumulate: int = 1
    dtype: str = "fp32"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError: a name or number that training knows no meaning for."""
        for value, flag, known in (
            (self.loss, "--loss", LOSSES),
            (self.optimiser, "--optimiser", OPTIMISERS),
            (self.schedule, "--schedule", SCHEDULES),
            (self.dtype, "--dtype", AUTOCAST),
        ):
            if value not in known:
                raise ConfigError(f"{flag} is {value}: choose from {', '.join(known)}")
        for good, flag, wanted in (
            (self.lr > 0, "--lr", "more than 0"),
            (self.accumulate >= 1, "--accumulate", "1 or more pieces"),
            (0 <= self.ema < 1, "--ema", "a decay from 0 to below 1"),
            (0 <= self.warmup_share < 1, "--warmup", "a share from 0 to below 1"),
            (self.clip_norm is None or self.clip_norm > 0, "--clip-norm", "more than 0"),
        ):
            if not good:
                raise ConfigError(f"{flag} must be {wanted}")
