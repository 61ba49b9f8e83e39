"""What a study has to do, checked before anything is written: studies, corpora, folder, cells.

One output may take more studies later: their files are kept in OUTPUT/studies, and what they have
in common with earlier ones is not run again. The corpora stay those of the first command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro

from raysers.cli import Output, Uris
from raysers.data.manifest import is_manifest, read_manifest
from raysers.errors import ConfigError, ObjectMissing, RaysersError, RefusedError
from raysers.io import storage
from raysers.run import Run, RunRecord, absolute_output
from raysers.studies import corpora as study_corpora
from raysers.studies import speech as study_speech
from raysers.studies.corpora import Corpora
from raysers.studies.experiments import PRETRAIN, Grid, make_grid, with_absolute_backbones
from raysers.studies.study import Study, in_order, read_studies, read_study
from raysers.studies.units import Place, training_flags

JOB = "study"
#: Version of what a study does with its settings; another one never goes on with its cells.
STUDY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """All flags of the study job."""

    study: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME_OR_FILE [NAME_OR_FILE ...]")]
    """Built-in studies, `paper` for all of them, or YAML files like theirs."""
    output: Output
    """Folder or s3:// prefix for all runs and tables; rerun the command to resume there."""
    data: Uris = ()
    """Labelled corpora: the first is trained on, the others are for cross-corpus figures. With
    --scale small and none, corpora are made up."""
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
    """How often a cell may fail before it is recorded as failed and the others go on. The same
    command again tries those whose process died, or that had no hub, package or disk."""
    max_failed_cells: float = 0.0
    """Highest share of failed cells before the job ends with exit code 3."""
    usd_per_hour: float = 0.0
    """With --dry-run: price of one cell's place (CPUs or GPUs) per hour."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the cells with an estimate of time and cost, and write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        for good, flag, wanted in _rules(self):
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                raise ConfigError(f"{flag} is {value or 'empty'}: give {wanted}")


FlagsT = TypeVar("FlagsT", bound=StudyFlags)


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
    """A study that can begin or go on.

    Attributes:
        flags: with absolute paths.
        wanted: names of the studies of this command.
        studies: those, and the ones the output holds from before.
        grid: cells and runs of all of them.
        settings: everything that decides the runs.
        earlier: the record of the run that is resumed, if any.
    """

    flags: StudyFlags
    wanted: Sequence[str]
    studies: Sequence[Study]
    grid: Grid
    settings: dict[str, Any]
    earlier: RunRecord | None

    @property
    def speech(self) -> list[study_speech.MadeUp]:
        """Corpora that have to be made up."""
        corpora = list(made_up_corpora(self.flags))
        for run in self.grid.runs.values():
            if run.job == PRETRAIN:
                corpora += study_speech.PRETRAININGS[run.settings["speech"]]
        return list({corpus.name: corpus for corpus in corpora}.values())


def with_absolute_paths(flags: FlagsT) -> FlagsT:
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
    wanted = [with_absolute_backbones(study) for study in read_studies(flags.study, flags.scale)]
    kept: list[Study] = []
    if run.earlier is not None:
        known = {"corpora": run.earlier.settings.get("corpora")}
        run.refuse_other_settings(_settings(flags) | known)
        kept = _kept(flags.output)
        for study in wanted:
            _refuse_other_study(flags.output, study, kept)
    names = [study.name for study in wanted]
    studies = in_order([*wanted, *(one for one in kept if one.name not in names)])
    plan = StudyPlan(
        flags=flags,
        wanted=names,
        studies=studies,
        grid=make_grid(studies, flags.scale),
        settings=_settings(flags),
        earlier=run.earlier,
    )
    _check_trainings(plan)
    return plan


def load_corpora(plan: StudyPlan, *, speak: bool = True) -> Corpora:
    """The corpora on the connected cluster: as they were, or read now, made up where needed.

    Args:
        plan: of the study.
        speak: make speech below OUTPUT; without, synthetic corpora are left out.

    Raises:
        ConfigError: data that cannot be used.
    """
    flags = plan.flags
    if plan.earlier is not None:
        return _stored(plan)
    tables, firsts, notes = study_corpora.read_corpora(
        flags.data, emotion_map=flags.emotion_map, speakers=flags.speakers
    )
    made_up = made_up_corpora(flags) if speak else []
    if made_up:
        tables |= study_speech.make_speech(made_up, storage.join(flags.output, "corpora"))
        notes.append(
            f"{', '.join(one.name for one in made_up)}: spoken by espeak-ng with invented "
            "emotions; figures prove that the way works, nothing about emotion in voices"
        )
    home = list(flags.in_domain) or firsts or [made_up[0].name]
    for name in home:
        if name not in tables:
            raise ConfigError(f"--in-domain {name}: the corpora are {', '.join(tables)}")
    return study_corpora.arrange(tables, home, notes, flags.limit)


def made_up_corpora(flags: StudyFlags) -> list[study_speech.MadeUp]:
    """What is made up because too little was given: small studies have two corpora at least."""
    if flags.scale != "small" or len(flags.data) > 1:
        return []
    return [study_speech.HOME] if flags.data else [study_speech.HOME, study_speech.CROSS_CORPUS]


def place_of(plan: StudyPlan, in_domain: str) -> Place:
    """Where the runs are, before the cluster is known."""
    return Place(
        output=plan.flags.output,
        in_domain=in_domain,
        workers=plan.flags.workers_per_trial,
        retries=plan.flags.retries,
    )


def study_uri(output: str, name: str) -> str:
    """Where an output keeps a study's file."""
    return storage.join(output, "studies", f"{name}.yaml")


def _settings(flags: StudyFlags) -> dict[str, Any]:
    names = ("scale", "data", "in_domain", "emotion_map", "speakers", "limit")
    values = {name: getattr(flags, name) for name in names}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {**plain, "study_version": STUDY_VERSION}


def _kept(output: str) -> list[Study]:
    try:
        found = list(storage.list_objects(storage.join(output, "studies"), suffixes={".yaml"}))
    except ObjectMissing:
        return []
    return [with_absolute_backbones(read_study(one.uri, "full")) for one in found]


def _refuse_other_study(output: str, study: Study, kept: Sequence[Study]) -> None:
    for earlier in kept:
        if earlier.name != study.name:
            continue
        differing = [
            name
            for name in Study.__slots__
            if name != "about" and getattr(study, name) != getattr(earlier, name)
        ]
        if differing:
            raise RefusedError(
                f"--output {output} holds the study {study.name} with other "
                f"{', '.join(differing)}: give the study another name, or choose another folder"
            )


def _check_trainings(plan: StudyPlan) -> None:
    """Refuse values that do not go together, before any is trained."""
    place = place_of(plan, "")
    for cell in plan.grid.cells:
        run = plan.grid.runs[cell.run]
        if run.job in (PRETRAIN, "train"):
            try:
                training_flags(run, place)
            except ConfigError as error:
                raise ConfigError(f"--study {cell.study}: cell {cell.cell}: {error}") from error


def _stored(plan: StudyPlan) -> Corpora:
    """The corpora as the first command left them."""
    output, known = plan.flags.output, plan.earlier.settings["corpora"] if plan.earlier else {}
    if not all(
        map(is_manifest, (study_corpora.training_uri(output), study_corpora.evaluation_uri(output)))
    ):
        raise RaysersError(f"{output} has lost its corpora: start again in another folder")
    corpora = Corpora(
        training=read_manifest(study_corpora.training_uri(output)),
        judged=read_manifest(study_corpora.evaluation_uri(output)),
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
