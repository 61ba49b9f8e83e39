"""What a study has to do, checked before anything is written, and what it would cost.

One output may take more studies later: their files are kept in OUTPUT/studies, and what they have
in common with earlier ones is not run again. The corpora stay those of the first command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import pyarrow.compute as pc

from raysers.arguments import Flag
from raysers.cli import Output, Uris
from raysers.data.manifest import is_manifest, read_manifest
from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.errors import ConfigError, ObjectMissing, RaysersError, RefusedError
from raysers.io import storage
from raysers.models.backbones import parse_model_name
from raysers.robustness.task import SUITES
from raysers.run import Run, RunRecord
from raysers.studies import corpora as study_corpora
from raysers.studies import synthetic
from raysers.studies.corpora import Corpora
from raysers.studies.experiments import (
    IN_TRIALS,
    Experiment,
    Grid,
    Place,
    make_grid,
    training_flags,
)
from raysers.studies.study import Study, in_order, read_studies, read_study
from raysers.training import plan as training_plan
from raysers.training.config import Rule
from raysers.tuning.resources import TrialFlags, find_resources, measure_speed
from raysers.tuning.trials import stored

JOB = "study"
#: Version of what a study does with its settings; another one never resumes its cells.
STUDY_VERSION = 3
#: Forward passes that take as long as a training step on the same audio.
_FORWARDS = 3
#: Text models and recognisers that come with packages, and `manifest` for none.
_OFFLINE = ("minilm", "moonshine", "manifest")
#: Packages without which a job cannot do all of its work.
_PACKAGES = {"probe": ("espeakng_loader", "wordcloud"), "annotate": ("sklearn",)}


@dataclass(frozen=True, kw_only=True)
class _Studies:
    """Studies and their data."""

    study: Annotated[tuple[str, ...], Flag("NAME_OR_FILE")]
    """Built-in studies, `paper` for all of them, or YAML files like theirs."""
    output: Output
    """Folder or s3:// prefix for all runs and tables; rerun the command to resume there."""
    data: Uris = ()
    """Labelled corpora: the first is trained on, the others are for cross-corpus figures. With
    --scale small and none, synthetic corpora are used."""
    scale: Literal["full", "small"] = "full"
    """small: narrow networks in place of the paper's, for one small machine (local --output)."""
    in_domain: tuple[str, ...] = ()
    """Names of the corpora to train on, in place of those of the first --data."""
    emotion_map: str = "auto"
    """Labels from emotion categories: auto takes russell-mehrabian for corpora without any label,
    none never does; or a map as `raysers train` takes it."""
    speakers: str = ""
    """CSV with the `sex` of every `speaker` or `video`, for data that does not say."""
    limit: int = 0
    """Only N clips of each corpus, spread evenly; 0 takes all."""
    max_failed_cells: float = 0.0
    """Highest share of failed cells before the job ends with exit code 3."""


@dataclass(frozen=True, kw_only=True)
class StudyFlags(TrialFlags, _Studies):
    """All flags of the study job."""

    def rules(self) -> Iterator[Rule]:
        """Those of trials last."""
        yield bool(self.study), "--study", "a study, or paper for all of them"
        yield bool(self.output), "--output", "a folder or an s3:// prefix"
        given = bool(self.data) or self.scale == "small"
        yield given, "--data", "labelled corpora (only --scale small makes its own)"
        local = self.scale == "full" or not storage.is_remote(self.output)
        yield local, "--output", "a local folder with --scale small"
        yield self.limit >= 0, "--limit", "0 or more"
        share = 0 <= self.max_failed_cells <= 1
        yield share, "--max-failed-cells", "a share from 0 to 1"
        yield from super().rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """A study that can begin or resume.

    Attributes:
        flags: with absolute paths.
        wanted: names of the studies of this command.
        studies: those, and the ones the output holds from before.
        grid: cells and experiments of all of them.
        settings: everything that decides the experiments.
        earlier: the record of the run that is resumed, if any.
    """

    flags: StudyFlags
    wanted: Sequence[str]
    studies: Sequence[Study]
    grid: Grid
    settings: dict[str, Any]
    earlier: RunRecord | None

    @property
    def place(self) -> Place:
        """Where the experiments are, before corpora and cluster are known."""
        return Place(
            output=self.flags.output,
            workers=self.flags.workers_per_trial,
            # workers of their own take longer to start than to score so little
            scorers="local" if self.flags.scale == "small" else 0,
        )

    @property
    def small_networks(self) -> set[str]:
        """Aliases of the small networks that are trained."""
        runs = self.grid.runs.values()
        return {str(run.settings["backbone"]) for run in runs if run.settings.get("small")}

    def left(self) -> list[Experiment]:
        """The experiments that are not over."""
        return [
            run
            for run in self.grid.runs.values()
            if (known := stored(self.place.uri(run.name))) is None
            or not known.is_final(self.flags.retries)
        ]


