"""The paper's backbones in small: the same families and options at a width a laptop trains.

A small network keeps what tells the seven apart (norm of the convolutions, order of norm and
attention, biases, dropout, family) and gives up size: convolutions that hear frames of 25 ms and
leave 25 a second, a few narrow layers. It answers whether the way works, not how good a backbone
is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysers.io import storage
from raysers.models.backbones import BACKBONES, CNN14

#: The convolutional front of all small networks: 16 kHz samples to 25 frames a second.
_FRONT: dict[str, Any] = {
    "conv_dim": [128, 64, 64],
    "conv_kernel": [400, 3, 3],
    "conv_stride": [160, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_length": 3,
}
_BASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192,
}  # fmt: skip
#: A sixteenth of CNN14's channels.
_CNN14: dict[str, Any] = {"widths": [8, 16, 32, 64, 64, 128]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """What a small network learns before a study trains it, in place of the real pre-training.

    Attributes:
        speech: of `study_speech.PRETRAININGS`, which synthetic speech.
        train: flags of training besides the ones all have.
    """

    speech: str
    train: Mapping[str, Any] = field(default_factory=dict)


#: As the real ones: base models and w2v2-L from speech of one kind, vox and xls-r from many
#: languages, robust from noisy speech as well.
PRETRAININGS: Mapping[str, Pretraining] = {
    "w2v2-b": Pretraining(speech="one-language"),
    "hubert-b": Pretraining(speech="one-language"),
    "w2v2-L": Pretraining(speech="one-language"),
    "hubert-L": Pretraining(speech="two-languages"),
    "w2v2-L-robust": Pretraining(
        speech="all-languages", train={"noise_db": (10.0, 40.0), "equaliser_db": 4.0}
    ),
    "w2v2-L-vox": Pretraining(speech="two-languages"),
    "w2v2-L-xls-r": Pretraining(speech="all-languages"),
}

#: Flags of all small trainings, unless the study says otherwise.
TRAIN: Mapping[str, Any] = {
    "epochs": 8,
    "batch_size": 16,
    "lr": 1e-3,
    "optimiser": "adamw",
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.02,
    "clip_norm": 1.0,
}
#: And of the trainings that stand for pre-training.
PRETRAIN: Mapping[str, Any] = {
    **TRAIN,
    "epochs": 10,
    "front": "mel",
    "front_steps": 60,
    "keep": "last",
}


def small_config(alias: str) -> dict[str, Any]:
    """`config.json` of the small network of an alias.

    >>> small_config("w2v2-b")["feat_extract_norm"], small_config("w2v2-L")["feat_extract_norm"]
    ('group', 'layer')
    """
    full = BACKBONES[alias].config()
    if full["model_type"] == CNN14:
        return full | _CNN14
    size = _LARGE if full["do_stable_layer_norm"] else _BASE
    return full | _FRONT | size


def has_small(name: str) -> bool:
    """Whether a backbone's name is one of the paper's, which has a small network."""
    return name in PRETRAININGS or name == CNN14


def network_uri(output: str, alias: str) -> str:
    """Where a study keeps the configuration of a small network."""
    return storage.join(output, "networks", f"{alias}.json")


def write_networks(output: str, aliases: set[str]) -> None:
    """Write the configurations of the small networks.

    Raises:
        WriteError: the output cannot be written.
    """
    for alias in sorted(aliases):
        text = json.dumps(small_config(alias), indent=1) + "\n"
        storage.write_atomic(network_uri(output, alias), text.encode())
