"""How parameters move: settings, optimisers, schedules, gradient buckets, averaged weights.

Gradients live in a few large buffers of which each parameter's `grad` is a view. A parameter that
a step did not use has a gradient of zero, not none: whether one worker used it must not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from raysers.errors import ConfigError
from raysers.models.losses import LOSSES

#: Bytes of a gradient bucket: large enough for full network speed, several in flight at a time.
_BUCKET_BYTES = 32 << 20

#: How many steps weights are averaged evenly before the decay rules (warm start).
_EMA_WARM = 10


def make_optimiser(
    name: str, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser of `OPTIMISERS` with the fused kernels of the parameters' device.

    adam and sgd add `weight_decay` times the weight to the gradient; adamw decays matrices and
    kernels only, decoupled from the gradient, and leaves norms, gains and biases alone.

    Raises:
        ConfigError: no such optimiser.
    """
    if name not in OPTIMISERS:
        raise ConfigError(f"--optimiser {name}: choose from {', '.join(OPTIMISERS)}")
    return OPTIMISERS[name](list(parameters), lr, weight_decay)


def _adam(parameters: list[nn.Parameter], lr: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)


def _adamw(parameters: list[nn.Parameter], lr: float, decay: float) -> torch.optim.Optimizer:
    flat = [p for p in parameters if is_flat(p)]
    others = [p for p in parameters if not is_flat(p)]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": flat, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)


def _sgd(parameters: list[nn.Parameter], lr: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True, fused=True
    )


#: What `--optimiser` names.
OPTIMISERS: dict[str, Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def is_flat(parameter: Tensor) -> bool:
    """Whether a parameter is a vector, whatever its dimensions: a bias, a norm, a gain."""
    return sum(size > 1 for size in parameter.shape) < 2


#: What `--schedule` names: share of the steps after the warm-up that are done -> factor.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def lr_factor(step: int, total_steps: int, schedule: str, warmup_share: float) -> float:
    """Factor on the learning rate in step `step` of 0..total_steps - 1, above 0 and at most 1.

    It rises in a straight line over `warmup_share` of the steps, then follows `SCHEDULES` towards
    the step after the last one.
    """
    warmup = round(warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, total_steps - warmup)))


class Gradients:
    """The gradients of `parameters` as views into `buckets`, flat and contiguous."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, bucket_bytes: int = _BUCKET_BYTES
    ) -> None:
        self.buckets: list[Tensor] = []
        self._count = len(parameters)
        for chunk in _chunks(parameters, bucket_bytes):
            sizes = [p.numel() for p in chunk]
            bucket = chunk[0].new_zeros(sum(sizes))
            for parameter, part in zip(chunk, torch.split(bucket, sizes), strict=True):
                parameter.grad = part.view_as(parameter)
            self.buckets.append(bucket)

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Set all to zero."""
        torch._foreach_zero_(self.buckets)

    def norm(self) -> Tensor:
        """Euclidean norm over all, a float32 scalar."""
        norms = torch.stack(torch._foreach_norm(self.buckets))
        return cast(Tensor, torch.linalg.vector_norm(norms))

    def clip(self, norm: float, most: float) -> None:
        """Scale all down so that a norm of `norm` becomes at most `most`."""
        if norm > most:
            torch._foreach_mul_(self.buckets, most / norm)


class AveragedWeights:
    """An exponential moving average of tensors, with a warm start.

    After update t (from 1) the average is `d a + (1 - d) w`, `d = min(decay, (t - 1) / (t + 9))`:
    the first update copies the weights, so the start leaves no trace.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.tensors = list(tensors)
        self.averages = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self.decay, self.updates / (self.updates + _EMA_WARM))
        self.updates += 1
        now = [tensor.detach() for tensor in self.tensors]
        torch._foreach_lerp_(self.averages, now, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the weights are their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, (tensor, average) in enumerate(zip(self.tensors, self.averages, strict=True)):
            self.averages[number], tensor.data = tensor.data, average


def _chunks(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type and device that fit into a bucket together."""
    chunk: list[nn.Parameter] = []
    num_bytes = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        other = chunk and (chunk[0].dtype, chunk[0].device) != (parameter.dtype, parameter.device)
        if chunk and (other or num_bytes + size > bucket_bytes):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(parameter)
        num_bytes += size
    if chunk:
        yield chunk


#: What `--dtype` names in training; parameters, optimiser and head stay in fp32.
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What decides the parameters, besides start, data and order; nothing of workers or devices.

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
