"""Names of models: the paper's aliases with their exact shapes, and how a `--model` text is read.

`w2v2-L` is the Libri-Light model: the paper names `wav2vec2-large`, but the authors' export has
the layer-norm stack of `facebook/wav2vec2-large-lv60`; `wav2vec2-large` is a different network.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from raysers.errors import ConfigError

#: The one network that is no transformer: alias and model type.
CNN14 = "cnn14"

#: The one family on log-mel frames; of a Whisper checkpoint the encoder alone is used.
WHISPER = "whisper"


@dataclass(frozen=True, slots=True)
class Family:
    """How `transformers` names one kind of backbone.

    `prefix` is the family's parameter prefix; `attention` the attention implementation that
    never stores a frames x frames table, where the family offers one; `layers_key` and `size_key`
    are what its `config.json` calls the number of layers and the size of a frame.
    """

    prefix: str
    config_class: str
    model_class: str
    attention: str = "sdpa"
    layers_key: str = "num_hidden_layers"
    size_key: str = "hidden_size"


#: WavLM adds a learned bias per pair of frames, so its memory grows with the length squared.
FAMILIES: dict[str, Family] = {
    "wav2vec2": Family("wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model"),
    "hubert": Family("hubert", "HubertConfig", "HubertModel"),
    "wavlm": Family("wavlm", "WavLMConfig", "WavLMModel", attention="eager"),
    "data2vec-audio": Family("data2vec_audio", "Data2VecAudioConfig", "Data2VecAudioModel"),
    # only the encoder is ever built
    WHISPER: Family(
        "encoder", "WhisperConfig", "WhisperModel", layers_key="encoder_layers", size_key="d_model"
    ),
}

#: Model types whose spectrogram is computed from samples as they are, not normalised clip by clip.
UNNORMALISED = (CNN14, WHISPER)

#: Names of the poolings of `heads.POOLINGS`.
POOLING_NAMES = ("mean", "statistics", "attentive")


@dataclass(frozen=True, slots=True)
class Backbone:
    """One alias: where its weights live and the network they fit, as `config.json` keys."""

    hub_id: str | None
    shape: dict[str, Any]

    def config(self, layers: int | None = None) -> dict[str, Any]:
        """The network as `config.json` keys, cut to the bottom `layers` if given.

        Raises:
            ConfigError: the network has fewer layers than asked for.
        """
        return keep_layers(self.shape, layers, self.hub_id or str(self.shape["model_type"]))


def _wav2vec2(width: int, layers: int, heads: int, *, large: bool, **others: Any) -> dict[str, Any]:
    """The paper's backbones (its table 3 and the authors' exports); `large` is their stack."""
    return {
        "model_type": "wav2vec2",
        "conv_dim": [512] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "conv_bias": large,
        "feat_extract_norm": "layer" if large else "group",
        "feat_extract_activation": "gelu",
        "feat_proj_dropout": 0.1,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "do_stable_layer_norm": large,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        "layerdrop": 0.1,
        "apply_spec_augment": True,
        "mask_time_prob": 0.075 if large else 0.05,
        "mask_time_length": 10,
        "mask_time_min_masks": 2,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
        "mask_feature_min_masks": 0,
        "pooling_mode": "mean",
        "final_dropout": 0.0,
        "initializer_range": 0.02,
        **others,
    }


def _whisper(width: int, layers: int, heads: int, bands: int) -> dict[str, Any]:
    return {
        "model_type": WHISPER,
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": bands,
        "max_source_positions": 1500,
    }


_BASE = _wav2vec2(768, 12, 12, large=False, layerdrop=0.05)
_LARGE = _wav2vec2(1024, 24, 16, large=True)
_ROBUST = _LARGE | {"activation_dropout": 0.1, "final_dropout": 0.1, "mask_time_prob": 0.05}
_HUBERT = {"model_type": "hubert", "feat_proj_layer_norm": True}
_HUBERT_BASE = {"activation_dropout": 0.1, "final_dropout": 0.1, "layerdrop": 0.1}
_MSP_DIM = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"

#: Learns from random weights on a few hundred clips: 25 frames/s, 0.7 M parameters.
_SMALL = _wav2vec2(
    128,
    2,
    4,
    large=False,
    conv_dim=[256, 128, 128, 128],
    conv_kernel=[400, 3, 5, 5],
    conv_stride=[160, 2, 1, 2],
    num_conv_pos_embeddings=32,
    intermediate_size=256,
    hidden_dropout=0.15,
    attention_dropout=0.15,
    activation_dropout=0.15,
    final_dropout=0.15,
    layerdrop=0.0,
    feat_extract_activation="relu",
    feat_proj_dropout=0.0,
    apply_spec_augment=False,
    mask_time_prob=0.0,
)

#: Aliases. `tiny` is the large layout at toy width: 400-sample window, 0.2 M parameters.
BACKBONES: dict[str, Backbone] = {
    "w2v2-b": Backbone("facebook/wav2vec2-base", _BASE),
    "hubert-b": Backbone("facebook/hubert-base-ls960", _BASE | _HUBERT | _HUBERT_BASE),
    "w2v2-L": Backbone("facebook/wav2vec2-large-lv60", _LARGE),
    "hubert-L": Backbone("facebook/hubert-large-ll60k", _LARGE | _HUBERT),
    "w2v2-L-robust": Backbone("facebook/wav2vec2-large-robust", _ROBUST),
    "w2v2-L-vox": Backbone("facebook/wav2vec2-large-100k-voxpopuli", _LARGE),
    "w2v2-L-xls-r": Backbone("facebook/wav2vec2-xls-r-300m", _LARGE),
    "msp-dim": Backbone(_MSP_DIM, _ROBUST | {"num_hidden_layers": 12}),
    "whisper-tiny": Backbone("openai/whisper-tiny", _whisper(384, 4, 6, 80)),
    "whisper-base": Backbone("openai/whisper-base", _whisper(512, 6, 8, 80)),
    "whisper-small": Backbone("openai/whisper-small", _whisper(768, 12, 12, 80)),
    "whisper-medium": Backbone("openai/whisper-medium", _whisper(1024, 24, 16, 80)),
    "whisper-large-v2": Backbone("openai/whisper-large-v2", _whisper(1280, 32, 20, 80)),
    "whisper-large-v3": Backbone("openai/whisper-large-v3", _whisper(1280, 32, 20, 128)),
    "tiny": Backbone(
        None, _wav2vec2(64, 2, 4, large=True, conv_dim=[64] * 7, intermediate_size=128)
    ),
    "small": Backbone(None, _SMALL),
    CNN14: Backbone(None, {"model_type": CNN14, "widths": [64, 128, 256, 512, 1024, 2048]}),
}


#: Models that come with the package, folders of `ASSETS`: their names travel to workers, never
#: their paths, and their revision is a hash of the folder's files.
EMBEDDED = ("raysers-base",)
#: In the folder of an embedded model: names of the files that it was trained on, without suffix.
TRAINED_FILES = "trained_files.json"

ASSETS = Path(str(resources.files("raysers"))) / "assets"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A `--model` text, read.

    `alias` is one of `BACKBONES` or `EMBEDDED`; `path` a local folder or an `s3://` prefix (of an
    embedded model: where it lies on this machine); `hub_id` an `owner/name` (also of an alias
    that has one). `layers` keeps that many bottom layers; `random` means seeded random weights.
    """

    text: str
    alias: str | None = None
    path: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    layers: int | None = None
    random: bool = False

    @property
    def is_object_store(self) -> bool:
        """Whether the folder lies in an object store and has to be fetched before loading."""
        return self.path is not None and self.path.startswith("s3://")


