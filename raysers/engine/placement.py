"""Where a job works: how many workers, with which processors and threads, in which precision."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysers.errors import ConfigError
from raysers.run import RunRecord

#: More workers than this per CPU only take memory from each other.
_MAX_WORKERS_PER_CPU = 4
#: More compute threads than this wait for each other within one small forward pass.
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many workers, and what each reserves.

    `local` is one worker in the driver's process; `elastic` workers come and go with the nodes of
    the cluster, `workers` is their number at the start. `decode_processes` decode for each worker,
    none: its own threads do.
    """

    workers: int
    num_cpus: float
    num_gpus: float
    local: bool = False
    elastic: bool = False
    decode_processes: int = 0

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def threads(self) -> int:
        """Compute threads of one worker."""
        return max(1, int(self.num_cpus))

    @property
    def shards_in_flight(self) -> int:
        """Shards that a worker has at a time.

        With few short ones it waits for a store that answers late. One of several has few, because
        the others would wait for those of a slow one at the end of the list.
        """
        return 8 if self.local else 2


def here(*, gpus: bool = True, threads: int | None = None) -> Placement:
    """One worker in this process, with its GPU if there is one, else with its CPUs."""
    cores, processes = len(os.sched_getaffinity(0)), 0
    cpus = threads or min(cores, _MAX_THREADS)
    if gpus:
        import torch

        gpus = torch.cuda.is_available()
        processes = max(0, cores // torch.cuda.device_count() - 1) if gpus else 0
    return Placement(
        workers=1,
        num_cpus=cpus,
        num_gpus=1 if gpus else 0,
        local=True,
        decode_processes=processes,
    )


def choose_placement(workers: int, nodes: Sequence[dict[str, float]]) -> Placement:
    """Placement on nodes with these resources.

    One worker per GPU, each with a CPU of its node; else workers of up to eight CPUs, because the
    compute threads of one process share one copy of the model.

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
        each = [n.get("CPU", 0) // n["GPU"] for n in nodes if n.get("GPU", 0) >= 1]
        beside = max(0, int(min(share for share in each if share or max(each) < 1)) - 1)
        return Placement(workers=workers or most, num_cpus=1, num_gpus=1, decode_processes=beside)
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

    Local disks need few. Object stores answer slowly, but to many at once: 5,700 short clips a
    second, what a large GPU scores, are 290 requests in flight at 50 ms each; a CPU decodes 16 in
    that time, and more threads only wait for each other. With a connection and a memory file for
    each, 320 stay below the 1,024 open files that many systems allow. Threads start as they are
    needed, within the audio that is decoded ahead.
    """
    if pc.any(pc.match_substring(clips["file"], "://")).as_py():
        return 320 if placement.device == "cuda" else 16 * max(2, placement.threads)
    return 8 if placement.device == "cuda" else max(2, placement.threads)


def connecting() -> Future[None]:
    """Join or start the cluster in a thread, while the clips are listed."""
    connected: Future[None] = Future()

    def connect() -> None:
        from raysers.engine import cluster

        try:
            cluster.connect()
            connected.set_result(None)
        except BaseException as error:
            connected.set_exception(error)
        threading.Event().wait()  # Ray's processes end with the thread that started them

    threading.Thread(target=connect, name="ray", daemon=True).start()
    return connected


def settled_dtype(dtype: str, placement: Placement, earlier: RunRecord | None) -> str:
    """What `--dtype` means to the workers: `auto` as when the output was begun, else by hardware.

    Raises:
        ConfigError: the workers do not compute in this precision.
    """
    if dtype == "auto" and earlier is not None:
        dtype = str(earlier.settings.get("dtype", dtype))
    if dtype not in ("auto", "fp16"):
        return dtype
    from raysers.models.scorer import dtype_name

    return _on_worker(placement, dtype_name, dtype)


def settled_backend(dtype: str, placement: Placement, earlier: RunRecord | None) -> str:
    """What computes the scores: the same for all workers, and as when the output was begun."""
    if placement.device != "cpu" and dtype != "int8":
        return "torch"
    from raysers.models.onnx import TORCH, backend_of

    backend = _on_worker(placement, backend_of, dtype)
    begun = backend if earlier is None else earlier.settings.get("backend", TORCH)
    return TORCH if begun == TORCH else backend


def _on_worker(placement: Placement, choose: Callable[[str, str], str], dtype: str) -> str:
    """`choose(dtype, device)` as a worker answers it."""
    if placement.local:
        return choose(dtype, placement.device)
    from raysers.engine import cluster

    if placement.device == "cpu" and cluster.is_one_machine():
        return choose(dtype, "cpu")
    return str(cluster.call_on_worker(placement, choose, dtype, placement.device))
