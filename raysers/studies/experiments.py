"""From studies to cells and experiments, and what an experiment does.

A cell is a line of a study's table. An experiment is work that is done once: its name follows from
its settings alone, so cells of any study point to the same one where they need the same. Trainings,
annotations and perturbations run in the process of a trial; evaluation, fusion and probe are jobs
that use the whole cluster from the driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import as_plain
from raysers.data.manifest import read_manifest
from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.evaluate import measure, read_labels, write
from raysers.evaluation.flags import EvaluateFlags
from raysers.evaluation.join import read_predictions
from raysers.io import storage
from raysers.models.backbones import CNN14, parse_model_name
from raysers.robustness.summary import report as report_robustness
from raysers.robustness.task import RobustnessFlags, RobustnessTask
from raysers.run import Exit, Run, load_record
from raysers.studies import synthetic
from raysers.studies.study import RANDOM, Flags, Study
from raysers.training.config import TrainingFlags
from raysers.training.trainer import run_training
from raysers.tuning.space import SEARCHABLE, coerce
from raysers.tuning.sweep import command_of
from raysers.tuning.trials import Report, TrialResources
from raysers.words.flags import FuseTrainFlags, ProbeFlags

#: Folders of a trained model with its scores of the evaluation clips, and what they are worth.
SCORED, MEASURED = "judged", "evaluated"
#: Of a result, seconds that earlier attempts have taken.
_EARLIER = "earlier_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Work that is done once, in the folder `runs/NAME`.

    `settings` is everything that decides its result beside the data, JSON-ready; `needs` names the
    experiments whose models it analyses.
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
    """The cells of all studies and the experiments they share; raises ConfigError."""
    runs: dict[str, Experiment] = {}
    cells: list[Cell] = []
    for study in studies:
        trained = list(_trainings(study, scale, runs))
        if study.job == "train":
            cells += trained
        elif study.together:
            cells.append(_analysis(study, trained, runs))
        else:
            cells += [_analysis(study, [one], runs) for one in trained]
    ordered = sorted(runs.values(), key=lambda run: run.job != "train")
    return Grid(cells=cells, runs={run.name: run for run in ordered})


def _trainings(study: Study, scale: str, runs: dict[str, Experiment]) -> Iterator[Cell]:
    for label, model in study.models.items():
        name = model.backbone.removeprefix(RANDOM)
        own = synthetic.small_flags(name) if scale == "small" else None
        small = own is not None
        shown = f"{label}-tiny" if small else label
        for value, changes in study.values.items():
            if model.only and value not in model.only:
                continue
            for seed in study.seeds:
                flags = {**study.train, **changes, **model.train, "seed": seed}
                random = model.backbone != name or name == CNN14 or small
                random = flags.pop("weights", "") == "random" or random
                _check_backbone(study.name, model.backbone, (RANDOM if random else "") + name)
                if scale == "small":
                    flags = {**synthetic.TRAIN, **(own or {}), **flags}
                settings = {"backbone": name, "random": random, "small": small, "train": flags}
                kind = "random-" if random and not small and name != CNN14 else ""
                run = _experiment(runs, "train", kind + name, settings, ())
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
                    run=run,
                    variant=" ".join(words),
                    labels={run: shown},
                )


def _check_backbone(study: str, given: str, name: str) -> None:
    try:
        if given.startswith("/") and not os.path.exists(given):
            raise ConfigError("it does not exist")
        parse_model_name(name)
    except ConfigError as error:
        raise ConfigError(f"--study {study}: key 'models': {given!r}: {error}") from error


def _analysis(study: Study, trained: Sequence[Cell], runs: dict[str, Experiment]) -> Cell:
    needs = tuple(dict.fromkeys(cell.run for cell in trained))
    one, alone = trained[0], len(trained) == 1
    words = f"{study.job}-{one.model if alone else study.name}"
    names = [cell.model for cell in trained]
    made = replace(
        one,
        cell=one.cell if alone else "all",
        job=study.job,
        run=_experiment(runs, study.job, words, {"flags": dict(study.flags)}, needs),
        variant="",
        labels={  # with what tells them apart where they are repeated
            cell.run: cell.model if names.count(cell.model) == 1 else f"{cell.model} {cell.variant}"
            for cell in trained
        },
    )
    return made if alone else replace(made, model="", factor_value="", seed=None)


def _experiment(
    runs: dict[str, Experiment], job: str, words: str, settings: Flags, needs: tuple[str, ...]
) -> str:
    """The name of the experiment with these settings, which is added if it is new."""
    text = json.dumps({"job": job, **settings, "needs": list(needs)}, sort_keys=True, default=list)
    name = f"{_slug(words)}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    plain = json.loads(json.dumps(settings, default=list))
    runs.setdefault(name, Experiment(name=name, job=job, settings=plain, needs=needs))
    return name


def _slug(words: str) -> str:
    last = words.rstrip("/").rpartition("/")[2].removesuffix(".json")
    return re.sub(r"[^\w.]+", "-", last.replace("%", "percent")).strip("-.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the experiments of a study are, and how they run.

    `in_domain` is the corpus others are compared with, if any; `workers` are of each training;
    `scorers` of analyses on the whole cluster; `resources` are a process before that is known.
    """

    output: str
    in_domain: str = ""
    workers: int = 1
    scorers: int | Literal["local"] = 0
    resources: TrialResources = field(
        default_factory=lambda: TrialResources(at_once=1, cpus_each=1)
    )

    def uri(self, run: str) -> str:
        """Folder of an experiment."""
        return storage.join(self.output, "runs", run)


