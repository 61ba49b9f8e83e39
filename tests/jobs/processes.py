"""Running a job as a user does, in a process of its own, and killing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.places import REPO


def start(
    script: str, *args: object, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python SCRIPT ARGS` in the project's root."""
    return subprocess.Popen(
        [sys.executable, str(REPO / script), *map(str, args)],
        cwd=REPO,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process, which must end by itself."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s} s\n{out}\n{err}") from None
    return process.returncode, out, err


def run(script: str, *args: object, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Start and finish."""
    return finish(start(script, *args, env=env))


def kill_tree(pid: int) -> None:
    """SIGKILL a process of ours and everything it started."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        process.kill()


def model_workers(pid: int) -> list[psutil.Process]:
    """Workers that score, below a process of ours."""
    family = psutil.Process(pid).children(recursive=True)
    return [p for p in family if "ray::MapWorker" in title(p)]


def title(process: psutil.Process) -> str:
    """Its command line; empty once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def stop_workers_when(pid: int, ready: Callable[[], bool]) -> list[psutil.Process]:
    """Stop the workers below `pid` as soon as `ready()`, so that nothing can end meanwhile."""
    deadline = time.monotonic() + 120
    workers: list[psutil.Process] = []
    while not (workers and ready()):
        assert psutil.pid_exists(pid)
        assert time.monotonic() < deadline
        time.sleep(0.01)
        # looked for again when they were those of a run before
        workers = [w for w in workers if w.is_running()] or model_workers(pid)
    for worker in workers:
        worker.suspend()
    return workers


def kill_driver_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """SIGKILL the driver itself as soon as `ready()`; its workers must follow by themselves."""
    workers = stop_workers_when(process.pid, ready)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs([p for p in children if p not in workers], timeout=2)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.resume()
    _, alive = psutil.wait_procs(children, timeout=10)
    for agent in alive:  # Ray leaves its agents behind; they do nothing, but they stay
        assert "Agent" in title(agent)
        agent.kill()


def parts_in(out: Path) -> int:
    """Finished parts of a local output."""
    return len(list((out / "annotations").glob("part-*.parquet")))


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """SIGKILL a job that works without Ray as soon as `ready()`."""
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_tree(process.pid)
    process.communicate()
