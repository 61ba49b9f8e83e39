"""From a model's name to a network that is ready to be trained.

Unlike `load_emotion_model`, which refuses what it cannot score with, this takes a bare
pre-trained backbone and gives it a new head. What is new is drawn from the seed alone: the same
on every worker, whatever was drawn before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from raysers.errors import ConfigError
from raysers.models import checkpoint, weights
from raysers.models.backbones import (
    BACKBONES,
    CNN14,
    UNNORMALISED,
    ModelName,
    keep_layers,
    parse_model_name,
)
from raysers.models.checkpoint import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    fetch_snapshot,
    random_revision,
)
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.heads import MeanPooling
from raysers.models.loading import build_network, build_on_meta
from raysers.models.mel_front import as_mel_bank

Freeze = Literal["auto", "cnn", "backbone", "none"]
Pooling = Literal["masked", "unmasked", "statistics", "attentive"]
Front = Literal["plain", "mel"]

#: `pooling_mode` of a configuration for each `--pooling`.
_POOLING_MODES = {
    "masked": "mean",
    "unmasked": "mean",
    "statistics": "statistics",
    "attentive": "attentive",
}

#: A model card's header is short; its licence line is near the top.
_CARD_BYTES = 16 << 10
_LICENCE = re.compile(
    r"\A\ufeff?---\n(?:(?!---).*\n)*?license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*\n"
)


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
    front: Front = "plain",
    cache_dir: str | Path | None = None,
) -> InitialModel:
    """Build the network that training starts from.

    Args:
        name: an alias, a hub id, a local folder (a bare backbone, its pre-training model, or a
            fine-tuned one whose head is kept), or `random:` and an alias, a folder or a
            `config.json`: then everything is drawn.
        seed: of every weight that does not come from a file.
        layers: bottom transformer layers to keep.
        freeze: `auto` is `none` for random weights and `cnn` for trained ones.
        pooling: `unmasked` averages over padding too, in training only.
        head_dropout: 0..1, in place of what the configuration says (`final_dropout`).
        front: `mel` starts the first convolution as a mel bank (random weights only).
        cache_dir: where hub downloads are kept; default: the hub library's own place.

    Raises:
        ConfigError: no such name, or settings that do not go together.
        CheckpointError: the folder is not a model that can be trained.
    """
    parsed = parse_model_name(name, "--backbone")
    if parsed.is_object_store:
        raise ConfigError(f"{name}: fetch the folder first and start from the local copy")
    if head_dropout is not None and not 0 <= head_dropout < 1:
        raise ConfigError(f"--head-dropout {head_dropout} must be at least 0 and below 1")
    wanted = _Wanted(
        layers=_layers(parsed, layers),
        changes={} if head_dropout is None else {"final_dropout": head_dropout},
        pooling=pooling,
        seed=seed,
    )
    drawn = parsed.random or (parsed.path is not None and parsed.path.endswith(".json"))
    if front == "mel" and not drawn:
        raise ConfigError(f"--front mel is for random:NAME models, {name} has a trained front")
    with _seeded(seed):  # building draws here and there: leave the caller's generator alone
        found = _drawn(parsed, wanted) if drawn else _trained(parsed, wanted, cache_dir)
    if front == "mel":
        as_mel_bank(found.model)
    if pooling == "unmasked":
        _pool_whole_rows(found.model)
    chosen = freeze
    if freeze == "auto":
        chosen = "none" if drawn or found.model.config.model_type == CNN14 else "cnn"
    found.model.freeze(chosen)
    return InitialModel(
        model=found.model.eval(),
        do_normalize=found.do_normalize,
        min_samples=found.model.min_samples,
        max_samples=found.model.max_samples,
        embedding_size=found.model.embedding_size,
        name=name,
        revision=found.revision,
        freeze=chosen,
        head_kept=found.head_kept,
        licence=found.licence,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What the caller asks of the network, whatever it comes from."""

    layers: int | None
    changes: dict[str, Any]
    pooling: str
    seed: int

    def config(self, config: dict[str, Any], name: str) -> dict[str, Any]:
        """A model's configuration after all changes.

        Raises:
            ConfigError: CNN14 with a pooling of another kind, or too many layers.
        """
        if config.get("model_type") == CNN14 and self.pooling != "masked":
            raise ConfigError(f"--pooling {self.pooling}: cnn14 has its own pooling")
        mode = {"pooling_mode": _POOLING_MODES[self.pooling]}
        return keep_layers(config, self.layers, name) | self.changes | mode


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    model: EmotionNetwork
    do_normalize: bool
    revision: str
    head_kept: bool = False
    licence: str | None = None


