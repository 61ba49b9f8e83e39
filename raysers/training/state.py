"""A learner's state as bytes and back: the same bits go on as if nothing had happened.

Two files, so that the weights can be read without the optimiser's moments. Only process 0 needs
to write; every process reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raysers.errors import CheckpointError
from raysers.training.learner import Learner

_MODEL, _AVERAGE = "model.", "average."


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """Where a training stands.

    Attributes:
        weights: safetensors of the network.
        optimiser: safetensors of the optimiser's moments and the averaged weights.
        scalars: the rest, ready for JSON.
    """

    weights: bytes
    optimiser: bytes
    scalars: dict[str, int]


def dump(learner: Learner) -> LearnerState:
    """The state after the last step."""
    return LearnerState(
        weights=save(_on_cpu(_weights(learner))),
        optimiser=save(_on_cpu(dict(_moments(learner)) | dict(_averages(learner)))),
        scalars=scalars_of(learner),
    )


def scalars_of(learner: Learner) -> dict[str, int]:
    """What the state has besides tensors."""
    return {
        "steps": learner.steps,
        "total_steps": learner.total_steps,
        "average_updates": learner.average.updates if learner.average else 0,
        "halvings": learner.halvings,
        "checkpointing": learner.checkpointing and not learner.settings.gradient_checkpointing,
    }


def restore(learner: Learner, weights: bytes, optimiser: bytes, scalars: Mapping[str, Any]) -> None:
    """Put a state into a learner that was built with the same arguments.

    Raises:
        CheckpointError: the state is damaged or of another network or optimiser.
    """
    _fill(_weights(learner), _read(weights))
    tensors = _read(optimiser)
    averages = dict(_averages(learner))
    _fill(averages, {k: v for k, v in tensors.items() if k.startswith(_AVERAGE)})
    _restore_moments(learner, {k: v for k, v in tensors.items() if not k.startswith(_AVERAGE)})
    learner.steps = int(scalars["steps"])
    if learner.average is not None:
        learner.average.updates = int(scalars["average_updates"])
    learner.halvings = int(scalars.get("halvings", 0))
    if scalars.get("checkpointing"):
        learner.checkpoint_gradients()


def _weights(learner: Learner) -> dict[str, Tensor]:
    return {_MODEL + name: value for name, value in learner.model.state_dict().items()}


def _averages(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    if learner.average is not None:
        for number, tensor in enumerate(learner.average.averages):
            yield f"{_AVERAGE}{number}", tensor


def _names(learner: Learner) -> dict[Tensor, str]:
    return {p: _MODEL + n for n, p in learner.model.named_parameters()}


def _moments(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    """`<moment>:<parameter>` for every tensor that the optimiser keeps."""
    names = _names(learner)
    for parameter, state in learner.optimiser.state.items():
        for kind, value in state.items():
            if isinstance(value, Tensor):
                yield f"{kind}:{names[parameter]}", value


def _restore_moments(learner: Learner, moments: dict[str, Tensor]) -> None:
    parameters = {name: parameter for parameter, name in _names(learner).items()}
    counts = Counter(key.partition(":")[0] for key in moments)
    if any(count != len(learner.gradients) for count in counts.values()):
        raise CheckpointError("the saved state does not fit this network: moments are missing")
    learner.optimiser.state.clear()
    for key, value in moments.items():
        kind, _, name = key.partition(":")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise CheckpointError(f"the saved state does not fit this network: {key}")
        learner.optimiser.state[parameter][kind] = value.to(learner.device, copy=True)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read(content: bytes) -> dict[str, Tensor]:
    try:
        return load(content)
    except SafetensorError as error:
        raise CheckpointError(f"the saved state is damaged: {error}") from error


@torch.no_grad()
def _fill(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    if places.keys() != values.keys():
        odd = sorted(places.keys() ^ values.keys())[0]
        raise CheckpointError(f"the saved state does not fit this network: {odd}")
    for name, place in places.items():
        if place.shape != values[name].shape:
            raise CheckpointError(f"the saved state does not fit this network: {name}")
        place.copy_(values[name])
