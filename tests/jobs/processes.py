"""Running a job as a user does, in a process of its own, and killing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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


def kill_driver_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """SIGKILL the driver itself as soon as `ready()`; its workers must follow by themselves."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    for agent in alive:  # Ray leaves its agents behind; they do nothing, but they stay
        assert "Agent" in " ".join(agent.cmdline())
        agent.kill()


def parts_in(out: Path) -> int:
    """Finished parts of a local output."""
    return len(list((out / "annotations").glob("part-*.parquet")))
