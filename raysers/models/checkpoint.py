"""What a checkpoint folder says about itself: configuration, labels, where the weights are.

Everything is refused that stock classes accept in silence: a head that is not there is drawn at
random, and an unknown key (an adapter, a projector) is dropped, and both still yield numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from raysers.errors import CheckpointError, ConfigError, StorageError
from raysers.io import storage
from raysers.models import limits
from raysers.models.backbones import (
    BACKBONES,
    CNN14,
    FAMILIES,
    POOLING_NAMES,
    WHISPER,
    ModelName,
    keep_layers,
)
from raysers.models.outputs import PLAIN, Outputs
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"

#: Seed of `random:` models.
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

#: Where weights may be, best first; an index lists the files of a split checkpoint.
WEIGHT_FILES = (
    WEIGHTS_FILE,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_LABELS = {str(index): name for index, name in enumerate(DIMENSIONS)}

#: A configuration is a few kilobytes; anything bigger is not one.
_MOST_JSON_BYTES = 16 << 20

#: The largest vocabularies have 40 MB.
_MOST_TEXT_BYTES = 256 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx", ".ort")
#: Suffixes of files that are read from a model folder, by us or by a library.
_READ = (*_WEIGHTS, ".json", ".jsonl", ".txt", ".model", ".md")

#: Configuration keys that change what the network computes, and the one value we compute.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "add_adapter": (False, None),
    "adapter_attn_dim": (None,),
    "use_weighted_layer_sum": (False, None),
    "conv_pos_batch_norm": (False, None),  # it lets padding into the scores
    "pooling_mode": (*POOLING_NAMES, None),
}

#: The spectrogram every Whisper is trained on, as `preprocessor_config.json` says it.
WHISPER_FRONT = {"sampling_rate": SAMPLE_RATE_HZ, "hop_length": 160, "n_fft": 400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a job has to know of a model before any worker loads it.

    Attributes:
        revision: the hub's commit, a hash of the folder's files, or `random-<seed>-<hash>`.
        embedding_size: numbers of an embedding.
        outputs: what it says of a clip beside that.
    """

    revision: str
    embedding_size: int
    outputs: Outputs = PLAIN


def identify(name: ModelName, cache_dir: str | Path | None = None) -> Identity:
    """Check configuration and files of a model without building its network.

    What only shows in the network itself (missing or misshapen weights) is found when it is loaded.

    Raises:
        ConfigError: no such name, or no way to fetch it.
        CheckpointError: the folder is not a model whose scores can be trusted.
    """
    if name.random:
        config = random_config(name)
        return Identity(
            revision=random_revision(config, RANDOM_SEED), embedding_size=embedding_size(config)
        )
    if name.hub_id is not None:
        folder = fetch_snapshot(name.hub_id, name.revision, cache_dir)
    elif name.path is not None:
        folder = Path(name.path)
    else:
        raise ConfigError(f"{name.text} has no trained weights yet: use random:{name.text}")
    config, paths = read_folder(folder)
    config = keep_layers(config, name.layers, name.text)
    revision = folder.name if name.hub_id is not None else folder_hash(folder, paths)
    return Identity(
        revision=revision,
        embedding_size=embedding_size(config),
        outputs=Outputs.from_config(config, folder),
    )


