"""From a model's name to a network that is ready to score, and back to a folder.

Nothing that comes with a checkpoint is executed, and nothing is converted or filled in before its
form and shape are known: a weights file of a kilobyte can ask for a terabyte (by compression, by
strides of zero). So tensors are assigned to a network that is built without memory.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysers.errors import CheckpointError, RaysersError
from raysers.models import backbones, checkpoint
from raysers.models.backbones import CNN14, FAMILIES, UNNORMALISED, WHISPER, ModelName, Outputs
from raysers.models.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, RANDOM_SEED, WEIGHTS_FILE
from raysers.models.cnn14 import Cnn14, Cnn14Config
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.heads import EmotionHead
from raysers.models.whisper import WhisperEmotionModel
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

#: Number formats that convert to float32 as they are; smaller ones need scales kept elsewhere.
PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Parts of pre-training that a checkpoint may carry along and that never touch the scores.
_HARMLESS = re.compile(
    r"(quantizer|project_hid|project_q|lm_head)\.|.*\bmasked_spec_embed$|.*\bnum_batches_tracked$"
)
#: Keys a network may have besides those its configuration class declares: some families' heads.
_OUR_KEYS = {"apply_spec_augment", "final_dropout", "trim_db", "peak_level", "final_norm"}
_TOKEN_KEYS = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
#: What wrappers around a network write before its names.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
#: Spellings of weight norm before parametrizations (torch < 2.1), and ours.
_WEIGHT_NORM = {"weight_g": "original0", "weight_v": "original1"}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network in evaluation mode, float32, on the CPU, and what must be known to use it.

    `revision` is the hub's commit, a hash of the folder's files, or `random-<seed>-<hash>`.
    """

    model: EmotionNetwork
    name: str
    revision: str
    do_normalize: bool


def load_emotion_model(name: ModelName | str) -> LoadedModel:
    """Load a model by what `--model` says, but no folder of an object store.

    Raises ConfigError where it cannot be had, CheckpointError where its scores cannot be trusted.
    """
    name = backbones.parse_model_name(name) if isinstance(name, str) else name
    if name.random:
        config = checkpoint.random_config(name)
        return LoadedModel(
            model=random_network(config, name.text, RANDOM_SEED).eval(),
            name=name.text,
            revision=checkpoint.random_revision(config, RANDOM_SEED),
            do_normalize=config["model_type"] not in UNNORMALISED,
        )
    folder = checkpoint.open_folder(name)
    order = checkpoint.label_order(folder.config, folder.path)
    config = backbones.keep_layers(folder.config, name.layers, name.text)
    model = build_on_meta(config, folder.path, Outputs.from_config(config, folder.path))
    tensors = keep_bottom(read_weights(folder.weights), name.layers)
    if backbones.category_labels(config):
        with torch.device("meta"):
            tensors = _as_category_head(model, tensors, folder.path)
    load_weights(model, tensors, folder.path)
    reorder_outputs(model, order)
    return LoadedModel(
        model=model.eval(),
        name=name.text,
        revision=folder.revision,
        do_normalize=folder.do_normalize,
    )


def _as_category_head(
    model: EmotionNetwork, tensors: dict[str, Tensor], where: object
) -> dict[str, Tensor]:
    """`tensors` of a classifier under our names, and its head in place of that of `model`."""
    tanh = "classifier.dense.weight" in tensors
    first, second = ("classifier.dense.", "classifier.out_proj.")
    if not tanh:
        first, second = ("projector.", "classifier.")
    names = {first: "categories.dense.", second: "categories.out_proj."}
    dense = tensors.get(f"{first}weight")
    if dense is None or dense.ndim != 2 or model.config.model_type in UNNORMALISED:
        raise CheckpointError(
            f"{where}: id2label names categories, and the head is not one that can be used: neither"
            " classifier.dense and classifier.out_proj nor projector and classifier of a model on"
            " samples"
        )
    size, categories = dense.shape[0], len(model.outputs.categories)
    model.categories = EmotionHead(model.embedding_size, size, 0.0, 0.0, categories, tanh=tanh)
    renamed = {
        next((new + k.removeprefix(old) for old, new in names.items() if k.startswith(old)), k): v
        for k, v in tensors.items()
    }
    unused = (key for key in model.state_dict() if key.startswith("classifier."))
    zeros = {k: torch.zeros(model.get_parameter(k).shape, device="cpu") for k in unused}
    return renamed | zeros


def save_emotion_model(
    model: EmotionNetwork,
    folder: str | Path,
    *,
    do_normalize: bool = True,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `model` as a checkpoint folder in the published layout, its weights as `dtype`.

    They become float32 again when they are loaded. Raises CheckpointError: one is too large.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "dtype": str(dtype).removeprefix("torch."),
        "id2label": {str(index): label for index, label in enumerate(DIMENSIONS)},
        "label2id": {label: index for index, label in enumerate(DIMENSIONS)},
        "pooling_mode": model.pooling_mode,
        "problem_type": "regression",
    }
    config |= model.outputs.config()
    front = {"do_normalize": do_normalize, "sampling_rate": SAMPLE_RATE_HZ}
    for file, content in ((CONFIG_FILE, config), (PREPROCESSOR_FILE, model.preprocessing | front)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / file).write_text(text, encoding="utf-8")
    write_weights(model.state_dict(), folder / WEIGHTS_FILE, dtype=dtype)


