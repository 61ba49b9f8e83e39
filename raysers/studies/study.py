"""Study files: plain YAML that says which models to train, what to vary, and which job looks on.

A study is data, never code. An error in a file is one line with its key, before
anything is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import yaml

from raysers.data.files import parse_yaml
from raysers.errors import ConfigError, StorageError
from raysers.io import storage
from raysers.studies.flags import analysis_flags, train_flags

#: Stands for every built-in study.
PAPER = "paper"
#: What `job` may be: training itself, or a job that looks at what was trained.
JOBS = ("train", "robustness", "evaluate", "fuse", "probe", "annotate")

_KEYS = (
    "about", "job", "models", "factor", "values", "seeds", "train", "flags", "together", "best",
    "small",
)  # fmt: skip
_MOST_CELLS = 1000
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study as its file says it, for one scale.

    Attributes:
        name: of the file.
        about: the question it asks.
        job: of `JOBS`.
        models: backbone by the name the reader knows it by.
        factor: what it varies.
        values: by value of the factor, the flags of training it changes; `weights: random` starts
            from random weights.
        seeds: of training.
        train: flags of all its trainings.
        flags: of the job that looks on.
        together: one look at all the models side by side, instead of one at each.
        best: look only at the model with the best dev CCC.
    """

    name: str
    about: str
    job: str
    models: Mapping[str, str]
    factor: str
    values: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    train: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    together: bool = False
    best: bool = False

    def written(self) -> str:
        """The study as YAML, as it was used."""
        values = asdict(self)
        del values["name"]  # it is the file's
        return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def study_names() -> list[str]:
    """The built-in studies, in the order of the paper's figures."""
    there = {p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml")}
    return [name for name in _ORDER if name in there] + sorted(there - set(_ORDER))


#: The paper's order; what trains comes before what only looks at it.
_ORDER = (
    "backbones", "pretraining", "frozen", "seeds", "layers", "fraction", "robustness", "fairness",
    "speakers", "embeddings", "fusion", "probe",
)  # fmt: skip


def in_order(studies: Sequence[Study]) -> list[Study]:
    """What trains before what looks, the built-in ones as the paper has them."""
    known = {name: place for place, name in enumerate(_ORDER)}
    return sorted(studies, key=lambda study: (known.get(study.name, len(known)), study.name))


def read_studies(names: Sequence[str], scale: str) -> list[Study]:
    """The studies of `--study`: built-in names, `paper` for all of them, or YAML files.

    Raises:
        ConfigError: no such study, or a file with something wrong; the line names the key.
    """
    wanted: list[str] = []
    for name in names:
        wanted += study_names() if name == PAPER else [name]
    studies = [read_study(name, scale) for name in dict.fromkeys(wanted)]
    for study in studies:
        if [other.name for other in studies].count(study.name) > 1:
            raise ConfigError(f"--study: two studies are called {study.name!r}: rename a file")
    return studies


def read_study(name: str, scale: str) -> Study:
    """One study, with what its file says for `scale` laid over the rest.

    Raises:
        ConfigError: as `read_studies`.
    """
    title, text = _text(name)
    try:
        document = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"--study {name} is no YAML: {error}") from error
    document = _mapping(f"--study {name}", document)
    for key in document:
        _require_known(f"--study {name}: key", key, _KEYS)
    small = _mapping(f"--study {name}: key 'small'", document.pop("small", None) or {})
    for key in small:
        _require_known(f"--study {name}: key 'small':", key, _KEYS[1:-1])
    if scale == "small":
        document = _laid_over(name, document, small)
    return _study(f"--study {name}", title, document)


def _study(where: str, title: str, document: Mapping[str, Any]) -> Study:
    job = document.get("job", "train")
    if job not in JOBS:
        raise ConfigError(f"{where}: key 'job' is {job!r}: choose {', '.join(JOBS)}")
    own = f"{where}: key 'train':"
    values = _values(where, document.get("values") or {"": {}})
    study = Study(
        name=title,
        about=_word(where, "about", document.get("about", "")),
        job=job,
        models=_models(where, document.get("models")),
        factor=_word(where, "factor", document.get("factor", "")),
        values=values,
        seeds=_seeds(where, document.get("seeds", [0])),
        train=train_flags(own, _mapping(own, document.get("train") or {})),
        flags=analysis_flags(
            where, job, _mapping(f"{where}: key 'flags'", document.get("flags") or {})
        ),
        together=_switch(where, "together", document.get("together", False)),
        best=_switch(where, "best", document.get("best", False)),
    )
    _check_whole(where, study)
    return study


