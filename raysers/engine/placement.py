"""Where a job works: its workers, their processors and precision, and processes beside them.

Those decode, because decoding in the model's process would take its interpreter lock. Such a member
is a plain Python process without torch. It gets functions and arguments by a socket and answers
with pickled results whose arrays lie in shared memory, which the kernel frees with the last process
that has it: nothing is left behind by a kill.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

from raysers.errors import ConfigError, DecoderDied, RaysersError

if TYPE_CHECKING:
    import pyarrow as pa

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
        workers=1, num_cpus=cpus, num_gpus=1 if gpus else 0, local=True, decode_processes=processes
    )


def choose_placement(workers: int, nodes: Sequence[dict[str, float]]) -> Placement:
    """Placement on nodes with these resources; ConfigError where they cannot hold the workers.

    One worker per GPU, each with a CPU of its node; else workers of up to eight CPUs, because the
    compute threads of one process share one copy of the model.
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
    import pyarrow.compute as pc

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
    """What `--dtype` means to workers: `auto` as when the output was begun, else by hardware."""
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


#: Deaths in a row, without an answer in between, that end the job.
_DEATHS = 12
#: Arrays begin at such places in shared memory.
_ALIGNED = 64
_END_S = 5.0
_PROGRAM = "from raysers.engine.placement import serve; serve()"


class Once:
    """A picklable function that each process unpickles once, with what it keeps."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call, self._data = call, pickle.dumps(call)

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        return self._call(*args)

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return _loaded, (self._data,)


@lru_cache(maxsize=4)
def _loaded(data: bytes) -> Any:
    return pickle.loads(data)


class ProcessPool(Executor):
    """Runs functions of importable modules in `processes` members of `threads` threads each.

    A function gets the member's pool of threads as its last argument. A member that dies fails what
    it had in work with DecoderDied, and the next call starts another.
    """

    def __init__(self, processes: int, threads: int) -> None:
        self._processes, self._threads = processes, threads
        self._lock = threading.Lock()
        self.deaths = 0
        self._members: list[_Member] = []
        with self._lock:  # at once: they start while the model is loaded
            self._members += [_Member(threads, self) for _ in range(processes)]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn(*args, pool)` in the member with the least to do; RaysersError if all die."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        call = pickle.dumps((fn, args))
        with self._lock:
            while len(self._members) < self._processes:
                if self.deaths >= _DEATHS:
                    raise RaysersError(
                        "decoding processes die one after another: give --decode-processes 0, "
                        "or more memory"
                    )
                self._members.append(_Member(self._threads, self))
            member = min(self._members, key=lambda one: len(one.waiting))
            number = member.sent = member.sent + 1
            member.waiting[number] = future
            with suppress(OSError):  # it is dead, which its reader finds
                member.connection.send((number, call))
        return future

    def died(self, member: _Member) -> list[Future[Any]]:
        """Forget a dead member; returns what it has not answered."""
        with self._lock:
            self._members.remove(member)
            self.deaths += 1
            return list(member.waiting.values())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the members; what they have in work is lost."""
        with self._lock:
            for member in self._members:
                member.end(wait)


class _Member:
    """A process, and the thread that reads its answers."""

    def __init__(self, threads: int, pool: ProcessPool) -> None:
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(threads)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.sent = 0
        self.waiting: dict[int, Future[Any]] = {}
        self._pool = pool
        threading.Thread(target=self._read, name="decoded", daemon=True).start()

    def end(self, wait: bool) -> None:
        """End the process: its socket is at its end."""
        with (
            suppress(OSError),
            socket.fromfd(self.connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as ours,
        ):
            ours.shutdown(socket.SHUT_RDWR)
        if wait:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)

    def _read(self) -> None:
        try:
            while True:
                number, is_error, data, sizes = self.connection.recv()
                result = pickle.loads(data, buffers=self._shared(sizes))
                future = self.waiting.pop(number)
                self._pool.deaths = 0
                future.set_exception(result) if is_error else future.set_result(result)
        except Exception as error:  # with no thread to read them, answers would never come
            unanswered = self._pool.died(self)
            self.connection.close()
            code = self.process.wait()
            is_dead = isinstance(error, EOFError | OSError)
            died = DecoderDied(f"a decoding process ended with code {code}")
            for future in unanswered:
                future.set_exception(died if is_dead else error)

    def _shared(self, sizes: list[int]) -> list[memoryview]:
        """The arrays that follow an answer; their memory lives as long as they do."""
        if not sum(sizes):
            return [memoryview(bytearray())] * len(sizes)
        handle = recv_handle(self.connection)
        try:
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # its pages at once
            whole = memoryview(mmap.mmap(handle, sum(map(_padded, sizes)), flags))
        finally:
            os.close(handle)
        found, at = [], 0
        for size in sizes:
            found.append(whole[at : at + size])
            at += _padded(size)
        return found


def serve() -> None:
    """A member's life: descriptor of its socket and number of threads are in `sys.argv`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks ends this one
    connection, threads = Connection(int(sys.argv[1])), int(sys.argv[2])
    sending = threading.Lock()
    # one waits for the threads that fetch for it
    workers, fetching = ThreadPoolExecutor(threads), ThreadPoolExecutor(threads)

    def answer(number: int, call: bytes) -> None:
        buffers: list[pickle.PickleBuffer] = []
        keep = buffers.append if hasattr(os, "memfd_create") else None
        try:
            fn, args = pickle.loads(call)
            data = pickle.dumps(fn(*args, fetching), protocol=5, buffer_callback=keep)
            is_error = False
        except Exception as error:
            ours = isinstance(error, RaysersError)
            data = pickle.dumps(error if ours else RuntimeError(f"{type(error).__name__}: {error}"))
            is_error = True
        raw = [buffer.raw() for buffer in buffers]
        sizes = [len(one) for one in raw]
        handle = _filled(raw) if sum(sizes) else -1
        with sending:
            connection.send((number, is_error, data, sizes))
            if handle >= 0:
                send_handle(connection, handle, 0)
        if handle >= 0:
            os.close(handle)

    with suppress(EOFError, OSError):
        while True:
            workers.submit(answer, *connection.recv())
    os._exit(0)


def _filled(buffers: list[memoryview]) -> int:
    """Descriptor of new shared memory that holds the buffers."""
    handle = os.memfd_create("decoded")
    with open(handle, "wb", closefd=False) as memory:
        for one in buffers:
            memory.write(one)
            memory.write(bytes(_padded(len(one)) - len(one)))
    return handle


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
