"""From studies to cells, and from cells to runs: what is the same in several cells is run once.

The name of a run follows from its settings alone, so any study that needs the same run finds it. A
cell is a line of a study's table; many cells may point to one run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raysers.errors import ConfigError
from raysers.io import storage
from raysers.models.backbones import CNN14, parse_model_name
from raysers.studies import networks
from raysers.studies.study import Study

#: Kind of the runs that stand for pre-training in small; a job to itself.
PRETRAIN = "begin"
#: Name of the study their cells are listed under.
PRETRAININGS = "beginnings"

_RANDOM = "random:"
#: How names of local folders and files begin.
_LOCAL = ("/", "./", "../", "~")
_SMALL_LABEL = "{}-tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Work that is done once.

    Attributes:
        name: unique; its folder is `runs/NAME`.
        job: `begin`, `train`, or the job that looks at models.
        settings: everything that decides its result, beside the data; JSON-ready.
        needs: names of the runs it starts from.
    """

    name: str
    job: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def job_flags(self) -> dict[str, Any]:
        """Flags of the job by name, lists as tuples."""
        flags = self.settings["flags"]
        return {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A line of a study's table; see `schemas.CELLS`.

    `variant` tells a training from others of the same model in its study; `labels` is, by run that
    the cell looks at (or is), what the reader calls that model.
    """

    study: str
    cell: str
    job: str
    model: str
    factor: str
    factor_value: str
    seed: int | None
    run: str
    variant: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All cells, in the order of the studies, and all runs, what is needed first."""

    cells: Sequence[Cell]
    runs: Mapping[str, Experiment]


def make_grid(studies: Iterable[Study], scale: str) -> Grid:
    """The cells of all studies and the runs they share.

    Raises:
        ConfigError: a backbone there is not; the line names study and key.
    """
    runs: dict[str, Experiment] = {}
    cells = [cell for study in studies for cell in _cells(study, scale, runs)]
    begun = [
        Cell(
            study=PRETRAININGS,
            cell=str(run.settings["backbone"]),
            job=run.job,
            model=_SMALL_LABEL.format(run.settings["backbone"]),
            factor="",
            factor_value="",
            seed=int(run.settings["train"]["seed"]),
            run=run.name,
            labels={run.name: _SMALL_LABEL.format(run.settings["backbone"])},
        )
        for run in runs.values()
        if run.job == PRETRAIN
    ]
    order = {PRETRAIN: 0, "train": 1}
    ordered = sorted(runs.values(), key=lambda run: order.get(run.job, 2))
    return Grid(cells=[*begun, *cells], runs={run.name: run for run in ordered})


def _cells(study: Study, scale: str, runs: dict[str, Experiment]) -> list[Cell]:
    trained = list(_trainings(study, scale, runs))
    if study.job == "train":
        return trained
    if study.together or study.best:
        return [_analysis(study, trained, runs)]
    return [_analysis(study, [one], runs) for one in trained]


def _trainings(study: Study, scale: str, runs: dict[str, Experiment]) -> Iterator[Cell]:
    for label, backbone in study.models.items():
        for value, changes in study.values.items():
            for seed in study.seeds:
                run = _training(study, scale, backbone, {**study.train, **changes}, seed, runs)
                shown = label
                if scale == "small" and networks.has_small(_bare(backbone)):
                    shown = _SMALL_LABEL.format(label)
                factor_value = value or (str(seed) if study.factor == "seed" else label)
                yield Cell(
                    study=study.name,
                    cell=_cell_name(study, label, value, seed),
                    job="train",
                    model=shown,
                    factor=study.factor,
                    factor_value=factor_value if study.factor else "",
                    seed=seed,
                    run=run.name,
                    variant=" ".join(_variant(study, value, seed)),
                    labels={run.name: shown},
                )


def _cell_name(study: Study, label: str, value: str, seed: int) -> str:
    return "-".join(map(_slug, [label, *_variant(study, value, seed)]))


def _variant(study: Study, value: str, seed: int) -> list[str]:
    words = [value] if len(study.values) > 1 else []
    return [*words, f"seed {seed}"] if len(study.seeds) > 1 else words


def _training(
    study: Study,
    scale: str,
    backbone: str,
    train: Mapping[str, Any],
    seed: int,
    runs: dict[str, Experiment],
) -> Experiment:
    flags = dict(train)
    name = _place(study, _bare(backbone))
    is_random = backbone.startswith(_RANDOM) or flags.pop("weights", "") == "random"
    small = scale == "small" and networks.has_small(name)
    needs: tuple[str, ...] = ()
    if small:
        flags = {**networks.TRAIN, **flags}
    if name == CNN14:
        is_random = True
    if small and not is_random:
        begin = _beginning(name)
        runs.setdefault(begin.name, begin)
        needs = (begin.name,)
    elif small and name != CNN14:
        flags = {"front": "mel", "front_steps": networks.PRETRAIN["front_steps"], **flags}
    _check_backbone(study, backbone, name, is_random)
    settings = {
        "backbone": name,
        "random": is_random,
        "small": small,
        "train": {**flags, "seed": seed},
    }
    return _added(runs, "train", ("random-" if is_random and name != CNN14 else "") + name,
                  settings, needs)  # fmt: skip


def with_absolute_backbones(study: Study) -> Study:
    """The study with names of local backbones that mean the same in every folder."""
    models = dict(study.models)
    for label, backbone in study.models.items():
        name = _bare(backbone)
        if name.startswith(_LOCAL):
            models[label] = backbone.removesuffix(name) + storage.absolute(name)
    return replace(study, models=models)


def _place(study: Study, name: str) -> str:
    """A local folder or file by a name that means the same in every process."""
    if not name.startswith(_LOCAL):
        return name
    place = storage.absolute(name)
    if not os.path.exists(place):
        raise ConfigError(f"--study {study.name}: key 'models': {name} does not exist")
    return place


def _check_backbone(study: Study, backbone: str, name: str, is_random: bool) -> None:
    try:
        parse_model_name((_RANDOM if is_random else "") + name)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(f"--study {study.name}: key 'models': {backbone!r}: {text}") from error


def _beginning(alias: str) -> Experiment:
    begin = networks.PRETRAININGS[alias]
    seed = list(networks.PRETRAININGS).index(alias)
    settings = {
        "backbone": alias,
        "random": True,
        "small": True,
        "speech": begin.speech,
        "train": {**networks.PRETRAIN, **begin.train, "seed": seed},
    }
    return _added({}, PRETRAIN, f"begin-{alias}", settings, ())


def _analysis(study: Study, trained: Sequence[Cell], runs: dict[str, Experiment]) -> Cell:
    settings = {"flags": dict(study.flags), "best": study.best}
    needs = tuple(dict.fromkeys(cell.run for cell in trained))
    alone = len(trained) == 1
    words = f"{study.job}-{trained[0].model}" if alone else f"{study.job}-{study.name}"
    run = _added(runs, study.job, words, settings, needs)
    one = trained[0]
    return Cell(
        study=study.name,
        cell=one.cell if alone else "all" if study.together else "best",
        job=study.job,
        model=one.model if alone else "",
        factor=study.factor,
        factor_value=one.factor_value if alone else "",
        seed=one.seed if alone else None,
        run=run.name,
        labels=_labels(trained),
    )


def _labels(trained: Sequence[Cell]) -> dict[str, str]:
    """What to call the models of a look; with what tells them apart where they are repeated."""
    names = [cell.model for cell in trained]
    return {
        cell.run: cell.model if names.count(cell.model) == 1 else f"{cell.model} {cell.variant}"
        for cell in trained
    }


def _added(
    runs: dict[str, Experiment],
    job: str,
    words: str,
    settings: Mapping[str, Any],
    needs: tuple[str, ...],
) -> Experiment:
    """The run with these settings, made if it is not there."""
    key = {"job": job, **settings, "needs": list(needs)}
    text = json.dumps(key, sort_keys=True, default=list)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    plain = json.loads(json.dumps(settings, default=list))
    run = Experiment(name=f"{_slug(words)}-{digest}", job=job, settings=plain, needs=needs)
    return runs.setdefault(run.name, run)


def _bare(backbone: str) -> str:
    return backbone.removeprefix(_RANDOM)


def _slug(words: str) -> str:
    last = words.rstrip("/").rpartition("/")[2].removesuffix(".json")
    return re.sub(r"[^\w.]+", "-", last.replace("%", "percent")).strip("-.")