def read_folder(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Configuration and weight files of a model folder; CheckpointError if it cannot be trusted."""
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist")
    check_folder(folder)
    config = read_json(folder / CONFIG_FILE)
    check_config(config, folder)
    check_labels(config, folder)
    read_do_normalize(folder, config)
    return config, weight_paths(folder)


def folder_hash(folder: Path, paths: Iterable[Path]) -> str:
    """The revision of a local folder: a hash of configuration, preprocessing and weights."""
    return content_hash([folder / CONFIG_FILE, folder / PREPROCESSOR_FILE, *paths])


def random_config(name: ModelName) -> dict[str, Any]:
    """The configuration of a `random:` model.

    Raises:
        CheckpointError: a file that describes no network.
    """
    if name.path is None:
        return BACKBONES[str(name.alias)].config(name.layers)
    path = Path(name.path)
    config = read_json(path if path.suffix == ".json" else path / CONFIG_FILE)
    return keep_layers(config, name.layers, name.text)


def embedding_size(config: dict[str, Any]) -> int:
    """Numbers of an embedding of the network that `config` describes.

    Raises:
        CheckpointError: the configuration does not say.
    """
    try:
        if config["model_type"] == CNN14:
            return int(config["widths"][-1])
        size = int(config[FAMILIES[config["model_type"]].size_key])
        return size * (1 if config.get("pooling_mode") in (None, "mean") else 2)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{CONFIG_FILE} does not say the size of the network") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: missing, too big, not JSON, or not an object.
    """
    try:
        content = json.loads(storage.read_bytes(str(path), max_bytes=_MOST_JSON_BYTES))
    except StorageError as error:
        reason = str(error).removeprefix(f"{path}").lstrip(": ")
        raise CheckpointError(
            f"{path} cannot be read ({reason}); a model folder holds {CONFIG_FILE},"
            f" {PREPROCESSOR_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def check_folder(folder: Path) -> None:
    """Refuse a model folder with files that libraries would read without end or from elsewhere.

    Links may point to other files of the folder; in the hub's cache, to the same model's blobs.

    Raises:
        CheckpointError: a device, pipe or socket, a link out of the folder, or a text too big.
    """
    root = os.path.realpath(folder)
    repository = Path(root).parent.parent
    if Path(root).parent.name == "snapshots" and (repository / "blobs").is_dir():
        root = str(repository)
    for path in sorted(folder.iterdir()):
        if path.suffix not in _READ or not path.exists():
            continue
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise CheckpointError(f"{path} is a link out of the model folder: copy the file there")
        if path.suffix not in _WEIGHTS and about.st_size > _MOST_TEXT_BYTES:
            raise CheckpointError(f"{path} is too big: {about.st_size} bytes")


def check_config(config: dict[str, Any], where: object) -> None:
    """Refuse a configuration whose scores we would get wrong.

    Raises:
        CheckpointError: another kind of network, or numbers no network has.
    """
    model_type = config.get("model_type")
    if model_type not in (*FAMILIES, CNN14):
        raise CheckpointError(
            f"{where}: model_type is {model_type!r}; supported: {', '.join((*FAMILIES, CNN14))}"
        )
    for key, allowed in _ONLY_VALUES.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{where}: {key} is {config[key]!r}, which changes the network; only"
                f" {' and '.join(repr(a) for a in allowed if a is not None)} can be scored"
            )
    limits.check_numbers(config, where)


def check_labels(config: dict[str, Any], where: object) -> None:
    """Refuse outputs that are not named arousal, dominance, valence in this order.

    Unnamed outputs (`LABEL_0` ...) are refused too: the order differs between models of the same
    authors, and a wrong guess would swap two columns of an archive.

    Raises:
        CheckpointError: with the entry to write into the configuration.
    """
    if not has_our_labels(config):
        raise CheckpointError(
            f"{where}: id2label is {json.dumps(config.get('id2label'))}; if the outputs are"
            f" arousal, dominance and valence in this order, say so in {CONFIG_FILE}:"
            f' "id2label": {json.dumps(_LABELS)}'
        )


def has_our_labels(config: dict[str, Any]) -> bool:
    """Whether the outputs are named arousal, dominance, valence in this order."""
    labels = config.get("id2label")
    return isinstance(labels, dict) and {str(k): v for k, v in labels.items()} == _LABELS


def read_do_normalize(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the model of `config` expects each clip at zero mean and unit variance.

    There is no safe default among the families on samples (sizes differ, and scores change
    without an error), so such a folder that does not say is refused. Whisper's files leave it out
    where it is false.

    Raises:
        CheckpointError: the file is missing or does not say, or asks for another rate than 16 kHz
            or another spectrogram than Whisper's.
    """
    path = folder / PREPROCESSOR_FILE
    if not path.exists():
        raise CheckpointError(f"{folder} has no {PREPROCESSOR_FILE}: copy it from the original")
    content = read_json(path)
    rate = content.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise CheckpointError(f"{path}: the model expects {rate} Hz, not {SAMPLE_RATE_HZ} Hz")
    if config.get("model_type") == WHISPER:
        _check_whisper_front(content, config, path)
        content.setdefault("do_normalize", False)
    flag = content.get("do_normalize")
    if not isinstance(flag, bool):
        raise CheckpointError(
            f"{path}: do_normalize is {json.dumps(flag)}, not true or false; add the line"
            ' "do_normalize": true, or false if the model was trained on samples as they are'
        )
    return flag


def _check_whisper_front(content: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    for key, wanted in (WHISPER_FRONT | {"feature_size": config.get("num_mel_bins", 80)}).items():
        if content.get(key, wanted) != wanted:
            raise CheckpointError(f"{path}: {key} is {content[key]!r}, only {wanted} is computed")


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


def content_hash(paths: Iterable[Path]) -> str:
    """16 hex digits of SHA-256 over names and contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def random_revision(config: dict[str, Any], seed: int) -> str:
    """What tells networks drawn at random apart: the seed and a hash of the configuration."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return f"random-{seed}-{digest}"


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