def training_uri(output: str) -> str:
    """Folder of the manifest that is trained on."""
    return storage.join(output, "corpora", "training")


def evaluation_uri(output: str) -> str:
    """Folder of the manifest that models are evaluated on."""
    return storage.join(output, "corpora", "judged")


def work(run: Experiment, place: Place, report: Report) -> dict[str, Any]:
    """Do an experiment that runs in a trial; returns what it took, earlier attempts included."""
    began_s = time.monotonic()
    result = IN_TRIALS[run.job](run, place, report)
    earlier_s = result.pop(_EARLIER, 0.0)
    return {"wall_s": round(earlier_s + time.monotonic() - began_s, 3), **result}


def training_flags(run: Experiment, place: Place) -> TrainingFlags:
    """Flags of a training; raises ConfigError for values that do not go together."""
    values = {
        name: coerce(f"run {run.name}", SEARCHABLE[name], value) if name in SEARCHABLE else value
        for name, value in run.settings["train"].items()
    }
    name = str(run.settings["backbone"])
    if run.settings["small"]:
        name = synthetic.network_uri(place.output, name)
    flags = TrainingFlags(
        data=(training_uri(place.output),),
        output=place.uri(run.name),
        backbone=(RANDOM if run.settings["random"] else "") + name,
        workers=place.workers,
        **values,
    )
    flags.check()
    return flags


def _train(run: Experiment, place: Place, report: Report) -> dict[str, Any]:
    flags = training_flags(run, place)
    began_s = time.monotonic()
    outcome = run_training(
        flags,
        as_plain(flags),
        on_epoch=lambda epoch: report({k: epoch[k] for k in ("epoch", "dev_ccc", "dev_ccc_mean")}),
        placement=place.resources.placement,
        processes_here=place.resources.processes_here,
        command=command_of(flags),
    )
    epochs_s = sum(float(epoch["wall_s"]) for epoch in outcome.history)
    earlier_s = max(0.0, epochs_s - (time.monotonic() - began_s))
    _annotate_with(flags.output, storage.join(flags.output, SCORED), place, embeddings=False)
    _evaluate_alone(flags.output, place)
    document = training_json(flags.output)
    return {
        _EARLIER: earlier_s,
        "audio_s": float(outcome.figures["audio_hours"]) * 3600,
        "device": document["placement"]["device"],
        "workers": document["placement"]["workers"],
        "dev_ccc_mean": document["history"][document["outcome"]["kept_epoch"] - 1]["dev_ccc_mean"],
    }


