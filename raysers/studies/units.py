"""What the trial of a cell does: train and judge a model, or look at one that was trained.

All of it happens in the trial's own process. What a run needs is done before it gets a place, so
nothing waits while it holds one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import ClipJobFlags, as_plain
from raysers.data.manifest import read_manifest
from raysers.engine.job import ClipJob
from raysers.engine.placement import here
from raysers.engine.plan import Placement
from raysers.errors import RaysersError
from raysers.evaluation import runs
from raysers.evaluation.flags import EvaluateFlags
from raysers.evaluation.predictions import read_predictions
from raysers.io import storage
from raysers.models import checkpoint, loading
from raysers.models.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE
from raysers.models.initialize import is_head
from raysers.robustness.flags import RobustnessFlags
from raysers.robustness.summary import report as report_robustness
from raysers.robustness.task import RobustnessTask
from raysers.run import Exit, Run, load_record
from raysers.studies import networks
from raysers.studies.corpora import evaluation_uri, training_uri
from raysers.studies.experiments import PRETRAIN, Experiment
from raysers.training.config import TrainingFlags
from raysers.training.trainer import LocalResources, run_training
from raysers.tuning.resources import TrialResources
from raysers.tuning.trial import command_of
from raysers.tuning.trials import Report
from raysers.tuning.values import SEARCHABLE, coerce
from raysers.words.fusion_flags import FuseTrainFlags
from raysers.words.probe import ProbeFlags

#: Folders of a trained model with its scores of the judged clips, and what they are worth.
SCORED, MEASURED = "judged", "evaluated"
#: Folder of a beginning's network without its head.
BACKBONE = "backbone"

_ANNOTATE, _EVALUATE, _ROBUSTNESS = "annotate", "evaluate", "robustness"
#: Of a result, seconds of its work that earlier attempts have done.
_EARLIER = "earlier_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the runs of a study are, and how they run.

    Attributes:
        output: of the study.
        in_domain: the corpus others are compared with; empty: none.
        workers: of each training.
        retries: how often a run may fail.
        resources: of the trials; None before the cluster is known.
    """

    output: str
    in_domain: str
    workers: int = 1
    retries: int = 0
    resources: TrialResources | None = None

    def uri(self, run: str) -> str:
        """Folder of a run."""
        return storage.join(self.output, "runs", run)

    @property
    def local(self) -> LocalResources:
        """Of the trial's own process."""
        return (self.resources and self.resources.local) or LocalResources()

    @property
    def placement(self) -> Placement:
        """Where clips are scored: by workers of the trial, or in its own process."""
        if self.resources is not None and self.resources.placement is not None:
            return self.resources.placement
        return here(threads=self.local.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The call of a run, for `trials.Piece`."""

    run: Experiment
    place: Place

    def __call__(self, report: Report) -> dict[str, Any]:
        """Do it; returns what it took."""
        began = time.monotonic()
        result = _CALLS[self.run.job](self.run, self.place, report)
        earlier_s = result.pop(_EARLIER, 0.0)
        return {"wall_s": round(earlier_s + time.monotonic() - began, 3), **result}


def training_flags(run: Experiment, place: Place) -> TrainingFlags:
    """Flags of a run's training.

    Raises:
        ConfigError: values that do not go together.
    """
    values = {
        name: coerce(f"run {run.name}", name, value) if name in SEARCHABLE else value
        for name, value in run.settings["train"].items()
    }
    data = training_uri(place.output)
    if run.job == PRETRAIN:
        data = storage.join(place.output, "corpora", f"begin-{run.settings['speech']}")
    flags = TrainingFlags(
        data=(data,),
        output=place.uri(run.name),
        backbone=backbone_of(run, place),
        workers=place.workers,
        **values,
    )
    flags.check()
    return flags


def flags_without_paths(run: Experiment) -> TrainingFlags:
    """As `training_flags`, for callers that need numbers only."""
    return training_flags(run, Place(output="/study", in_domain=""))


def backbone_of(run: Experiment, place: Place) -> str:
    """What `--backbone` of the run's training says."""
    name = str(run.settings["backbone"])
    prefix = "random:" if run.settings["random"] else ""
    if not run.settings["small"]:
        return prefix + name
    if run.settings["random"]:
        return prefix + networks.network_uri(place.output, name)
    return storage.join(place.uri(run.needs[0]), BACKBONE)


def _begin(run: Experiment, place: Place, report: Report) -> dict[str, Any]:
    """Train on other speech and keep what lies below the head."""
    result = _trained(run, place, report)
    folder = Path(place.uri(run.name))
    config = checkpoint.read_json(folder / CONFIG_FILE)
    bare = {k: v for k, v in config.items() if k not in ("id2label", "label2id", "architectures")}
    found = loading.read_weights([folder / WEIGHTS_FILE])
    with tempfile.TemporaryDirectory() as place_of_weights:
        file = Path(place_of_weights) / WEIGHTS_FILE
        below = {key: value for key, value in found.items() if not is_head(key)}
        loading.write_weights(below, file)
        contents = {
            PREPROCESSOR_FILE: storage.read_bytes(str(folder / PREPROCESSOR_FILE)),
            WEIGHTS_FILE: file.read_bytes(),
            CONFIG_FILE: (json.dumps(bare, indent=2, sort_keys=True) + "\n").encode(),
        }
    for name, content in contents.items():
        storage.write_atomic(storage.join(str(folder), BACKBONE, name), content)
    return result


def _train(run: Experiment, place: Place, report: Report) -> dict[str, Any]:
    result = _trained(run, place, report)
    model = place.uri(run.name)
    _annotate_with(model, storage.join(model, SCORED), place, embeddings=False)
    judge(model, place)
    return result


def _trained(run: Experiment, place: Place, report: Report) -> dict[str, Any]:
    flags = training_flags(run, place)
    resources, began = place.resources, time.monotonic()
    outcome = run_training(
        flags,
        as_plain(flags),
        on_epoch=lambda record: report(
            {"epoch": record["epoch"], "dev_ccc_mean": record["dev_ccc_mean"]}
        ),
        in_process=resources is None or resources.placement is None,
        local=place.local,
        placement=resources.placement if resources else None,
        command=command_of(flags),
    )
    document = _document(flags.output)
    epochs_s = sum(float(record["wall_s"]) for record in outcome.history)
    return {
        _EARLIER: max(0.0, epochs_s - (time.monotonic() - began)),
        "audio_s": float(outcome.figures["audio_hours"]) * 3600,
        "device": document["placement"]["device"],
        "workers": document["placement"]["workers"],
        "dev_ccc_mean": dev_ccc_mean(document),
    }


def judge(model: str, place: Place) -> None:
    """Measure a model's scores of the judged clips as the evaluate job does, beside them.

    Raises:
        ConfigError: scores and labels do not fit together.
    """
    scored, output = storage.join(model, SCORED), storage.join(model, MEASURED)
    clips = evaluation_uri(place.output)
    flags = EvaluateFlags(
        labels=(clips,), output=output, predictions=(scored,), in_domain=place.in_domain
    )
    settings = {"labels": [clips], "predictions": [scored], "in_domain": place.in_domain}
    with Run.open(_EVALUATE, output, table="metrics") as run:
        found = read_predictions(scored)
        labels = runs.read_labels(flags, emotions=found.has_categories)
        report = runs.measure(flags, labels, [found])
        run.begin({**settings, "output": output}, settings)
        runs.write(report, run, good=True)


def _annotate_with(model: str, output: str, place: Place, *, embeddings: bool) -> dict[str, Any]:
    flags = ClipJobFlags(input=(evaluation_uri(place.output),), output=output, model=model)
    with ClipJob.open(flags, _ANNOTATE, table=AnnotateTask.table) as job:
        task = AnnotateTask.load(
            flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s, embeddings=embeddings
        )
        job.prepare(task, placement=place.placement)
        _require_done(job, job.execute({**as_plain(flags), "embeddings": embeddings}))
    return _took(flags.output)


def _require_done(job: ClipJob, code: Exit) -> None:
    if code != Exit.DONE:
        raise RaysersError(f"too many clips have no scores: see {job.run.output}")


def _annotate(run: Experiment, place: Place, _: Report) -> dict[str, Any]:
    chosen = best_run(run, place)
    model = place.uri(chosen)
    output = place.uri(run.name)
    took = _annotate_with(
        model, output, place, embeddings=bool(run.settings["flags"].get("embeddings", True))
    )
    return {**took, "looked_at": chosen}


def _robustness(run: Experiment, place: Place, _: Report) -> dict[str, Any]:
    chosen = best_run(run, place)
    flags = RobustnessFlags(
        input=(evaluation_uri(place.output),),
        output=place.uri(run.name),
        model=place.uri(chosen),
        **run.job_flags,
    )
    with ClipJob.open(flags, _ROBUSTNESS, table=RobustnessTask.table) as job:
        task = RobustnessTask.load(flags, job.run.earlier)
        job.prepare(task, placement=place.placement)
        _require_done(job, job.execute())
        report_robustness(job, task, flags.comparison)
    return {**_took(flags.output), "looked_at": chosen}


def best_run(run: Experiment, place: Place) -> str:
    """The run whose model is looked at: the best on dev, the first of equals."""
    scores = {name: dev_ccc_mean(_document(place.uri(name))) for name in run.needs}
    return max(run.needs, key=lambda name: scores[name])


def dev_ccc_mean(document: Mapping[str, Any]) -> float:
    """Mean dev CCC of the epoch that a training kept; -1 where it had no dev clips."""
    kept = document["history"][int(document["outcome"]["kept_epoch"]) - 1]["dev_ccc_mean"]
    return -1.0 if kept is None else float(kept)


def _took(output: str) -> dict[str, Any]:
    record = load_record(output)
    outcome = (record.outcome if record else None) or {}
    before = [one.get("outcome") or {} for one in (record.history if record else ())]
    return {
        "audio_s": sum(float(part.get("audio_s", 0.0)) for part in (outcome, *before)),
        _EARLIER: sum(float(part.get("wall_s", 0.0)) for part in before),
    }


def _document(model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read_bytes(storage.join(model, "training.json")))
    return found


def _analysed(run: Experiment, place: Place) -> tuple[str, ...]:
    """Models that a run analyses: the best where the study asks for it, else all."""
    chosen = (best_run(run, place),) if run.settings["best"] else run.needs
    return tuple(map(place.uri, chosen))


def evaluate_flags(run: Experiment, place: Place) -> EvaluateFlags:
    """The flags of an evaluation of the models' scores."""
    flags = EvaluateFlags(
        predictions=tuple(storage.join(model, SCORED) for model in _analysed(run, place)),
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
        model=_analysed(run, place)[0],
        **run.job_flags,
    )


def probe_flags(run: Experiment, place: Place) -> ProbeFlags:
    """The flags of a probe; without the corpus where it has no transcripts."""
    data = training_uri(place.output)
    spoken = pc.any(pc.is_valid(read_manifest(data, ["transcript"])["transcript"])).as_py()
    return ProbeFlags(
        model=_analysed(run, place),
        output=place.uri(run.name),
        data=(data,) if spoken else (),
        **run.job_flags,
    )


_CALLS: Mapping[str, Callable[[Experiment, Place, Report], dict[str, Any]]] = {
    PRETRAIN: _begin,
    "train": _train,
    _ROBUSTNESS: _robustness,
    _ANNOTATE: _annotate,
}
#: Jobs that run in trials; the others use the whole cluster, one after another.
IN_TRIALS = tuple(_CALLS)
