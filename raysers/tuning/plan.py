"""What a sweep has to do, checked before anything is written, and what it would cost.

The data are indexed once, by the driver: trials that hold all CPUs could not index them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import pyarrow as pa
from ray.tune.schedulers import ASHAScheduler

from raysers.data.manifest import fingerprint, read_manifest, write_manifest
from raysers.engine.progress import duration, hours, print_pairs, print_warning
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Run, RunRecord
from raysers.training import dataset, plan
from raysers.training.config import TrainingFlags, deciding, with_recipe
from raysers.training.dataset import Indexed
from raysers.training.plan import Network
from raysers.tuning.resources import TrialResources, measure_speed
from raysers.tuning.space import SEARCHABLE, Point, Space, coerce, read_space
from raysers.tuning.trials import TrialRecord, stored

JOB = "tune"
#: Version of what a sweep does with its settings; another one never resumes its trials.
TUNING_VERSION = 1
DEFAULT_TRIALS = 20
#: Random trials before optuna judges: a quarter of all, within these bounds.
_START = (4, 10)
_MAX_POINTS_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class TuningFlags(TrainingFlags):
    """All flags of the tune job; those of training are where its trials start from."""

    space: str
    """YAML file, local or s3://, with the flags to search: `lr: loguniform(1e-5, 1e-3)`."""
    trials: int = 0
    """Trainings to make; 0: 20, and every point of a grid. A larger number later continues here."""
    search: Literal["random", "grid", "optuna"] = "random"
    """Where to look: anywhere, at every point, or where good ones were (raysers[search])."""
    asha: Literal["on", "off"] = "on"
    """Stop trials early whose dev CCC is not among the best at their age (ASHA)."""
    asha_grace: int = 0
    """Epochs every trial gets before it may be stopped; 0: a tenth of all, at least 1."""
    asha_reduction: float = 3.0
    """One in this many trials goes on at every stop; the stops are as far apart in epochs."""
    workers_per_trial: int = 1
    """Training workers of each trial; one trains without Ray Train, which saves its start."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the cluster has room for."""
    retries: int = 1
    """How often a trial may fail before it is recorded as failed and the others continue. The same
    command again tries those whose process died, or that had no hub, package or disk."""
    max_failed_trials: float = 0.25
    """Highest share of failed trials before the job ends with exit code 3."""
    usd_per_hour: float = 0.0
    """With --dry-run: price of one trial's place (CPUs or GPUs) per hour."""
    dry_run: bool = False
    """Print the trials with a measured estimate of time and cost, and write nothing."""
    seed: int = 0
    """Decides the points, and as in training all else that is random in each trial."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        for good, flag, wanted in _rules(self):
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                raise ConfigError(f"{flag} is {value}: give {wanted}")


def _rules(flags: TuningFlags) -> Iterator[tuple[bool, str, str]]:
    """(holds, flag, what to give instead)."""
    yield bool(flags.space), "--space", "a YAML file with the flags to search"
    yield flags.workers == 0, "--workers", "--workers-per-trial and --max-concurrent instead"
    yield flags.track == "none", "--track", "none: a sweep is in its table, its trials in theirs"
    yield flags.keep == "best", "--keep", "best: trials are compared by their best epoch"
    for name in ("trials", "asha_grace", "max_concurrent", "retries", "usd_per_hour"):
        yield getattr(flags, name) >= 0, "--" + name.replace("_", "-"), "0 or more"
    yield flags.workers_per_trial >= 1, "--workers-per-trial", "1 or more"
    yield flags.asha_reduction > 1, "--asha-reduction", "more than 1, or --asha off"
    share = 0 <= flags.max_failed_trials <= 1
    yield share, "--max-failed-trials", "a share from 0 to 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that can begin or resume.

    Attributes:
        flags: with absolute paths.
        base: those of training, which trials start from.
        points: those known beforehand, by number: all but those that optuna chooses.
        trials: how many there are to be.
        networks: by backbone as it is given, its place and what it is.
        indexed: the data.
        settings: everything that decides the trials.
        earlier: the record of the run that is resumed, if any.
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

    def flags_of(self, number: int, point: Point) -> TrainingFlags:
        """Of the training of trial `number`.

        Raises:
            ConfigError: the values do not go together.
        """
        flags = replace(self.base, **point, output=trial_path(self.flags.output, number))
        flags.check()
        place, network = self.networks[flags.backbone]
        return with_recipe(replace(flags, backbone=place), network.kind)

    @property
    def most_epochs(self) -> int:
        """Epochs of the longest trial."""
        values = self.space.highest("epochs", self.base.epochs)
        return max(
            with_recipe(replace(self.base, epochs=value), network.kind).epochs
            for _, network in self.networks.values()
            for value in values
        )


def trial_path(output: str, number: int) -> str:
    """Folder of a trial."""
    return storage.join(output, "runs", f"trial-{number:04d}")


def point_of(record: TrialRecord) -> dict[str, Any]:
    """The values of a trial's searched flags."""
    where = storage.join(record.path, "trial.json")
    return {name: coerce(where, SEARCHABLE[name], v) for name, v in record.notes["point"].items()}


