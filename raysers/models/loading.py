"""From a model's name to a network that is ready to score, and back to a folder.

A folder of an object store is fetched by the caller first: here, names are local folders, hub
ids and aliases. Nothing that comes with a checkpoint is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raysers.errors import CheckpointError, ConfigError
from raysers.models import checkpoint, weights
from raysers.models.backbones import (
    BACKBONES,
    CNN14,
    ModelName,
    keep_layers,
    parse_model_name,
)
from raysers.models.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE
from raysers.models.cnn14 import Cnn14, Cnn14Config
from raysers.models.emotion import FAMILIES, EmotionModel
from raysers.models.network import EmotionNetwork
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

#: Seed of `random:` models: the same weights on every worker and machine.
RANDOM_SEED = 0

#: What is fetched from the hub: never code, never optimiser state.
_HUB_FILES = (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    "*.safetensors",
    "*.index.json",
    "pytorch_model*.bin",
    "README.md",  # its header names the licence
)


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
    `hidden_size` is the size of an embedding; clips shorter than `min_samples` have no frame.
    """

    model: EmotionNetwork
    name: str
    revision: str
    do_normalize: bool
    hidden_size: int
    min_samples: int


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
        dtype: number format of the weights in the file; loading makes them float32 again.

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
    preprocessor = {
        "do_normalize": do_normalize,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
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
        return EmotionModel(config_class(**known), config.get("pooling_mode") or "mean")
    except (*_BUILD_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: no network can be built from {CONFIG_FILE}: {reason}"
        ) from error


def _shape_keys(config_class: Any) -> set[str]:
    """Keys that describe the network; the rest of a `config.json` is about other tasks."""
    base = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    # SpecAugment's switch works in every family, though some configurations do not declare it
    return {k for k in config_class.__annotations__ if k not in base} | {"apply_spec_augment"}


def _from_folder(name: ModelName, folder: Path, revision: str | None = None) -> LoadedModel:
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist")
    checkpoint.check_folder(folder)
    config = checkpoint.read_json(folder / CONFIG_FILE)
    checkpoint.check_config(config, folder)
    checkpoint.check_labels(config, folder)
    do_normalize = checkpoint.read_do_normalize(folder)
    paths = checkpoint.weight_paths(folder)
    model = sketch(keep_layers(config, name.layers, name.text), folder)
    tensors = weights.read_weights(paths)
    if name.layers is not None:
        tensors = weights.drop_layers(tensors, name.layers)
    weights.fit_weights(model, tensors, folder)
    if revision is None:
        revision = checkpoint.content_hash(
            [folder / CONFIG_FILE, folder / PREPROCESSOR_FILE, *paths]
        )
    return _loaded(model, name.text, revision, do_normalize)


def sketch(config: dict[str, Any], where: object) -> EmotionNetwork:
    """The network's shapes alone: no time or memory for weights that are replaced or refused."""
    with torch.device("meta"):
        model = build_network(config, where)
    checkpoint.check_size(sum(p.numel() for p in model.parameters()), where)
    return model


def _random(name: ModelName) -> LoadedModel:
    if name.path is None:
        config = BACKBONES[str(name.alias)].config(name.layers)
    else:
        path = Path(name.path)
        config = checkpoint.read_json(path if path.suffix == ".json" else path / CONFIG_FILE)
        config = keep_layers(config, name.layers, name.text)
        sketch(config, name.text)
    # the network is drawn by the stock initialisation from torch's own generator: fix it, and
    # give it back as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = build_network(config, name.text)
    normalised = config["model_type"] != CNN14
    return _loaded(model, name.text, random_revision(config, RANDOM_SEED), do_normalize=normalised)


def random_revision(config: dict[str, Any], seed: int) -> str:
    """What tells networks drawn at random apart: the seed and a hash of the configuration."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return f"random-{seed}-{digest}"


def _loaded(model: EmotionNetwork, name: str, revision: str, do_normalize: bool) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        name=name,
        revision=revision,
        do_normalize=do_normalize,
        hidden_size=model.embedding_size,
        min_samples=model.min_samples,
    )


def fetch_snapshot(
    hub_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    also: Sequence[str] = (),
    flag: str = "--model",
) -> Path:
    """The local snapshot of a hub model (`also`: of these files too), named after the commit.

    Raises:
        ConfigError: not there, not allowed, or no network and not in the cache; it names `flag`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: the transport's
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    wanted = f"{hub_id}@{revision}" if revision else hub_id
    try:
        folder = snapshot_download(
            hub_id, revision=revision, cache_dir=cache_dir, allow_patterns=[*_HUB_FILES, *also]
        )
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{flag} {wanted} is not in the local cache and the hub cannot be reached: connect once"
            " to download it, or give a folder"
        ) from error
    except (HTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{flag} {wanted} cannot be fetched: {reason}") from error
    return Path(folder)