def make_plan(flags: StudyFlags, run: Run) -> StudyPlan:
    """Read studies and folder; nothing of the corpora yet.

    Raises ConfigError: a study file, with its key; RefusedError: the output holds these studies
    with other values.
    """
    names = ("scale", "data", "in_domain", "emotion_map", "speakers", "limit")
    values = {name: getattr(flags, name) for name in names}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    settings["study_version"] = STUDY_VERSION
    wanted = read_studies(flags.study, flags.scale)
    kept: dict[str, Study] = {}
    if run.earlier is not None:
        run.refuse_other_settings(settings | {"corpora": run.earlier.settings.get("corpora")})
        with contextlib.suppress(ObjectMissing):
            folder = storage.join(flags.output, "studies")
            for one in storage.list_objects(folder, suffixes={".yaml"}):
                study = read_study(one.uri, "full")
                kept[study.name] = study
    for study in wanted:
        earlier = kept.pop(study.name, study)
        keys = [f.name for f in fields(Study) if f.name != "about"]
        differing = [key for key in keys if getattr(study, key) != getattr(earlier, key)]
        if differing:
            raise RefusedError(
                f"--output {flags.output} holds the study {study.name} with other "
                f"{', '.join(differing)}: give the study another name, or choose another folder"
            )
    studies = in_order([*wanted, *kept.values()])
    plan = StudyPlan(
        flags=flags,
        wanted=[study.name for study in wanted],
        studies=studies,
        grid=make_grid(studies, flags.scale),
        settings=settings,
        earlier=run.earlier,
    )
    for cell in plan.grid.cells:  # values that do not go together, before any is trained
        if cell.job == "train":
            try:
                training_flags(plan.grid.runs[cell.run], plan.place)
            except ConfigError as error:
                raise ConfigError(f"--study {cell.study}: cell {cell.cell}: {error}") from error
    return plan


def load_corpora(plan: StudyPlan, folder: str) -> Corpora:
    """The corpora on the connected cluster: as the first command left them, or read now.

    Synthetic speech that a small study needs goes to `folder`. Raises ConfigError: data that cannot
    be used; RaysersError: those of the first command are lost or changed.
    """
    flags = plan.flags
    if plan.earlier is not None:
        known = plan.earlier.settings["corpora"]
        uris = study_corpora.training_uri(flags.output), study_corpora.evaluation_uri(flags.output)
        if not all(map(is_manifest, uris)):
            raise RaysersError(
                f"{flags.output} has lost its corpora: start again in another folder"
            )
        corpora = Corpora(
            training=read_manifest(uris[0]),
            judged=read_manifest(uris[1]),
            **{key: tuple(known[key]) for key in ("home", "others", "notes")},
        )
        if corpora.fingerprint != known["fingerprint"]:
            raise RaysersError(
                f"the corpora in {flags.output} are not those its run.json names: they were "
                "changed from outside; start again in another folder"
            )
        return corpora
    found, firsts, notes = study_corpora.read_corpora(
        flags.data, emotion_map=flags.emotion_map, speakers=flags.speakers
    )
    if flags.scale == "small" and len(flags.data) < 2:  # at least two corpora
        made = [synthetic.HOME] if flags.data else [synthetic.HOME, synthetic.CROSS_CORPUS]
        found |= synthetic.make_speech(made, folder)
        firsts = firsts or [synthetic.HOME.name]
        notes.append(
            f"{', '.join(one.name for one in made)}: spoken by espeak-ng with invented emotions; "
            "figures prove that the way works, nothing about emotion in voices"
        )
    home = list(flags.in_domain) or firsts
    for name in home:
        if name not in found:
            raise ConfigError(f"--in-domain {name}: the corpora are {', '.join(found)}")
    return study_corpora.arrange(found, home, notes, flags.limit)