def build_network(config: dict[str, Any], where: object) -> EmotionNetwork:
    """The network of the keys of a `config.json`, weights as initialised, or CheckpointError."""
    import transformers

    try:
        if config["model_type"] == CNN14:
            return Cnn14(Cnn14Config.from_dict(config))
        config_class = getattr(transformers, f"{FAMILIES[config['model_type']].classes}Config")
        shape = {*config_class.__annotations__} - _TOKEN_KEYS | _OUR_KEYS
        known = config_class(**{k: v for k, v in config.items() if k in shape})
        network = WhisperEmotionModel if config["model_type"] == WHISPER else EmotionModel
        return network(known, config.get("pooling_mode") or "mean")
    except Exception as error:  # impossible values lead to any exception inside constructors
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: no network can be built from {CONFIG_FILE}: {reason}"
        ) from error


def build_on_meta(
    config: dict[str, Any], where: object, outputs: Outputs = backbones.PLAIN
) -> EmotionNetwork:
    """The network with its heads, shapes alone, of a size that networks have."""
    with torch.device("meta"):
        model = build_network(config, where)
        model.attach(outputs)
    checkpoint.check_size(sum(p.numel() for p in model.parameters()), where)
    return model


def random_network(config: dict[str, Any], where: object, seed: int) -> EmotionNetwork:
    """The network of `config`, initialised from `seed` alone; torch's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        build_on_meta(config, where)  # refuses what would fill the memory
        torch.manual_seed(seed)
        return build_network(config, where)


def reorder_outputs(model: EmotionNetwork, order: Sequence[int]) -> None:
    """Bring the outputs of a head that has them in `order` into that of `DIMENSIONS`."""
    if list(order) != sorted(order):
        head: Any = model.get_submodule("classifier.out_proj")
        head.weight, head.bias = nn.Parameter(head.weight[order]), nn.Parameter(head.bias[order])


def read_weights(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the files, under today's names; CheckpointError where one is not safe."""
    weights: dict[str, Tensor] = {}
    for path in paths:
        for key, value in _read_file(path).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
            stem, dot, last = _WRAPPERS.sub("", key).rpartition(".")
            if last in _WEIGHT_NORM and stem.endswith(".conv"):
                last = f"parametrizations.weight.{_WEIGHT_NORM[last]}"
            weights[stem + dot + last] = value
    return weights


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer: fetch the weights (git lfs pull)")
        if path.suffix == ".safetensors":
            return load_file(path)
        if start.startswith(b"PK"):
            _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except RaysersError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and is not opened, because a pickle can run code;"
            f" convert it to {WEIGHTS_FILE} where you trust it"
        ) from error
    except Exception as error:  # damaged and hostile files lead to any exception inside readers
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{path} is not a readable weights file: {reason[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    return content


def _check_zip(path: Path) -> None:
    """Refuse an archive that holds more bytes than the file: the reader would inflate it all."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(
            f"{path} is compressed, which torch.save never does, and is not opened;"
            f" convert it to {WEIGHTS_FILE} where you trust it"
        )


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Put `weights` into `model` as float32, each in its place and none left over.

    Only SpecAugment's `masked_spec_embed` may be missing (used in training alone) and is zero then.
    """
    expected = model.state_dict()
    given = {k if k in expected else k.removeprefix("model."): v for k, v in weights.items()}
    missing = [k for k in expected if k not in given]
    fitting = {k: v for k, v in given.items() if k in expected}
    misshapen = [k for k, v in fitting.items() if v.shape != expected[k].shape]
    problems = {
        "no emotion head (a bare backbone must be fine-tuned first; random:NAME tries a network"
        " without training), missing": [k for k in missing if k.startswith("classifier.")],
        "weights are missing": [k for k in missing if not k.endswith("masked_spec_embed")],
        "weights this network has no place for, so its scores would be wrong": [
            k for k in given if k not in expected and not _HARMLESS.match(k)
        ],
        "weights are not plain float tensors": [
            f"{k} ({form})" for k, v in fitting.items() if (form := _odd_form(v))
        ],
        f"shapes do not fit {CONFIG_FILE}": [
            f"{k} {list(fitting[k].shape)} for {list(expected[k].shape)}" for k in misshapen
        ],
    }
    refuse(where, problems)
    state = {k: v.float() for k, v in fitting.items()}
    # a norm needs a tenth of the time of `isfinite`, but may overflow where no weight does
    suspects = [k for k, v in state.items() if not v.norm().isfinite()]
    broken = [k for k in suspects if not state[k].isfinite().all()]
    refuse(where, {"weights are NaN or infinite": broken})
    zeros = {k: torch.zeros(expected[k].shape) for k in missing}
    model.load_state_dict(state | zeros, assign=True)


def _odd_form(value: Tensor) -> str:
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"{value.layout} on {value.device}"
    if value.dtype not in PLAIN_DTYPES:
        return str(value.dtype)
    stored = value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    return "" if stored else "more elements than stored"


def write_weights(
    weights: dict[str, Tensor], path: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write tensors as safetensors, floats as `dtype`; CheckpointError if one is too large."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    lost = [k for k, v in stored.items() if (tensors[k].isfinite() & ~v.isfinite()).any()]
    refuse(path, {f"weights too large for {dtype}": lost})
    save_file(stored, path, metadata={"format": "pt"})


def keep_bottom(weights: dict[str, Tensor], layers: int | None) -> dict[str, Tensor]:
    """`weights` without the transformer layers from number `layers` up."""
    number = re.compile(r"(?:^|\.)encoder\.layers\.(\d+)\.")
    found = {key: number.search(key) for key in weights} if layers is not None else {}
    above = {key for key, match in found.items() if match and int(match[1]) >= (layers or 0)}
    return {key: value for key, value in weights.items() if key not in above}


def refuse(where: object, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise CheckpointError for the first problem that some weights have, with their names."""
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise CheckpointError(f"{where}: {problem}: {', '.join(sorted(keys)[:4])}{more}")
