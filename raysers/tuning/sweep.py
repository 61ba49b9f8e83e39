"""A sweep: which trainings it makes, what it would cost, and how Ray Tune runs them.

Everything is checked before anything is written. The data are indexed once, by the driver: trials
that hold all CPUs could not index them. Every trial has its folder `OUTPUT/runs/<trial>`; the sweep
is what their records say, so it resumes after any crash, takes more trials later, and can be moved.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.tune.schedulers import ASHAScheduler

from raysers.cli import as_plain
from raysers.data.manifest import fingerprint, read_manifest
from raysers.engine.cluster import place
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Run, RunRecord
from raysers.training import checkpoint, dataset, plan
from raysers.training.config import TrainingFlags, deciding, with_recipe
from raysers.training.dataset import Indexed
from raysers.training.loop import TrainingStopped
from raysers.training.plan import Network
from raysers.training.results import Epoch
from raysers.training.trainer import run_training
from raysers.tuning.flags import TrialFlags, TuningFlags
from raysers.tuning.space import SEARCHABLE, Point, Space, coerce, read_space
from raysers.tuning.trials import (
    WORST,
    Report,
    Trial,
    TrialRecord,
    TrialResources,
    choose_resources,
    run_trials,
    stored,
)

JOB = "tune"
#: Version of what a sweep does with its settings; another one never resumes its trials.
TUNING_VERSION = 1
DEFAULT_TRIALS = 20
#: Random trials before optuna judges: a quarter of all, within these bounds.
_START = (4, 10)
#: What of an epoch's record is kept in the trial's.
_KEPT = ("epoch", "step", "train_loss", "dev_ccc", "dev_ccc_mean", "audio_s", "wall_s")


def find_resources(trials: int, flags: TrialFlags) -> TrialResources:
    """As `choose_resources`, on the connected cluster, whose nodes are waited for."""
    try:
        place(flags.workers_per_trial)  # waits for them, refuses what the cluster never holds
    except ConfigError as error:
        text = str(error).replace("--workers ", "--workers-per-trial ")
        raise ConfigError(text) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return choose_resources(trials, flags.workers_per_trial, flags.max_concurrent, nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that can begin or resume.

    `base` are the flags of training which trials start from; `points` those known beforehand, by
    number: all but those that optuna chooses; `networks` by backbone as it is given, its place and
    what it is; `settings` all that decides the trials; `earlier` the record to resume, if any.
    """

    flags: TuningFlags
    base: TrainingFlags
    space: Space
    points: list[dict[str, Any]]
    trials: int
    networks: Mapping[str, tuple[str, Network]]
    indexed: Indexed = field(default_factory=lambda: Indexed(manifest=""))
    settings: Mapping[str, Any] = field(default_factory=dict)
    earlier: RunRecord | None = None

    def path(self, number: int) -> str:
        """Folder of a trial."""
        return storage.join(self.flags.output, "runs", f"trial-{number:04d}")

    def flags_of(self, number: int, point: Point) -> TrainingFlags:
        """Of the training of trial `number`; raises ConfigError."""
        flags = replace(self.base, **point, output=self.path(number))
        flags.check()
        place, network = self.networks[flags.backbone]
        return with_recipe(replace(flags, backbone=place), network.kind)

    @property
    def most_epochs(self) -> int:
        """Epochs of the longest trial."""
        return max(
            with_recipe(replace(self.base, epochs=value), network.kind).epochs
            for _, network in self.networks.values()
            for value in self.space.highest("epochs", self.base.epochs)
        )

    def records(self) -> list[TrialRecord | None]:
        """The records of all trials, by number; of more than `trials` if there are more."""
        found = [stored(self.path(number)) for number in range(self.trials)]
        while (more := stored(self.path(len(found)))) is not None:
            found.append(more)
        return found

    def left(self) -> list[int]:
        """Numbers of the trials that are not over."""
        found, retries = enumerate(self.records()), self.flags.retries
        return [n for n, one in found if one is None or not one.is_final(retries)]


