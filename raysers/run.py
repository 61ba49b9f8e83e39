"""The life of an output folder: one `Run` owns it from the first look to the last record.

`run.json` is the record of the run. Its `settings` decide the rows: a folder is only continued with
equal ones, and only one run at a time may hold it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import raysers
from raysers.data.corpora import EMOTION_MAPS
from raysers.display import one_line, with_packages
from raysers.errors import (
    ConfigError,
    ObjectMissing,
    RaysersError,
    RefusedError,
    StorageError,
    TransientStorageError,
)
from raysers.io import storage
from raysers.io.marks import Claim

FlagsT = TypeVar("FlagsT", bound=Any)

_VERSIONED = (
    "ray", "torch", "transformers", "onnxruntime", "soundfile", "soxr", "pyarrow", "numpy",
)  # fmt: skip
_MAX_ERROR = 2000
#: What `--emotion-map` takes beside files.
_MAP_NAMES = ("auto", "none", *EMOTION_MAPS)
#: Where Ray unpacks what `ray job submit --working-dir` sends.
_RAY_PACKAGES = "runtime_resources"


class Exit(IntEnum):
    """Exit codes of every job."""

    DONE = 0
    FAILED = 1
    BAD_CONFIG = 2
    TOO_MANY_FAILED = 3
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What `run.json` holds. `history` lists the earlier runs that wrote into the folder."""

    run_id: str
    job: str
    status: str
    started_at: str
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    command: list[str]
    finished_at: str | None = None
    outcome: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()

    def save(self, output: str) -> None:
        """Write the record atomically to `output`."""
        record = {name: getattr(self, name) for name in self.__slots__}
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        storage.write_atomic(storage.join(output, "run.json"), (text + "\n").encode())


class Run:
    """One output folder, claimed by this process until the block ends.

        with Run.open("annotate", output, table="annotations") as run:
            ...                          # what is wrong up to here is exit 2, nothing written
            run.begin(config, settings)  # refuses other settings; run.json says `running`
            run.finish("done", outcome)

    `earlier` is the record of the run that is resumed, `record` this run's, from `begin` on.
    """

    def __init__(self, job: str, output: str, claim: Claim | None, new_folders: list[str]) -> None:
        self.job, self.output = job, output
        self.earlier: RunRecord | None = None
        self.record: RunRecord | None = None
        self.run_id = uuid.uuid4().hex[:16]
        self._claim = claim
        self._new_folders = new_folders

    @classmethod
    def open(cls, job: str, output: str, *, table: str = "", dry_run: bool = False) -> Run:
        """Claim the folder and look at what it holds; a dry run only looks.

        Raises RefusedError: the folder belongs to another job, or another run holds it;
        ConfigError: it cannot be written, or has parts of `table` but no `run.json`.
        """
        output = absolute_output(output)
        with _as_config_errors():
            _own_record(output, job)  # a folder of another job is not even claimed
            new = [] if dry_run else _missing_folders(output)
            run = cls(job, output, None if dry_run else Claim.take(output, job), new)
            try:
                run.earlier = _own_record(output, job)
                unknown = run.earlier is None and table
                if unknown and storage.list_parts(storage.join(output, table)):
                    raise ConfigError(
                        f"--output {output} has {table} but no run.json: choose another folder"
                    )
            except BaseException:
                run._release()
                raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.record is not None:
                self._fail(error)
            elif error is not None:
                with _as_config_errors():
                    raise error
        finally:
            self._release()

    def refuse_other_settings(self, settings: Mapping[str, Any]) -> None:
        """Raises RefusedError naming every setting in which the folder's rows differ."""
        if self.earlier is None:
            return
        before = self.earlier.settings
        differing = [
            f"{key} was {before.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted({*before, *settings})
            if before.get(key) != settings.get(key)
        ]
        if differing:
            raise RefusedError(
                f"--output {self.output} holds rows of other settings ({'; '.join(differing)}): "
                "choose another folder, or repeat the earlier settings to resume"
            )

    def begin(
        self,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        command: Sequence[str] | None = None,
    ) -> RunRecord:
        """Write the record with status `running`; from here on a failure is recorded.

        `config` are the flags as they were given, `settings` what decides the rows (RefusedError
        where the folder's have others). `command` gives the same result; default: this process's
        command line.
        """
        self.refuse_other_settings(settings)
        names = ("run_id", "status", "started_at", "finished_at", "outcome")
        before = self.earlier and {name: getattr(self.earlier, name) for name in names}
        record = RunRecord(
            run_id=self.run_id,
            job=self.job,
            status="running",
            started_at=now(),
            config=config,
            settings=settings,
            versions=_versions(),
            command=list(sys.argv if command is None else command),
            history=(*self.earlier.history, before) if self.earlier and before else (),
        )
        self._save(record)
        return record

    def finish(self, status: str, outcome: Mapping[str, Any]) -> None:
        """Write how the run ended: `done`, `done_with_failures`, `stopped`, with the figures."""
        assert self.record is not None, "finish before begin"
        self._save(replace(self.record, status=status, finished_at=now(), outcome=outcome))

    def abandon(self) -> None:
        """Remove the record that `begin` wrote into a new folder: nothing has been done yet."""
        assert self.earlier is None, "the folder holds an earlier run"
        with suppress(RaysersError):
            storage.delete(storage.join(self.output, "run.json"))
        self.record = None

    def verify(self) -> None:
        """Raises RaysersError when another run has taken the folder over."""
        if self._claim is not None:
            self._claim.verify()

    def _save(self, record: RunRecord) -> None:
        self.verify()
        record.save(self.output)
        self.record = record

    def _fail(self, error: BaseException) -> None:
        """Record the failure, unless the run has ended or the folder is no longer this run's."""
        assert self.record is not None
        if self.record.status == "running":
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            text = f"{type(error).__name__}: {error}"[:_MAX_ERROR]
            with suppress(RaysersError):  # the disk may be what failed
                self.finish("interrupted" if stopped else "failed", {"error": text})
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing or isinstance(error, ConfigError):  # no longer the command's fault
            raise RaysersError(str(error)) from error

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
        if self.record is None:  # nothing was written: leave no folder behind
            for folder in self._new_folders:
                with suppress(OSError):
                    os.rmdir(folder)


