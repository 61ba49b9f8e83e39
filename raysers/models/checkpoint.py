"""Reading a checkpoint folder without trusting it: JSON, safetensors, restricted unpickling.

Everything is refused that stock classes accept in silence: a head that is not there is drawn at
random, and an unknown key (an adapter, a projector) is dropped, and both still yield numbers.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysers.errors import CheckpointError
from raysers.models.emotion import FAMILIES
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"

#: Where weights may be, best first; an index lists the files of a split checkpoint.
WEIGHT_FILES = (
    WEIGHTS_FILE,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

#: A configuration is a few kilobytes; anything bigger is not one.
_MOST_JSON_BYTES = 16 << 20

#: Configuration keys that change what the network computes, and the one value we compute.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "add_adapter": (False, None),
    "adapter_attn_dim": (None,),
    "use_weighted_layer_sum": (False, None),
    "pooling_mode": ("mean", None),
}

#: Parts of pre-training that a checkpoint may carry along and that never touch the scores.
_HARMLESS = re.compile(
    r"(quantizer|project_hid|project_q|lm_head)\.|.*\bmasked_spec_embed$|.*\bnum_batches_tracked$"
)

#: Spellings of weight norm before parametrizations (torch < 2.1), and ours.
_OLD_NAMES = (
    (".conv.weight_g", ".conv.parametrizations.weight.original0"),
    (".conv.weight_v", ".conv.parametrizations.weight.original1"),
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: missing, too big, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise CheckpointError(f"{path} is too big to be a configuration")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); a model folder holds {CONFIG_FILE},"
            f" {PREPROCESSOR_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def check_config(config: dict[str, Any], where: object) -> None:
    """Refuse a configuration whose scores we would get wrong.

    Raises:
        CheckpointError: another kind of network, or labels that are not the three dimensions.
    """
    if config.get("model_type") not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type is {config.get('model_type')!r}; supported: {', '.join(FAMILIES)}"
        )
    for key, allowed in _ONLY_VALUES.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{where}: {key} is {config[key]!r}, which changes the network;"
                f" only {allowed[0]!r} can be scored"
            )


def check_labels(config: dict[str, Any], where: object) -> None:
    """Refuse outputs that are not named arousal, dominance, valence in this order.

    Unnamed outputs (`LABEL_0` ...) are refused too: the order differs between models of the same
    authors, and a wrong guess would swap two columns of an archive.

    Raises:
        CheckpointError: with the entry to write into the configuration.
    """
    labels = config.get("id2label")
    wanted = {str(index): name for index, name in enumerate(DIMENSIONS)}
    if not isinstance(labels, dict) or {str(k): v for k, v in labels.items()} != wanted:
        raise CheckpointError(
            f"{where}: id2label is {json.dumps(labels)}; if the outputs are arousal, dominance and"
            f' valence in this order, say so in {CONFIG_FILE}: "id2label": {json.dumps(wanted)}'
        )


def read_do_normalize(folder: Path) -> bool:
    """Whether the model wants each clip at zero mean and unit variance.

    There is no safe default (families and sizes differ, and scores change without an error), so
    a folder that does not say is refused.

    Raises:
        CheckpointError: the file is missing, or asks for another rate than 16 kHz.
    """
    path = folder / PREPROCESSOR_FILE
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {PREPROCESSOR_FILE}, so it is unknown whether the model wants"
            ' normalised samples; copy it from the original model or write {"do_normalize": true}'
        )
    content = read_json(path)
    rate = content.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise CheckpointError(f"{path}: the model wants {rate} Hz, only {SAMPLE_RATE_HZ} is fed")
    flag = content.get("do_normalize", True)
    if not isinstance(flag, bool):
        raise CheckpointError(f"{path}: do_normalize is {flag!r}, not true or false")
    return flag


def weight_paths(folder: Path) -> list[Path]:
    """The files with the weights of a folder, in a fixed order.

    Raises:
        CheckpointError: there are none, or the index names files outside the folder.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has no weights: expected {WEIGHTS_FILE}")
    if found.suffix != ".json":
        return [found]
    index = read_json(found).get("weight_map")
    names = set(index.values()) if isinstance(index, dict) else set()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise CheckpointError(f"{found}: weight_map must name files of the same folder")
    return [folder / name for name in sorted(cast(set[str], names))]


def read_weights(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the files, under today's names, floats as float32.

    Raises:
        CheckpointError: unreadable, not tensors, or a pickle that wants to run code.
    """
    weights: dict[str, Tensor] = {}
    for path in paths:
        for key, value in _read_file(path).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
            weights[_today(key)] = value.float() if value.is_floating_point() else value
    return weights


def fit_weights(model: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Put `weights` into `model`, every one in its place and none left over.

    Only SpecAugment's `masked_spec_embed` may be missing (it is used in training alone) and is
    zero then.

    Raises:
        CheckpointError: naming the keys that are missing, unexpected, misshapen or not finite.
    """
    expected = model.state_dict()
    _check_head(expected, weights, where)
    missing = [k for k in expected if k not in weights and not k.endswith("masked_spec_embed")]
    if missing:
        raise CheckpointError(f"{where}: weights are missing: {_some(missing)}")
    unexpected = [k for k in weights if k not in expected and not _HARMLESS.match(k)]
    if unexpected:
        raise CheckpointError(
            f"{where}: weights this network has no place for, so its scores would be wrong:"
            f" {_some(unexpected)}"
        )
    fitting = {k: weights.get(k, torch.zeros(v.shape)) for k, v in expected.items()}
    misshapen = [
        f"{k} {list(fitting[k].shape)} for {list(v.shape)}"
        for k, v in expected.items()
        if fitting[k].shape != v.shape
    ]
    if misshapen:
        raise CheckpointError(f"{where}: shapes do not fit {CONFIG_FILE}: {_some(misshapen)}")
    broken = [k for k, v in fitting.items() if not torch.isfinite(v).all()]
    if broken:
        raise CheckpointError(f"{where}: weights are NaN or infinite: {_some(broken)}")
    model.load_state_dict(fitting, assign=True)


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, floats as float32."""
    save_file(
        {
            key: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
            for key, value in weights.items()
        },
        path,
        metadata={"format": "pt"},
    )


def drop_layers(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """`weights` without the transformer layers from number `layers` up."""
    number = re.compile(r".*\.encoder\.layers\.(\d+)\.")

    def keep(key: str) -> bool:
        match = number.match(key)
        return match is None or int(match[1]) < layers

    return {key: value for key, value in weights.items() if keep(key)}


def content_hash(paths: Iterable[Path]) -> str:
    """16 hex digits of SHA-256 over names and contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and is not opened, because a pickle can run code;"
            f" convert it to {WEIGHTS_FILE} where you trust it"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{path} is not a readable weights file: {reason[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    return content


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
