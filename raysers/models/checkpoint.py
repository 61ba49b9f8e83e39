"""Model folders: what they say of themselves, and the guard against what must not be loaded.

Refuses what transformers loads in silence, though its numbers mean nothing: a missing head (random
there), an unknown key. Needs no torch, so a job can check a model before it starts workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysers.errors import CheckpointError, ConfigError, StorageError
from raysers.io import storage
from raysers.models import backbones
from raysers.models.backbones import CNN14, FAMILIES, WHISPER, ModelName, Outputs
from raysers.types import DIMENSIONS, SAMPLE_RATE_HZ

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
#: What transformers 5 writes instead, with the feature extractor's settings inside.
PROCESSOR_FILE = "processor_config.json"
WEIGHTS_FILE = "model.safetensors"
#: What is fetched from the hub: never code, never optimiser state.
_HUB_FILES = (
    *(CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE),
    *("*.safetensors", "*.index.json", "pytorch_model*.bin"),
    "README.md",  # its header names the licence
)
#: Seed of `random:` models.
RANDOM_SEED = 0
#: A configuration is a few kilobytes; the largest vocabularies have 40 MB.
_MOST_JSON_BYTES = 16 << 20
_MOST_TEXT_BYTES = 256 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx", ".ort")
#: Suffixes of files that are read from a model folder, by us or by a library.
_READ = (*_WEIGHTS, ".json", ".jsonl", ".txt", ".model", ".md")
#: Keys that say how large a network is, and what none exceeds.
_SIZES = re.compile(
    "(size|dim|layers|heads|kernel|stride|groups|embeddings|positions|buckets|distance|bins|bands"
    "|widths|window_samples|hop_samples)$"
)
_MOST, _MOST_LAYERS, _MOST_TOKENS, _MOST_ENTRIES = 65_536, 256, 1_000_000, 32
_MOST_PARAMETERS = 4_000_000_000  # the largest speech backbones have 2e9
#: Configuration keys that change what the network computes, and the values we compute.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "add_adapter": (False, None),
    "adapter_attn_dim": (None,),
    "use_weighted_layer_sum": (False, True, None),
    "conv_pos_batch_norm": (False, None),  # it lets padding into the scores
    "pooling_mode": (*backbones.POOLING_NAMES, None),
}
_LABELS = {str(index): name for index, name in enumerate(DIMENSIONS)}
#: The spectrogram every Whisper is trained on, as `preprocessor_config.json` says it.
WHISPER_FRONT = {"sampling_rate": SAMPLE_RATE_HZ, "hop_length": 160, "n_fft": 400}
#: Families of which every published checkpoint normalises each clip; WavLM's sizes differ.
_NORMALISED = ("wav2vec2", "hubert", "data2vec-audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model folder that passed the guard; its weights are not read yet."""

    path: Path
    config: dict[str, Any]
    weights: Sequence[Path]
    do_normalize: bool
    commit: str | None

    @property
    def revision(self) -> str:
        """The hub's commit, or a hash of configuration, preprocessing and weights."""
        files = [self.path / CONFIG_FILE, *_preprocessor(self.path), *self.weights]
        return self.commit or content_hash(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a job knows of a model before any worker loads it."""

    revision: str
    embedding_size: int
    outputs: Outputs = backbones.PLAIN
    licence: str = ""


def identify(name: ModelName) -> Identity:
    """Check all of a model but its weights, or raise ConfigError or CheckpointError."""
    if name.random:
        config = random_config(name)
        revision, outputs, licence = random_revision(config, RANDOM_SEED), backbones.PLAIN, ""
    else:
        folder = open_folder(name)
        config = backbones.keep_layers(folder.config, name.layers, name.text)
        label_order(config, folder.path)
        revision, outputs = folder.revision, Outputs.from_config(config, folder.path)
        licence = licence_of(folder.path) or ""
    kind = config["model_type"]
    try:
        size = int(config["widths"][-1] if kind == CNN14 else config[FAMILIES[kind].size_key])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{CONFIG_FILE} does not say the size of the network") from error
    size *= 1 if config.get("pooling_mode") in (None, "mean") else 2
    return Identity(revision=revision, embedding_size=size, outputs=outputs, licence=licence)


def open_folder(name: ModelName, flag: str = "--model") -> ModelFolder:
    """The folder of a speech model, checked but for its weights."""
    if name.hub_id is None and name.path is None:
        raise ConfigError(f"{name.text} has no trained weights yet: use random:{name.text}")
    path = local_folder(name.path, name.hub_id, name.revision, flag)
    config = read_json(path / CONFIG_FILE)
    check_config(config, path)
    return ModelFolder(
        path=path,
        config=config,
        weights=weight_paths(path),
        do_normalize=read_do_normalize(path, config, assume=True),
        commit=path.name if name.hub_id is not None else None,
    )


def local_folder(
    path: str | None, hub_id: str | None, revision: str | None, flag: str, also: Sequence[str] = ()
) -> Path:
    """The folder of a model, fetched from the hub if need be, or ConfigError naming `flag`."""
    if hub_id is not None:
        folder = fetch_snapshot(hub_id, revision, also, flag)
    elif str(path).startswith("s3://"):
        raise ConfigError(f"{flag} {path}: fetch the folder first and load the local copy")
    else:
        folder = Path(str(path)).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{flag} {path} does not exist: give a folder")
    check_folder(folder)
    return folder


def random_config(name: ModelName) -> dict[str, Any]:
    """The configuration of a model with random weights, by alias, folder or file."""
    if name.path is None:
        return backbones.BACKBONES[str(name.alias)].config(name.layers)
    path = Path(name.path)
    config = read_json(path if path.suffix == ".json" else path / CONFIG_FILE)
    check_config(config, path)
    return backbones.keep_layers(config, name.layers, name.text)


def random_revision(config: dict[str, Any], seed: int) -> str:
    """`random-<seed>-<hash of the configuration>`."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return f"random-{seed}-{digest}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError if missing, too big, not JSON, or no object."""
    try:
        content = json.loads(storage.read_bytes(str(path), max_bytes=_MOST_JSON_BYTES))
    except StorageError as error:
        reason = str(error).removeprefix(f"{path}").lstrip(": ")
        fix = f"a model folder holds {CONFIG_FILE}, {PREPROCESSOR_FILE} and {WEIGHTS_FILE}"
        if (path.parent / "adapter_config.json").is_file():
            fix = "an adapter must be merged into its base model (merge_and_unload) and saved"
        raise CheckpointError(f"{path} cannot be read ({reason}); {fix}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def check_folder(folder: Path) -> None:
    """Refuse a model folder with files that libraries would read without end or from elsewhere.

    Links may point to other files of the folder; in the hub's cache, to the same model's blobs.
    """
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist")
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
    """Raise CheckpointError for another kind of speech model, or sizes that no network has."""
    model_type = config.get("model_type")
    if model_type not in (*FAMILIES, CNN14):
        raise CheckpointError(
            f"{where}: model_type is {model_type!r}; supported: {', '.join((*FAMILIES, CNN14))}"
        )
    for key, allowed in _ONLY_VALUES.items():
        if config.get(key, allowed[0]) not in allowed:
            only = " and ".join(repr(value) for value in allowed if value is not None) or "null"
            raise CheckpointError(
                f"{where}: {key} is {config[key]!r}, which changes the network; only {only} can be"
                " scored"
            )
    check_numbers(config, where)


def check_numbers(config: dict[str, Any], where: object) -> None:
    """Raise CheckpointError for sizes of no network: a line of JSON must not fill the memory."""
    parts = [item for part in config.values() if isinstance(part, dict) for item in part.items()]
    for key, value in (*config.items(), *parts):
        if not _SIZES.search(key):
            continue
        listed, layers = isinstance(value, list), key.endswith("layers")
        numbers = value if listed else [value]
        most = _MOST_LAYERS if layers else _MOST_TOKENS if key == "vocab_size" else _MOST
        least = 1 if listed else 0 if layers else -1  # "none" in some networks
        odd = [n for n in numbers if type(n) is int and not least <= n <= most]
        if odd or len(numbers) > _MOST_ENTRIES:
            raise CheckpointError(
                f"{where}: {key} is {str(value)[:60]}, not {least} to {most}"
                + f" in at most {_MOST_ENTRIES} numbers" * listed
            )


def check_size(parameters: int, where: object) -> None:
    """Raise CheckpointError for more parameters than any network has, whatever its sizes are."""
    if parameters > _MOST_PARAMETERS:
        raise CheckpointError(
            f"{where}: {CONFIG_FILE} describes a network of {parameters:.1e} parameters; at most"
            f" {_MOST_PARAMETERS:.0e} are built"
        )


def label_order(config: dict[str, Any], where: object) -> list[int]:
    """Numbers of the outputs that are arousal, dominance, valence; a classifier has none of them.

    Raises CheckpointError for unnamed outputs (`LABEL_0` ...), whose order differs between models
    of the same authors: a wrong guess would swap two columns of an archive.
    """
    if backbones.category_labels(config):
        return []
    found = config.get("id2label")
    names = {str(v).lower(): str(k) for k, v in found.items()} if isinstance(found, dict) else {}
    if set(names) != set(DIMENSIONS) or {*names.values()} != {*_LABELS}:
        raise CheckpointError(
            f"{where}: id2label is {json.dumps(found)}; if the outputs are arousal, dominance and"
            f' valence in this order, say so in {CONFIG_FILE}: "id2label": {json.dumps(_LABELS)}'
        )
    return [int(names[name]) for name in DIMENSIONS]


def read_do_normalize(folder: Path, config: dict[str, Any], *, assume: bool = False) -> bool:
    """Whether the model of `config` expects each clip at zero mean and unit variance.

    A folder that does not say is refused. With `assume`, one without any preprocessor (as a Trainer
    leaves it) gets what all published checkpoints of its family have.
    """
    kind = config.get("model_type")
    found = _preprocessor(folder)
    if not found:
        missing = f"{folder} has no {PREPROCESSOR_FILE}"
        if not assume or kind not in _NORMALISED:
            raise CheckpointError(f"{missing}: copy it from the original")
        logging.getLogger(__name__).warning(
            f"{missing}: clips are normalised, as all published {kind} models expect"
        )
        return True
    path, content = found[0], read_json(found[0])
    nested = content.get("feature_extractor")
    content = nested if isinstance(nested, dict) else content
    wanted = {"sampling_rate": SAMPLE_RATE_HZ}
    if kind == WHISPER:
        wanted = WHISPER_FRONT | {"feature_size": config.get("num_mel_bins", 80)}
    for key, only in wanted.items():
        if content.get(key, only) != only:
            raise CheckpointError(f"{path}: {key} is {content[key]!r}, only {only} is computed")
    flag = content.get("do_normalize", False if kind == WHISPER else None)
    if not isinstance(flag, bool):
        raise CheckpointError(
            f"{path}: do_normalize is {json.dumps(flag)}, not true or false; add the line"
            ' "do_normalize": true, or false if the model was trained on samples as they are'
        )
    return flag


_LICENCE = re.compile(
    r"\A\ufeff?---\n(?:(?!---).*\n)*?license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*\n"
)


def licence_of(folder: Path) -> str | None:
    """What the header of a folder's model card says; None where it says nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(16 << 10).decode("utf-8", "replace").replace("\r\n", "\n")
    match = _LICENCE.match(text)
    return match[1] if match else None


def _preprocessor(folder: Path) -> list[Path]:
    files = (folder / PREPROCESSOR_FILE, folder / PROCESSOR_FILE)
    return [file for file in files if file.exists()][:1]


def weight_paths(folder: Path) -> list[Path]:
    """The files with the weights, in a fixed order; CheckpointError if there are none to trust."""
    best_first = (WEIGHTS_FILE, "pytorch_model.bin")
    names = [name + end for name in best_first for end in ("", ".index.json")]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder} has no weights: expected {WEIGHTS_FILE}, as save_pretrained writes it"
        )
    if found.suffix != ".json":
        return [found]
    index = read_json(found).get("weight_map")
    parts = [str(part) for part in index.values()] if isinstance(index, dict) else []
    if not parts or any(Path(p).name != p or Path(p).suffix not in _WEIGHTS for p in parts):
        raise CheckpointError(f"{found}: weight_map must name weights files of the same folder")
    paths = [folder / part for part in sorted(set(parts))]
    if lost := [path for path in paths if not path.is_file()]:
        raise CheckpointError(f"{found} names {lost[0].name}, which is missing: copy it as well")
    return paths


def content_hash(paths: Iterable[Path]) -> str:
    """16 hex digits of SHA-256 over names and contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fetch_snapshot(
    hub_id: str, revision: str | None, also: Sequence[str] = (), flag: str = "--model"
) -> Path:
    """The local snapshot of a hub model (`also`: these files too) by its commit, or ConfigError."""
    from huggingface_hub import errors, snapshot_download

    wanted = f"{hub_id}@{revision}" if revision else hub_id
    patterns = [*_HUB_FILES, *also]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except errors.LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{flag} {wanted} is not in the local cache and the hub cannot be reached: connect once"
            " to download it, or give a folder"
        ) from error
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{flag} {wanted} cannot be fetched: {reason}") from error
