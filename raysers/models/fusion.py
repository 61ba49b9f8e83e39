"""Fusion of audio and text: heads on frozen vectors, and their folder.

A folder holds no encoder. Vectors of another model or revision fit the heads' shapes all the same
and mean nothing, so it names both, to be checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysers.errors import CheckpointError
from raysers.models import checkpoint, loading
from raysers.models.backbones import Outputs
from raysers.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from raysers.models.heads import EmotionHead
from raysers.types import DIMENSIONS

Floats = npt.NDArray[np.float32]
MODEL_TYPE = "raysers-fusion"
#: Inputs of a head: which vectors are side by side, in this order.
SOUND, WORDS = "sound", "words"
SOURCES = {"fused": (SOUND, WORDS), "audio": (SOUND,), "text": (WORDS,)}
#: A dimension with fewer labels is not learned; it scores the middle of the scale.
LEAST_LABELS = 2
#: Clips scored at a time: beyond, memory grows and speed does not.
_BLOCK = 8_192
_MOST_NUMBERS = 65_536


class Vectors(NamedTuple):
    """Vectors float32 [clips, size] with labels float32 [clips, 3], NaN where unknown."""

    values: Floats
    labels: Floats


class FusionHead(nn.Module):
    """Standardises its vectors; a hidden layer as wide as they are (Wagner et al. 2022, 4.8)."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.layers = EmotionHead(size, size, dropout, 0.02)
        self.mean = nn.Buffer(torch.zeros(size))
        self.scale = nn.Buffer(torch.ones(size))

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores [clips, 3] of raw vectors [clips, size]."""
        return cast(Tensor, self.layers((vectors - self.mean) / self.scale))

    @torch.inference_mode()
    def score(self, vectors: Floats) -> Floats:
        """Scores float32 [clips, 3] of vectors [clips, size], without dropout."""
        given = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        return np.asarray(self.eval()(given.to(self.mean.device)).cpu().numpy(), np.float32)

    @torch.no_grad()
    def silence(self, places: Sequence[int]) -> None:
        """Let dimensions without labels score the middle of the scale, not noise."""
        for place in places:
            self.layers.out_proj.weight[place] = 0.0
            self.layers.out_proj.bias[place] = 0.5


def side_by_side(head: str, vectors: Mapping[str, Floats]) -> Floats:
    """Input of the head of that name, [clips, sum of sizes], from vectors by source."""
    return np.concatenate([vectors[source] for source in SOURCES[head]], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """What a fusion was trained on; `asr` recognised the text of clips without a transcript.

    It is `manifest` where there were none; with `recognise_all` it recognised that of all clips.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """The trained heads by name, on the CPU; `trained` names the dimensions with outputs."""

    config: FusionConfig
    heads: Mapping[str, FusionHead]
    trained: Sequence[str] = DIMENSIONS
    revision: str = ""

    def score(self, vectors: Mapping[str, Floats]) -> dict[str, Floats]:
        """Scores [clips, 3] of every head, NaN if not trained, from vectors [clips, size]."""
        untrained = [name not in self.trained for name in DIMENSIONS]
        starts = range(0, max(len(vectors[SOUND]), 1), _BLOCK)
        found = {}
        for name, head in self.heads.items():
            whole = side_by_side(name, vectors)
            scores = np.concatenate([head.score(whole[at : at + _BLOCK]) for at in starts])
            found[name] = np.where(untrained, np.float32(np.nan), scores)
        return found


def save_fusion(fusion: Fusion, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": MODEL_TYPE,
        **asdict(fusion.config),
        "heads": list(fusion.heads),
        "id2label": {str(index): label for index, label in enumerate(DIMENSIONS)},
        **Outputs(trained=tuple(fusion.trained)).config(),
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    loading.write_weights(nn.ModuleDict(dict(fusion.heads)).state_dict(), folder / WEIGHTS_FILE)


def load_fusion(folder: str | Path) -> Fusion:
    """Read a folder that `save_fusion` wrote; CheckpointError where it is not to be trusted."""
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"--fusion {folder} has no {CONFIG_FILE}: give the output of fuse train"
        )
    checkpoint.check_folder(folder)
    content = checkpoint.read_json(folder / CONFIG_FILE)
    if content.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"--fusion {folder}: its model_type is {content.get('model_type')!r}, not "
            f"{MODEL_TYPE}: give the output of fuse train"
        )
    kinds = {field.name: str(field.type) for field in fields(FusionConfig)}
    values: dict[str, Any] = {name: content.get(name) for name in kinds}
    most = {"sound_size": _MOST_NUMBERS, "words_size": _MOST_NUMBERS, "dropout": 1}
    odd = [
        name
        for name, kind in kinds.items()
        if type(values[name]).__name__ != kind
        or (name in most and not 0 <= values[name] <= most[name])
    ]
    if odd:
        raise CheckpointError(f"{folder}: {CONFIG_FILE} has no usable {', '.join(odd)}")
    if checkpoint.label_order(content, folder) != list(range(len(DIMENSIONS))):
        raise CheckpointError(f"{folder}: id2label has another order than {', '.join(DIMENSIONS)}")
    config = FusionConfig(**values)
    sizes = {SOUND: config.sound_size, WORDS: config.words_size}
    with torch.device("meta"):  # sizes a stranger wrote down cost nothing until the weights fit
        heads = {
            name: FusionHead(sum(sizes[source] for source in sources), config.dropout)
            for name, sources in SOURCES.items()
        }
    together = nn.ModuleDict(heads)
    loading.load_weights(together, loading.read_weights([folder / WEIGHTS_FILE]), folder)
    together.eval().requires_grad_(False)
    return Fusion(
        config=config,
        heads=heads,
        trained=Outputs.from_config(content, folder).trained,
        revision=checkpoint.content_hash([folder / CONFIG_FILE, folder / WEIGHTS_FILE]),
    )
