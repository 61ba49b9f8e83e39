"""From gradients to a step: sums over the processes, optimisers, schedules, averaged weights.

The collective functions do nothing outside of a process group, in which every process must make the
same calls in the same order. Gradients live in a few large buckets of which each parameter's `grad`
is a view; without use it is zero, not none: whether one worker used it must not matter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each contiguous tensor by its sum over all processes, the same bits in each."""
    if dist.is_initialized():
        _wait([dist.all_reduce(tensor, async_op=True) for tensor in tensors])


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Replace each contiguous tensor by that of process 0."""
    if dist.is_initialized():
        _wait([dist.broadcast(tensor, 0, async_op=True) for tensor in tensors])


def gather(value: T) -> list[T]:
    """Every process's (picklable) value, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return cast(list[T], found)


def wait_for_all() -> None:
    """Go on only when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def _wait(started: Iterable[dist.Work | None]) -> None:
    for work in started:
        if work is not None:
            work.wait()


class Gradients:
    """The gradients of `parameters`, in the network's order, as views into flat `buckets`.

    A bucket has at most `bucket_bytes`, unless one parameter is larger. Processes exchange them in
    `dtype`, by default exactly.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        bucket_bytes: int = 32 << 20,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.buckets: list[Tensor] = []
        self._dtype = dtype
        self._bucket_of: dict[Tensor, int] = {}
        self._is_last_pass = False
        self._incomplete: list[set[Tensor]] = []
        self._sums: list[tuple[Tensor, Tensor, dist.Work | None]] = []
        for chunk in _chunks(parameters, bucket_bytes):
            sizes = [p.numel() for p in chunk]
            bucket = chunk[0].new_zeros(sum(sizes))
            for parameter, part in zip(chunk, torch.split(bucket, sizes), strict=True):
                parameter.grad = part.view_as(parameter)
                self._bucket_of[parameter] = len(self.buckets)
                if world_size() > 1:
                    register: Any = parameter.register_post_accumulate_grad_hook
                    register(self._arrived)
            self.buckets.append(bucket)

    @property
    def num_bytes(self) -> int:
        """That each process sends in a step."""
        size = self._dtype.itemsize if self._dtype else 0
        return sum(b.numel() * (size or b.element_size()) for b in self.buckets)

    def clear(self) -> None:
        """Set all to zero."""
        torch._foreach_zero_(self.buckets)
        self._sums = []
        self._incomplete = [set() for _ in self.buckets]
        for parameter, bucket in self._bucket_of.items():
            self._incomplete[bucket].add(parameter)

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Within a step's last backward pass: sums start when their gradients are all there."""
        self._is_last_pass = True
        try:
            yield
        finally:
            self._is_last_pass = False

    def _arrived(self, parameter: Tensor) -> None:
        if self._is_last_pass:
            self._incomplete[self._bucket_of[parameter]].discard(parameter)
            while len(self._sums) < len(self.buckets) and not self._incomplete[self._next]:
                self._start_sum()

    @property
    def _next(self) -> int:
        """The bucket to sum next: from the last to the first, in every process alike."""
        return len(self.buckets) - 1 - len(self._sums)

    def _start_sum(self) -> None:
        bucket = self.buckets[self._next]
        sent = bucket if self._dtype is None else bucket.to(self._dtype)
        self._sums.append((bucket, sent, dist.all_reduce(sent, async_op=True)))

    def sum_(self) -> None:
        """Replace all by their sums over the processes: those that are not under way start now."""
        if not dist.is_initialized():
            return
        while len(self._sums) < len(self.buckets):
            self._start_sum()
        for bucket, sent, work in self._sums:
            _wait([work])
            if sent is not bucket:
                bucket.copy_(sent)

    def sum_s(self) -> float:
        """Seconds that the sum of all takes by itself, measured; 0 in a process alone."""
        if world_size() == 1:
            return 0.0
        device = self.buckets[0].device
        probe = torch.zeros(min(self.num_bytes, 64 << 20), dtype=torch.uint8, device=device)
        sum_([probe[:1]])  # connections are made
        began_s = time.perf_counter()
        sum_([probe])
        probe[:1].item()  # waits for the device
        return (time.perf_counter() - began_s) * self.num_bytes / max(probe.numel(), 1)

    def norm(self) -> Tensor:
        """Euclidean norm over all, a float32 scalar."""
        norms = torch.stack(torch._foreach_norm(self.buckets))
        return cast(Tensor, torch.linalg.vector_norm(norms))

    def clip(self, norm: float, most: float) -> None:
        """Scale all down so that a norm of `norm` becomes at most `most`."""
        if norm > most:
            torch._foreach_mul_(self.buckets, most / norm)


def _chunks(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Neighbours that fit into a bucket together."""
    chunk: list[nn.Parameter] = []
    num_bytes = 0
    for parameter in parameters:
        if chunk and num_bytes + parameter.nbytes > bucket_bytes:
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(parameter)
        num_bytes += parameter.nbytes
    yield chunk


def make_optimiser(
    name: str, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of `--optimiser`, with the fused kernels of the parameters' device.

    adam and sgd (Nesterov momentum .9) add the decay to the gradient; adamw decays matrices and
    kernels only, not norms, gains and biases, whatever their dimensions.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True, fused=True
        )
    flat = {p: sum(size > 1 for size in p.shape) < 2 for p in parameters}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if not flat[p]]},
        {"params": [p for p in parameters if flat[p]], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


#: What `--schedule` names: share of the steps after the warm-up that are done -> factor.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def lr_factor(step: int, total_steps: int, schedule: str, warmup_share: float) -> float:
    """Factor on the learning rate in step `step` of 0..total_steps - 1, above 0 and at most 1."""
    warmup = round(warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, total_steps - warmup)))


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
        decay = min(self.decay, self.updates / (self.updates + 10))
        self.updates += 1
        torch._foreach_lerp_(self.averages, [t.detach() for t in self.tensors], 1.0 - decay)

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
