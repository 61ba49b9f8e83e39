"""How many trials of a sweep run at once, and on what, so that none waits for ever.

Ray Tune does not reserve what Ray Train's workers need, so with several workers a trial the number
of trials at a time is what keeps them from taking each other's places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from raysers.engine.cluster import place
from raysers.engine.placement import choose_placement
from raysers.engine.plan import Placement
from raysers.errors import ConfigError
from raysers.training.trainer import LocalResources
from raysers.tuning.trials import Share

#: More trials than this on one machine without GPUs take its memory from each other.
_MAX_ON_A_NODE = 8

#: Workers that may share a CPU, as `placement.choose_placement` has it.
_SHARING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResources:
    """Places for trials.

    Attributes:
        share: what Tune reserves.
        local: of a trial with one worker, which trains in its own process; None with more.
        placement: of the workers of a trial with more than one; None with one.
    """

    share: Share
    local: LocalResources | None = None
    placement: Placement | None = None

    @property
    def words(self) -> str:
        """For the user."""
        if self.placement is not None:
            each = f"{self.placement.workers} workers on {self.placement.device}"
        else:
            threads = self.local.threads if self.local else 1
            cpus = "1 CPU thread" if threads == 1 else f"{threads} CPU threads"
            each = "a GPU" if self.share.gpus_each else cpus
        return f"{self.share.at_once} at once, each on {each}"


def find_resources(trials: int, workers_per_trial: int, max_concurrent: int) -> TrialResources:
    """As `choose_resources`, on the connected cluster, whose nodes are waited for."""
    try:
        place(workers_per_trial)  # waits for them, and refuses what the cluster never holds
    except ConfigError as error:
        text = str(error).replace("--workers ", "--workers-per-trial ")
        raise ConfigError(text) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return choose_resources(trials, workers_per_trial, max_concurrent, nodes)


def choose_resources(
    trials: int, workers_per_trial: int, max_concurrent: int, nodes: Sequence[dict[str, float]]
) -> TrialResources:
    """Places on nodes with these resources.

    Args:
        trials: there are no more than these.
        workers_per_trial: training workers of one trial.
        max_concurrent: trials at once; 0 takes as many as fit.
        nodes: resources of every node.

    Raises:
        ConfigError: the nodes cannot hold that many; the line names the flag.
    """
    gpus = sum(min(int(n.get("GPU", 0)), int(n.get("CPU", 0))) for n in nodes)
    cpus = [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1]
    each = max(1, workers_per_trial)
    # without GPUs, a wish for more trials than CPUs can be granted by sharing them
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
    if each > 1:
        placement = Placement(workers=each, num_cpus=spot.num_cpus, num_gpus=spot.num_gpus)
        # the workers hold the CPUs; a process is not reused, so that stopping it frees them
        return TrialResources(
            share=Share(at_once=at_once, cpus_each=0, reuse=False), placement=placement
        )
    share = Share(at_once=at_once, cpus_each=spot.num_cpus, gpus_each=spot.num_gpus)
    here = min(at_once, max(_held(node, spot) for node in nodes))
    return TrialResources(
        share=share, local=LocalResources(threads=spot.threads, processes_here=here)
    )


def _held(node: dict[str, float], spot: Placement) -> int:
    """Trials that a node can have at the same time."""
    held = node.get("CPU", 0) / spot.num_cpus
    if spot.num_gpus:
        held = min(held, node.get("GPU", 0) / spot.num_gpus)
    return int(held)
