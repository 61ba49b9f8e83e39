"""Names of models and their networks, and what a model says of a clip by its `config.json`.

`w2v2-L` is the Libri-Light model: the paper names `wav2vec2-large`, but the authors' export has
the layer-norm stack of `facebook/wav2vec2-large-lv60`; `wav2vec2-large` is a different network.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from raysers.errors import CheckpointError, ConfigError
from raysers.types import DIMENSIONS

#: The one network that is no transformer, and the one family on log-mel frames, by model type.
CNN14, WHISPER = "cnn14", "whisper"


@dataclass(frozen=True, slots=True)
class Family:
    """What `transformers` calls a kind of backbone; its `attention` stores no frames x frames."""

    prefix: str
    classes: str
    attention: str = "sdpa"
    layers_key: str = "num_hidden_layers"
    size_key: str = "hidden_size"


#: WavLM adds a learned bias per pair of frames, so its memory grows with the length squared.
FAMILIES: dict[str, Family] = {
    "wav2vec2": Family("wav2vec2", "Wav2Vec2"),
    "hubert": Family("hubert", "Hubert"),
    "wavlm": Family("wavlm", "WavLM", attention="eager"),
    "data2vec-audio": Family("data2vec_audio", "Data2VecAudio"),
    # only the encoder is ever built
    WHISPER: Family("encoder", "Whisper", layers_key="encoder_layers", size_key="d_model"),
}

#: Model types whose spectrogram is computed from samples as they are, not normalised clip by clip.
UNNORMALISED = (CNN14, WHISPER)
#: The modes of `heads.Pooling`.
POOLING_NAMES = ("mean", "statistics", "attentive")


@dataclass(frozen=True, slots=True)
class Backbone:
    """One alias: where its weights live and the network they fit, as `config.json` keys."""

    hub_id: str | None
    shape: dict[str, Any]

    def config(self, layers: int | None = None) -> dict[str, Any]:
        """The network as `config.json` keys, cut to the bottom `layers` if given."""
        return keep_layers(self.shape, layers, self.hub_id or str(self.shape["model_type"]))


def _wav2vec2(width: int, layers: int, heads: int, *, large: bool, **others: Any) -> dict[str, Any]:
    """The paper's backbones (its table 3 and the authors' exports)."""
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

#: `tiny` is the large layout at toy width: 400-sample window, 0.2 M parameters.
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


#: Models that come with the package, folders of `ASSETS`; to workers travel names, not paths.
EMBEDDED = ("raysers-base",)
#: In the folder of an embedded model: names of the files that it was trained on, without suffix.
TRAINED_FILES = "trained_files.json"
ASSETS = Path(str(resources.files("raysers"))) / "assets"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A `--model` text, read: an alias with its `hub_id` or `path`, a hub id, a folder or a prefix.

    `layers` is how many are kept; `random` means seeded weights.
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
#: Nothing that looks like a path.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse_model_name(text: str, flag: str = "--model") -> ModelName:
    """Read `[random:]NAME[-LAYERS][@REVISION]`.

    NAME is an alias, a hub id, a local folder or an `s3://` prefix; only aliases take `-LAYERS`,
    only aliases and hub ids `@REVISION`. Raises ConfigError naming `flag`.

    >>> parse_model_name("random:w2v2-L-robust-12").layers
    12
    """
    body = text.removeprefix("random:")
    random = body != text
    if _is_place(body):
        path = body if body.startswith("s3://") else str(Path(body).expanduser())
        return ModelName(text=text, path=path, random=random)
    name, at, revision = body.partition("@")
    alias, layers = _split_layers(name)
    if at and not revision:
        raise ConfigError(f"{flag} {text!r}: nothing follows '@'; give a branch, tag or commit")
    if random and revision:
        raise ConfigError(f"{flag} {text!r}: random weights have no revision; drop '@{revision}'")
    if alias in EMBEDDED and revision:
        raise ConfigError(f"{flag} {text!r}: {alias} comes with raysers; drop '@{revision}'")
    found = ModelName(text=text, revision=revision or None, layers=layers, random=random)
    if alias in BACKBONES:
        keep_layers(BACKBONES[alias].shape, layers, alias)  # refuse impossible depths here
        return replace(found, alias=alias, hub_id=BACKBONES[alias].hub_id)
    if alias in EMBEDDED:
        return replace(found, alias=alias, path=str(ASSETS / alias))
    if _HUB_ID.fullmatch(name) and not random:
        return replace(found, hub_id=name)
    close = difflib.get_close_matches(alias, _ALIASES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"unknown model {text!r}: {hint}aliases are {', '.join(_ALIASES)} (add -N for the bottom"
        " N layers, random: in front for random weights); or give owner/name, a folder"
        " (./folder) or s3://bucket/prefix"
    )


def keep_layers(config: dict[str, Any], layers: int | None, name: str) -> dict[str, Any]:
    """`config` cut to the bottom `layers` (section 6.2); ConfigError where it has fewer or none."""
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
    spelled = body.startswith(("s3://", "/", "./", "../", "~")) or body in (".", "..")
    is_alias = _split_layers(body)[0] in _ALIASES
    return spelled or (bool(body) and not is_alias and os.path.exists(body))


def _split_layers(name: str) -> tuple[str, int | None]:
    stem, _, number = name.rpartition("-")
    is_cut = stem in _ALIASES and number.isdecimal()
    return (stem, int(number)) if is_cut else (name, None)


_TRAINED, _CATEGORIES, _POINTS = "trained_dimensions", "categories", "category_points"
_UNCERTAINTY, _OOD = "uncertainty_heads", "ood_rank"
#: How labels of emotions begin; a classifier without two of them is of sex, language or accent.
_EMOTIONS = re.compile(
    r"ang|bor|calm|contempt|disg|exci|fea|frus|hap|joy|neu|sad|surp", re.IGNORECASE
)
#: `problem_type` of models whose outputs go through a softmax.
_CLASSIFIERS = (None, "single_label_classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The outputs of a model beside its embedding.

    `trained` names the dimensions with trained scores; `categories` the outputs of the softmax;
    `points` where each lies on the dimensions, if the scores are their mean under the
    probabilities; `uncertainty_heads` (0: none) is how many heads the standard deviations come
    from; `ood_rank` (0: none) in how many directions the distance to the training is measured.
    """

    trained: tuple[str, ...] = DIMENSIONS
    categories: tuple[str, ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    uncertainty_heads: int = 0
    ood_rank: int = 0

    @classmethod
    def from_config(cls, config: dict[str, Any], where: object) -> Outputs:
        """Of a `config.json`; by default the three dimensions. CheckpointError for a bad key."""
        if labels := category_labels(config):
            config = {_CATEGORIES: labels, _TRAINED: ()}
        categories = _read(config, _CATEGORIES, (), where)
        trained = _read(config, _TRAINED, DIMENSIONS, where)
        points = _read(config, _POINTS, (), where)
        in_order = tuple(name for name in DIMENSIONS if name in trained)
        if len(in_order) != len(trained) or not (trained or categories):
            wanted = f"a list of {', '.join(DIMENSIONS)}"
            raise CheckpointError(f"{where}: {_TRAINED} is {json.dumps(trained)}, not {wanted}")
        if len(points) not in (0, len(categories)):
            raise CheckpointError(f"{where}: {_POINTS} has not one point for each category")
        return cls(
            trained=in_order,
            categories=categories,
            points=tuple(tuple(map(float, point)) for point in points),
            uncertainty_heads=_read(config, _UNCERTAINTY, 0, where),
            ood_rank=_read(config, _OOD, 0, where),
        )

    def config(self) -> dict[str, Any]:
        """The keys of `config.json` that `from_config` reads."""
        keys = {
            _TRAINED: list(self.trained),
            _CATEGORIES: list(self.categories),
            _POINTS: [list(point) for point in self.points],
            _UNCERTAINTY: self.uncertainty_heads,
            _OOD: self.ood_rank,
        }
        if self.trained == DIMENSIONS:
            del keys[_TRAINED]
        return {key: value for key, value in keys.items() if value or key == _TRAINED}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of numbers beside the dimensions: `p_*`, `*_sd`, `ood`."""
        return (
            *(f"p_{name}" for name in self.categories),
            *(f"{name}_sd" for name in DIMENSIONS if self.uncertainty_heads),
            *(["ood"] if self.ood_rank else []),
        )

    def row(self, scores: Sequence[float], extras: Sequence[float]) -> dict[str, Any]:
        """A clip's values by column, of its scores [3] and its numbers in `columns`."""
        by_name = zip(DIMENSIONS, scores, strict=True)
        found: dict[str, Any] = {name: one for name, one in by_name if name in self.trained}
        if self.categories:
            most = max(range(len(self.categories)), key=extras.__getitem__)
            found["emotion"] = self.categories[most]
        return found | dict(zip(self.columns, extras, strict=True))


def category_labels(config: dict[str, Any]) -> list[str]:
    """The labels of a classifier of emotions by other tools, in order; empty for other models."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or config.get("problem_type") not in _CLASSIFIERS:
        return []
    names = [labels.get(str(number)) for number in range(len(labels))]
    found = [name for name in names if isinstance(name, str)]
    emotions = sum(_EMOTIONS.match(name) is not None for name in found)
    return found if len(found) == len(labels) and emotions >= 2 else []


PLAIN = Outputs()


def _read(config: dict[str, Any], key: str, default: Any, where: object) -> Any:
    """The value of a key, its lists as tuples; CheckpointError where no model has such a one."""
    value = config.get(key, default)
    if not _POSSIBLE[key][0](value):
        raise CheckpointError(
            f"{where}: {key} is {json.dumps(value)[:200]}, not {_POSSIBLE[key][1]}"
        )
    return tuple(value) if isinstance(value, list) else value


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= 256
        and all(isinstance(n, str) and 0 < len(n) <= 100 for n in value)
        and len(set(value)) == len(value)
    )


def _are_points(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(point, list | tuple)
        and len(point) == len(DIMENSIONS)
        and all(isinstance(x, int | float) and 0 <= x <= 1 for x in point)
        for point in value
    )


#: Tests of the keys, and what they should be.
_POSSIBLE: dict[str, tuple[Callable[[Any], bool], str]] = {
    _TRAINED: (_are_names, "a list of names"),
    _CATEGORIES: (_are_names, "a list of names"),
    _POINTS: (_are_points, f"{', '.join(DIMENSIONS)} from 0 to 1 for each category"),
    _UNCERTAINTY: (lambda n: type(n) is int and 0 <= n <= 256, "0 to 256"),
    _OOD: (lambda n: type(n) is int and 0 <= n <= 16_384, "0 to 16384"),
}