def missing(plan: StudyPlan, corpora: Corpora) -> dict[str, str]:
    """What the studies of this command need and this machine does not have, by study."""
    spoken = pc.any(pc.is_valid(corpora.training["transcript"])).as_py()
    found: dict[str, str] = {}
    checked: dict[str, str] = {}
    for study in plan.studies:
        if study.name not in plan.wanted:
            continue
        packages = _PACKAGES.get(study.job, ())
        lacks = [f"package {name}" for name in packages if not importlib.util.find_spec(name)]
        if not spoken and (study.job == "probe" or study.flags.get("asr") == "manifest"):
            lacks.append(f"transcripts of {', '.join(corpora.home)}")
        for hub_id in _hub_ids(study, plan.flags.scale):
            if hub_id not in checked:
                checked[hub_id] = _hub_error(hub_id)
            lacks += [checked[hub_id]] if checked[hub_id] else []
        if lacks:
            found[study.name] = "; ".join(lacks)
    return found


def _hub_ids(study: Study, scale: str) -> list[str]:
    """Models of the hub that a study loads."""
    texts = [str(study.flags[key]) for key in ("text_model", "asr") if key in study.flags]
    found = [name for name in texts if name not in _OFFLINE and not name.startswith(("/", "s3:"))]
    if scale == "full":
        models = [parse_model_name(model.backbone) for model in study.models.values()]
        found += [model.hub_id for model in models if model.hub_id and not model.random]
    return list(dict.fromkeys(found))


def _hub_error(hub_id: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(hub_id, "config.json", etag_timeout=5)
    except Exception as error:  # the library's own errors, and those of its HTTP client
        return f"hub model {hub_id} ({type(error).__name__})"
    return ""


def print_plan(plan: StudyPlan, corpora: Corpora) -> None:
    """Cells, corpora and what is missing, before the study starts."""
    grid, others = plan.grid, ", ".join(corpora.others) or "no other"
    pairs = {
        "studies": ", ".join(plan.wanted),
        "cells": f"{len(grid.cells)}, {len(grid.runs)} runs, {len(plan.left())} of them left",
        "corpora": f"trained on {', '.join(corpora.home)}; also evaluated on {others}",
    }
    print_pairs("study", pairs)
    for name, lacks in missing(plan, corpora).items():
        print_warning(f"study {name} lacks {lacks}: its cells will fail or be incomplete")


def print_estimate(plan: StudyPlan) -> None:
    """A line for every experiment that is left, and their sum, measured on a few batches.

    One training of each backbone is measured; scoring is counted at three times its speed, and
    evaluation, fusion and probe are not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        corpora = load_corpora(plan, folder)
        print_plan(plan, corpora)
        left = plan.left()
        resources = find_resources(max(1, len(left)), plan.flags)
        synthetic.write_networks(folder, plan.small_networks)
        place = replace(plan.place, output=folder)
        speeds: dict[str, float] = {}
        total_s = 0.0
        lines: dict[str, str] = {}
        for run in left:
            if run.job not in IN_TRIALS:
                lines[run.name] = f"{run.job}, not estimated"
                continue
            training = plan.grid.runs[run.needs[0]] if run.needs else run
            backbone = str(training.settings["backbone"])
            try:
                flags, _ = training_plan.inspect(training_flags(training, place))
                if backbone not in speeds:
                    speeds[backbone] = measure_speed(flags, corpora.training, resources)
            except RaysersError as error:
                lines[run.name] = f"cannot be measured: {error}"
                continue
            audio_s = _audio_s(run, flags.epochs, corpora)
            seconds = audio_s / speeds[backbone]
            total_s += seconds
            lines[run.name] = f"{hours(audio_s)} of audio, {duration(seconds)}"
    print_pairs("estimate (nothing was written)", lines)
    usd = plan.flags.usd_per_hour * total_s / 3600
    pairs = {
        "places": resources.words,
        "of one place": duration(total_s) + (f", {usd:,.2f} USD" if usd else ""),
        "in all": f"about {duration(total_s / resources.at_once)}",
    }
    print_pairs("all", pairs)


def _audio_s(run: Experiment, epochs: int, corpora: Corpora) -> float:
    """Audio of a run in seconds of training."""
    scored_s = float(pc.sum(corpora.judged["duration_s"]).as_py() or 0.0) / _FORWARDS
    if run.job == "train":
        train = corpora.training.filter(pc.equal(corpora.training["split"], "train"))
        share = float(run.settings["train"].get("train_fraction", 1.0))
        return epochs * share * float(pc.sum(train["duration_s"]).as_py() or 0.0) + scored_s
    flags = run.settings["flags"]
    names = flags.get("perturbations") or SUITES[flags.get("suite", "paper")]
    return scored_s * (1 + len(names) if run.job == "robustness" else 1)