def _check_whole(where: str, study: Study) -> None:
    if study.job == "train" and (study.together or study.best):
        key = "together" if study.together else "best"
        raise ConfigError(f"{where}: key {key!r} is for jobs that look at models: leave it out")
    if study.job == "train" and study.flags:
        raise ConfigError(f"{where}: key 'flags' is for jobs that look at models: write 'train'")
    if study.together and study.best:
        raise ConfigError(f"{where}: key 'best' leaves one model: leave out 'together'")
    if study.together and study.job not in ("evaluate", "probe"):
        raise ConfigError(f"{where}: key 'together' is for evaluate and probe")
    if len(study.values) > 1 and not study.factor:
        raise ConfigError(f"{where}: key 'values' needs 'factor': write what they are values of")
    cells = len(study.models) * len(study.values) * len(study.seeds)
    if cells > _MOST_CELLS:
        raise ConfigError(f"{where} has {cells:,} trainings: a study has at most {_MOST_CELLS:,}")


def _laid_over(name: str, document: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """`train` and `flags` are merged key by key, all else is replaced."""
    merged = {**document, **small}
    for key in ("train", "flags"):
        both = (document.get(key) or {}, small.get(key) or {})
        if all(isinstance(one, dict) for one in both):
            merged[key] = both[0] | both[1]
    return merged


def _text(name: str) -> tuple[str, str]:
    """(title, YAML) of a built-in study or a file."""
    if name in study_names():
        return name, _folder().joinpath(f"{name}.yaml").read_text("utf-8")
    if not name.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(name, [*study_names(), PAPER], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"--study {name}: {hint}the studies are {', '.join(study_names())}, {PAPER} for all "
            "of them, or a YAML file"
        )
    try:
        text = storage.read_bytes(name, max_bytes=_MAX_BYTES).decode("utf-8")
    except (StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {name} cannot be read: {error}") from error
    title = name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
    if not title or title.startswith("."):
        raise ConfigError(f"--study {name}: its name is the study's: give it one before .yaml")
    return title, text


def _folder() -> Any:
    return resources.files("raysers").joinpath("assets", "studies")


def _models(where: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        found = {str(label): backbone for label, backbone in value.items()}
    elif isinstance(value, list):
        found = {str(name).rstrip("/").rpartition("/")[2]: name for name in value}
        if len(found) < len(value):
            raise ConfigError(f"{where}: key 'models' has two of one name: write name: backbone")
    else:
        raise ConfigError(f"{where}: key 'models' is {value!r}: write a list of backbones")
    if not found:
        raise ConfigError(f"{where}: key 'models' is empty: write at least one backbone")
    for backbone in found.values():
        if not isinstance(backbone, str) or not backbone:
            raise ConfigError(f"{where}: key 'models': {backbone!r} is no backbone: quote it")
    return found


def _values(where: str, value: Any) -> dict[str, dict[str, Any]]:
    own = f"{where}: key 'values'"
    found = {}
    for name, changes in _mapping(own, value).items():
        inside = f"{own}: {str(name)!r}:"
        found[str(name)] = train_flags(inside, _mapping(inside, changes or {}))
    return found


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value)
    if not good or len(set(value)) < len(value):
        raise ConfigError(f"{where}: key 'seeds' is {value!r}: write whole numbers, as in [0, 1]")
    return tuple(value)


def _word(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: key {key!r} is {value!r}: write words")
    return value


def _switch(where: str, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: key {key!r} is {value!r}: write true or false")
    return value


def _mapping(where: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be names with values, not {value!r}")
    return dict(value)


def _require_known(where: str, key: Any, known: Sequence[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"{where} {key!r} is unknown: {hint}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
