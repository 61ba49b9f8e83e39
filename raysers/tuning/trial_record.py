"""What is known of a piece of work, in `PATH/trial.json`: it survives its process.

Only the driver writes it: when a piece starts, when it failed and is tried again, when it ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ray.train import TrainingFailedError

from raysers.errors import (
    ConfigError,
    DeviceLost,
    ObjectMissing,
    RaysersError,
    StorageError,
    TrainingDiverged,
    WriteError,
)
from raysers.io import storage
from raysers.training.dataset import TooManyFailed

_FILE = "trial.json"
_MAX_ERROR = 2000

#: Errors that trying again at once would only repeat.
_REPEATED = (ConfigError, TooManyFailed, TrainingDiverged)

#: Errors that somebody may have mended by the next command: a hub, a package, access, a disk.
_OUTSIDE = (ConfigError, DeviceLost, OSError, StorageError, WriteError)

Status = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A piece of work that has ended, or (in its record only) is still `running`.

    Attributes:
        name: of the piece.
        path: its folder.
        status: done; stopped by the scheduler; or failed as often as it may.
        error: why it failed; empty otherwise.
        result: what its call returned.
        reports: what it reported on its way, in order.
        wall_s: seconds it ran, over all attempts that came to an end.
        attempts: how often it was started.
        failures: how often it failed.
        repeats: whether it would fail in the same way again at once.
        outside: whether it failed of something outside of it, which may be well by the next
            command.
        notes: of the piece.
    """

    name: str
    path: str
    status: Status
    error: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    reports: Sequence[Mapping[str, Any]] = ()
    wall_s: float = 0.0
    attempts: int = 0
    failures: int = 0
    repeats: bool = False
    outside: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    def is_over(self, retries: int) -> bool:
        """Whether nothing is left to try in this command, with so many retries."""
        if self.status == "failed":
            return self.repeats or self.failures > retries
        return self.status != "running"

    def is_final(self, retries: int) -> bool:
        """Whether nothing is left to do for another command, with so many retries."""
        return self.is_over(retries) and not (self.status == "failed" and self.outside)

    def again(self) -> TrialRecord:
        """As another command takes it up, which does not count what came from outside."""
        return replace(self, failures=0, repeats=False, outside=False) if self.outside else self

    def save(self) -> None:
        """Write the record.

        Raises:
            WriteError: the folder cannot be written.
        """
        values = {k: v for k, v in asdict(self).items() if k != "path"}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        storage.write_atomic(storage.join(self.path, _FILE), text.encode())


def stored(path: str) -> TrialRecord | None:
    """The record in the folder `path`, or None when the piece was never started.

    Raises:
        RaysersError: it is damaged.
    """
    uri = storage.join(path, _FILE)
    try:
        values = json.loads(storage.read_bytes(uri))
        return TrialRecord(**{**values, "path": path, "reports": tuple(values["reports"])})
    except ObjectMissing:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RaysersError(f"{uri} is damaged ({error}): delete its folder") from error


def failure(error: Exception) -> dict[str, Any]:
    """What a record says of an error: `error`, `repeats` and `outside`."""
    words = " ".join(str(error).split())
    kind = "" if isinstance(error, RaysersError) else f"{type(error).__name__}: "
    # of training workers that died, or never started, only the cause tells
    lost = isinstance(error, RaysersError) and isinstance(error.__cause__, TrainingFailedError)
    return {
        "error": f"{kind}{words}"[:_MAX_ERROR],
        "repeats": isinstance(error, _REPEATED),
        "outside": lost or isinstance(error, _OUTSIDE),
    }


def missing(needed: Iterable[TrialRecord | None]) -> str:
    """Why what needs these pieces cannot begin; empty when all are done."""
    for one in needed:
        if one is not None and one.status != "done":
            return f"it needs {one.name}, which {one.status}: {one.error}"[:_MAX_ERROR]
    return ""