def point_of(record: TrialRecord) -> dict[str, Any]:
    """The values of a trial's searched flags."""
    where = storage.join(record.path, "trial.json")
    return {name: coerce(where, SEARCHABLE[name], v) for name, v in record.notes["point"].items()}


def make_sweep(flags: TuningFlags) -> Sweep:
    """Read the space and build every network once; needs no cluster; raises ConfigError."""
    base = TrainingFlags(**{f.name: getattr(flags, f.name) for f in fields(TrainingFlags)})
    space = read_space(flags.space, base)
    trials = flags.trials or DEFAULT_TRIALS
    if flags.search == "grid":
        points = space.grid(flags.seed)
        trials = min(flags.trials or len(points), len(points))
    else:
        known = trials
        if flags.search == "optuna":
            if importlib.util.find_spec("optuna") is None:
                raise ConfigError(
                    "--search optuna needs the package optuna: pip install 'raysers[search]', or "
                    "take --search random"
                )
            known = min(trials, max(_START[0], min(_START[1], trials // 4)))
        points = [space.random(flags.seed, number) for number in range(known)]
    networks = {}
    layers = base.layers
    if not any(flag.name == "layers" and flag.when for flag in space.flags):
        layers = max(space.highest("layers", layers))  # so that too many are found out now
    for given in space.highest("backbone", base.backbone):
        try:
            found, network = plan.inspect(replace(base, backbone=given, layers=layers))
        except ConfigError as error:
            if layers == base.layers:
                raise
            raise ConfigError(f"--space {flags.space}: key 'layers': {error}") from error
        networks[given] = found.backbone, network
    sweep = Sweep(
        flags=flags, base=base, space=space, points=points, trials=trials, networks=networks
    )
    for number, point in enumerate(points[:trials]):
        try:
            sweep.flags_of(number, point)
        except ConfigError as error:
            raise ConfigError(f"--space: trial {number} ({point}): {error}") from error
    return sweep


def with_data(sweep: Sweep, run: Run) -> tuple[Sweep, pa.Table]:
    """The sweep with its data, read on the connected cluster, compared with what was begun.

    The second value is the table of labelled clips. Raises ConfigError: the data cannot be used, or
    the folder holds trials without a record; RefusedError: the output was begun with other
    settings; TooManyFailed: too many clips cannot be used.
    """
    flags, base, points = sweep.flags, sweep.base, list(sweep.points)
    manifest = storage.join(flags.output, "manifest")
    records = sweep.records()
    while records and records[-1] is None:
        del records[-1]
    names = ("asha", "asha_grace", "asha_reduction") if flags.asha == "on" else ("asha",)
    settings = {
        **deciding(base) | {name: getattr(flags, name) for name in names},
        "space": sweep.space.written(),
        "search": flags.search,
        "backbone_revision": {name: found.revision for name, (_, found) in sweep.networks.items()},
        "tuning_version": TUNING_VERSION,
    }  # fmt: skip
    if run.earlier is None:
        if records:
            raise ConfigError(
                f"--output {flags.output} has trials but no run.json: choose another folder"
            )
        table, notes = dataset.index_data(base)
        settings |= {"data_fingerprint": fingerprint(table), "data_notes": notes}
    else:
        settings |= {k: run.earlier.settings.get(k) for k in ("data_fingerprint", "data_notes")}
        run.refuse_other_settings(settings)
        table, notes = read_manifest(manifest), list(map(str, settings["data_notes"] or ()))
        if fingerprint(table) != settings["data_fingerprint"]:
            raise RaysersError(
                f"the manifest in {flags.output} was changed from outside: start again elsewhere"
            )
        # those of a longer sweep too, and those that optuna chose
        points += [sweep.space.random(flags.seed, n) for n in range(len(points), len(records))]
        points[: len(records)] = [
            point if record is None else point_of(record)
            for point, record in zip(points, records, strict=False)
        ]
    least = max(network.min_samples for _, network in sweep.networks.values())
    dataset.choose(base, table, notes, min_samples=least)
    made = replace(
        sweep,
        points=points,
        trials=max(sweep.trials, len(records)),
        indexed=Indexed(manifest=manifest, notes=tuple(notes)),
        settings=settings,
        earlier=run.earlier,
    )
    return made, table


def make_scheduler(flags: TuningFlags, most_epochs: int) -> ASHAScheduler | None:
    """ASHA (Li et al. 2020) on the `score` of a trial, its best mean dev CCC so far.

    At `--asha-grace`, times `--asha-reduction`, times it again ... epochs a trial goes on only if
    it is among the best 1/reduction of the trials that have come that far. None when it is off, or
    the trials are too short for it.
    """
    grace, last = flags.asha_grace or max(1, most_epochs // 10), most_epochs - 1
    if flags.asha == "off" or grace > last:
        return None
    return ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=last,
        grace_period=grace,
        reduction_factor=flags.asha_reduction,
        stop_last_trials=False,  # a trial that reaches the end has its model scored and stored
    )


def run_sweep(
    sweep: Sweep,
    resources: TrialResources,
    on_ended: Callable[[TrialRecord, list[TrialRecord]], str],
) -> list[TrialRecord]:
    """Run what is left on the connected cluster; returns how every trial ended, by number.

    `on_ended` makes words of the record of a trial that has ended, and of all so far.
    """
    known = {one.path: one for one in sweep.records() if one is not None}

    def ended(record: TrialRecord) -> str:
        known[record.path] = record
        return on_ended(record, [known[path] for path in sorted(known)])

    def make(config: Mapping[str, Any]) -> Trial:
        number = config["number"]
        point = config["point"] if "point" in config else sweep.points[number]
        call = partial(train_trial, sweep, number, point, resources)
        notes = {"number": number, "point": point}
        return Trial(name=f"trial-{number:04d}", path=sweep.path(number), call=call, notes=notes)

    numbers, scheduler = sweep.left(), make_scheduler(sweep.flags, sweep.most_epochs)
    if numbers:
        search = None
        if sweep.flags.search == "optuna":  # how many have been tried decides what is drawn next
            search = sweep.space.search(sweep.points, sweep.flags.seed + 1000 * len(known))
        run_trials(
            make,
            # ASHA compares the epochs of trials that ended before too
            list(range(sweep.trials)) if scheduler else numbers,
            resources,
            total=sweep.trials,
            retries=sweep.flags.retries,
            search=search,
            scheduler=scheduler,
            on_ended=ended,
        )
    return [one for one in sweep.records() if one is not None]


def train_trial(
    sweep: Sweep, number: int, point: Point, resources: TrialResources, report: Report
) -> dict[str, Any]:
    """Train, or read what was trained, and report the epochs; raises TrainingStopped."""
    flags, best = sweep.flags_of(number, point), WORST
    last: dict[str, Any] = {}

    def on_epoch(record: Epoch) -> None:
        nonlocal best, last
        mean = record["dev_ccc_mean"]
        best = max(best, WORST if mean is None else mean)
        last = {"score": best, **{name: record[name] for name in _KEPT}}
        if record["epoch"] < flags.epochs:  # after the last one the model is written first
            report(last)
            last = {}

    try:
        outcome = run_training(
            flags,
            as_plain(flags),
            on_epoch=on_epoch,
            placement=resources.placement,
            processes_here=resources.processes_here,
            indexed=sweep.indexed,
            command=command_of(flags),
        )
    except TrainingStopped:
        checkpoint.clear(flags.output)  # nothing will resume
        raise
    if not outcome.trained:  # its process died between the model and the record
        for record in outcome.history:
            on_epoch(record)
    if last:
        report(last)
    return {}


def command_of(flags: TrainingFlags) -> list[str]:
    """The command of the train job that gives the same model.

    >>> command_of(TrainingFlags(output="/out", data=("/corpus",), lr=0.001))
    ['raysers', 'train', '--data', '/corpus', '--lr', '0.001', '--output', '/out']
    """
    words = ["raysers", "train"]
    for flag in fields(TrainingFlags):
        value = getattr(flags, flag.name)
        if value != flag.default:
            words.append("--" + flag.name.replace("_", "-"))
            if not isinstance(value, bool):
                words += map(str, value if isinstance(value, tuple) else (value,))
    return words
