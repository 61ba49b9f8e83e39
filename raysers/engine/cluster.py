"""The Ray cluster: joining it, placing workers on it, and calling functions there.

Ray Data waits in silence when its actors ask for more than the cluster has, so the demand is
compared with the cluster's resources before anything starts.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.data.read_api import from_blocks

from raysers.engine.plan import Placement
from raysers.errors import ConfigError, RaysersError, errors_as_rows, raise_from_rows
from raysers.io import storage
from raysers.run import Exit, end_on_sigterm

#: More workers than this per CPU only take memory from each other.
_MAX_WORKERS_PER_CPU = 4

#: More compute threads than this wait for each other within one small forward pass.
_MAX_THREADS = 8

#: How long nodes of a cluster that is still starting are waited for, and how often they are asked.
_NODES_WAIT_S = 900.0
_ASK_AGAIN_S = 10.0
_SAY_EVERY_S = 30.0


def connect() -> None:
    """Join the cluster of this job (`RAY_ADDRESS`), or start one on this machine.

    Raises:
        ConfigError: `RAY_ADDRESS` names a cluster that does not answer.
        RaysersError: Ray does not start on this machine.
    """
    with _connecting:
        if ray.is_initialized():
            return
        # Ray warns about its own coming defaults; users can do nothing about them here
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(logging_level=logging.ERROR, runtime_env=_workers_environment())
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"RAY_ADDRESS={address} does not answer: start the cluster, or unset it to "
                    "run here"
                ) from error
        else:
            _start_here()
        end_on_sigterm()
        configure_ray_data()


_connecting = threading.Lock()


def _workers_environment() -> dict[str, Any]:
    """What the driver's flags set in the environment, unless `ray job submit` did so already."""
    name = storage.REQUESTER_PAYS
    own = name in os.environ and name not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    return {"env_vars": {name: os.environ[name]}} if own else {}


def _start_here() -> None:
    """Start Ray on this machine; a slow start is tried once more."""
    for last in (False, True):
        try:
            with _muted_stderr():
                # "local": never the remains of a cluster whose driver was killed
                ray.init(
                    address="local",
                    logging_level=logging.ERROR,
                    include_dashboard=False,
                    log_to_driver=False,
                )
            _watch_raylet()
            return
        except Exception as error:
            ray.shutdown()
            if last:
                reason = " ".join(str(error).split())[:300]
                raise RaysersError(
                    f"Ray does not start on this machine ({reason}): close other programs and "
                    "run the same command again, or use --workers local, which needs no Ray"
                ) from error


def _watch_raylet() -> None:
    """End this process with one clear line when its raylet dies.

    Ray's core would end it without a word at its next call, or raise whatever that call raises.
    """
    children = psutil.Process().children()
    raylet = next((os.pidfd_open(p.pid) for p in children if p.name() == "raylet"), None)

    def watch() -> None:
        select.select([raylet], [], [])
        if not ray.is_initialized():  # the job is over
            return
        print(
            "error: Ray stopped on this machine (its raylet died, perhaps for want of memory): "
            "the same command resumes where it stopped",
            file=sys.stderr,
            flush=True,
        )
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(Exit.FAILED)

    if raylet is not None:
        threading.Thread(target=watch, name="raylet", daemon=True).start()


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Keep what Ray's core prints at its start, past Python, off the terminal.

    Other threads print through `sys.stderr` meanwhile, so that goes on to the terminal.
    """
    python_stderr = sys.stderr
    python_stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    terminal = os.fdopen(os.dup(kept), "w", buffering=1, errors="backslashreplace")
    try:
        if python_stderr is sys.__stderr__:
            sys.stderr = terminal
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        sys.stderr = python_stderr
        terminal.flush()
        os.close(kept)
        os.close(nowhere)


def configure_ray_data() -> None:
    """Settings of Ray Data that every execution of the project relies on."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    # slow progress is not an error; a hang shows as a progress line that stops changing
    context.execution_no_progress_timeout_s = 24 * 3600.0
    # an error in a worker stops the job; rows are never dropped to go on
    context.max_errored_blocks = 0
    # its errors are raised as well, and the command's last line says how to resume
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def dataset_of(blocks: Sequence[pa.Table]) -> Any:
    """The Ray dataset of just these blocks.

    `ray.data.from_arrow` would start a task for each, only to count its rows.
    """
    return from_blocks(list(blocks))


