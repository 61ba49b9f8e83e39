"""The Ray cluster: joining it, placing workers on it, calling functions and scoring shards there.

Ray Data waits in silence when its actors ask for more than the cluster has, so the demand is
compared with the cluster's resources before anything starts. A shard travels as its number: workers
read its clips in the manifest of the output and write its part, and only a summary row comes back.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import select
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.autoscaler.sdk import request_resources
from ray.data.read_api import from_blocks
from ray.util import metrics

from raysers.data.shards import ShardSource
from raysers.engine.placement import Placement, choose_placement
from raysers.engine.progress import Monitor, Shards
from raysers.engine.worker import ClipTask, ShardResult, ShardWorker, WorkerSettings
from raysers.errors import ConfigError, DeviceLost, RaysersError, errors_as_rows, raise_from_rows
from raysers.io import storage
from raysers.run import Exit, end_on_sigterm, is_terminated, load_record

#: How long the nodes of a starting cluster are waited for.
_NODES_WAIT_S = 900.0
_ASK_AGAIN_S, _SAY_EVERY_S = 10.0, 30.0
#: A head that is silent for so long is lost; after a minute Ray's core ends the process by itself.
_HEAD_LOST_S, _ASK_HEAD_S = 30.0, 5.0
#: Starts per worker that may die while loading before the job gives up.
_FAILED_STARTS = 3
#: Workers of an elastic cluster that may load the model at the same time.
_JOINING = 100

_connecting = threading.Lock()


def connect() -> None:
    """Join the cluster of this job (`RAY_ADDRESS`), or start one on this machine."""
    with _connecting:
        if ray.is_initialized():
            return
        # Ray warns about its own coming defaults; users can do nothing about them here
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        if address := os.environ.get("RAY_ADDRESS"):
            storage.require_answer("RAY_ADDRESS", address)  # Ray itself takes a minute to give up
            try:
                ray.init(logging_level=logging.ERROR, runtime_env=_workers_environment())
            except (ConnectionError, ValueError, RuntimeError) as error:
                fix = "start the cluster, or unset it to run here"
                raise ConfigError(f"RAY_ADDRESS={address} does not answer: {fix}") from error
        else:
            _start_here()
        _watch_ray()
        end_on_sigterm()
        configure_ray_data()


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
            return
        except Exception as error:
            ray.shutdown()
            if last:
                reason = " ".join(str(error).split())[:300]
                raise RaysersError(
                    f"Ray does not start on this machine ({reason}): close other programs and "
                    "run the same command again, or use --workers local, which needs no Ray"
                ) from error


def _watch_ray() -> None:
    """End this process with one clear line when the raylet here dies, or the head is lost.

    Ray's core would end it without a word at its next call, or raise whatever that call raises.
    Where the system cannot wait for a process by a descriptor, that is what happens.
    """
    ended, context = select.poll(), ray.get_runtime_context()
    head, node = context.gcs_address, f"--node_id={context.get_node_id()}"
    host, _, port = head.rpartition(":")
    try:
        for process in psutil.process_iter():
            if process.name() == "raylet" and node in process.cmdline():
                ended.register(os.pidfd_open(process.pid), select.POLLIN)
    except (AttributeError, OSError, psutil.Error):
        return

    def watch() -> None:
        lost = "Ray stopped on this machine (its raylet died, perhaps for lack of memory)"
        answered_s = time.monotonic()
        # without the raylet, its agent is not below this process, and may take a minute to end
        below = psutil.Process().children(recursive=True)
        while not ended.poll(1000 * _ASK_HEAD_S):
            below = psutil.Process().children(recursive=True)
            with suppress(OSError):
                socket.create_connection((host.strip("[]"), int(port)), _ASK_HEAD_S).close()
                answered_s = time.monotonic()
            if time.monotonic() - answered_s > _HEAD_LOST_S:
                lost = f"the head of the Ray cluster, {head}, is lost"
                break
        # the job is over, or a signal to the whole process group ends it
        if not ray.is_initialized() or is_terminated():
            return
        print(
            f"error: {lost}: the same command resumes where it stopped", file=sys.stderr, flush=True
        )
        for process in {*below, *psutil.Process().children(recursive=True)}:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os._exit(Exit.FAILED)

    threading.Thread(target=watch, name="raylet", daemon=True).start()


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Keep what Ray's core prints past Python off the terminal; `sys.stderr` still reaches it."""
    kept = os.dup(2)
    sys.stderr.flush()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            open(kept, "w", buffering=1, errors="backslashreplace", closefd=False) as terminal,
            redirect_stderr(terminal) if sys.stderr is sys.__stderr__ else nullcontext(),
        ):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def configure_ray_data() -> None:
    """Settings of Ray Data that every execution of the project relies on."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    # slow progress is not an error; a hang shows as a progress line that stops changing
    context.execution_no_progress_timeout_s = 24 * 3600.0
    # with two shards each, all workers are busy: nodes that join get one
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # an error in a worker stops the job; rows are never dropped to go on
    context.max_errored_blocks = 0
    # its errors are raised as well, and the command's last line says how to resume
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def map_blocks(
    work: Callable[[pa.Table], pa.Table], blocks: Sequence[pa.Table]
) -> Iterator[pa.Table]:
    """`work` on every block in Ray tasks, raising the RaysersError of any; results in any order."""
    # `ray.data.from_arrow` would start a task for each block, only to count its rows
    results = from_blocks(list(blocks)).map_batches(
        errors_as_rows(work), batch_size=None, batch_format="pyarrow"
    )
    results.set_name("raysers-headers")  # as the dashboard shows it
    for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield raise_from_rows(table)


def is_one_machine() -> bool:
    """True when the driver's machine is the whole cluster."""
    return len([n for n in ray.nodes() if n["Alive"]]) == 1