_ALIASES = (*BACKBONES, *EMBEDDED)
_RANDOM_PREFIX = "random:"
#: A hub id must not look like a path, so a leading dot, slash or tilde never matches.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse_model_name(text: str, flag: str = "--model") -> ModelName:
    """Read `[random:]NAME[-LAYERS][@REVISION]`.

    NAME is an alias, a hub id, a local folder or an `s3://` prefix; only aliases take `-LAYERS`,
    only aliases and hub ids `@REVISION`.

    >>> parse_model_name("random:w2v2-L-robust-12").layers
    12

    Raises:
        ConfigError: the name is neither an alias nor a place, or the parts do not go together.
    """
    random = text.startswith(_RANDOM_PREFIX)
    body = text.removeprefix(_RANDOM_PREFIX)
    if _is_place(body):
        path = body if body.startswith("s3://") else str(Path(body).expanduser())
        return ModelName(text=text, path=path, random=random)
    name, at, revision = body.partition("@")
    if at and not revision:
        raise ConfigError(f"{flag} {text!r}: nothing follows '@'; give a branch, tag or commit")
    if random and revision:
        raise ConfigError(f"{flag} {text!r}: random weights have no revision; drop '@{revision}'")
    alias, layers = _split_layers(name)
    if alias in BACKBONES:
        keep_layers(BACKBONES[alias].shape, layers, alias)  # refuse impossible depths here
        return ModelName(
            text=text,
            alias=alias,
            hub_id=BACKBONES[alias].hub_id,
            revision=revision or None,
            layers=layers,
            random=random,
        )
    if alias in EMBEDDED:
        if revision:
            raise ConfigError(f"{flag} {text!r}: {alias} comes with raysers; drop '@{revision}'")
        place = str(ASSETS / alias)
        return ModelName(text=text, alias=alias, path=place, layers=layers, random=random)
    if _HUB_ID.fullmatch(name) and not random:
        return ModelName(text=text, hub_id=name, revision=revision or None)
    raise ConfigError(_unknown(text, alias))


