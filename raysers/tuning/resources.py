"""How many trials run at once, on what, and how fast one of them trains there.

Ray Tune does not reserve what Ray Train's workers need, so with several workers a trial the number
of trials at a time is what keeps them from taking each other's places.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import ray

from raysers.data.manifest import write_manifest
from raysers.engine.cluster import get_with_notice, place
from raysers.engine.placement import Placement, choose_placement, here
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.training.config import Rule, Ruled, TrainingFlags
from raysers.training.dataset import Indexed
from raysers.training.trainer import run_training

#: More trials than this on one machine without GPUs take its memory from each other.
_MAX_ON_A_NODE = 8
#: Workers that may share a CPU, as `placement.choose_placement` has it.
_SHARING = 4
#: Batches and dev clips of a measurement.
_BATCHES, _DEV_CLIPS = 3, 32


@dataclass(frozen=True, kw_only=True)
class TrialFlags(Ruled):
    """Many trainings on one cluster."""

    workers_per_trial: int = 1
    """Workers of each training; one trains without Ray Train, which saves its start."""
    max_concurrent: int = 0
    """Trainings at once; 0: as many as the cluster has room for."""
    retries: int = 1
    """How often one may fail before it is recorded as failed and the others continue. The same
    command again tries those whose process died, or that had no hub, package or disk."""
    usd_per_hour: float = 0.0
    """With --dry-run: price of the place (CPUs or GPUs) of one training per hour."""
    dry_run: bool = False
    """Print what there is to do with a measured estimate of time and cost, and write nothing."""

    def rules(self) -> Iterator[Rule]:
        """Of these flags."""
        for name in ("max_concurrent", "retries", "usd_per_hour"):
            yield getattr(self, name) >= 0, "--" + name.replace("_", "-"), "0 or more"
        yield self.workers_per_trial >= 1, "--workers-per-trial", "1 or more"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResources:
    """Places for `at_once` trials.

    Each process reserves `cpus_each` and `gpus_each`. A trial with one worker has a local
    `placement`: it trains in its own process, one of `processes_here` on the same machine.
    """

    at_once: int
    cpus_each: float
    gpus_each: float = 0.0
    placement: Placement = field(default_factory=lambda: here(threads=1))
    processes_here: int = 1

    @property
    def words(self) -> str:
        """For the user."""
        threads = self.placement.threads
        each = "a GPU" if self.gpus_each else f"{threads} CPU thread{'s' * (threads > 1)}"
        if not self.placement.local:
            each = f"{self.placement.workers} workers on {self.placement.device}"
        return f"{self.at_once} at once, each on {each}"


def find_resources(trials: int, flags: TrialFlags) -> TrialResources:
    """As `choose_resources`, on the connected cluster, whose nodes are waited for."""
    try:
        place(flags.workers_per_trial)  # waits for them, refuses what the cluster never holds
    except ConfigError as error:
        text = str(error).replace("--workers ", "--workers-per-trial ")
        raise ConfigError(text) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return choose_resources(trials, flags.workers_per_trial, flags.max_concurrent, nodes)


def choose_resources(
    trials: int, workers_per_trial: int, max_concurrent: int, nodes: Sequence[dict[str, float]]
) -> TrialResources:
    """Places for at most `trials` trials on nodes with these resources; raises ConfigError."""
    gpus = sum(min(int(n.get("GPU", 0)), int(n.get("CPU", 0))) for n in nodes)
    cpus = [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1]
    each = max(1, workers_per_trial)
    # without GPUs, more trials than CPUs share them if asked for
    most = (gpus if gpus else sum(cpus) * _SHARING) // each
    if most < 1:
        raise ConfigError(
            f"--workers-per-trial {each} does not fit the cluster ({gpus} GPUs, {sum(cpus)} CPUs)"
        )
    if max_concurrent > most:
        raise ConfigError(
            f"--max-concurrent {max_concurrent} with --workers-per-trial {each} needs more than "
            f"the cluster has: give at most {most}, or 0 to choose"
        )
    fitting = most if gpus else sum(min(c, _MAX_ON_A_NODE) for c in cpus) // each
    at_once = max(1, min(max_concurrent or fitting, trials))
    spot = choose_placement(at_once * each, nodes)
    if each > 1:  # its workers hold the CPUs
        placement = Placement(workers=each, num_cpus=spot.num_cpus, num_gpus=spot.num_gpus)
        return TrialResources(at_once=at_once, cpus_each=0, placement=placement)
    held = [node.get("CPU", 0) / spot.num_cpus for node in nodes]
    if spot.num_gpus:
        held = [
            min(n, node.get("GPU", 0) / spot.num_gpus) for n, node in zip(held, nodes, strict=True)
        ]
    return TrialResources(
        at_once=at_once,
        cpus_each=spot.num_cpus,
        gpus_each=spot.num_gpus,
        placement=replace(spot, workers=1, local=True),
        processes_here=min(at_once, int(max(held))),
    )


def measure_speed(flags: TrainingFlags, table: pa.Table, resources: TrialResources) -> float:
    """Audio seconds that one trial trains on per second, over a few batches of real clips.

    Measured where trials train, which may be other machines than this one, with one worker;
    several workers divide each batch among them, so the speed is multiplied by their number.

    Args:
        flags: of the training, the recipe filled in.
        table: clips with splits train and dev.
        resources: of a trial.
    """
    chosen = []
    for split, most in (("train", _BATCHES * flags.batch_size), ("dev", _DEV_CLIPS)):
        own = table.filter(pc.equal(table["split"], split))
        chosen.append(own.take(list(range(0, len(own), max(1, len(own) // most)))[:most]))
    one = replace(resources.placement, workers=1, local=True)
    measure = ray.remote(num_cpus=one.num_cpus, num_gpus=one.num_gpus, max_retries=0)(_speed_here)
    task = measure.remote(flags, pa.concat_tables(chosen), one)
    return float(get_with_notice(task, "the place of a trial")) * resources.placement.workers


def _speed_here(flags: TrainingFlags, some: pa.Table, placement: Placement) -> float:
    """Of one epoch in this process."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        manifest = storage.join(folder, "manifest")
        write_manifest(manifest, some)
        small = replace(
            flags, output=storage.join(folder, "out"), epochs=1, front_steps=0, folds=0,
            train_fraction=1.0, allow_leakage=True,
        )  # fmt: skip
        outcome = run_training(small, {}, placement=placement, indexed=Indexed(manifest=manifest))
        epoch = outcome.history[0]
        return float(epoch["audio_s"] / max(epoch["wall_s"], 1e-9))