def _pool_whole_rows(model: EmotionNetwork) -> None:
    if isinstance(model, EmotionModel) and isinstance(model.pooling, MeanPooling):
        model.pooling.whole_rows = True


def _layers(name: ModelName, layers: int | None) -> int | None:
    if None not in (name.layers, layers) and name.layers != layers:
        raise ConfigError(f"--layers {layers}: {name.text} says {name.layers} layers; drop one")
    return layers if name.layers is None else name.layers


def _drawn(name: ModelName, wanted: _Wanted) -> _Found:
    path = Path(name.path or "")
    if name.path is None:
        config = BACKBONES[str(name.alias)].config()
    else:
        config = checkpoint.read_json(path if path.suffix == ".json" else path / CONFIG_FILE)
    config = wanted.config(config, name.text)
    build_on_meta(config, name.text)
    torch.manual_seed(wanted.seed)
    model = build_network(config, name.text)
    do_normalize = config["model_type"] not in UNNORMALISED
    if name.path is not None and (path / PREPROCESSOR_FILE).is_file():
        do_normalize = checkpoint.read_do_normalize(path, config)
    return _Found(
        model=model, do_normalize=do_normalize, revision=random_revision(config, wanted.seed)
    )


def _trained(name: ModelName, wanted: _Wanted, cache_dir: str | Path | None) -> _Found:
    if name.hub_id is not None:
        folder = fetch_snapshot(name.hub_id, name.revision, cache_dir, flag="--backbone")
    elif name.path is not None:
        folder = Path(name.path)
    else:
        raise ConfigError(f"{name.text} has no trained weights: use random:{name.text}")
    if not folder.is_dir():
        raise ConfigError(f"model folder {folder} does not exist")
    checkpoint.check_folder(folder)
    config = checkpoint.read_json(folder / CONFIG_FILE)
    checkpoint.check_config(config, folder)
    do_normalize = checkpoint.read_do_normalize(folder, config)
    paths = checkpoint.weight_paths(folder)
    model = build_on_meta(wanted.config(config, name.text), folder)
    tensors, kept = weights.read_weights(paths), True
    if isinstance(model, EmotionModel):
        tensors, kept = _with_head(model, tensors, config, wanted)
    weights.load_weights(model, tensors, folder)
    own = [folder / CONFIG_FILE, folder / PREPROCESSOR_FILE, *paths]
    return _Found(
        model=model,
        do_normalize=do_normalize,
        revision=folder.name if name.hub_id is not None else checkpoint.content_hash(own),
        head_kept=kept,
        licence=_licence(folder),
    )


def _with_head(
    model: EmotionModel, tensors: dict[str, Tensor], config: dict[str, Any], wanted: _Wanted
) -> tuple[dict[str, Tensor], bool]:
    """`tensors` with everything the network needs beyond its backbone, and if that was there.

    A head for other labels, or of another layout, is left out.

    Raises:
        ConfigError: a trained head that sits on another pooling than wanted.
    """
    tensors = model.backbone_tensors(tensors)
    if wanted.layers is not None:
        tensors = weights.drop_layers(tensors, wanted.layers)
    had_mode = config.get("pooling_mode") or "mean"
    kept = checkpoint.has_our_labels(config) and "classifier.dense.weight" in tensors
    if kept and had_mode != model.pooling_mode:
        raise ConfigError(
            f"--pooling {wanted.pooling}: the model was trained with {had_mode} pooling;"
            f" use --pooling {'masked' if had_mode == 'mean' else had_mode}"
        )
    torch.manual_seed(wanted.seed)
    model.init_head()
    vector = torch.rand(model.config.hidden_size)
    new = {k: v for k, v in model.state_dict().items() if weights.is_head(k)}
    own = {k: v for k, v in tensors.items() if not weights.is_head(k)}
    # stock checkpoints may lack SpecAugment's vector; training needs one
    own.setdefault(f"{model.family.prefix}.masked_spec_embed", vector)  # harmless where unused
    trained = {k: v for k, v in tensors.items() if weights.is_head(k)}
    return own | (trained if kept else new), kept


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generator as of `seed`, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _licence(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    match = _LICENCE.match(text)
    return match[1] if match else None
