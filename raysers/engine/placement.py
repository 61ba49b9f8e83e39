"""How many workers a job gets, and the processors and threads of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysers.errors import ConfigError

#: More workers than this per CPU only take memory from each other.
_MAX_WORKERS_PER_CPU = 4
#: More compute threads than this wait for each other within one small forward pass.
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many workers, and what each reserves.

    `local` is one worker in the driver's process; `elastic` workers come and go with the nodes of
    the cluster, `workers` is their number at the start.
    """

    workers: int
    num_cpus: float
    num_gpus: float
    local: bool = False
    elastic: bool = False

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def threads(self) -> int:
        """Compute threads of one worker."""
        return max(1, int(self.num_cpus))


def here(*, gpus: bool = True, threads: int | None = None) -> Placement:
    """One worker in this process, with its GPU if there is one, else with its CPUs."""
    cpus = threads or min(len(os.sched_getaffinity(0)), _MAX_THREADS)
    if gpus:
        import torch

        gpus = torch.cuda.is_available()
    return Placement(workers=1, num_cpus=cpus, num_gpus=1 if gpus else 0, local=True)


def choose_placement(workers: int, nodes: Sequence[dict[str, float]]) -> Placement:
    """Placement on nodes with these resources.

    One worker per GPU, each with a CPU of its node. Without GPUs, workers of up to eight CPUs,
    because the compute threads of one process share one copy of the model.

    Raises:
        ConfigError: the nodes cannot hold that many workers.
    """
    if any(n.get("GPU", 0) >= 1 for n in nodes):
        most = sum(min(int(n.get("GPU", 0)), int(n.get("CPU", 0))) for n in nodes)
        if most == 0 or workers > most:
            raise ConfigError(
                f"--workers {workers} needs as many GPUs, each with a CPU, but the cluster has "
                f"{most}: give --workers {most}, or 0 to use them all"
            )
        return Placement(workers=workers or most, num_cpus=1, num_gpus=1)
    cpus = [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1]
    if not cpus:
        raise ConfigError(
            "the cluster has no CPU or GPU for workers: add worker nodes, or give its head some"
        )

    def fitting(num_cpus: float) -> int:
        return sum(int(c // num_cpus) for c in cpus)

    if workers == 0:
        # between the most sensible number of threads and its half: leave the fewest CPUs idle
        most = min(*cpus, _MAX_THREADS)
        wide = range((most + 1) // 2, most + 1)
        threads = max(wide, key=lambda threads: (threads * fitting(threads), threads))
        return Placement(workers=fitting(threads), num_cpus=threads, num_gpus=0)
    shares = (1 / share for share in range(2, _MAX_WORKERS_PER_CPU + 1))
    for num_cpus in (*range(max(cpus), 0, -1), *shares):
        if fitting(num_cpus) >= workers:
            return Placement(workers=workers, num_cpus=num_cpus, num_gpus=0)
    raise ConfigError(
        f"--workers {workers} is too many for the cluster's {sum(cpus)} CPUs: "
        f"give --workers {sum(cpus)} or fewer, or 0 to choose"
    )


def io_threads(clips: pa.Table, placement: Placement) -> int:
    """Threads of a worker that fetch and decode `clips` and others like them.

    Local disks need few; object stores answer slowly, but to many at once.
    """
    remote = pc.any(pc.starts_with(clips["file"], "s3://")).as_py()
    if placement.device == "cuda":
        return 32 if remote else 8
    return 16 if remote else max(2, placement.threads)
