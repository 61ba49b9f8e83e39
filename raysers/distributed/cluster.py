"""The Ray cluster: joining it, and placing workers so that nothing waits for ever.

Ray Data hangs in silence when its actors ask for more than the cluster has, so the demand is
compared with the cluster's resources (or what its autoscaler may add) before anything starts.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raysers.errors import ConfigError, RaysersError

#: More workers than this per CPU only take memory from each other.
_MAX_WORKERS_PER_CPU = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many model workers, and what each reserves."""

    workers: int
    num_cpus: float
    num_gpus: float

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def threads(self) -> int:
        """Compute threads of one worker."""
        return max(1, int(self.num_cpus))


def connect() -> None:
    """Join the cluster of this job (`RAY_ADDRESS`), or start one on this machine.

    Raises:
        ConfigError: `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    # Ray warns about its own coming defaults; users can do nothing about them here
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        # "local": never the remains of a cluster whose driver was killed
        options |= {"address": "local", "include_dashboard": False, "log_to_driver": False}
    try:
        ray.init(**options)
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS")
        raise ConfigError(
            f"RAY_ADDRESS={address} does not answer: start the cluster, or unset it to run here"
        ) from error
    configure_ray_data()


def configure_ray_data() -> None:
    """Settings of Ray Data that every execution of the project relies on."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    # an error in a worker stops the job; rows are never dropped to go on
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise what a worker raised on purpose, without what Ray wrapped around it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _innermost(error) from error


def _innermost(error: BaseException) -> BaseException:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RaysersError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def is_one_machine() -> bool:
    """True when the driver's machine is the whole cluster."""
    return len([n for n in ray.nodes() if n["Alive"]]) == 1


def place(workers: int) -> Placement:
    """Choose the workers' resources on the connected cluster; `workers` 0 means as many as fit.

    Raises:
        ConfigError: the cluster cannot hold that many workers.
    """
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    ceiling = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return choose_placement(workers, nodes, ceiling)


def choose_placement(
    workers: int, nodes: Sequence[dict[str, float]], ceiling: dict[str, float]
) -> Placement:
    """Placement for the given nodes' resources and the autoscaler's `ceiling` (may be empty).

    One worker per GPU; without GPUs, one worker per node with all its CPUs, because two compute
    threads of one process share one copy of the model.

    Raises:
        ConfigError: they cannot hold that many workers.
    """
    gpus = max(sum(n.get("GPU", 0) for n in nodes), ceiling.get("GPU", 0))
    if gpus >= 1:
        return _place_on_gpus(workers, int(gpus))
    return _place_on_cpus(workers, [n.get("CPU", 0) for n in nodes], ceiling.get("CPU", 0))


def _place_on_gpus(workers: int, gpus: int) -> Placement:
    if workers > gpus:
        raise ConfigError(
            f"--workers {workers} needs {workers} GPUs but the cluster has {gpus}: "
            f"give --workers {gpus}, or 0 to use them all"
        )
    return Placement(workers=workers or gpus, num_cpus=1, num_gpus=1)


def _place_on_cpus(workers: int, node_cpus: list[float], ceiling: float) -> Placement:
    cpus = [int(c) for c in node_cpus if c >= 1]
    if not cpus and ceiling < 1:
        raise ConfigError(
            "the cluster has no CPU or GPU for workers: add worker nodes, or give its head some"
        )
    if not cpus:
        return Placement(workers=workers or int(ceiling), num_cpus=1, num_gpus=0)
    if workers == 0:
        return _widest(cpus)
    for threads in range(max(cpus), 0, -1):
        if sum(c // threads for c in cpus) >= workers:
            return Placement(workers=workers, num_cpus=threads, num_gpus=0)
    for share in range(2, _MAX_WORKERS_PER_CPU + 1):
        if sum(c * share for c in cpus) >= workers:
            return Placement(workers=workers, num_cpus=1 / share, num_gpus=0)
    if ceiling >= workers:
        return Placement(workers=workers, num_cpus=1, num_gpus=0)
    most = sum(cpus)
    raise ConfigError(
        f"--workers {workers} is too many for the cluster's {most} CPUs: "
        f"give --workers {most} or fewer, or 0 to choose"
    )


def _widest(cpus: list[int], most_threads: int = 8) -> Placement:
    """One worker per node up to `most_threads` CPUs, then as many as fit."""
    threads = min(*cpus, most_threads)
    return Placement(workers=sum(c // threads for c in cpus), num_cpus=threads, num_gpus=0)
