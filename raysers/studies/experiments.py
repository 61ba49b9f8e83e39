"""From studies to cells, and from cells to experiments: what several cells share is run once.

The name of an experiment follows from its settings alone, so any study that needs the same one
finds it. A cell is a line of a study's table; many cells may point to one experiment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysers.errors import ConfigError
from raysers.models.backbones import CNN14, parse_model_name
from raysers.studies import synthetic
from raysers.studies.study import Model, Study

_RANDOM = "random:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Work that is done once.

    Attributes:
        name: unique; its folder is `runs/NAME`.
        job: `train`, or the job that analyses models.
        settings: everything that decides its result, beside the data; JSON-ready.
        needs: names of the experiments whose models it analyses.
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

    `variant` tells a training from others of the same model in its study; `labels` is, by
    experiment that the cell analyses (or is), what the reader calls that model.
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
    """All cells, in the order of the studies, and all experiments, trainings first."""

    cells: Sequence[Cell]
    runs: Mapping[str, Experiment]


def make_grid(studies: Iterable[Study], scale: str) -> Grid:
    """The cells of all studies and the experiments they share.

    Raises:
        ConfigError: a backbone there is not; the line names study and key.
    """
    runs: dict[str, Experiment] = {}
    cells: list[Cell] = []
    for study in studies:
        trained = list(_trainings(study, scale, runs))
        if study.job == "train":
            cells += trained
        elif study.together or study.best:
            cells.append(_analysis(study, trained, runs))
        else:
            cells += [_analysis(study, [one], runs) for one in trained]
    ordered = sorted(runs.values(), key=lambda run: run.job != "train")
    return Grid(cells=cells, runs={run.name: run for run in ordered})


def _trainings(study: Study, scale: str, runs: dict[str, Experiment]) -> Iterator[Cell]:
    for label, model in study.models.items():
        small = scale == "small" and synthetic.has_small(_bare(model.backbone))
        shown = f"{label}-tiny" if small else label
        for value, changes in study.values.items():
            if model.only and value not in model.only:
                continue
            for seed in study.seeds:
                flags = {**study.train, **changes, **model.train, "seed": seed}
                run = _training(study, model, flags, small=small, tiny=scale == "small")
                run = runs.setdefault(run.name, run)
                words = [value] if len(study.values) > 1 else []
                words += [f"seed {seed}"] if len(study.seeds) > 1 else []
                factor_value = value or (str(seed) if study.factor == "seed" else label)
                yield Cell(
                    study=study.name,
                    cell="-".join(map(_slug, [label, *words])),
                    job="train",
                    model=shown,
                    factor=study.factor,
                    factor_value=factor_value if study.factor else "",
                    seed=seed,
                    run=run.name,
                    variant=" ".join(words),
                    labels={run.name: shown},
                )


def _training(
    study: Study, model: Model, flags: dict[str, Any], *, small: bool, tiny: bool
) -> Experiment:
    name = _bare(model.backbone)
    is_random = model.backbone != name or name == CNN14 or small
    is_random = flags.pop("weights", "") == "random" or is_random
    if tiny:
        front = synthetic.FRONT if small and name != CNN14 else {}
        flags = {**synthetic.TRAIN, **front, **flags}
    try:
        if name.startswith("/") and not os.path.exists(name):
            raise ConfigError("it does not exist")
        parse_model_name((_RANDOM if is_random else "") + name)
    except ConfigError as error:
        raise ConfigError(
            f"--study {study.name}: key 'models': {model.backbone!r}: {error}"
        ) from error
    settings = {"backbone": name, "random": is_random, "small": small, "train": flags}
    words = ("random-" if is_random and not small and name != CNN14 else "") + name
    return _experiment("train", words, settings, ())


def _analysis(study: Study, trained: Sequence[Cell], runs: dict[str, Experiment]) -> Cell:
    needs = tuple(dict.fromkeys(cell.run for cell in trained))
    one, alone = trained[0], len(trained) == 1
    words = f"{study.job}-{one.model if alone else study.name}"
    run = _experiment(study.job, words, {"flags": dict(study.flags), "best": study.best}, needs)
    names = [cell.model for cell in trained]
    return Cell(
        study=study.name,
        cell=one.cell if alone else "all" if study.together else "best",
        job=study.job,
        model=one.model if alone else "",
        factor=study.factor,
        factor_value=one.factor_value if alone else "",
        seed=one.seed if alone else None,
        run=runs.setdefault(run.name, run).name,
        labels={  # with what tells them apart where they are repeated
            cell.run: cell.model if names.count(cell.model) == 1 else f"{cell.model} {cell.variant}"
            for cell in trained
        },
    )


def _experiment(
    job: str, words: str, settings: Mapping[str, Any], needs: tuple[str, ...]
) -> Experiment:
    text = json.dumps({"job": job, **settings, "needs": list(needs)}, sort_keys=True, default=list)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    plain = json.loads(json.dumps(settings, default=list))
    return Experiment(name=f"{_slug(words)}-{digest}", job=job, settings=plain, needs=needs)


def _bare(backbone: str) -> str:
    return backbone.removeprefix(_RANDOM)


def _slug(words: str) -> str:
    last = words.rstrip("/").rpartition("/")[2].removesuffix(".json")
    return re.sub(r"[^\w.]+", "-", last.replace("%", "percent")).strip("-.")
