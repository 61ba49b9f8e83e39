"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on the attention of a backbone.

Queries and values are computed with `W + 2 B A`, of which A [rank, in] and B [out, rank] are
trained. A stored model has the sum as its `W`: its folder is one like any other.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from raysers.errors import ConfigError
from raysers.models.emotion import EmotionNetwork

_ADAPTED = ("q_proj", "v_proj")

#: How names of adapters' parameters end; they are no parameters of the stored model.
ADAPTERS = (".lora_a", ".lora_b")

#: Factor on B A: alpha / rank in the paper's terms.
_SCALE = 2.0


class _Adapted(nn.Module):
    """A linear layer with its adapter; B starts at 0, so the first network is the given one."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """[out, in], as it is used and stored."""
        return self.base.weight + _SCALE * (self.lora_b @ self.lora_a)

    @property
    def bias(self) -> Tensor | None:
        """[out]."""
        return self.base.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return nn.functional.linear(hidden, self.weight, self.bias)


def add_adapters(model: EmotionNetwork, rank: int, seed: int) -> None:
    """Freeze the backbone and give its attention adapters, in place.

    Raises:
        ConfigError: the network has no attention.
    """
    names = [n for n, _ in model.named_modules() if n.rpartition(".")[2] in _ADAPTED]
    if not names:
        raise ConfigError("--lora: the network has no attention: leave it out")
    model.freeze("backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            model.set_submodule(name, _Adapted(base, rank))


def merged(model: EmotionNetwork) -> EmotionNetwork:
    """The model itself where it has no adapters, else a copy with them in its weights."""
    names = [name for name, module in model.named_modules() if isinstance(module, _Adapted)]
    if not names:
        return model
    model = copy.deepcopy(model)
    for name in names:
        adapted = model.get_submodule(name)
        assert isinstance(adapted, _Adapted)
        adapted.base.weight.data = adapted.weight.detach()
        model.set_submodule(name, adapted.base)
    return model
