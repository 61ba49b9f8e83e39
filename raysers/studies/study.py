"""Study files: plain YAML that says which models to train, what to vary, and how to analyse them.

A study is data, never code. An error in a file is one line with its key, before anything is
written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_type_hints

import yaml

from raysers.cli import nearest
from raysers.data.files import parse_yaml
from raysers.errors import ConfigError, StorageError
from raysers.evaluation.flags import EvaluateFlags
from raysers.io import storage
from raysers.models.backbones import ASSETS
from raysers.report.evidence import PAPER_STUDIES
from raysers.robustness.task import RobustnessFlags, chosen
from raysers.tuning.space import SEARCHABLE, coerce
from raysers.words.flags import FuseTrainFlags, ProbeFlags

#: Stands for `PAPER_STUDIES`.
PAPER = "paper"
#: The built-in studies; what trains comes before its analyses.
STUDIES = (*PAPER_STUDIES, "ablation")
#: By job that analyses models, the class of its flags and those that a study can set.
_ANALYSES: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "robustness": (
        RobustnessFlags,
        ("suite", "perturbations", "tone_snr", "seed", "repeats", "threshold", "round_scores"),
    ),
    "evaluate": (EvaluateFlags, ("by", "bootstrap", "speaker_samples", "seed")),
    "fuse": (
        FuseTrainFlags,
        ("recipe", "text_model", "text_pooling", "asr", "recognise_all", "epochs", "batch_size",
         "lr", "schedule", "weight_decay", "dropout", "patience", "seed", "bootstrap"),
    ),
    "probe": (
        ProbeFlags,
        ("templates", "texts", "tts", "tts_command", "voice", "split", "seed", "bootstrap",
         "least_occurrences", "limit"),
    ),
    "annotate": (None, ("embeddings",)),
}  # fmt: skip
JOBS = ("train", *_ANALYSES)
#: Flags of training that a study sets by other keys, and those that it can set.
_OWN = {"backbone": "write it into 'models'", "seed": "write it into 'seeds'"}
_TRAIN = {name: kind for name, kind in SEARCHABLE.items() if name not in _OWN} | {
    "weights": Literal["pretrained", "random"]
}
_KEYS = (
    "about", "job", "models", "factor", "values", "seeds", "train", "flags", "together", "small",
)  # fmt: skip
_MAX_CELLS = 1000
_MAX_BYTES = 1 << 20
RANDOM = "random:"

Flags = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of a study: a `backbone` as `raysers train` takes it.

    It is trained with `only` these values of the factor (empty: all), and with the flags of `train`
    over those of the study and of the value.
    """

    backbone: str
    only: tuple[str, ...] = ()
    train: Flags = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study as its file says it, for one scale: its name is the file's, `about` its question.

    `models` are by the name the reader knows them by. `factor` is what it varies, and `values` are,
    by value of it, the flags of training it changes (`weights: random` starts from random weights).
    `train` are flags of all its trainings, `flags` those of the job that analyses the models;
    `together` is one analysis of all of them side by side, instead of one of each.
    """

    name: str
    about: str
    job: str
    models: Mapping[str, Model]
    factor: str
    values: Mapping[str, Flags]
    seeds: Sequence[int]
    train: Flags
    flags: Flags
    together: bool

    def written(self) -> str:
        """The study as YAML, as it was used."""
        document = {k: v for k, v in asdict(self).items() if k != "name"}
        document["models"] = {
            label: {"backbone": model.backbone, "only": model.only, **model.train}
            for label, model in self.models.items()
        }
        plain = json.loads(json.dumps(document))  # lists for tuples
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def in_order(studies: Iterable[Study]) -> list[Study]:
    """What trains before its analyses; the built-in ones as the paper has them."""
    known = {name: place for place, name in enumerate(STUDIES)}
    return sorted(studies, key=lambda study: (known.get(study.name, len(known)), study.name))


def read_studies(names: Sequence[str], scale: str) -> list[Study]:
    """The studies of `--study`: built-in names, `paper`, or YAML files; errors name the key."""
    wanted = [one for name in names for one in (PAPER_STUDIES if name == PAPER else [name])]
    studies = [read_study(name, scale) for name in dict.fromkeys(wanted)]
    for study in studies:
        if [other.name for other in studies].count(study.name) > 1:
            raise ConfigError(f"--study: two studies are called {study.name!r}: rename a file")
    return studies


def read_study(name: str, scale: str) -> Study:
    """One study, with what its file says for `scale` laid over the rest; raises ConfigError.

    Local backbones get names that mean the same in every folder.
    """
    title, text = _text(name)
    where = f"--study {name}"
    try:
        parsed = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{where} is no YAML: {error}") from error
    document = _mapping(where, parsed, _KEYS)
    small = _mapping(f"{where}: key 'small'", document.get("small"), _KEYS[1:-1])
    for key, value in small.items() if scale == "small" else ():
        merged = key in ("train", "flags") and isinstance(value, dict)
        earlier = _mapping(f"{where}: key {key!r}", document.get(key)) if merged else {}
        document[key] = earlier | value if merged else value
    return _study(title, where, document)


def _text(name: str) -> tuple[str, str]:
    """(title, YAML) of a built-in study or a file."""
    if name in STUDIES:
        return name, (ASSETS / "studies" / f"{name}.yaml").read_text("utf-8")
    if not name.endswith((".yaml", ".yml")):
        hint = _meant(name, [*STUDIES, PAPER])
        raise ConfigError(f"--study {name}: {hint}; or give a YAML file, or {PAPER} for all")
    try:
        text = storage.read_bytes(name, max_bytes=_MAX_BYTES).decode("utf-8")
    except (StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {name} cannot be read: {error}") from error
    title = name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
    if not title or title.startswith("."):
        raise ConfigError(f"--study {name}: its name is the study's: give it one before .yaml")
    return title, text


def _meant(name: str, known: Sequence[str]) -> str:
    return nearest(name, known) or f"known are {', '.join(known)}"


def _mapping(where: str, value: Any, keys: Sequence[str] = ()) -> dict[Any, Any]:
    """A mapping of a file (empty for none), of no other than these `keys`, if any are given."""
    if value is None and ": key" in where:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be names with values, not {value!r}")
    for key in map(str, value) if keys else ():
        if key not in keys:
            raise ConfigError(f"{where}: {key!r} is unknown: {_meant(key, keys)}")
    return dict(value)


def _study(title: str, where: str, document: dict[str, Any]) -> Study:
    job, seeds = document.get("job", "train"), document.get("seeds", [0])
    if job not in JOBS:
        raise ConfigError(f"{where}: key 'job' is {job!r}: choose {', '.join(JOBS)}")
    given = _mapping(f"{where}: key 'values'", document.get("values")) or {"": {}}
    values = {
        str(name): _flags(f"{where}: key 'values': {str(name)!r}:", "train", changes)
        for name, changes in given.items()
    }
    good = isinstance(seeds, list) and seeds and all(type(v) is int and v >= 0 for v in seeds)
    if not good or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: key 'seeds' is {seeds!r}: write whole numbers, as in [0, 1]")
    simple: dict[str, Any] = {
        key: coerce(f"{where}: key {key!r}", type(default), document.get(key, default))
        for key, default in (("about", ""), ("factor", ""), ("together", False))
    }
    flags = _flags(f"{where}: key 'flags':", job, document.get("flags")) if job != "train" else {}
    study = Study(
        name=title,
        job=job,
        models=_models(where, document.get("models"), values),
        values=values,
        seeds=tuple(seeds),
        train=_flags(f"{where}: key 'train':", "train", document.get("train")),
        flags=flags,
        **simple,
    )
    for bad, words in (
        (job == "train" and document.get("flags"),
         "key 'flags' is for jobs that analyse models: write 'train'"),
        (study.together and job not in ("evaluate", "probe"),
         "key 'together' is for evaluate and probe"),
        (len(values) > 1 and not study.factor,
         "key 'values' needs 'factor': write what they are values of"),
        (len(study.models) * len(values) * len(seeds) > _MAX_CELLS,
         f"it has more trainings than a study can have: at most {_MAX_CELLS:,}"),
    ):  # fmt: skip
        if bad:
            raise ConfigError(f"{where}: {words}")
    return study


def _models(where: str, value: Any, values: Mapping[str, Flags]) -> dict[str, Model]:
    where = f"{where}: key 'models'"
    if isinstance(value, list):
        labels = [str(name).rstrip("/").rpartition("/")[2] for name in value]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"{where} has two of one name: write name: backbone")
        value = dict(zip(labels, value, strict=True))
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where} is {value!r}: write a list of backbones")
    found = {}
    for label, model in value.items():
        flags = dict(model) if isinstance(model, dict) else {"backbone": model}
        backbone, only = flags.pop("backbone", ""), flags.pop("only", [])
        if not isinstance(backbone, str) or not backbone:
            raise ConfigError(f"{where}: {model!r} is no backbone: quote it")
        if not isinstance(only, list) or not set(map(str, only)) <= set(values):
            raise ConfigError(f"{where}: {label!r}: 'only' is {only!r}: list some of 'values'")
        name = backbone.removeprefix(RANDOM)
        if name.startswith(("/", "./", "../", "~")):
            backbone = backbone.removesuffix(name) + storage.absolute(name)
        own = _flags(f"{where}: {str(label)!r}:", "train", flags)
        found[str(label)] = Model(backbone=backbone, only=tuple(map(str, only)), train=own)
    return found


def _flags(where: str, job: str, values: Any) -> dict[str, Any]:
    """Flags of a job that a study can set, of the right kinds."""
    hints: Mapping[str, Any] = _TRAIN
    if job != "train":
        kind, names = _ANALYSES[job]
        known = get_type_hints(kind) if kind else dict.fromkeys(names, bool)
        hints = {name: known[name] for name in names if name in known}
    found = {}
    for key, value in _mapping(where, values).items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in hints:
            hint = _OWN.get(name) or _meant(name, list(hints))
            raise ConfigError(f"{where} {key!r} is no flag of {job} that a study can set: {hint}")
        found[name] = coerce(f"{where} {key!r}", hints[name], value)
    if job == "robustness":
        try:
            chosen(found.get("perturbations", ()), found.get("suite", "paper"), ())
        except ConfigError as error:
            raise ConfigError(f"{where} {error}") from error
    return found
