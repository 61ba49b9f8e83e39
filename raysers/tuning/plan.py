"""What a sweep has to do, checked before anything is written: space, networks, data, folder.

The data are indexed once, by the driver: trials that hold all CPUs could not index them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raysers.data.manifest import fingerprint, read_manifest, write_manifest
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Run
from raysers.training import dataset, plan
from raysers.training.config import TrainingFlags, deciding
from raysers.training.dataset import Indexed
from raysers.training.plan import Network
from raysers.tuning.flags import TuningFlags, training_flags
from raysers.tuning.points import Space, checked
from raysers.tuning.search import Search
from raysers.tuning.space import read_space
from raysers.tuning.tuner import Start, Sweep, make_search, recorded_trials

JOB = "tune"

#: Version of what a sweep does with its settings; another one never goes on with its trials.
TUNING_VERSION = 1


def refuse_unknown_trials(run: Run) -> None:
    """Raises ConfigError when the folder holds trials but no record of their sweep."""
    if run.earlier is None and recorded_trials(run.output, 0):
        raise ConfigError(
            f"--output {run.output} has trials but no run.json: choose another folder"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A sweep as far as it is known without the data.

    Attributes:
        flags: with absolute paths.
        base: those of training.
        space: what is searched.
        search: decides the points.
        trials: how many are asked for.
        networks: by backbone as it is given, its place and what it is.
    """

    flags: TuningFlags
    base: TrainingFlags
    space: Space
    search: Search
    trials: int
    networks: Mapping[str, tuple[str, Network]]


def draft(flags: TuningFlags) -> Draft:
    """Read the space and build every network once; needs no cluster.

    Raises:
        ConfigError: the command cannot be carried out; the line names flag or key.
    """
    base = training_flags(flags, flags.output)
    space = read_space(flags.space, base)
    search, trials = make_search(flags, base, space)
    networks = {}
    # with the most layers of any trial, so that too many are found out now
    layers = (
        base.layers if space.is_conditional("layers") else max(space.highest("layers", base.layers))
    )
    for given in space.choices("backbone", base.backbone):
        try:
            found, network = plan.inspect(replace(base, backbone=given, layers=layers))
        except ConfigError as error:
            if layers == base.layers:
                raise
            raise ConfigError(f"--space {flags.space}: key 'layers': {error}") from error
        networks[given] = found.backbone, network
    return Draft(
        flags=flags, base=base, space=space, search=search, trials=trials, networks=networks
    )


def make_sweep(planned: Draft, run: Run) -> tuple[Sweep, pa.Table]:
    """Read the data on the connected cluster, and compare all with what was begun.

    Args:
        planned: from `draft`.
        run: of the output.

    Returns:
        The sweep, and the labelled clips as they were indexed.

    Raises:
        ConfigError: the data cannot be used, or values do not go together.
        RefusedError: the output was begun with other settings.
        TooManyFailed: too many clips cannot be used.
    """
    flags, base, space = planned.flags, planned.base, planned.space
    networks, trials = planned.networks, planned.trials
    if run.earlier is not None:
        known = {k: run.earlier.settings.get(k) for k in ("data_fingerprint", "data_notes")}
        settings = _settings(flags, base, space, networks) | known
        run.refuse_other_settings(settings)
        table = _stored_manifest(flags.output, str(known["data_fingerprint"]))
        notes = [str(note) for note in known["data_notes"] or ()]
        trials = max(trials, len(recorded_trials(flags.output, 0)))
    else:
        table, notes = dataset.index_data(base)
        settings = _settings(flags, base, space, networks)
        settings |= {"data_fingerprint": fingerprint(table), "data_notes": notes}
    sweep = Sweep(
        flags=flags,
        base=base,
        space=space,
        search=planned.search,
        trials=trials,
        starts={
            given: Start(backbone=place, kind=network.kind)
            for given, (place, network) in networks.items()
        },
        indexed=Indexed(manifest=storage.join(flags.output, "manifest"), notes=tuple(notes)),
        settings=settings,
        earlier=run.earlier,
    )
    _check_points(sweep)
    dataset.choose(
        base,
        table,
        notes,
        seed=base.seed,
        min_samples=max(network.min_samples for _, network in networks.values()),
        dev_needed=True,
    )
    return sweep, table


def begin(sweep: Sweep, run: Run, table: pa.Table, config: Mapping[str, Any]) -> None:
    """Write what comes before the trials: the clips, and the record.

    Raises:
        WriteError: the output cannot be written.
    """
    if run.earlier is None:
        write_manifest(sweep.indexed.manifest, table)
    run.begin(config, sweep.settings)


def _settings(
    flags: TuningFlags,
    base: TrainingFlags,
    space: Space,
    networks: Mapping[str, tuple[str, Network]],
) -> dict[str, Any]:
    """Everything that decides the trials, as far as it follows from the command."""
    asha: dict[str, Any] = {"asha": flags.asha}
    if flags.asha == "on":
        asha |= {"asha_grace": flags.asha_grace, "asha_reduction": flags.asha_reduction}
    return {
        **deciding(base),
        **asha,
        "space": space.written(),
        "search": flags.search,
        "backbone_revision": {name: found.revision for name, (_, found) in networks.items()},
        "tuning_version": TUNING_VERSION,
    }


def _check_points(sweep: Sweep) -> None:
    """Refuse points whose values do not go together, as far as they are known before the start."""
    known = sweep.flags.search != "optuna"
    count = sweep.trials if known else getattr(sweep.search, "start", 0)
    points = [sweep.search.point(number, []) for number in range(count)]
    for _ in checked(sweep.base, points):
        pass


def _stored_manifest(output: str, expected: str) -> pa.Table:
    table = read_manifest(storage.join(output, "manifest"))
    if fingerprint(table) != expected:
        raise RaysersError(
            f"the manifest in {output} is not the one its run.json names: it was changed from "
            "outside; start again in another folder"
        )
    return table