def map_blocks(
    work: Callable[[pa.Table], pa.Table], blocks: Sequence[pa.Table]
) -> Iterator[pa.Table]:
    """`work` on every block in Ray tasks; results in any order.

    Raises:
        RaysersError: what `work` raised.
    """
    results = dataset_of(blocks).map_batches(
        errors_as_rows(work), batch_size=None, batch_format="pyarrow"
    )
    for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield raise_from_rows(table)


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


def place(workers: int, *, gpus: bool = True) -> Placement:
    """Choose the workers' resources on the connected cluster; `workers` 0 means as many as fit.

    Args:
        workers: how many; 0 for as many as fit.
        gpus: whether a worker takes a GPU where the cluster has them.

    Nodes of a cluster that was just started are waited for, with a word about it.

    Raises:
        ConfigError: the cluster cannot hold that many workers.
    """
    deadline = time.monotonic() + (_NODES_WAIT_S if os.environ.get("RAY_ADDRESS") else 0.0)
    while True:
        try:
            nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
            if not gpus:
                nodes = [{"CPU": resources.get("CPU", 0)} for resources in nodes]
            return choose_placement(workers, nodes)
        except ConfigError as error:
            if time.monotonic() >= deadline:
                raise
            print(f"waiting for nodes: {error}", file=sys.stderr, flush=True)
            time.sleep(_ASK_AGAIN_S)


def call_on_worker(placement: Placement, call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)` in a process with a worker's resources, anywhere on the cluster.

    It is spread over the cluster, because the caller's own node may have no room for it.

    Raises:
        RaysersError: what the call raised on purpose.
        ray.exceptions.RayError: a bug in the call.
    """
    remote = ray.remote(
        num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, scheduling_strategy="SPREAD"
    )(call)
    return get_with_notice(remote.remote(*args), f"one {placement.device} worker")


def get_with_notice(ref: Any, waiting_for: str) -> Any:
    """`ray.get`, with a line every now and then about what it waits for.

    Raises:
        RaysersError: what the worker raised on purpose.
        ray.exceptions.RayError: a bug in the worker.
    """
    while not ray.wait([ref], timeout=_SAY_EVERY_S)[0]:
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        print(f"waiting for {waiting_for} (free now: {free})", file=sys.stderr, flush=True)
    with own_errors():
        return ray.get(ref)


def choose_placement(workers: int, nodes: Sequence[dict[str, float]]) -> Placement:
    """Placement on nodes with these resources.

    One worker per GPU, each with a CPU of its node. Without GPUs, workers of up to eight CPUs,
    because the compute threads of one process share one copy of the model.

    Raises:
        ConfigError: the nodes cannot hold that many workers.
    """
    if any(n.get("GPU", 0) >= 1 for n in nodes):
        return _place_on_gpus(workers, nodes)
    return _place_on_cpus(workers, [int(n["CPU"]) for n in nodes if n.get("CPU", 0) >= 1])


def _place_on_gpus(workers: int, nodes: Sequence[dict[str, float]]) -> Placement:
    most = sum(min(int(n.get("GPU", 0)), int(n.get("CPU", 0))) for n in nodes)
    if most == 0 or workers > most:
        raise ConfigError(
            f"--workers {workers} needs as many GPUs, each with a CPU, but the cluster has {most}: "
            f"give --workers {most}, or 0 to use them all"
        )
    return Placement(workers=workers or most, num_cpus=1, num_gpus=1)


def _place_on_cpus(workers: int, cpus: list[int]) -> Placement:
    if not cpus:
        raise ConfigError(
            "the cluster has no CPU or GPU for workers: add worker nodes, or give its head some"
        )
    if workers == 0:
        return _widest(cpus)
    for threads in range(max(cpus), 0, -1):
        if sum(c // threads for c in cpus) >= workers:
            return Placement(workers=workers, num_cpus=threads, num_gpus=0)
    for share in range(2, _MAX_WORKERS_PER_CPU + 1):
        if sum(c * share for c in cpus) >= workers:
            return Placement(workers=workers, num_cpus=1 / share, num_gpus=0)
    most = sum(cpus)
    raise ConfigError(
        f"--workers {workers} is too many for the cluster's {most} CPUs: "
        f"give --workers {most} or fewer, or 0 to choose"
    )


def _widest(cpus: list[int]) -> Placement:
    """The number of threads, half the most sensible to that, which leaves the fewest CPUs idle."""
    most = min(*cpus, _MAX_THREADS)

    def used(threads: int) -> tuple[int, int]:
        return threads * sum(c // threads for c in cpus), threads

    threads = max(range((most + 1) // 2, most + 1), key=used)
    return Placement(workers=sum(c // threads for c in cpus), num_cpus=threads, num_gpus=0)