def _evaluate_alone(model: str, place: Place) -> None:
    """Measure a model's scores of the evaluation clips as the evaluate job does, beside them."""
    scored, clips = storage.join(model, SCORED), evaluation_uri(place.output)
    flags = EvaluateFlags(
        labels=(clips,),
        output=storage.join(model, MEASURED),
        predictions=(scored,),
        in_domain=place.in_domain,
    )
    with Run.open("evaluate", flags.output, table="metrics") as run:
        found = read_predictions(scored)
        labels = read_labels(flags, emotions=found.has_categories)
        report = measure(flags, labels, [found])
        run.begin(as_plain(flags), flags.settings)
        write(report, run, good=True)


def _annotate_with(model: str, output: str, place: Place, *, embeddings: bool) -> dict[str, Any]:
    flags = ClipJobFlags(input=(evaluation_uri(place.output),), output=output, model=model)
    with ClipJob.open(flags, "annotate", table=AnnotateTask.table) as job:
        task = AnnotateTask.load(
            flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s, embeddings=embeddings
        )
        job.prepare(task, placement=place.resources.placement)
        _require_done(job.execute({**as_plain(flags), "embeddings": embeddings}), output)
    return _took(output)


def _require_done(code: int, output: str) -> None:
    if code != Exit.DONE:
        raise RaysersError(f"it ended with exit code {code}: see {output}")


def _annotate(run: Experiment, place: Place, _: Report) -> dict[str, Any]:
    model, output = place.uri(run.needs[0]), place.uri(run.name)
    return _annotate_with(model, output, place, **{"embeddings": True, **run.job_flags})


def _robustness(run: Experiment, place: Place, _: Report) -> dict[str, Any]:
    flags = RobustnessFlags(
        input=(evaluation_uri(place.output),),
        output=place.uri(run.name),
        model=place.uri(run.needs[0]),
        **run.job_flags,
    )
    with ClipJob.open(flags, "robustness", table=RobustnessTask.table) as job:
        task = RobustnessTask.load(flags, job.run.earlier)
        job.prepare(task, placement=place.resources.placement)
        _require_done(job.execute(), flags.output)
        report_robustness(job, task, flags)
    return _took(flags.output)


#: By job, the function of those that run in trials.
IN_TRIALS: Mapping[str, Callable[[Experiment, Place, Report], dict[str, Any]]] = {
    "train": _train,
    "annotate": _annotate,
    "robustness": _robustness,
}


def _took(output: str) -> dict[str, Any]:
    record = load_record(output)
    outcome = (record.outcome if record else None) or {}
    before = [one.get("outcome") or {} for one in (record.history if record else ())]
    return {
        "audio_s": sum(float(part.get("audio_s", 0.0)) for part in (outcome, *before)),
        _EARLIER: sum(float(part.get("wall_s", 0.0)) for part in before),
    }


def training_json(model: str) -> dict[str, Any]:
    """What a training says of itself."""
    found: dict[str, Any] = json.loads(storage.read_bytes(storage.join(model, "training.json")))
    return found


def analysis_flags(run: Experiment, place: Place) -> EvaluateFlags | FuseTrainFlags | ProbeFlags:
    """The flags of the job that does an experiment on the whole cluster."""
    models, output, own = tuple(map(place.uri, run.needs)), place.uri(run.name), run.job_flags
    if run.job == "evaluate":
        scored = tuple(storage.join(model, SCORED) for model in models)
        labels = (evaluation_uri(place.output),)
        return EvaluateFlags(
            predictions=scored, labels=labels, output=output, in_domain=place.in_domain, **own
        )
    data: tuple[str, ...] = (training_uri(place.output),)
    own["workers"] = place.scorers
    if run.job == "fuse":
        return FuseTrainFlags(data=data, output=output, model=models[0], **own)
    spoken = read_manifest(data[0], ["transcript"])["transcript"]
    if not pc.any(pc.is_valid(spoken)).as_py():  # sentences alone
        data = ()
        own.pop("split", None)
    return ProbeFlags(model=models, output=output, data=data, **own)