def absolute_output(output: str) -> str:
    """`--output` as a place that means the same in every process of the cluster."""
    here = not storage.is_remote(output) and not os.path.isabs(os.path.expanduser(output))
    if _RAY_PACKAGES in os.getcwd() and here:
        raise ConfigError(
            f"--output {output} would be inside the job's own copy of the code, which is "
            "thrown away: give an absolute path or an s3:// prefix"
        )
    return storage.absolute(output)


def with_absolute_paths(flags: FlagsT, *places: str) -> FlagsT:
    """The flags, checked, with `output` and these places the same in every process of the cluster.

    A place is a path, several, or empty; `emotion_map` may be a name.
    """
    flags.check()
    changes: dict[str, Any] = {"output": absolute_output(flags.output)}
    for name in places:
        value = getattr(flags, name)
        if isinstance(value, tuple):
            changes[name] = tuple(map(storage.absolute, value))
        elif value and not (name == "emotion_map" and value in _MAP_NAMES):
            changes[name] = storage.absolute(value)
    return replace(flags, **changes)


def now() -> str:
    """The present instant, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def load_record(output: str) -> RunRecord | None:
    """The record in `output`, None when there is none; ConfigError when it is not one of ours."""
    uri = storage.join(output, "run.json")
    try:
        raw = json.loads(storage.read_bytes(uri))
        known = {name: raw[name] for name in RunRecord.__slots__ if name in raw}
        known["history"] = tuple(known.get("history", ()))
        return RunRecord(**known)
    except ObjectMissing:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"--output {output}: its run.json is not a run record ({error})"
        ) from error


@contextmanager
def _as_config_errors() -> Iterator[None]:
    """Until something is written, a store that refuses is the command's fault, not the job's."""
    try:
        yield
    except TransientStorageError:
        raise
    except StorageError as error:
        raise ConfigError(str(error)) from error


def _own_record(output: str, job: str) -> RunRecord | None:
    record = load_record(output)
    if record is not None and record.job != job:
        raise RefusedError(
            f"--output {output} holds a run of {record.job!r}: choose another folder for {job!r}"
        )
    return record


def _missing_folders(output: str) -> list[str]:
    """The local folders that claiming `output` would make, deepest first."""
    missing: list[str] = []
    while not storage.is_remote(output) and not os.path.lexists(output):
        missing.append(output)
        output = os.path.dirname(output)
    return missing


def _versions() -> dict[str, str]:
    found = {"raysers": raysers.__version__, "python": platform.python_version()}
    for name in _VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def run_main(job: Callable[[], int]) -> int:
    """Run a job's body and turn how it ended into an exit code and, on errors, one clear line."""
    end_on_sigterm()
    try:
        return int(job())
    except ConfigError as error:
        return _report(error, Exit.BAD_CONFIG)
    except (RaysersError, MemoryError) as error:
        return _report(error, Exit.FAILED)
    except (KeyboardInterrupt, SystemExit) as error:
        code = getattr(error, "code", Exit.INTERRUPTED)
        if code in (Exit.DONE, Exit.BAD_CONFIG):  # --help, or arguments that do not parse
            return int(code)
        code = Exit.INTERRUPTED if code == Exit.INTERRUPTED else Exit.TERMINATED
        print(f"\n{code.name.lower()}: the same command resumes where it stopped", file=sys.stderr)
        return int(code)
    except BrokenPipeError:  # what read the output is gone, as `| head` is
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.FAILED)
    except Exception:
        traceback.print_exc()
        print("error: this is a bug; once it is fixed, the same command resumes", file=sys.stderr)
        return int(Exit.FAILED)


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the main thread like Ctrl-C; Ray replaces the handler when it starts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


_terminated = threading.Event()
#: Whether this process received SIGTERM.
is_terminated = _terminated.is_set


def _terminate(signum: int, frame: object) -> NoReturn:
    _terminated.set()
    raise SystemExit(int(Exit.TERMINATED))


def _report(error: BaseException, code: Exit) -> int:
    # file names in it may hold what a terminal would obey
    print(f"error: {with_packages(one_line(error)) or type(error).__name__}", file=sys.stderr)
    return int(code)


def quiet_environment() -> None:
    """Settings of Ray and the libraries that must be in the environment before they start."""
    for name, value in {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # workers started here are the user's job, not background work (Ray's default is nice 15)
        "RAY_worker_niceness": "0",
        # Ray's core logs its own trouble to the terminal; what matters reaches us as errors
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