def place(workers: int, *, gpus: bool = True) -> Placement:
    """Choose the workers' resources on the connected cluster; `workers` 0 means as many as fit.

    With `gpus`, a worker takes a GPU where the cluster has them. A cluster without nodes is asked
    for one and waited for, with a notice. With 0 on a cluster, workers come and go with its nodes.
    """
    on_cluster, asked = bool(os.environ.get("RAY_ADDRESS")), False
    deadline = time.monotonic() + _NODES_WAIT_S * on_cluster
    while True:
        try:
            nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
            if not gpus:
                nodes = [{"CPU": resources.get("CPU", 0)} for resources in nodes]
            placement = choose_placement(workers, nodes)
            if asked:
                request_resources(bundles=[])
            return replace(placement, elastic=on_cluster and not workers)
        except ConfigError as error:
            if time.monotonic() >= deadline:
                raise
            request_resources(bundles=[{"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}, {"CPU": 1}])
            asked = True
            print(f"waiting for nodes: {error}", file=sys.stderr, flush=True)
            time.sleep(_ASK_AGAIN_S)


def call_on_worker(placement: Placement, call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)` in a process with a worker's resources, on any node that has room for it."""
    remote = ray.remote(
        num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, scheduling_strategy="SPREAD"
    )(call)
    return get_with_notice(remote.remote(*args), f"one {placement.device} worker")


def get_with_notice(ref: Any, waiting_for: str) -> Any:
    """`ray.get`, with a line every now and then about what it waits for.

    A RaysersError of the worker is raised without what Ray wrapped around it.
    """
    while not ray.wait([ref], timeout=_SAY_EVERY_S)[0]:
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        print(f"waiting for {waiting_for} (free now: {free})", file=sys.stderr, flush=True)
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, RaysersError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from error


def new_monitor() -> Any:
    """A Monitor actor on the driver's node, so that it lives as long as the driver."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Monitor).remote()


def snapshot(monitor: Any) -> Shards | None:
    """What workers have reported; None when the actor does not answer just now."""
    try:
        shards: Shards = ray.get(monitor.snapshot.remote(), timeout=5)
        return shards
    except ray.exceptions.RayError:  # a time-out is one
        return None


@dataclass(eq=False)
class _ScoreShards:
    """The worker as Ray Data builds it: errors that it raises on purpose travel back as rows."""

    settings: WorkerSettings
    read: Callable[[], ShardSource]
    task: ClipTask
    monitor: Any
    max_starts: int

    def __post_init__(self) -> None:
        self._worker: ShardWorker | None = None
        self._loading = threading.Lock()
        self._reported_s: dict[int, float] = {}

    @errors_as_rows
    def __call__(self, shards: pa.Table) -> pa.Table:
        # the model is loaded by the first call, because an error in a constructor has no row
        with self._loading:
            self._worker = self._worker or self._load()
        try:
            (shard,) = shards["shard"].to_pylist()
            result = self._worker.run(self._source.block(shard))
            self.monitor.finished.remote(shard)
            self._reported_s.pop(shard, None)
        except DeviceLost:
            os._exit(1)  # nothing works in this process any more; the ledger finds the clip
        # for Prometheus, through Ray's own exporter
        about = {"table": self.task.table}
        for status, number in result.statuses.items():
            self._clips.inc(number, {**about, "status": str(status)})
        self._hours.inc(max(result.scored_s, 1e-9) / 3600, about)
        self._wait.inc(max(result.wait_s, 1e-9), about)
        row = {name: getattr(result, name) for name in ShardResult.__slots__}
        return pa.table({"result": [json.dumps(row)]})

    def _load(self) -> ShardWorker:
        """The worker with its model loaded, unless loading it keeps killing workers."""
        record = load_record(self.settings.output)
        if record is None or record.run_id != self.settings.run_id:
            raise RaysersError(
                f"{platform.node()} does not see {self.settings.output}: give an --output that "
                "every node reaches, s3:// or a shared disk"
            )
        if ray.get(self.monitor.loading.remote()) > self.max_starts:
            raise RaysersError(
                "workers die while they load the model: give fewer --workers or more memory"
            )
        self._source = self.read()
        self._clips = metrics.Counter("raysers_clips", tag_keys=("table", "status"))
        self._hours = metrics.Counter("raysers_audio_hours", tag_keys=("table",))
        self._wait = metrics.Counter("raysers_model_wait_s", tag_keys=("table",))
        worker = ShardWorker(self.settings, self.task, self._report)
        self.monitor.loaded.remote()
        return worker

    def _report(self, shard: int, audio_s: float, statuses: dict[str, int]) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s.get(shard, 0.0) >= 1.0:
            self._reported_s[shard] = now_s
            self.monitor.report.remote(shard, audio_s, statuses)


def run_shards(
    shards: Sequence[int],
    read: Callable[[], ShardSource],
    settings: WorkerSettings,
    task: ClipTask,
    placement: Placement,
    monitor: Any,
) -> Iterator[ShardResult]:
    """Score shards, whose clips workers `read`; results come as they finish, in any order."""
    blocks = [pa.table({"shard": [shard]}) for shard in shards]
    size = min(placement.workers, len(blocks))
    most_starts = _FAILED_STARTS * max(placement.workers, _JOINING * placement.elastic)
    results = from_blocks(blocks).map_batches(
        _ScoreShards,
        fn_constructor_args=(settings, read, task, monitor, most_starts),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            min_size=1 if placement.elastic else size,
            max_size=len(blocks) if placement.elastic else size,
            initial_size=size,
            max_tasks_in_flight_per_actor=placement.shards_in_flight,
            max_concurrent_calls_per_actor=placement.shards_in_flight,
            enable_true_multi_threading=True,
        ),
        num_cpus=placement.num_cpus,
        num_gpus=placement.num_gpus or None,
    )
    results.set_name(f"raysers-{task.table}")
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in raise_from_rows(batch)["result"].to_pylist():
            result = json.loads(text)
            yield ShardResult(**{**result, "statuses": Counter(result["statuses"])})