def recorded(output: str, trials: int) -> list[TrialRecord | None]:
    """The records of all trials, by number; of more than `trials` if there are more."""
    found = [stored(trial_path(output, number)) for number in range(trials)]
    while (more := stored(trial_path(output, len(found)))) is not None:
        found.append(more)
    return found


def make_sweep(flags: TuningFlags) -> Sweep:
    """Read the space and build every network once; needs no cluster.

    Raises:
        ConfigError: the command cannot be carried out; the line names flag or key.
    """
    names = [f.name for f in fields(TrainingFlags)]
    base = TrainingFlags(**{name: getattr(flags, name) for name in names})
    space = read_space(flags.space, base)
    trials = flags.trials or DEFAULT_TRIALS
    if flags.search == "grid":
        points = space.grid(flags.seed)
        trials = min(flags.trials or len(points), len(points))
    else:
        known = trials
        if flags.search == "optuna":
            _require_optuna()
            known = min(trials, max(_START[0], min(_START[1], trials // 4)))
        points = [space.random(flags.seed, number) for number in range(known)]
    networks = {}
    layers = base.layers
    if not space.is_conditional("layers"):  # with the most, so that too many are found out now
        layers = max(space.highest("layers", layers))
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


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "--search optuna needs the package optuna: pip install 'raysers[search]', or take "
            "--search random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def with_data(sweep: Sweep, run: Run) -> tuple[Sweep, pa.Table]:
    """The sweep with its data, read on the connected cluster, compared with what was begun.

    Returns:
        The sweep, and the labelled clips as they were indexed.

    Raises:
        ConfigError: the data cannot be used, or the folder holds trials without a record.
        RefusedError: the output was begun with other settings.
        TooManyFailed: too many clips cannot be used.
    """
    base, output, trials, points = sweep.base, sweep.flags.output, sweep.trials, sweep.points
    manifest = storage.join(output, "manifest")
    if run.earlier is None:
        if recorded(output, 0):
            raise ConfigError(
                f"--output {output} has trials but no run.json: choose another folder"
            )
        table, notes = dataset.index_data(base)
        settings = _settings(sweep)
        settings |= {"data_fingerprint": fingerprint(table), "data_notes": notes}
    else:
        known = {k: run.earlier.settings.get(k) for k in ("data_fingerprint", "data_notes")}
        settings = _settings(sweep) | known
        run.refuse_other_settings(settings)
        table, notes = read_manifest(manifest), [str(note) for note in known["data_notes"] or ()]
        if fingerprint(table) != known["data_fingerprint"]:
            raise RaysersError(
                f"the manifest in {output} is not the one its run.json names: it was changed from "
                "outside; start again in another folder"
            )
        records = recorded(output, trials)
        while records and records[-1] is None:
            records.pop()
        trials = max(trials, len(records))
        # those of a longer sweep too, and those that optuna chose
        more = range(len(points), len(records))
        points = points + [sweep.space.random(sweep.flags.seed, number) for number in more]
        for number, record in enumerate(records):
            if record is not None:
                points[number] = point_of(record)
    dataset.choose(
        base,
        table,
        notes,
        seed=base.seed,
        min_samples=max(network.min_samples for _, network in sweep.networks.values()),
        dev_needed=True,
    )
    made = replace(
        sweep,
        points=points,
        trials=trials,
        indexed=Indexed(manifest=manifest, notes=tuple(notes)),
        settings=settings,
        earlier=run.earlier,
    )
    return made, table


def _settings(sweep: Sweep) -> dict[str, Any]:
    """Everything that decides the trials, as far as it follows from the command."""
    flags = sweep.flags
    asha: dict[str, Any] = {"asha": flags.asha}
    if flags.asha == "on":
        asha |= {"asha_grace": flags.asha_grace, "asha_reduction": flags.asha_reduction}
    return {
        **deciding(sweep.base),
        **asha,
        "space": sweep.space.written(),
        "search": flags.search,
        "backbone_revision": {name: found.revision for name, (_, found) in sweep.networks.items()},
        "tuning_version": TUNING_VERSION,
    }


def begin(sweep: Sweep, run: Run, table: pa.Table, config: Mapping[str, Any]) -> None:
    """Write what comes before the trials: the clips, and the record.

    Raises:
        WriteError: the output cannot be written.
    """
    if run.earlier is None:
        write_manifest(sweep.indexed.manifest, table)
    run.begin(config, sweep.settings)


def make_scheduler(sweep: Sweep) -> ASHAScheduler | None:
    """ASHA as the flags have it; None when it is off or the trials are too short for it."""
    flags, last = sweep.flags, sweep.most_epochs - 1
    grace = flags.asha_grace or max(1, sweep.most_epochs // 10)
    if flags.asha == "off" or grace > last:
        return None
    return asha(grace=grace, last=last, reduction=flags.asha_reduction)


def asha(*, grace: int, last: int, reduction: float) -> ASHAScheduler:
    """ASHA (Li et al. 2020) on the `score` of a trial, its best mean dev CCC so far.

    At `grace`, `grace * reduction`, ... up to `last` epochs a trial goes on only if it is among the
    best 1/reduction of the trials that have come that far.
    """
    return ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=last,
        grace_period=grace,
        reduction_factor=reduction,
        stop_last_trials=False,  # a trial that reaches the end has its model scored and stored
    )


def left(sweep: Sweep) -> list[int]:
    """Numbers of the trials that are not over."""
    records = recorded(sweep.flags.output, sweep.trials)
    retries = sweep.flags.retries
    return [n for n, one in enumerate(records) if one is None or not one.is_final(retries)]


def told(point: Point) -> str:
    """`lr 0.00031, freeze cnn`."""
    return ", ".join(
        f"{name.replace('_', '-')} {f'{v:.3g}' if isinstance(v, float) else v}"
        for name, v in point.items()
    )


def print_plan(sweep: Sweep, resources: TrialResources) -> None:
    """Space, search and places, before the sweep starts."""
    flags = sweep.flags
    stopping = f"ASHA, {flags.asha_reduction:g} to 1"
    if make_scheduler(sweep) is None:
        too_short = " (too few epochs for ASHA)" if flags.asha == "on" else ""
        stopping = f"no early stopping{too_short}"
    pairs = {
        "space": ", ".join(f"{k.replace('_', '-')}: {v}" for k, v in sweep.space.written().items()),
        "search": f"{flags.search}, {sweep.trials} trials of up to {sweep.most_epochs} epochs",
        "stopping": stopping,
        "places": resources.words,
    }
    if sweep.earlier is not None:
        state = "resumed" if left(sweep) else "finished, nothing is left to train"
        pairs["resuming"] = f"the sweep of {sweep.earlier.started_at}: {state}"
    print_pairs("tune", pairs)


def print_estimate(sweep: Sweep, resources: TrialResources, clips: pa.Table) -> None:
    """The trials, as far as they are known, and their cost with and without ASHA."""
    shown = sweep.points[: min(sweep.trials, _MAX_POINTS_SHOWN)]
    points = {f"trial {number}": told(point) for number, point in enumerate(shown)}
    if len(shown) < sweep.trials:
        chosen = ", chosen on the way" if sweep.flags.search == "optuna" else ""
        points["..."] = f"{sweep.trials - len(shown)} more{chosen}"
    print_pairs("trials", points)
    numbers = left(sweep)
    costs = {"trials left": f"{len(numbers)} of {sweep.trials}" if numbers else "none"}
    if numbers:
        flags = sweep.flags_of(0, sweep.points[0])
        data = dataset.choose(flags, clips, [], seed=flags.seed, min_samples=1, dev_needed=True)
        speed = measure_speed(flags, data.table, resources)
        workers = resources.placement
        of_one = f" with one worker, times {workers.workers}" if workers else ""
        costs["an epoch"] = f"{len(data.train):,} clips, {hours(data.train.audio_s)} of audio"
        costs["speed"] = f"{speed:.3g} x real time a trial, measured in training{of_one}"
        for name, epochs in _epochs(sweep, len(numbers)).items():
            seconds = epochs * data.train.audio_s / speed
            costs[name] = f"{epochs:.0f} epochs, {duration(seconds / resources.at_once)}"
            if price := sweep.flags.usd_per_hour:
                costs[name] += f", {price * seconds / 3600:,.2f} USD"
    print_pairs("estimate (nothing was written)", costs)
    if numbers and len(sweep.networks) > 1:
        print_warning("measured with the first backbone only: others take another time")


def _epochs(sweep: Sweep, trials: int) -> dict[str, float]:
    """Epochs of so many trials together, to the end and as ASHA would leave them."""
    most = sweep.most_epochs
    found = {"all to the end": float(trials * most)}
    if make_scheduler(sweep):
        grace = sweep.flags.asha_grace or max(1, most // 10)
        stop, share, spent, before = float(grace), 1.0, 0.0, 0.0
        while stop < most:
            spent += share * (stop - before)
            reduction = sweep.flags.asha_reduction
            before, stop, share = stop, stop * reduction, share / reduction
        found["with ASHA about"] = trials * (spent + share * (most - before))
    return found
