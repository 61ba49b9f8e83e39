"""From a model's name to a network that is ready to be trained.

Unlike `load_emotion_model`, which refuses what it cannot score with, this takes a bare
pre-trained backbone and gives it a new head. What is new comes from the seed alone: the same on
every worker, whatever torch's generator gave before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raysers.errors import CheckpointError, ConfigError
from raysers.models import checkpoint, loading
from raysers.models.backbones import (
    CNN14,
    UNNORMALISED,
    ModelName,
    keep_layers,
    licence_of,
    parse_model_name,
)
from raysers.models.checkpoint import PREPROCESSOR_FILE, ModelFolder
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.heads import MeanPooling
from raysers.models.mel_front import as_mel_bank
from raysers.models.outputs import Outputs

#: Weights of `EmotionNetwork.attach`.
_SIDE_HEADS = ("categories.", "uncertainty.", "ood.")

Freeze = Literal["auto", "cnn", "backbone", "none"]
Pooling = Literal["masked", "unmasked", "statistics", "attentive"]
Front = Literal["plain", "mel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialModel:
    """A float32 network on the CPU, in evaluation mode, and what must be known to train it.

    `freeze` is what was decided (`cnn`, `backbone` or `none`); `revision` the hub's commit, a hash
    of the folder's files, or `random-<seed>-<hash>`; `head_kept` whether a trained head came with
    the model; `licence` what the model card's header says, None where there is none.
    """

    model: EmotionNetwork
    do_normalize: bool
    min_samples: int
    max_samples: int | None
    embedding_size: int
    name: str
    revision: str
    freeze: str
    head_kept: bool
    licence: str | None


def start_model(
    name: str,
    *,
    seed: int,
    layers: int | None = None,
    freeze: Freeze = "auto",
    pooling: Pooling = "masked",
    head_dropout: float | None = None,
    layer_weights: bool = False,
    front: Front = "plain",
    cache_dir: str | Path | None = None,
) -> InitialModel:
    """Build the network that training starts from.

    Args:
        name: an alias, a hub id, a local folder (a bare backbone, its pre-training model, or a
            fine-tuned one whose head is kept), or `random:` and an alias, a folder or a
            `config.json`: then all weights are random.
        seed: of every weight that does not come from a file.
        layers: bottom transformer layers to keep.
        freeze: `auto` is `none` for random weights and `cnn` for trained ones.
        pooling: `unmasked` averages over padding too, in training only.
        head_dropout: 0..1, in place of what the configuration says (`final_dropout`).
        layer_weights: learn a weighted sum of all layers' states, in place of the last one.
        front: `mel` starts the first convolution as a mel bank (random weights only).
        cache_dir: where hub downloads are kept; default: the hub library's own place.

    Raises:
        ConfigError: no such name, or settings that do not go together.
        CheckpointError: the folder is not a model that can be trained.
    """
    parsed = parse_model_name(name, "--backbone")
    if head_dropout is not None and not 0 <= head_dropout < 1:
        raise ConfigError(f"--head-dropout {head_dropout} must be at least 0 and below 1")
    if None not in (parsed.layers, layers) and parsed.layers != layers:
        raise ConfigError(f"--layers {layers}: {name} says {parsed.layers} layers; drop one")
    layers = parsed.layers if layers is None else layers
    # a file describes a network without weights
    random = parsed.random or (parsed.path or "").endswith(".json")
    if front == "mel" and not random:
        raise ConfigError(f"--front mel is for random:NAME models, {name} has a trained front")
    folder = None if random else checkpoint.open_folder(parsed, cache_dir, "--backbone")
    config = checkpoint.random_config(parsed) if folder is None else folder.config
    if config["model_type"] == CNN14 and (pooling != "masked" or layer_weights):
        flag = "--layer-weights" if layer_weights else f"--pooling {pooling}"
        raise ConfigError(f"{flag}: cnn14 has no transformer layers, and its own pooling")
    config = keep_layers(config, layers, name) | {
        "pooling_mode": "mean" if pooling in ("masked", "unmasked") else pooling
    }
    if layer_weights:
        config["use_weighted_layer_sum"] = True
    if head_dropout is not None:
        config["final_dropout"] = head_dropout
    if Outputs.from_config(config, name).points:
        # heads on frames before the last norm go; a new head learns nothing from frames so large
        config["final_norm"] = True
    if folder is None:
        model, head_kept = loading.random_network(config, name, seed), False
        revision = checkpoint.random_revision(config, seed)
        do_normalize = _normalises(parsed, config)
    else:
        with torch.random.fork_rng(devices=[]):
            model, head_kept = _trained(folder, config, layers, pooling, seed)
        revision, do_normalize = folder.revision, folder.do_normalize
    if front == "mel":
        as_mel_bank(model)
    if pooling == "unmasked" and isinstance(model, EmotionModel):
        assert isinstance(model.pooling, MeanPooling)
        model.pooling.whole_rows = True
    if freeze == "auto":
        freeze = "none" if folder is None or config["model_type"] == CNN14 else "cnn"
    model.freeze(freeze)
    return InitialModel(
        model=model.eval(),
        do_normalize=do_normalize,
        min_samples=model.min_samples,
        max_samples=model.max_samples,
        embedding_size=model.embedding_size,
        name=name,
        revision=revision,
        freeze=freeze,
        head_kept=head_kept,
        licence=None if folder is None else licence_of(folder.path),
    )


def _normalises(name: ModelName, config: dict[str, Any]) -> bool:
    """What a folder says whose network is taken without its weights, else by its family."""
    if name.path is not None and (Path(name.path) / PREPROCESSOR_FILE).is_file():
        return checkpoint.read_do_normalize(Path(name.path), config)
    return config["model_type"] not in UNNORMALISED


def _trained(
    folder: ModelFolder, config: dict[str, Any], layers: int | None, pooling: Pooling, seed: int
) -> tuple[EmotionNetwork, bool]:
    """The network with all its weights, and whether its head is the folder's.

    A head for other labels, or of another layout, is replaced by a new one.

    Raises:
        ConfigError: a trained head that sits on another pooling than wanted.
    """
    where = folder.path
    model = loading.build_on_meta(config, where)
    tensors = loading.read_weights(folder.weights)
    tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    # these were fitted to embeddings that training is going to change
    tensors = {key: value for key, value in tensors.items() if not key.startswith(_SIDE_HEADS)}
    if not isinstance(model, EmotionModel):
        loading.load_weights(model, tensors, where)
        return model, True
    tensors = loading.keep_bottom(model.backbone_tensors(tensors), layers)
    try:
        order = checkpoint.label_order(folder.config, where)
    except CheckpointError:  # a head for other labels
        order = []
    kept = bool(order) and "classifier.dense.weight" in tensors
    had_mode = folder.config.get("pooling_mode") or "mean"
    if kept and had_mode != model.pooling_mode:
        raise ConfigError(
            f"--pooling {pooling}: the model was trained with {had_mode} pooling;"
            f" use --pooling {'masked' if had_mode == 'mean' else had_mode}"
        )
    torch.manual_seed(seed)
    model.init_head()
    # stock checkpoints may lack SpecAugment's vector; training needs one
    new = {f"{model.family.prefix}.masked_spec_embed": torch.rand(model.config.hidden_size)}
    if model.layer_weights is not None:
        new["layer_weights"] = model.layer_weights.detach()
    if not kept:
        own = {key: value for key, value in tensors.items() if not is_head(key)}
        tensors = own | {k: v for k, v in model.state_dict().items() if is_head(k)}
    loading.load_weights(model, new | tensors, where)
    loading.reorder_outputs(model, order if kept else [])
    return model, kept


def is_head(key: str) -> bool:
    """Whether a weight belongs to what sits on the backbone: pooling, head, or another head."""
    return key.startswith(("pooling.", "classifier.", "projector.", "layer_weights"))
