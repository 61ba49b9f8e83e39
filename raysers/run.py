"""The record of a run (`run.json`) and the rules for writing into a folder that already has one.

`settings` in the record are what decides the rows; a folder is only continued with equal ones.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from importlib import metadata
from typing import Any

import raysers
from raysers.errors import ConfigError, ObjectMissing, RaysersError, RefusedError
from raysers.io import storage

_VERSIONED = ("ray", "torch", "transformers", "soundfile", "soxr", "pyarrow", "numpy")


class Exit(IntEnum):
    """Exit codes of every job."""

    DONE = 0
    FAILED = 1
    BAD_CONFIG = 2
    TOO_MANY_FAILED = 3


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
        """Write the record atomically to `output`.

        Raises:
            WriteError: the folder cannot be written.
        """
        record = {name: getattr(self, name) for name in self.__slots__}
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        storage.write_atomic(storage.join(output, "run.json"), (text + "\n").encode())


def now() -> str:
    """The present instant, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_record(
    job: str, config: Mapping[str, Any], settings: Mapping[str, Any], earlier: RunRecord | None
) -> RunRecord:
    """A record with status `running` and a fresh run id, remembering the `earlier` one."""
    history: tuple[Mapping[str, Any], ...] = ()
    if earlier is not None:
        past = {
            "run_id": earlier.run_id,
            "status": earlier.status,
            "started_at": earlier.started_at,
            "finished_at": earlier.finished_at,
            "outcome": earlier.outcome,
        }
        history = (*earlier.history, past)
    return RunRecord(
        run_id=uuid.uuid4().hex[:16],
        job=job,
        status="running",
        started_at=now(),
        config=config,
        settings=settings,
        versions=_versions(),
        command=sys.argv,
        history=history,
    )


def finished(record: RunRecord, status: str, outcome: Mapping[str, Any]) -> RunRecord:
    """The record at the end: `done`, `done_with_failures` or `failed`, with the figures."""
    return replace(record, status=status, finished_at=now(), outcome=outcome)


def load_record(output: str) -> RunRecord | None:
    """The record in `output`, or None when the folder has none.

    Raises:
        ConfigError: a `run.json` is there but is not one of ours.
        StorageError: it cannot be read for another reason.
    """
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


def refuse_other_settings(
    output: str, earlier: RunRecord, job: str, settings: Mapping[str, Any]
) -> None:
    """Raises RefusedError naming every setting in which `output` differs from this command."""
    if earlier.job != job:
        raise RefusedError(
            f"--output {output} holds a run of {earlier.job!r}: choose another folder for {job!r}"
        )
    differing = [
        f"{key} was {earlier.settings.get(key)!r}, now {settings.get(key)!r}"
        for key in sorted({*earlier.settings, *settings})
        if earlier.settings.get(key) != settings.get(key)
    ]
    if differing:
        raise RefusedError(
            f"--output {output} holds rows of other settings ({'; '.join(differing)}): "
            "choose another folder, or repeat the earlier settings to resume"
        )


def _versions() -> dict[str, str]:
    found = {"raysers": raysers.__version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def run_main(job: Callable[[], int]) -> int:
    """Run a job's body and turn how it ended into an exit code and, on errors, one clear line."""
    try:
        return int(job())
    except ConfigError as error:
        return _report(error, Exit.BAD_CONFIG)
    except (RaysersError, MemoryError) as error:
        return _report(error, Exit.FAILED)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes where it stopped", file=sys.stderr)
        return int(Exit.FAILED)
    except SystemExit as error:
        if error.code in (Exit.DONE, Exit.BAD_CONFIG):  # --help, or arguments that do not parse
            return int(error.code)
        print("\nended by a signal: the same command resumes where it stopped", file=sys.stderr)
        return int(Exit.FAILED)
    except Exception:
        traceback.print_exc()
        print("error: this is a bug; the same command resumes once it is mended", file=sys.stderr)
        return int(Exit.FAILED)


def _report(error: BaseException, code: Exit) -> int:
    # file names in it may hold what a terminal would obey
    text = "".join(c if c.isprintable() else " " for c in str(error))
    text = " ".join(text.split()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    return int(code)


def quiet_environment() -> None:
    """Settings of Ray and the libraries that must be in the environment before they start."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's core logs its own trouble to the terminal; what matters reaches us as errors
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
