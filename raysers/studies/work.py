"""What one experiment does: train and score a model, or analyse those that were trained.

Trainings, annotations and perturbations run in the process of a trial; evaluation, fusion and probe
are jobs of their own, which use the whole cluster from the driver.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import ClipJobFlags, as_plain
from raysers.data.manifest import read_manifest
from raysers.engine.job import ClipJob
from raysers.engine.placement import here
from raysers.engine.plan import Placement
from raysers.errors import RaysersError
from raysers.evaluation.evaluate import EvaluateFlags, measure, read_labels, write
from raysers.evaluation.predictions import read_predictions
from raysers.io import storage
from raysers.robustness.summary import report as report_robustness
from raysers.robustness.task import RobustnessFlags, RobustnessTask
from raysers.run import Exit, Run, load_record
from raysers.studies.corpora import evaluation_uri, training_uri
from raysers.studies.experiments import Experiment
from raysers.studies.synthetic import network_uri
from raysers.training.config import TrainingFlags
from raysers.training.trainer import run_training
from raysers.tuning.resources import TrialResources
from raysers.tuning.space import SEARCHABLE, coerce
from raysers.tuning.trials import Report
from raysers.tuning.tuner import command_of
from raysers.words.fuse_train import FuseTrainFlags
from raysers.words.probe import ProbeFlags

#: Folders of a trained model with its scores of the evaluation clips, and what they are worth.
SCORED, MEASURED = "judged", "evaluated"
#: Of a result, seconds that earlier attempts have taken.
_EARLIER = "earlier_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the experiments of a study are, and how they run.

    Attributes:
        output: of the study.
        in_domain: the corpus others are compared with; empty: none.
        workers: of each training.
        resources: of the trials; None before the cluster is known.
    """

    output: str
    in_domain: str = ""
    workers: int = 1
    resources: TrialResources | None = None

    def uri(self, run: str) -> str:
        """Folder of an experiment."""
        return storage.join(self.output, "runs", run)

    @property
    def placement(self) -> Placement:
        """Where clips are scored: by workers of the trial, or in its own process."""
        if self.resources is None:
            return here(threads=1)
        return self.resources.placement or here(threads=self.resources.local.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The call of an experiment that runs in a trial."""

    run: Experiment
    place: Place

    def __call__(self, report: Report) -> dict[str, Any]:
        """Do it; returns what it took, earlier attempts included."""
        began_s = time.monotonic()
        result = IN_TRIALS[self.run.job](self.run, self.place, report)
        earlier_s = result.pop(_EARLIER, 0.0)
        return {"wall_s": round(earlier_s + time.monotonic() - began_s, 3), **result}


def training_flags(run: Experiment, place: Place) -> TrainingFlags:
    """Flags of a training.

    Raises:
        ConfigError: values that do not go together.
    """
    values = {
        name: coerce(f"run {run.name}", SEARCHABLE[name], value) if name in SEARCHABLE else value
        for name, value in run.settings["train"].items()
    }
    name = str(run.settings["backbone"])
    if run.settings["small"]:
        name = network_uri(place.output, name)
    flags = TrainingFlags(
        data=(training_uri(place.output),),
        output=place.uri(run.name),
        backbone=("random:" if run.settings["random"] else "") + name,
        workers=place.workers,
        **values,
    )
    flags.check()
    return flags


def _train(run: Experiment, place: Place, report: Report) -> dict[str, Any]:
    flags, resources = training_flags(run, place), place.resources
    began_s = time.monotonic()
    outcome = run_training(
        flags,
        as_plain(flags),
        on_epoch=lambda epoch: report({k: epoch[k] for k in ("epoch", "dev_ccc", "dev_ccc_mean")}),
        in_process=resources is None or resources.placement is None,
        local=resources.local if resources else None,
        placement=resources.placement if resources else None,
        command=command_of(flags),
    )
    epochs_s = sum(float(epoch["wall_s"]) for epoch in outcome.history)
    earlier_s = max(0.0, epochs_s - (time.monotonic() - began_s))
    _annotate_with(flags.output, storage.join(flags.output, SCORED), place, embeddings=False)
    _evaluate_alone(flags.output, place)
    document = _training_json(flags.output)
    return {
        _EARLIER: earlier_s,
        "audio_s": float(outcome.figures["audio_hours"]) * 3600,
        "device": document["placement"]["device"],
        "workers": document["placement"]["workers"],
        "dev_ccc_mean": dev_ccc_mean(document),
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
    settings = {"labels": [clips], "predictions": [scored], "in_domain": place.in_domain}
    with Run.open("evaluate", flags.output, table="metrics") as run:
        found = read_predictions(scored)
        labels = read_labels(flags, emotions=found.has_categories)
        report = measure(flags, labels, [found])
        run.begin({**settings, "output": flags.output}, settings)
        write(report, run, good=True)


def _annotate_with(model: str, output: str, place: Place, *, embeddings: bool) -> dict[str, Any]:
    flags = ClipJobFlags(input=(evaluation_uri(place.output),), output=output, model=model)
    with ClipJob.open(flags, "annotate", table=AnnotateTask.table) as job:
        task = AnnotateTask.load(
            flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s, embeddings=embeddings
        )
        job.prepare(task, placement=place.placement)
        _require_done(job.execute({**as_plain(flags), "embeddings": embeddings}), output)
    return _took(output)


def _require_done(code: int, output: str) -> None:
    if code != Exit.DONE:
        raise RaysersError(f"it ended with exit code {code}: see {output}")


def _annotate(run: Experiment, place: Place, _: Report) -> dict[str, Any]:
    (model, *_others), output = models_of(run, place), place.uri(run.name)
    embeddings = bool(run.settings["flags"].get("embeddings", True))
    return _annotate_with(model, output, place, embeddings=embeddings)


def _robustness(run: Experiment, place: Place, _: Report) -> dict[str, Any]:
    flags = RobustnessFlags(
        input=(evaluation_uri(place.output),),
        output=place.uri(run.name),
        model=models_of(run, place)[0],
        **run.job_flags,
    )
    with ClipJob.open(flags, "robustness", table=RobustnessTask.table) as job:
        task = RobustnessTask.load(flags, job.run.earlier)
        job.prepare(task, placement=place.placement)
        _require_done(job.execute(), flags.output)
        report_robustness(job, task, flags.comparison)
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


def models_of(run: Experiment, place: Place) -> tuple[str, ...]:
    """Folders of the models that an experiment analyses; where asked for, only the best on dev."""
    folders = tuple(map(place.uri, run.needs))
    if run.settings["best"]:  # the first of equals
        return (max(folders, key=lambda folder: dev_ccc_mean(_training_json(folder))),)
    return folders


def dev_ccc_mean(document: Mapping[str, Any]) -> float:
    """Mean dev CCC of the epoch that a training kept; -1 where it had no dev clips."""
    kept = document["history"][int(document["outcome"]["kept_epoch"]) - 1]["dev_ccc_mean"]
    return -1.0 if kept is None else float(kept)


def _training_json(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read_bytes(storage.join(model, "training.json")))
    return found


def has_transcripts(output: str) -> bool:
    """Whether any clip that is trained on has a transcript."""
    column = read_manifest(training_uri(output), ["transcript"])["transcript"]
    return bool(pc.any(pc.is_valid(column)).as_py())


def evaluate_flags(run: Experiment, place: Place) -> EvaluateFlags:
    """The flags of an evaluation of the models' scores."""
    flags = EvaluateFlags(
        predictions=tuple(storage.join(model, SCORED) for model in models_of(run, place)),
        labels=(evaluation_uri(place.output),),
        output=place.uri(run.name),
        in_domain=place.in_domain,
        **run.job_flags,
    )
    flags.check()
    return flags


def fuse_flags(run: Experiment, place: Place) -> FuseTrainFlags:
    """The flags of a fusion with the (first) model."""
    return FuseTrainFlags(
        data=(training_uri(place.output),),
        output=place.uri(run.name),
        model=models_of(run, place)[0],
        **run.job_flags,
    )


def probe_flags(run: Experiment, place: Place) -> ProbeFlags:
    """The flags of a probe; without the corpus where it has no transcripts."""
    data = (training_uri(place.output),) if has_transcripts(place.output) else ()
    flags = dict(run.job_flags)
    if not data:
        flags.pop("split", None)
    return ProbeFlags(model=models_of(run, place), output=place.uri(run.name), data=data, **flags)
