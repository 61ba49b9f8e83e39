"""Flags of other jobs as a study file may write them.

Only flags that belong to the question a study asks are there: where data are read and results are
written is the study's own affair.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from raysers.errors import ConfigError
from raysers.robustness.suites import SUITES, chosen
from raysers.tuning.values import SEARCHABLE, coerce

#: Of a training: start from random weights, or from trained ones.
WEIGHTS = ("pretrained", "random")

#: Flags that a study sets by other keys.
_OWN = {"backbone": "write it into 'models'", "seed": "write it into 'seeds'"}

_WORDS = (str,)

#: By job that looks at models, its flags with the kind of their values; a tuple is a list of them.
_ANALYSES: Mapping[str, Mapping[str, Any]] = {
    "train": {},
    "robustness": {
        "suite": str, "perturbations": _WORDS, "tone_snr": str, "seed": int, "repeats": int,
        "threshold": float, "round_scores": bool,
    },
    "evaluate": {"by": _WORDS, "bootstrap": int, "speaker_samples": int, "seed": int},
    "fuse": {
        "text_model": str, "text_pooling": str, "asr": str, "recognise_all": bool, "epochs": int,
        "batch_size": int, "lr": float, "weight_decay": float, "dropout": float, "patience": int,
        "seed": int, "bootstrap": int,
    },
    "probe": {
        "templates": _WORDS, "texts": str, "tts": str, "tts_command": str, "voice": _WORDS,
        "seed": int, "bootstrap": int, "least_occurrences": int, "limit": int,
    },
    "annotate": {"embeddings": bool},
}  # fmt: skip

_TOLD = {str: "a word", int: "a whole number", float: "a number", bool: "true or false"}


def train_flags(where: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Flags of training, checked one by one; `weights` besides.

    Raises:
        ConfigError: `where`, the key, and what to write instead.
    """
    found = {}
    for key, value in values.items():
        name = _name(key)
        if name == "weights":
            if value not in WEIGHTS:
                raise ConfigError(f"{where} 'weights' is {value!r}: write {' or '.join(WEIGHTS)}")
            found[name] = value
            continue
        if name in _OWN:
            raise ConfigError(f"{where} {key!r}: {_OWN[name]}")
        _require_known(where, key, name, [n for n in SEARCHABLE if n not in _OWN], "train")
        found[name] = coerce(f"{where} {key!r}", name, value)
    return found


def analysis_flags(where: str, job: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Flags of the job that looks at models, of the right kinds.

    Raises:
        ConfigError: as `train_flags`.
    """
    own = f"{where}: key 'flags':"
    known = _ANALYSES[job]
    found = {}
    for key, value in values.items():
        name = _name(key)
        _require_known(own, key, name, list(known), job)
        found[name] = _of_kind(f"{own} {key!r}", known[name], value)
    if job == "robustness":
        suite = found.get("suite", "paper")
        if suite not in SUITES:
            raise ConfigError(f"{own} 'suite' is {suite!r}: choose {', '.join(SUITES)}")
        try:
            chosen(found.get("perturbations", ()), suite, ())
        except ConfigError as error:
            raise ConfigError(f"{own} {error}") from error
    return found


def _of_kind(where: str, kind: Any, value: Any) -> Any:
    if isinstance(kind, tuple):
        if isinstance(value, list) and all(type(v) is kind[0] for v in value):
            return list(value)
        raise ConfigError(f"{where} is {value!r}: write a list of words")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} is {value!r}: write {_TOLD[kind]}")
    return value


def _name(key: Any) -> str:
    return str(key).removeprefix("--").replace("-", "_")


def _require_known(where: str, key: Any, name: str, known: Sequence[str], job: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"see jobs/{job}.py --help"
        raise ConfigError(f"{where} {key!r} is no flag of {job} that a study can set: {hint}")
