"""A fusion as a folder: its heads, and which models the vectors have to come from.

The folder holds no encoder. Vectors of another model, or of another revision of the same one, fit
the heads' shapes all the same and mean nothing, so both are written down and have to be checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysers.errors import CheckpointError
from raysers.models import checkpoint, loading
from raysers.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from raysers.models.fusion import (
    HIDDEN_WEIGHT,
    SOUND,
    SOURCES,
    WORDS,
    Floats,
    FusionHead,
    score_in_blocks,
    sizes_of,
)
from raysers.models.outputs import Outputs
from raysers.types import DIMENSIONS

MODEL_TYPE = "raysers-fusion"
_MOST_NUMBERS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """What a fusion was trained on.

    Attributes:
        acoustic_model: name of the model whose embeddings are `sound`.
        acoustic_revision: commit or content hash of it.
        text_model: name of the encoder whose vectors are `words`.
        text_revision: commit or content hash of it.
        text_pooling: mean or cls.
        asr: who recognised the words of clips without a transcript; `manifest`: no recogniser.
        asr_revision: commit or content hash of the recogniser; empty when there was none.
        recognise_all: whether words were recognised although there were transcripts.
        sound_size: numbers of an acoustic embedding.
        words_size: numbers of a text vector.
        dropout: of the heads in training.
    """

    acoustic_model: str
    acoustic_revision: str
    text_model: str
    text_revision: str
    text_pooling: str
    asr: str
    asr_revision: str
    recognise_all: bool
    sound_size: int
    words_size: int
    dropout: float

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of a vector, by source."""
        return {SOUND: self.sound_size, WORDS: self.words_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """The trained heads by name, on the CPU.

    `trained` names the dimensions with trained outputs; `revision` is the hash of the folder's
    files.
    """

    config: FusionConfig
    heads: Mapping[str, FusionHead]
    trained: Sequence[str] = DIMENSIONS
    revision: str = ""

    def score(self, vectors: dict[str, Floats]) -> dict[str, Floats]:
        """Scores [clips, 3] of every head, NaN if not trained, from vectors [clips, size]."""
        untrained = [name not in self.trained for name in DIMENSIONS]
        scores = {name: score_in_blocks(name, head, vectors) for name, head in self.heads.items()}
        return {name: np.where(untrained, np.float32(np.nan), s) for name, s in scores.items()}


def save_fusion(fusion: Fusion, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": MODEL_TYPE,
        **asdict(fusion.config),
        "heads": list(fusion.heads),
        "id2label": {str(index): label for index, label in enumerate(DIMENSIONS)},
    }
    config |= Outputs(trained=tuple(fusion.trained)).config()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    loading.write_weights(nn.ModuleDict(dict(fusion.heads)).state_dict(), folder / WEIGHTS_FILE)


def load_fusion(folder: str | Path) -> Fusion:
    """Read a folder that `save_fusion` wrote.

    Raises:
        CheckpointError: it is no fusion, or one whose scores cannot be trusted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"--fusion {folder} does not exist: give the output of fuse train")
    checkpoint.check_folder(folder)
    content = checkpoint.read_json(folder / CONFIG_FILE)
    config = _config(content, folder)
    if checkpoint.label_order(content, folder) != list(range(len(DIMENSIONS))):
        raise CheckpointError(f"{folder}: id2label has another order than {', '.join(DIMENSIONS)}")
    tensors = loading.read_weights([folder / WEIGHTS_FILE])
    _check_sizes(config, tensors, folder)
    with torch.random.fork_rng(devices=[]):
        heads = nn.ModuleDict(
            {name: FusionHead(sizes_of(name, config.sizes), config.dropout) for name in SOURCES}
        )
    loading.load_weights(heads, tensors, folder)
    heads.eval().requires_grad_(False)
    return Fusion(
        config=config,
        heads={name: head for name in SOURCES if isinstance(head := heads[name], FusionHead)},
        trained=Outputs.from_config(content, folder).trained,
        revision=checkpoint.content_hash([folder / CONFIG_FILE, folder / WEIGHTS_FILE]),
    )


def _check_sizes(config: FusionConfig, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Before heads of the sizes a stranger wrote down are built: the weights must have them."""
    for name in SOURCES:
        size, key = sizes_of(name, config.sizes), f"{name}.{HIDDEN_WEIGHT}"
        if key in tensors and tensors[key].shape != (size, size):
            raise CheckpointError(
                f"{where}: {CONFIG_FILE} speaks of {size} numbers for the head {name!r}, its "
                f"weights are {tuple(tensors[key].shape)}"
            )
        if key not in tensors:
            raise CheckpointError(f"{where}: weights are missing: {key}")


def _config(content: dict[str, Any], where: Path) -> FusionConfig:
    if content.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"--fusion {where}: its model_type is {content.get('model_type')!r}, not "
            f"{MODEL_TYPE}: give the output of fuse train"
        )
    known = {field.name: field.type for field in fields(FusionConfig)}
    odd = [
        name
        for name, kind in known.items()
        if not isinstance(content.get(name), _KINDS[str(kind)])
        or (kind != "bool" and isinstance(content.get(name), bool))
    ]
    sizes = ("sound_size", "words_size")
    if not odd and not all(1 <= content[size] <= _MOST_NUMBERS for size in sizes):
        odd = ["sound_size", "words_size"]
    if not odd and not 0 <= content["dropout"] < 1:
        odd = ["dropout"]
    if odd:
        raise CheckpointError(f"{where}: {CONFIG_FILE} has no usable {', '.join(odd)}")
    return FusionConfig(**{name: content[name] for name in known})


_KINDS: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}
