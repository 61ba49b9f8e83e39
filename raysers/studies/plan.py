"""What a study has to do, checked before anything is written, and what it would cost.

One output may take more studies later: their files are kept in OUTPUT/studies, and what they have
in common with earlier ones is not run again. The corpora stay those of the first command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pyarrow.compute as pc

from raysers.arguments import Flag
from raysers.cli import Output, Uris
from raysers.data.manifest import is_manifest, read_manifest
from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.errors import ConfigError, ObjectMissing, RaysersError, RefusedError
from raysers.io import storage
from raysers.models.backbones import parse_model_name
from raysers.robustness.suites import SUITES
from raysers.run import Run, RunRecord, absolute_output
from raysers.studies import corpora as study_corpora
from raysers.studies import synthetic
from raysers.studies.corpora import Corpora
from raysers.studies.experiments import Experiment, Grid, make_grid
from raysers.studies.study import (
    Study,
    in_order,
    read_studies,
    read_study,
    with_absolute_backbones,
)
from raysers.studies.work import IN_TRIALS, Place, training_flags
from raysers.training import plan as training_plan
from raysers.tuning.resources import find_resources, measure_speed
from raysers.tuning.trials import stored

JOB = "study"
#: Version of what a study does with its settings; another one never resumes its cells.
STUDY_VERSION = 2
#: Forward passes that take as long as a training step on the same audio.
_FORWARDS = 3
#: Text models and recognisers that come with packages, and `manifest` for none.
_OFFLINE = ("minilm", "moonshine", "manifest")
#: Packages without which a job cannot do all of its work.
_PACKAGES = {"probe": ("espeakng_loader", "wordcloud"), "annotate": ("sklearn",)}


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """All flags of the study job."""

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
    workers_per_trial: int = 1
    """Training workers of each cell; one trains without Ray Train, which saves its start."""
    max_concurrent: int = 0
    """Cells at once; 0: as many as the cluster has room for."""
    retries: int = 1
    """How often a cell may fail before it is recorded as failed and the others continue. The same
    command again tries those whose process died, or that had no hub, package or disk."""
    max_failed_cells: float = 0.0
    """Highest share of failed cells before the job ends with exit code 3."""
    usd_per_hour: float = 0.0
    """With --dry-run: price of one cell's place (CPUs or GPUs) per hour."""
    dry_run: bool = False
    """Print the cells with an estimate of time and cost, and write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        for good, flag, wanted in _rules(self):
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                raise ConfigError(f"{flag} is {value or 'empty'}: give {wanted}")


def _rules(flags: StudyFlags) -> Iterator[tuple[bool, str, str]]:
    yield bool(flags.study), "--study", "a study, or paper for all of them"
    yield bool(flags.output), "--output", "a folder or an s3:// prefix"
    given = bool(flags.data) or flags.scale == "small"
    yield given, "--data", "labelled corpora (only --scale small makes up its own)"
    local = flags.scale == "full" or not storage.is_remote(flags.output)
    yield local, "--output", "a local folder with --scale small"
    for name in ("limit", "max_concurrent", "retries", "usd_per_hour"):
        yield getattr(flags, name) >= 0, "--" + name.replace("_", "-"), "0 or more"
    yield flags.workers_per_trial >= 1, "--workers-per-trial", "1 or more"
    share = 0 <= flags.max_failed_cells <= 1
    yield share, "--max-failed-cells", "a share from 0 to 1"


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

    def place(self, corpora: Corpora | None = None) -> Place:
        """Where the experiments are, before the cluster is known."""
        return Place(
            output=self.flags.output,
            in_domain=corpora.in_domain if corpora else "",
            workers=self.flags.workers_per_trial,
        )

    def left(self) -> list[Experiment]:
        """The experiments that are not over."""
        records = {name: stored(self.place().uri(name)) for name in self.grid.runs}
        return [
            run
            for run in self.grid.runs.values()
            if (known := records[run.name]) is None or not known.is_final(self.flags.retries)
        ]


def with_absolute_paths(flags: StudyFlags) -> StudyFlags:
    """The flags, checked, with places that mean the same in every process of the cluster.

    Raises:
        ConfigError: a flag has an impossible value.
    """
    flags.check()
    return replace(
        flags,
        output=absolute_output(flags.output),
        data=tuple(map(storage.absolute, flags.data)),
        speakers=storage.absolute(flags.speakers) if flags.speakers else "",
    )


def make_plan(flags: StudyFlags, run: Run) -> StudyPlan:
    """Read studies and folder; nothing of the corpora yet.

    Args:
        flags: with absolute paths.
        run: of the output.

    Raises:
        ConfigError: a study file, with its key.
        RefusedError: the output holds these studies with other values.
    """
    names = ("scale", "data", "in_domain", "emotion_map", "speakers", "limit")
    values = {name: getattr(flags, name) for name in names}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    settings["study_version"] = STUDY_VERSION
    wanted = [with_absolute_backbones(study) for study in read_studies(flags.study, flags.scale)]
    kept: list[Study] = []
    if run.earlier is not None:
        run.refuse_other_settings(settings | {"corpora": run.earlier.settings.get("corpora")})
        with contextlib.suppress(ObjectMissing):
            folder = storage.join(flags.output, "studies")
            found = storage.list_objects(folder, suffixes={".yaml"})
            kept = [with_absolute_backbones(read_study(one.uri, "full")) for one in found]
        _refuse_other_studies(flags.output, wanted, kept)
    new = [study.name for study in wanted]
    studies = in_order([*wanted, *(one for one in kept if one.name not in new)])
    plan = StudyPlan(
        flags=flags,
        wanted=new,
        studies=studies,
        grid=make_grid(studies, flags.scale),
        settings=settings,
        earlier=run.earlier,
    )
    for cell in plan.grid.cells:  # values that do not go together, before any is trained
        if cell.job == "train":
            try:
                training_flags(plan.grid.runs[cell.run], plan.place())
            except ConfigError as error:
                raise ConfigError(f"--study {cell.study}: cell {cell.cell}: {error}") from error
    return plan


def _refuse_other_studies(output: str, wanted: Sequence[Study], kept: Sequence[Study]) -> None:
    known = {study.name: study for study in kept}
    for study in wanted:
        earlier = known.get(study.name, study)
        names = [name for name in Study.__slots__ if name != "about"]
        differing = [name for name in names if getattr(study, name) != getattr(earlier, name)]
        if differing:
            raise RefusedError(
                f"--output {output} holds the study {study.name} with other "
                f"{', '.join(differing)}: give the study another name, or choose another folder"
            )


def load_corpora(plan: StudyPlan, folder: str) -> Corpora:
    """The corpora on the connected cluster: as they were, or read now.

    Args:
        plan: of the study.
        folder: for synthetic speech where a small study needs it.

    Raises:
        ConfigError: data that cannot be used.
    """
    flags = plan.flags
    if plan.earlier is not None:
        return _stored_corpora(flags.output, plan.earlier.settings["corpora"])
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


def _stored_corpora(output: str, known: Mapping[str, Any]) -> Corpora:
    """The corpora as the first command left them."""
    uris = study_corpora.training_uri(output), study_corpora.evaluation_uri(output)
    if not all(map(is_manifest, uris)):
        raise RaysersError(f"{output} has lost its corpora: start again in another folder")
    corpora = Corpora(
        training=read_manifest(uris[0]),
        judged=read_manifest(uris[1]),
        home=tuple(known["home"]),
        others=tuple(known["others"]),
        notes=tuple(known["notes"]),
    )
    if corpora.fingerprint != known["fingerprint"]:
        raise RaysersError(
            f"the corpora in {output} are not those its run.json names: they were changed from "
            "outside; start again in another folder"
        )
    return corpora


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
    left = plan.left()
    pairs = {
        "studies": ", ".join(plan.wanted),
        "cells": f"{len(plan.grid.cells)}, {len(plan.grid.runs)} runs, {len(left)} of them left",
        "corpora": f"trained on {', '.join(corpora.home)}; also evaluated on "
        + (", ".join(corpora.others) or "no other"),
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
        resources = find_resources(
            max(1, len(left)), plan.flags.workers_per_trial, plan.flags.max_concurrent
        )
        synthetic.write_networks(folder, small_networks(plan))
        place = replace(plan.place(), output=folder)
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
        print_pairs(
            "all",
            {
                "places": resources.words,
                "of one place": duration(total_s) + (f", {usd:,.2f} USD" if usd else ""),
                "in all": f"about {duration(total_s / resources.at_once)}",
            },
        )


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


def small_networks(plan: StudyPlan) -> set[str]:
    """Aliases of the small networks that are trained."""
    runs = plan.grid.runs.values()
    return {str(run.settings["backbone"]) for run in runs if run.settings.get("small")}
