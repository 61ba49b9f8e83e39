"""The tensors of a checkpoint: read without trusting them, put into a network, written.

A weights file of a kilobyte can ask for a terabyte: by compression, by tensors whose strides are
zero, by tensors that are not plain numbers. Nothing is converted or filled in before its form and
its shape are known to be those of the network.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysers.errors import CheckpointError
from raysers.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE

#: Number formats that convert to float32 as they are; smaller ones need scales kept elsewhere.
_PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

#: Parts of pre-training that a checkpoint may carry along and that never touch the scores.
_HARMLESS = re.compile(
    r"(quantizer|project_hid|project_q|lm_head)\.|.*\bmasked_spec_embed$|.*\bnum_batches_tracked$"
)

#: Spellings of weight norm before parametrizations (torch < 2.1), and ours.
_OLD_NAMES = (
    (".conv.weight_g", ".conv.parametrizations.weight.original0"),
    (".conv.weight_v", ".conv.parametrizations.weight.original1"),
)

_ZIP_MAGIC = b"PK\x03\x04"


def read_weights(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the files as they are, under today's names; `load_weights` checks them.

    Raises:
        CheckpointError: unreadable, not tensors, compressed, or a pickle that runs code.
    """
    weights: dict[str, Tensor] = {}
    for path in paths:
        for key, value in _read_file(path).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
            weights[_today(key)] = value
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Put `weights` into `model` as float32, every one in its place and none left over.

    Only SpecAugment's `masked_spec_embed` may be missing (it is used in training alone) and is
    zero then.

    Raises:
        CheckpointError: naming the keys that are missing, unexpected, misshapen, not finite or no
            plain tensors.
    """
    expected = model.state_dict()
    _check_head(expected, weights, where)
    missing = [k for k in expected if k not in weights]
    if needed := [k for k in missing if not k.endswith("masked_spec_embed")]:
        raise CheckpointError(f"{where}: weights are missing: {_some(needed)}")
    unexpected = [k for k in weights if k not in expected and not _HARMLESS.match(k)]
    if unexpected:
        raise CheckpointError(
            f"{where}: weights this network has no place for, so its scores would be wrong:"
            f" {_some(unexpected)}"
        )
    given = {k: weights[k] for k in expected if k in weights}
    odd = [f"{k} ({form})" for k, v in given.items() if (form := _odd_form(v))]
    if odd:
        raise CheckpointError(f"{where}: weights are not plain float tensors: {_some(odd)}")
    misshapen = [
        f"{k} {list(v.shape)} for {list(expected[k].shape)}"
        for k, v in given.items()
        if v.shape != expected[k].shape
    ]
    if misshapen:
        raise CheckpointError(f"{where}: shapes do not fit {CONFIG_FILE}: {_some(misshapen)}")
    fitting = {k: v.float() for k, v in given.items()}
    broken = [k for k, v in fitting.items() if not torch.isfinite(v).all()]
    if broken:
        raise CheckpointError(f"{where}: weights are NaN or infinite: {_some(broken)}")
    zeros = {k: torch.zeros(expected[k].shape) for k in missing}
    model.load_state_dict(fitting | zeros, assign=True)


def write_weights(
    weights: dict[str, Tensor], path: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write tensors as safetensors, floats as `dtype`.

    Raises:
        CheckpointError: a finite weight is beyond what `dtype` holds; nothing is written.
    """
    stored = {
        key: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in weights.items()
    }
    if lost := [key for key in stored if _overflows(weights[key], stored[key])]:
        raise CheckpointError(f"{path}: weights too large for {dtype}: {_some(lost)}")
    save_file(stored, path, metadata={"format": "pt"})


def _overflows(value: Tensor, stored: Tensor) -> bool:
    return bool((value.isfinite().cpu() & ~stored.isfinite()).any())


def drop_layers(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """`weights` without the transformer layers from number `layers` up."""
    number = re.compile(r"(?:.*\.)?encoder\.layers\.(\d+)\.")

    def keep(key: str) -> bool:
        match = number.match(key)
        return match is None or int(match[1]) < layers

    return {key: value for key, value in weights.items() if keep(key)}


def is_head(key: str) -> bool:
    """Whether a weight belongs to what sits on the backbone: pooling, head, or another head."""
    return key.startswith(("pooling.", "classifier.", "projector.", "layer_weights"))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and is not opened, because a pickle can run code;"
            f" convert it to {WEIGHTS_FILE} where you trust it"
        ) from error
    except _READ_ERRORS as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{path} is not a readable weights file: {reason[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    return content


#: What damaged and hostile files lead to inside the readers.
_READ_ERRORS = (
    OSError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
)


def _check_zip(path: Path) -> None:
    """Refuse an archive that holds more bytes than the file has.

    `torch.save` stores without compression; the reader inflates what others compressed, however
    much that is.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(
            f"{path} is compressed, which torch.save never does, and is not opened;"
            f" convert it to {WEIGHTS_FILE} where you trust it"
        )


def _odd_form(value: Tensor) -> str:
    """What keeps a tensor from being plain numbers of its size; empty if nothing."""
    if value.layout != torch.strided:
        return str(value.layout)
    if value.device.type != "cpu":
        return f"on {value.device}"
    if value.dtype not in _PLAIN_DTYPES:
        return str(value.dtype)
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return "more elements than stored"
    return ""


def _today(key: str) -> str:
    for old, new in _OLD_NAMES:
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def _check_head(expected: dict[str, Tensor], weights: dict[str, Tensor], where: object) -> None:
    head = [k for k in expected if k.startswith("classifier.")]
    others = [k for k in weights if k.startswith(("classifier.", "projector."))]
    if any(k not in weights for k in head):
        raise CheckpointError(
            f"{where} has no emotion head ({', '.join(head)}); it has"
            f" {_some(others) if others else 'none of these'}. A bare backbone must be fine-tuned"
            " first; random:NAME tries a network without training"
        )


def _some(keys: list[str], most: int = 4) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
