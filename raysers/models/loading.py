"""From a model's name to a network that is ready to score, and back to a folder.

A folder of an object store is fetched by the caller first: here, names are local folders, hub
ids and aliases. Nothing that comes with a checkpoint is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raysers.errors import CheckpointError, ConfigError
from raysers.models import checkpoint, limits, weights
from raysers.models.backbones import (
    CNN14,
    FAMILIES,
    UNNORMALISED,
    WHISPER,
    ModelName,
    keep_layers,
    parse_model_name,
)
from raysers.models.checkpoint import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    RANDOM_SEED,
    WEIGHTS_FILE,
    fetch_snapshot,
    random_revision,
)
from raysers.models.cnn14 import Cnn14, Cnn14Config
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.outputs import Outputs
from raysers.models.whisper import WhisperEmotionModel
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

#: What impossible values of a configuration lead to inside the network's constructors.
_BUILD_ERRORS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    ZeroDivisionError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network in evaluation mode, float32, on the CPU, and what must be known to use it.

    `revision` is the hub's commit, a hash of the folder's files, or `random-<seed>-<hash>`;
    `hidden_size` is the size of an embedding; clips shorter than `min_samples` have no frame,
    and those longer than `max_samples` do not fit (None: any length does).
    """

    model: EmotionNetwork
    name: str
    revision: str
    do_normalize: bool
    hidden_size: int
    min_samples: int
    max_samples: int | None = None


def load_emotion_model(
    name: ModelName | str, *, cache_dir: str | Path | None = None
) -> LoadedModel:
    """Load a model by name.

    Args:
        name: what `--model` says, parsed or not.
        cache_dir: where hub downloads are kept; default: the hub library's own place.

    Raises:
        ConfigError: no such name, or no way to fetch it.
        CheckpointError: the folder is not a model whose scores can be trusted.
    """
    name = parse_model_name(name) if isinstance(name, str) else name
    if name.is_object_store:
        raise ConfigError(f"{name.text}: fetch the folder first and load the local copy")
    if name.random:
        return _random(name)
    if name.hub_id is not None:
        folder = fetch_snapshot(name.hub_id, name.revision, cache_dir)
        return _from_folder(name, folder, revision=folder.name)
    if name.path is None:
        raise ConfigError(f"{name.text} has no trained weights yet: use random:{name.text}")
    return _from_folder(name, Path(name.path))


def save_emotion_model(
    model: EmotionNetwork,
    folder: str | Path,
    *,
    do_normalize: bool = True,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `model` as a checkpoint folder in the published layout.

    Args:
        model: its parameters may be in any precision.
        folder: made if it is not there; files of the same names are replaced.
        do_normalize: whether the model was trained on normalised samples.
        dtype: of the weights in the file; loading makes them float32 again.

    Raises:
        CheckpointError: a weight is too large for `dtype`.
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
    preprocessor = model.preprocessing | {
        "do_normalize": do_normalize,
        "sampling_rate": SAMPLE_RATE_HZ,
    }
    for file, content in ((CONFIG_FILE, config), (PREPROCESSOR_FILE, preprocessor)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / file).write_text(text, encoding="utf-8")
    weights.write_weights(model.state_dict(), folder / WEIGHTS_FILE, dtype=dtype)


def build_network(config: dict[str, Any], where: object) -> EmotionNetwork:
    """The network of the keys of a `config.json`, weights as initialised.

    Raises:
        CheckpointError: a value the network cannot be built from.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    checkpoint.check_config(config, where)
    try:
        if config["model_type"] == CNN14:
            return Cnn14(Cnn14Config.from_dict(config))
        config_class = getattr(transformers, FAMILIES[config["model_type"]].config_class)
        known = {k: v for k, v in config.items() if k in _shape_keys(config_class)}
        network = WhisperEmotionModel if config["model_type"] == WHISPER else EmotionModel
        return network(config_class(**known), config.get("pooling_mode") or "mean")
    except (*_BUILD_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: no network can be built from {CONFIG_FILE}: {reason}"
        ) from error


def _shape_keys(config_class: Any) -> set[str]:
    """Keys that describe the network; the rest of a `config.json` is about other tasks."""
    base = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    # these work in every family, though some configurations do not declare them
    ours = {"apply_spec_augment", "final_dropout", "trim_db", "peak_level", "final_norm"}
    return {k for k in config_class.__annotations__ if k not in base} | ours


def _from_folder(name: ModelName, folder: Path, revision: str | None = None) -> LoadedModel:
    config, paths = checkpoint.read_folder(folder)
    do_normalize = checkpoint.read_do_normalize(folder, config)
    model = build_on_meta(keep_layers(config, name.layers, name.text), folder)
    tensors = weights.read_weights(paths)
    if name.layers is not None:
        tensors = weights.drop_layers(tensors, name.layers)
    weights.load_weights(model, tensors, folder)
    revision = revision or checkpoint.folder_hash(folder, paths)
    return _loaded(model, name.text, revision, do_normalize)


def build_on_meta(config: dict[str, Any], where: object) -> EmotionNetwork:
    """The network's shapes alone: no time or memory for weights that are replaced or refused."""
    with torch.device("meta"):
        model = build_network(config, where)
        model.attach(Outputs.from_config(config, where))
    limits.check_size(sum(p.numel() for p in model.parameters()), where)
    return model


def _random(name: ModelName) -> LoadedModel:
    config = checkpoint.random_config(name)
    if name.path is not None:
        build_on_meta(config, name.text)
    # the network is drawn by the stock initialisation from torch's own generator: fix it, and
    # give it back as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = build_network(config, name.text)
    normalised = config["model_type"] not in UNNORMALISED
    return _loaded(model, name.text, random_revision(config, RANDOM_SEED), do_normalize=normalised)


def _loaded(
    model: EmotionNetwork,
    name: str,
    revision: str,
    do_normalize: bool,
) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        name=name,
        revision=revision,
        do_normalize=do_normalize,
        hidden_size=model.embedding_size,
        min_samples=model.min_samples,
        max_samples=model.max_samples,
    )