def keep_layers(config: dict[str, Any], layers: int | None, name: str) -> dict[str, Any]:
    """`config` with its number of layers cut to `layers` (section 6.2: pruning from the top).

    Raises:
        ConfigError: `layers` is not between 1 and what the network has, or it has none.
    """
    if layers is None:
        return dict(config)
    family = FAMILIES.get(str(config.get("model_type")))
    key = family.layers_key if family else "num_hidden_layers"
    if key not in config:
        raise ConfigError(f"{name} has no transformer layers to keep; leave their number out")
    most = config[key]
    if not 1 <= layers <= most:
        raise ConfigError(f"{name} has {most} layers: keep 1 to {most} of them, not {layers}")
    return config | {key: layers}


def _is_place(body: str) -> bool:
    """Whether `body` names a folder: spelled like one, or there and not an alias."""
    if body.startswith(("s3://", "/", "./", "../", "~")) or body in (".", ".."):
        return True
    return bool(body) and _split_layers(body)[0] not in _ALIASES and os.path.exists(body)


def _split_layers(name: str) -> tuple[str, int | None]:
    stem, dash, number = name.rpartition("-")
    if dash and stem in _ALIASES and number.isdecimal():
        return stem, int(number)
    return name, None


def _unknown(text: str, name: str) -> str:
    close = difflib.get_close_matches(name, _ALIASES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"unknown model {text!r}: {hint}aliases are {', '.join(_ALIASES)} (add -N for the bottom"
        " N layers, random: in front for random weights); or give owner/name, a folder"
        " (./folder) or s3://bucket/prefix"
    )


#: A model card's header is short; its licence line is near the top.
_CARD_BYTES = 16 << 10
_LICENCE = re.compile(
    r"\A\ufeff?---\n(?:(?!---).*\n)*?license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*\n"
)


def licence_of(folder: Path) -> str | None:
    """What the header of a folder's model card says; None where it says nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    match = _LICENCE.match(text)
    return match[1] if match else None
