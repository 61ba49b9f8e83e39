"""Decoding outside of the model's process, whose interpreter lock it would take.

A member is a plain Python process without torch. It gets functions and arguments by a socket and
answers with pickled results whose arrays lie in shared memory, which the kernel frees with the last
process that has it: nothing is left behind by a kill.
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
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from raysers.errors import DecoderDied, RaysersError

#: Deaths in a row, without an answer in between, that end the job.
_DEATHS = 12
#: Arrays begin at such places in shared memory.
_ALIGNED = 64
_END_S = 5.0
_PROGRAM = "from raysers.engine.processes import serve; serve()"


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
        """Run `fn(*args, pool)` in the member with the least to do.

        Raises:
            RaysersError: members die one after another.
        """
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
